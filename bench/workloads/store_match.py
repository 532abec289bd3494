"""Longest match over real text, K = 5: ours from tokens, an exact get of the same rows, and peers that probe. Worker function."""

from __future__ import annotations

import time

import numpy as np

from bench import check, data, pages, peers, spread, text
from bench.peers.base import Peer
from bench.timed import nanoseconds


def match(*, subject: str, source: str, positions: int, calls: int, warmup_s: float, seed: int) -> dict:
    """Stretches of held-out text, everything warm and cached: `us_per_position`, `p99_us_per_call`.

    Lengths and rows of some stretches are checked against the definition before the timing.
    """
    origin = data.load(source)
    peer = peers.opened(subject, origin)
    files = peer.files(peers.files_folder(peer, origin.folder))
    pages.warm(files)
    ahead = text.stretches(origin, calls, positions, seed + 500_000)
    checked = sum(_check(peer, origin, stretch) for stretch in ahead[:4])
    end = time.perf_counter() + warmup_s
    while time.perf_counter() < end:
        _time(peer, ahead[: max(1, calls // 10)], origin.dim)
    _time(
        peer, wanted := text.stretches(origin, calls, positions, seed), origin.dim
    )  # the rows of these are cached now
    pages.warm(files)  # again: a kernel that reclaims idle pages may have taken some meanwhile
    times = _time(peer, wanted, origin.dim)
    per_call = spread.of_calls(times, positions)
    resident = pages.resident_share(files)
    lengths = np.concatenate([stretch.lengths_T for stretch in wanted])
    return {
        "metrics": {
            "us_per_position": per_call["us_per_key"],
            "p99_us_per_call": per_call["p99_us_per_call"],
            "max_us_per_call": per_call["max_us_per_call"],
        },
        "facts": {
            "settings": peer.settings,
            "rows_checked": checked,
            "num_ngrams": origin.num_keys,
            "matched_share": float((lengths > 0).mean()),
            "mean_length_of_matches": float(lengths[lengths > 0].mean()) if lengths.any() else 0.0,
            "page_cache_share": resident,
            "warnings": []
            if resident > 0.999
            else [f"only {resident:.1%} of the files were in the page cache at the end"],
            **peer.facts(),
        },
    }


def _check(peer: Peer, origin: data.Dataset, stretch: text.Positions) -> int:
    out_TD = np.full((len(stretch), origin.dim), np.nan, np.float32)
    lengths_T = np.asarray(peer.longest(stretch, out_TD))
    want_TD, want_T = stretch.exact.expected(origin)
    if peer.probes:  # an exact get has no context: its first position may meet a bigram that the text does not have
        want_T = stretch.lengths_T > 0
        want_TD[~want_T] = 0
        if not np.array_equal(lengths_T, stretch.lengths_T):
            place = int(np.flatnonzero(lengths_T != stretch.lengths_T)[0])
            raise check.WrongAnswer(
                f"{peer.name}: length[{place}] is {lengths_T[place]}, by definition {stretch.lengths_T[place]}"
            )
    return check.must_match(peer.name, out_TD, lengths_T > 0, want_TD, want_T)


def _time(peer: Peer, wanted: list[text.Positions], dim: int) -> np.ndarray:
    """Nanoseconds of each call."""
    out_TD = np.zeros((len(wanted[0]), dim), np.float32)
    if hasattr(peer, "know"):
        peer.know([stretch.exact for stretch in wanted])
    return nanoseconds(peer.longest, wanted, out_TD)
