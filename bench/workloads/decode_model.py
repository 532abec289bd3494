"""Decoders with a store in front, beside the same decoder with a plain nn.Embedding. Worker functions.

Steps of the two are timed in turn, one right after the other, so that a busy machine slows both alike.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
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


def _steps(
    mode: str,
    store: ngramstore.Store,
    decoder: Decoder,
    caches: list[KVCache],
    tokens_BS: torch.Tensor,
    held_X: np.ndarray,
    seconds: float,
) -> dict:
    """One mode. Both sides make their inputs first and run the same decoder on them; each has a key-value cache of its own."""
    embedding = NGramEmbedding(store, decoder.tokens)
    history = embedding.new_history(len(tokens_BS))
    embedding(tokens_BS[:, :CONTEXT], history=history)
    rng = np.random.default_rng(0)
    row_files = [path for path in store.files if path.suffix == ".rows"]
    pages.warm(store.files)
    is_cold = mode in ("cold", "candidates")
    if not is_cold:  # the cache as it is after long use: other text of the same kind went through it
        for at in range(0, min(len(held_X), 1 << 17) - 1024, 1024):
            store.lookup(held_X[at : at + 1024])
        if mode == "cached":
            store.lookup(tokens_BS.numpy())
    times, pages_left, is_read = [], [], []
    embedding.stats.reset()
    before = store.stats()
    rows_read = before["rows_read"]
    gc.collect()
    gc.disable()
    end = time.perf_counter() + seconds
    for s in range(MOST_STEPS - 1):
        if len(times) >= FEWEST_STEPS and time.perf_counter() > end:
            break
        token_B1 = tokens_BS[:, CONTEXT + s : CONTEXT + s + 1]
        took = [0, 0, 0, 0]
        if is_cold:
            if embedding._candidates is not None:
                embedding._candidates.wait()
            pages.drop(row_files)
            pages_left.append(pages.resident_share(row_files))
        for which in (0, 1) if s % 2 else (1, 0):
            cache = caches[which]
            cache.length = CONTEXT  # every step at the same length
            start = time.perf_counter_ns()
            if which == 0:
                inputs = embedding(token_B1, history=history)
                made = time.perf_counter_ns()
                if mode == "candidates":
                    embedding.prefetch_candidates(_candidates(tokens_BS[:, CONTEXT + s + 1], rng), history)
            else:
                inputs = decoder.tokens(token_B1)
                made = time.perf_counter_ns()
            decoder(inputs_BTD=inputs, cache=cache)
            took[which], took[2 + which] = time.perf_counter_ns() - start, made - start
        times.append(took)
        is_read.append(store.stats()["rows_read"] > rows_read)
        rows_read = store.stats()["rows_read"]
    gc.enable()
    warmed = np.array(times[len(times) // 5 :]) / 1e3
    read = np.array(is_read[len(times) // 5 :])
    served, plain, call, own = warmed.T
    stats, after = embedding.stats.as_dict(), store.stats()
    hits = after.get("cache_hits", 0) - before.get("cache_hits", 0)
    asked = hits + after.get("cache_misses", 0) - before.get("cache_misses", 0)
    metrics = {
        "step_us": np.median(served),
        "plain_us": np.median(plain),
        "longer": np.median(served) / np.median(plain),
        "paired": np.median(served / plain),
        "added": (np.median(call) - np.median(own)) / np.median(plain),
        "call_us": np.median(call),
        "own_us": np.median(own),
        "p99_step_us": np.percentile(served, 99),
        "wait_p50_us": stats["wait_p50_us"],
        "wait_p99_us": stats["wait_p99_us"],
    }
    if is_cold and read.any():
        metrics["call_us_that_read"] = np.median(call[read])
    return {
        "metrics": {name: float(value) for name, value in metrics.items()},
        "facts": {
            "steps": len(warmed),
            "found_share": stats["found_share"],
            "hit_rate": hits / asked if asked else None,
            "rows_read_a_step": (after["rows_read"] - before["rows_read"]) / len(times),
            "rows": after["rows"],
            "row_bytes": after["row_bytes"],
            "rows_pages_left": float(np.mean(pages_left)) if pages_left else None,
        },
    }


def prefill(*, size: str, trace: str, batch: int, length: int, turns: int, threads: int, seed: int) -> dict:
    """Prompts of `batch` x `length` tokens: look-ups beside the decoder's pass; `share` = look-up / decoder.

    The row cache holds all rows, or a tenth with the rest in the page cache; each turn's prompts are other text.
    """
    torch.set_num_threads(threads)
    held_X = np.load(Path(trace) / "held_out.npy")
    decoder = decoder_of(size, seed, length)
    stores = {mode: opened(trace, mode) for mode in ("cached", "tenth")}
    embeddings = {mode: NGramEmbedding(store, decoder.tokens) for mode, store in stores.items()}
    rng = np.random.default_rng(seed)
    lookups: dict[str, list[int]] = {mode: [] for mode in stores}
    passes, plain = [], []
    pages.warm(stores["cached"].files)
    with torch.inference_mode():
        some_BT = torch.from_numpy(held_X[:length].astype(np.int64))[None]
        checked = sum(must_be_the_traces(NGramEmbedding(s, decoder.tokens), trace, some_BT) for s in stores.values())
        for turn in range(turns + 1):  # the first one loads kernels and fills caches
            begin_B = rng.integers(0, len(held_X) - length, batch)
            tokens_BT = torch.from_numpy(held_X[begin_B[:, None] + np.arange(length)].astype(np.int64))
            embeddings["cached"](tokens_BT)
            for mode, embedding in embeddings.items():
                lookups[mode].append(_timed(lambda embed=embedding, tokens=tokens_BT: embed(tokens)))
            plain.append(_timed(lambda tokens=tokens_BT: decoder.tokens(tokens)))
            if turn:
                inputs = embeddings["cached"](tokens_BT)
                passes.append(_timed(lambda x=inputs: decoder(inputs_BTD=x)))
    whole = float(np.median(passes))
    metrics = {"decoder_ms": whole / 1e6, "plain_embedding_ms": float(np.median(plain[1:])) / 1e6}
    for mode, times in lookups.items():
        metrics[f"lookup_ms_{mode}"] = float(np.median(times[1:])) / 1e6
        metrics[f"share_{mode}"] = float(np.median(times[1:])) / whole
    found = {mode: embedding.stats.as_dict()["found_share"] for mode, embedding in embeddings.items()}
    for store in stores.values():
        store.close()
    return {
        "metrics": metrics,
        "facts": {"found_share": found["cached"], "turns": turns, "threads": threads, "vectors_checked": checked},
    }


def overhead(*, dim_trace: str, calls: int, threads: int, seed: int) -> dict:
    """One call of the module at batch 1, one token, everything cached, everything included; and of nn.Embedding."""
    torch.set_num_threads(threads)
    held_X = np.load(Path(dim_trace) / "held_out.npy")
    store = opened(dim_trace, "cached")
    own = torch.nn.Embedding(VOCAB, store.dim)
    embedding = NGramEmbedding(store, own)
    begin = int(np.random.default_rng(seed).integers(0, len(held_X) - calls))
    tokens = [torch.tensor([[int(token)]]) for token in held_X[begin : begin + calls]]
    lengths = store.match(held_X[begin : begin + calls])
    times = np.zeros((calls, 2), np.int64)
    with torch.inference_mode():
        checked = must_be_the_traces(NGramEmbedding(store, own), dim_trace, torch.cat(tokens[:CONTEXT], dim=1))
        for turn in range(2):
            history = embedding.new_history(1)
            gc.collect()
            gc.disable()
            for i, token in enumerate(tokens):
                times[i, 0] = _timed(lambda token=token, history=history: embedding(token, history=history))
                times[i, 1] = _timed(lambda token=token: own(token))
            gc.enable()
            del turn
    module, plain = times[:, 0] / 1e3, times[:, 1] / 1e3
    found = lengths >= 2
    store.close()
    return {
        "metrics": {
            "call_us": float(np.median(module)),
            "call_found_us": float(np.median(module[found])),
            "call_not_found_us": float(np.median(module[~found])),
            "fastest_tenth_us": float(np.percentile(module, 10)),
            "p99_us": float(np.percentile(module, 99)),
            "nn_embedding_us": float(np.median(plain)),
        },
        "facts": {"found_share": float(found.mean()), "dim": store.dim, "calls": calls, "vectors_checked": checked},
    }


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


def _timed(work: Callable[[], object]) -> int:
    start = time.perf_counter_ns()
    work()
    return time.perf_counter_ns() - start
