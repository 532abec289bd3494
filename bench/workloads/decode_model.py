"""Decoders with a store in front, beside the same decoder with a plain nn.Embedding. Worker functions.

Steps of the two are timed in turn, one right after the other, so that a busy machine slows both alike.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import ngramstore
from bench import pages
from ngramstore_torch import Decoder, DecoderConfig, KVCache, NGramEmbedding

VOCAB = 50_257
SIZES = {
    "10M": {"dim": 128, "num_layers": 10, "num_heads": 4},
    "50M": {"dim": 512, "num_layers": 8, "num_heads": 8},
    "120M": {"dim": 768, "num_layers": 12, "num_heads": 12},
}
CONTEXT = 128
_COLD_SLOTS = 64
_CANDIDATES = 8


def decoder_of(size: str, seed: int, max_positions: int) -> Decoder:
    """A decoder with random weights: speed does not depend on them."""
    torch.manual_seed(seed)
    return Decoder(DecoderConfig(vocab_size=VOCAB, max_positions=max_positions, **SIZES[size])).eval()


def opened(folder: str | Path, mode: str) -> ngramstore.Store:
    """The trace's store, with the cache that a mode asks for."""
    with ngramstore.open(Path(folder) / "store", cache_bytes=0) as probe:
        slot = probe.spec.codec.row_bytes + 32
        rows = len(probe)
    slots = {"cached": rows, "tenth": max(1, rows // 10)}.get(mode, _COLD_SLOTS)
    return ngramstore.open(Path(folder) / "store", cache_bytes=slots * slot)


def step(*, mode: str, size: str, trace: str, batch: int, steps: int, threads: int, seed: int) -> dict:
    """One-token steps of `batch` sequences after 128 tokens of context, store and plain in turn.

    mode: "cached" all rows in the row cache; "tenth" a tenth of them, the rest in the page cache; "cold" the rows' pages
    are dropped before each step and the row cache is tiny; "cold_candidates" so too, while 8 candidates that hold the
    next token are fetched during the step before.
    """
    torch.set_num_threads(threads)
    held_X = np.load(Path(trace) / "held_out.npy")
    store = opened(trace, mode)
    decoder = decoder_of(size, seed, CONTEXT + 8)
    embedding = NGramEmbedding(store, decoder.tokens)
    caches = [KVCache(decoder.config, batch) for _ in range(2)]
    rng = np.random.default_rng(seed)
    begin_B = rng.integers(0, len(held_X) - steps - CONTEXT, batch)
    tokens_BS = torch.from_numpy(held_X[begin_B[:, None] + np.arange(CONTEXT + steps)].astype(np.int64))
    is_cold = mode.startswith("cold")
    row_files = [path for path in store.files if path.suffix == ".rows"]
    times = np.zeros((steps, 2), np.int64)
    with torch.inference_mode():
        history = embedding.new_history(batch)
        for cache in caches:
            decoder(inputs_BTD=embedding(tokens_BS[:, :CONTEXT]), cache=cache)
        embedding(tokens_BS[:, :CONTEXT], history=history)
        pages.warm(store.files)
        if mode in (
            "cached",
            "tenth",
        ):  # the cache as it is after long use: other text of the same kind went through it
            for at in range(0, min(len(held_X), 1 << 17) - 1024, 1024):
                store.lookup(held_X[at : at + 1024])
            if mode == "cached":
                store.lookup(tokens_BS.numpy())
        cold_share = []
        embedding.stats.reset()
        gc.collect()
        gc.disable()
        for s in range(steps):
            token_B1 = tokens_BS[:, CONTEXT + s : CONTEXT + s + 1]
            order = (0, 1) if s % 2 else (1, 0)
            for which in order:
                cache = caches[which]
                cache.length = CONTEXT  # every step at the same length
                start = time.perf_counter_ns()
                if which == 0:
                    inputs = embedding(token_B1, history=history)
                    if mode == "cold_candidates" and s + 1 < steps:
                        embedding.prefetch_candidates(_candidates(tokens_BS[:, CONTEXT + s + 1], rng), history)
                    decoder(inputs_BTD=inputs, cache=cache)
                else:
                    decoder(token_B1, cache=cache)
                times[s, which] = time.perf_counter_ns() - start
            if mode == "cold":
                pages.drop(row_files)
                cold_share.append(pages.resident_share(row_files))
            elif is_cold and embedding._candidates is not None:
                embedding._candidates.wait()
                pages.drop(row_files)
    gc.enable()
    warmed = times[steps // 5 :] / 1e3
    served, plain = warmed[:, 0], warmed[:, 1]
    stats, cache_stats = embedding.stats.as_dict(), store.stats()
    hit_rate = cache_stats["hit_rate"]
    store.close()
    return {
        "metrics": {
            "step_us": float(np.median(served)),
            "plain_us": float(np.median(plain)),
            "longer": float(np.median(served) / np.median(plain)),
            "longer_paired": float(np.median(served / plain)),
            "p99_step_us": float(np.percentile(served, 99)),
            "wait_p50_us": stats["wait_p50_us"],
            "wait_p99_us": stats["wait_p99_us"],
        },
        "facts": {
            "parameters": decoder.config.num_parameters(),
            "steps": len(warmed),
            "found_share": stats["found_share"],
            "hit_rate": hit_rate,
            "rows": cache_stats["rows"],
            "row_bytes": cache_stats["row_bytes"],
            "mean_pages_left_before_a_step": float(np.mean(cold_share)) if cold_share else None,
        },
    }


def prefill(
    *, mode: str, size: str, trace: str, batch: int, length: int, repeats: int, threads: int, seed: int
) -> dict:
    """Prompts of `batch` x `length` tokens: the look-up beside the decoder's pass; `share` = look-up / decoder."""
    torch.set_num_threads(threads)
    held_X = np.load(Path(trace) / "held_out.npy")
    store = opened(trace, mode)
    decoder = decoder_of(size, seed, length)
    embedding = NGramEmbedding(store, decoder.tokens)
    rng = np.random.default_rng(seed)
    lookups, passes, plain = [], [], []
    pages.warm(store.files)
    with torch.inference_mode():
        for turn in range(repeats + 1):
            begin_B = rng.integers(0, len(held_X) - length, batch)
            tokens_BT = torch.from_numpy(held_X[begin_B[:, None] + np.arange(length)].astype(np.int64))
            if turn == 0 or mode == "cached":
                embedding(tokens_BT)
            lookups.append(_timed(lambda tokens=tokens_BT: embedding(tokens)))
            plain.append(_timed(lambda tokens=tokens_BT: decoder.tokens(tokens)))
            inputs = embedding(tokens_BT)
            passes.append(_timed(lambda x=inputs: decoder(inputs_BTD=x)))
    lookup, whole = float(np.median(lookups[1:])), float(np.median(passes[1:]))
    store.close()
    return {
        "metrics": {
            "lookup_ms": lookup / 1e6,
            "decoder_ms": whole / 1e6,
            "share": lookup / whole,
            "plain_embedding_ms": float(np.median(plain[1:])) / 1e6,
        },
        "facts": {"found_share": embedding.stats.as_dict()["found_share"], "repeats": repeats},
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
        "facts": {"found_share": float(found.mean()), "dim": store.dim, "calls": calls},
    }


def _candidates(next_B: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """8 candidates a sequence; the token that comes next is among them."""
    drawn = torch.from_numpy(rng.integers(0, VOCAB, (len(next_B), _CANDIDATES)))
    drawn[:, 0] = next_B
    return drawn


def _timed(work: Callable[[], object]) -> int:
    start = time.perf_counter_ns()
    work()
    return time.perf_counter_ns() - start
