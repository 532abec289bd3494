"""Space and latency as SCONE's paper measures them. Worker functions.

Shapes: B tokens of one call, K longest n-gram, N orders (2..K), D row width.
"""

from __future__ import annotations

import gc
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import ngramstore
from bench import check, data, pages, peers, text
from bench.peers.base import Peer

_SMALL_CACHE = 1 << 16
"""For cold reads: bytes of row cache, a few rows, so that nothing asked for before is still there."""


@dataclass(frozen=True)
class Call:
    """B tokens that have nothing to do with each other, each with the K - 1 tokens before it, all of them matched."""

    windows_BK: np.ndarray
    stretch: text.Positions

    def expected(self, source: data.Dataset) -> tuple[np.ndarray, np.ndarray]:
        """Rows (B, D) f32 and the mask, all True."""
        return self.stretch.exact.expected(source)


def space(*, subject: str, source: str, root: str, fgrams: list[int], seed: int) -> dict:
    """Bytes a key on disk beside what `ngramstore.sizes` said; facts: gigabytes of larger tables."""
    del seed
    origin = data.load(source)
    peer = peers.create(subject)
    folder = Path(root) / f"space-{subject}-{origin.codec}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    peer.build(origin, folder)
    disk_bytes = sum(path.stat().st_size for path in peer.files(folder))
    shutil.rmtree(folder)
    metrics = {"bytes_per_key": disk_bytes / origin.num_keys}
    facts = {
        "settings": peer.settings,
        "num_keys": origin.num_keys,
        "dim": origin.dim,
        "row_bytes": origin.stored_NR.shape[1],
        "gb": {str(num): num * metrics["bytes_per_key"] / 1e9 for num in fgrams},
        "gb_by": "proportion",
    }
    if subject.startswith("ngramstore"):
        predicted = _predicted(origin.num_keys, origin)
        metrics["predicted_bytes_per_key"] = predicted.disk_bytes / origin.num_keys
        metrics["error_percent"] = 100 * (predicted.disk_bytes / disk_bytes - 1)
        if subject == "ngramstore":
            facts["gb"] = {str(num): _predicted(num, origin).disk_bytes / 1e9 for num in fgrams}
            facts["resident_gb"] = {str(num): _predicted(num, origin).resident_bytes / 1e9 for num in fgrams}
            facts["gb_by"] = "sizes"
    return {"metrics": metrics, "facts": facts}


def _predicted(num_rows: int, origin: data.Dataset):
    return ngramstore.sizes(num_rows, origin.dim, codec=origin.codec, mean_length=float(origin.lengths_N.mean()))[0]


def latency_ram(*, subject: str, source: str, batch_sizes: list[int], calls: int, warmup_s: float, seed: int) -> dict:
    """Everything in memory: `us@B`, `mean_us@B`, `p99_us@B` and `us_per_token@B` of a call with B tokens."""
    origin = data.load(source)
    peer = peers.opened(subject, origin)
    files = peer.files(peers.files_folder(peer, origin.folder))
    pages.warm(files)
    checked, metrics = 0, {}
    for size in batch_sizes:
        wanted = _calls(origin, size, calls, seed)
        checked += sum(_checked(peer, origin, call) for call in wanted[:20])
        out_BD = np.zeros((size, origin.dim), np.float32)
        end = time.perf_counter() + warmup_s / len(batch_sizes)
        for call in wanted:  # all of them once: their rows are cached now
            peer.tails(call.windows_BK, call.stretch, out_BD)
        while time.perf_counter() < end:
            peer.tails(wanted[0].windows_BK, wanted[0].stretch, out_BD)
        gc.collect()
        gc.disable()
        times = [_timed(peer, call, out_BD) for call in wanted]
        gc.enable()
        metrics |= _summary(times, size)
    resident = pages.resident_share(files)
    warnings = [] if resident > 0.999 else [f"only {resident:.1%} of the files were in the page cache at the end"]
    return {"metrics": metrics, "facts": {"settings": peer.settings, "rows_checked": checked, "warnings": warnings}}


def latency_disk(*, subject: str, source: str, batch_sizes: list[int], calls: int, seed: int) -> dict:
    """Rows dropped from memory before each call: the same metrics. A subject that maps its rows is opened anew each time."""
    origin = data.load(source)
    peer = peers.create(subject)
    folder = peers.files_folder(peer, origin.folder)
    dropped = peer.row_files(folder) if peer.index_apart else peer.files(folder)
    pages.warm(path for path in peer.files(folder) if path not in dropped)
    peer.open(folder, origin, _SMALL_CACHE)
    checked, metrics, reopened, worst = 0, {}, 0, 0.0
    for size in batch_sizes:
        out_BD = np.zeros((size, origin.dim), np.float32)
        times = []
        for turn, call in enumerate(_calls(origin, size, calls + 2, seed)):
            want = call.expected(origin)
            pages.drop(dropped)
            if pages.resident_share(dropped) > 0:
                peer.close()
                pages.drop(dropped)
                worst = max(worst, pages.resident_share(dropped))
                peer.open(folder, origin, _SMALL_CACHE)
                reopened += 1
            elapsed = _timed(peer, call, out_BD)
            checked += check.must_match(subject, out_BD, np.full(size, True), *want)
            if turn >= 2:  # the first ones compile
                times.append(elapsed)
        metrics |= _summary(times, size)
    warnings = [] if worst == 0 else [f"not cold: {worst:.1%} of the pages could not be dropped"]
    facts = {"rows_checked": checked, "reopened": reopened, "page_cache_share_after_drop": worst, "warnings": warnings}
    peer.close()
    return {"metrics": metrics, "facts": {"settings": peer.settings, **facts}}


def _calls(origin: data.Dataset, size: int, count: int, seed: int) -> list[Call]:
    """Matched positions of held-out text, drawn at random."""
    rng = np.random.default_rng([seed, size])
    K = text.MAX_N
    length = len(np.load(origin.folder.parent / f"{origin.folder.name}.held_out.npy"))
    (whole,) = text.stretches(origin, 1, min(1 << 17, length - 1), seed)
    matched = np.flatnonzero(whole.lengths_T > 0)
    matched = matched[matched >= K - 1]
    windows_TK = np.lib.stride_tricks.sliding_window_view(whole.tokens_T, K)
    found = []
    for _ in range(count):
        at = rng.choice(matched, size)
        exact = whole.exact
        picked = data.Batch(exact.ngrams_BK[at], exact.lengths_B[at], exact.ids_B[at], exact.numbers_B[at])
        windows_BK = np.ascontiguousarray(windows_TK[at - (K - 1)])
        found.append(
            Call(windows_BK, text.Positions(whole.tokens_T[at], whole.ids_TN[at], whole.lengths_T[at], picked))
        )
    return found


def _timed(peer: Peer, call: Call, out_BD: np.ndarray) -> int:
    """Nanoseconds of one call."""
    start = time.perf_counter_ns()
    peer.tails(call.windows_BK, call.stretch, out_BD)
    return time.perf_counter_ns() - start


def _checked(peer: Peer, origin: data.Dataset, call: Call) -> int:
    out_BD = np.full((len(call.windows_BK), origin.dim), np.nan, np.float32)
    lengths_B = np.asarray(peer.tails(call.windows_BK, call.stretch, out_BD))
    if not np.array_equal(lengths_B, call.stretch.lengths_T):
        raise check.WrongAnswer(f"{peer.name}: lengths are {lengths_B}, by definition {call.stretch.lengths_T}")
    return check.must_match(peer.name, out_BD, lengths_B > 0, *call.expected(origin))


def _summary(times: list[int], size: int) -> dict[str, float]:
    micros = np.array(times) / 1e3
    return {
        f"us@{size}": float(np.median(micros)),
        f"mean_us@{size}": float(micros.mean()),
        f"p99_us@{size}": float(np.percentile(micros, 99)),
        f"us_per_token@{size}": float(np.median(micros) / size),
    }
