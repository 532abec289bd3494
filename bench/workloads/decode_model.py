"""Decoders with a store in front, beside the same decoder with a plain nn.Embedding: one-token steps. Worker function.

Steps of the two are timed in turn, one right after the other, so that a busy machine slows both alike.
"""

from __future__ import annotations

import gc
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ngramstore
from bench import check, pages, traces
from ngramstore.serve.row_cache import SLOT_OVERHEAD_BYTES
from ngramstore_torch import Decoder, DecoderConfig, KVCache, NGramEmbedding

VOCAB = 50_257
SIZES = {
    "10M": {"dim": 128, "num_layers": 10, "num_heads": 4},
    "50M": {"dim": 512, "num_layers": 8, "num_heads": 8},
    "120M": {"dim": 768, "num_layers": 12, "num_heads": 12},
}
CONTEXT = 128
CANDIDATES = 8
MOST_STEPS, FEWEST_STEPS = 400, 12


def decoder_of(size: str, seed: int, max_positions: int) -> Decoder:
    """A decoder with random weights: speed does not depend on them."""
    torch.manual_seed(seed)
    return Decoder(DecoderConfig(vocab_size=VOCAB, max_positions=max_positions, **SIZES[size])).eval()


def opened(folder: str | Path, mode: str, batch: int = 1) -> ngramstore.Store:
    """The trace's store, with the cache that a mode asks for."""
    with ngramstore.open(Path(folder) / "store", cache_bytes=0) as probe:
        slot = probe.spec.codec.row_bytes + SLOT_OVERHEAD_BYTES
        rows = len(probe)
    slots = {"cached": rows, "tenth": max(1, rows // 10), "candidates": 2 * CANDIDATES * batch, "cold": 0}[mode]
    return ngramstore.open(Path(folder) / "store", cache_bytes=slots * slot)


def step(*, size: str, trace: str, batch: int, seconds: float, threads: int, modes: list[str], seed: int) -> dict:
    """One-token steps of `batch` sequences after 128 tokens of context, store and plain in turn, `seconds` for each mode.

    modes: "cached" all rows in the row cache; "tenth" a tenth of them, the rest in the page cache; "cold" no row cache, and
    the rows' pages are dropped before each step; "candidates" so too, while 8 candidates that hold the next token are
    fetched into a cache of 16 a sequence during the step before. The index stays in memory.
    """
    torch.set_num_threads(threads)
    held_X = np.load(Path(trace) / "held_out.npy")
    decoder = decoder_of(size, seed, CONTEXT + 8)
    caches = [KVCache(decoder.config, batch) for _ in range(2)]
    for cache in caches:  # what is in it does not change the time of a step
        cache.keys.normal_()
        cache.values.normal_()
    begin_B = np.random.default_rng(seed).integers(0, len(held_X) - MOST_STEPS - CONTEXT, batch)
    tokens_BS = torch.from_numpy(held_X[begin_B[:, None] + np.arange(CONTEXT + MOST_STEPS)].astype(np.int64))
    metrics: dict[str, float] = {}
    facts: dict[str, Any] = {"parameters": decoder.config.num_parameters(), "warnings": []}
    for mode in modes:
        store = opened(trace, mode, batch)
        with torch.inference_mode():
            checked = must_be_the_traces(NGramEmbedding(store, decoder.tokens), trace, tokens_BS[:, :CONTEXT])
            found = _steps(mode, store, decoder, caches, tokens_BS, held_X, seconds)
        metrics |= {f"{name}_{mode}": value for name, value in found["metrics"].items()}
        facts[mode] = found["facts"] | {"vectors_checked": checked}
        if (left := found["facts"]["rows_pages_left"]) is not None and left > 0.01:
            facts["warnings"].append(f"{mode}: {left:.0%} of the rows' pages were still in memory")
        store.close()
    return {"metrics": metrics, "facts": facts}


class _Sides:
    """The same decoder behind a store and behind its own nn.Embedding, on the same tokens; each side has a key-value
    cache of its own."""

    def __init__(
        self, mode: str, store: ngramstore.Store, decoder: Decoder, caches: list[KVCache], tokens_BS: torch.Tensor
    ) -> None:
        self._has_candidates = mode == "candidates"
        self._decoder, self._tokens_BS = decoder, tokens_BS
        self._served_cache, self._plain_cache = caches
        self._rng = np.random.default_rng(0)
        self.embedding = NGramEmbedding(store, decoder.tokens)
        self._history = self.embedding.new_history(len(tokens_BS))
        self.embedding(tokens_BS[:, :CONTEXT], history=self._history)

    def both(self, s: int) -> tuple[int, int, int, int]:
        """Step s on both sides, the other one first each time: nanoseconds served and plain, and of making the inputs
        of either."""
        if s % 2:
            (served, call), (plain, own) = self._served(s), self._plain(s)
        else:
            (plain, own), (served, call) = self._plain(s), self._served(s)
        return served, plain, call, own

    def wait(self) -> None:
        """Until the candidates of the step before are fetched."""
        if self.embedding._candidates is not None:
            self.embedding._candidates.wait()

    def _served(self, s: int) -> tuple[int, int]:
        token_B1 = self._tokens_BS[:, CONTEXT + s : CONTEXT + s + 1]
        self._served_cache.length = CONTEXT  # every step at the same length
        start = time.perf_counter_ns()
        inputs = self.embedding(token_B1, history=self._history)
        made = time.perf_counter_ns()
        if self._has_candidates:
            likely = _candidates(self._tokens_BS[:, CONTEXT + s + 1], self._rng)
            self.embedding.prefetch_candidates(likely, self._history)
        self._decoder(inputs_BTD=inputs, cache=self._served_cache)
        return time.perf_counter_ns() - start, made - start

    def _plain(self, s: int) -> tuple[int, int]:
        token_B1 = self._tokens_BS[:, CONTEXT + s : CONTEXT + s + 1]
        self._plain_cache.length = CONTEXT
        start = time.perf_counter_ns()
        inputs = self._decoder.tokens(token_B1)
        made = time.perf_counter_ns()
        self._decoder(inputs_BTD=inputs, cache=self._plain_cache)
        return time.perf_counter_ns() - start, made - start


def _steps(
    mode: str,
    store: ngramstore.Store,
    decoder: Decoder,
    caches: list[KVCache],
    tokens_BS: torch.Tensor,
    held_X: np.ndarray,
    seconds: float,
) -> dict:
    """One mode: metrics and facts. The first fifth of the steps is not counted."""
    sides = _Sides(mode, store, decoder, caches, tokens_BS)
    row_files = [path for path in store.files if path.suffix == ".rows"]
    pages.warm(store.files)
    is_cold = mode in ("cold", "candidates")
    if not is_cold:
        _use(store, mode, held_X, tokens_BS)
    times, pages_left, is_read = [], [], []
    sides.embedding.stats.reset()
    before = store.stats()
    rows_read = before["rows_read"]
    gc.collect()
    gc.disable()
    end = time.perf_counter() + seconds
    for s in range(MOST_STEPS - 1):
        if len(times) >= FEWEST_STEPS and time.perf_counter() > end:
            break
        if is_cold:
            sides.wait()
            pages.drop(row_files)
            pages_left.append(pages.resident_share(row_files))
        times.append(sides.both(s))
        was, rows_read = rows_read, store.stats()["rows_read"]
        is_read.append(rows_read > was)
    gc.enable()
    stats, after = sides.embedding.stats.as_dict(), store.stats()
    first = len(times) // 5
    metrics = _step_metrics(np.array(times[first:]) / 1e3, np.array(is_read[first:]) if is_cold else None)
    hits, misses = (after.get(name, 0) - before.get(name, 0) for name in ("cache_hits", "cache_misses"))
    return {
        "metrics": metrics | {name: float(stats[name]) for name in ("wait_p50_us", "wait_p99_us")},
        "facts": {
            "steps": len(times) - first,
            "found_share": stats["found_share"],
            "hit_rate": hits / (hits + misses) if hits + misses else None,
            "rows_read_a_step": (after["rows_read"] - before["rows_read"]) / len(times),
            "rows": after["rows"],
            "row_bytes": after["row_bytes"],
            "rows_pages_left": float(np.mean(pages_left)) if pages_left else None,
        },
    }


def _use(store: ngramstore.Store, mode: str, held_X: np.ndarray, tokens_BS: torch.Tensor) -> None:
    """Leave the row cache as it is after long use: other text of the same kind went through it, and in mode "cached"
    this one too."""
    for at in range(0, min(len(held_X), 1 << 17) - 1024, 1024):
        store.lookup(held_X[at : at + 1024])
    if mode == "cached":
        store.lookup(tokens_BS.numpy())


def _step_metrics(micros_S4: np.ndarray, is_read_S: np.ndarray | None) -> dict[str, float]:
    """Medians of the steps (S, 4): served, plain, making the inputs of either. is_read: which steps read rows, where
    they are cold."""
    served, plain, call, own = micros_S4.T
    metrics = {
        "step_us": np.median(served),
        "plain_us": np.median(plain),
        "longer": np.median(served) / np.median(plain),
        "paired": np.median(served / plain),
        "added": (np.median(call) - np.median(own)) / np.median(plain),
        "call_us": np.median(call),
        "own_us": np.median(own),
        "p99_step_us": np.percentile(served, 99),
    }
    if is_read_S is not None and is_read_S.any():
        metrics["call_us_that_read"] = np.median(call[is_read_S])
    return {name: float(value) for name, value in metrics.items()}


def must_be_the_traces(embedding: NGramEmbedding, trace: str | Path, tokens_BT: torch.Tensor) -> int:
    """Compare the module's vectors with the trace's rows, and with the token's own where no n-gram ends: the text in one
    call, and token by token with a history. Rows that cost too much to make again are compared by whether they are the token's
    own only. Returns how many vectors were compared. Raises WrongAnswer.
    """
    numbers_BT, rows_CD = traces.answers(Path(trace), tokens_BT.numpy())
    own_BTD = embedding.token_embedding(tokens_BT).numpy()
    codec = embedding.store.spec.codec
    is_known_BT = numbers_BT < len(rows_CD)
    known = np.where(is_known_BT, numbers_BT, -1)
    want_BTD = own_BTD.copy()
    want_BTD[known >= 0] = codec.decode(codec.encode(rows_CD[known[known >= 0]]))
    history = embedding.new_history(len(tokens_BT))
    one_by_one = [embedding(tokens_BT[:, t : t + 1], history=history) for t in range(tokens_BT.shape[1])]
    for got_BTD in (embedding(tokens_BT).numpy(), torch.cat(one_by_one, dim=1).numpy()):
        is_row_BT = (got_BTD != own_BTD).any(axis=2)
        if not np.array_equal(is_row_BT, numbers_BT >= 0):
            raise check.WrongAnswer("a position has a row where no n-gram ends, or none where one does")
        all_M = np.ones(int(is_known_BT.sum()), np.bool_)
        check.must_match("module", got_BTD[is_known_BT], all_M, want_BTD[is_known_BT], all_M)
    return 2 * numbers_BT.size


def _candidates(next_B: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """8 candidates a sequence; the token that comes next is among them."""
    drawn = torch.from_numpy(rng.integers(0, VOCAB, (len(next_B), CANDIDATES)))
    drawn[:, 0] = next_B
    return drawn
