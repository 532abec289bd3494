"""Look-ups of prompts beside the decoder's pass over them, and one call of the module by itself. Worker functions."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from bench import pages
from bench.workloads import decode_model
from bench.workloads.decode_model import decoder_of, must_be_the_traces, opened
from ngramstore_torch import NGramEmbedding


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
    own = torch.nn.Embedding(decode_model.VOCAB, store.dim)
    embedding = NGramEmbedding(store, own)
    begin = int(np.random.default_rng(seed).integers(0, len(held_X) - calls))
    tokens = [torch.tensor([[int(token)]]) for token in held_X[begin : begin + calls]]
    lengths = store.match(held_X[begin : begin + calls])
    times = np.zeros((calls, 2), np.int64)
    with torch.inference_mode():
        checked = must_be_the_traces(
            NGramEmbedding(store, own), dim_trace, torch.cat(tokens[: decode_model.CONTEXT], dim=1)
        )
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


def _timed(work: Callable[[], object]) -> int:
    start = time.perf_counter_ns()
    work()
    return time.perf_counter_ns() - start
