"""What an import made, and how far its codec is from the checkpoint's own values, measured on a sample of the rows.

Shapes: M rows of the sample, B bytes of an encoded row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ngramstore.codec.registry import Codec

_SAMPLE_ROWS = 4096
_RUN_ROWS = 16


@dataclass(frozen=True)
class ImportReport:
    """What an import made. Errors are over the sampled rows, against the checkpoint's own values."""

    model: str
    num_rows: int
    dim: int
    source_codec: dict[str, Any]
    codec: dict[str, Any]
    row_bytes: int
    is_in_place: bool
    is_checked: bool
    disk_bytes: int
    rms_error: float
    largest_error: float
    rms_value: float
    zstd_saves: float
    is_compressed: bool
    resumed_rows: int
    """Rows that an import killed earlier had written."""

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return dict(vars(self))


def sample_places(num_rows: int) -> Iterator[tuple[int, int]]:
    """(first, count) of up to _SAMPLE_ROWS rows, in short runs spread evenly over the table."""
    run = min(_RUN_ROWS, num_rows)
    runs = min(_SAMPLE_ROWS // _RUN_ROWS, -(-num_rows // _RUN_ROWS))
    for i in range(runs):
        yield (num_rows - run) * i // max(1, runs - 1), run


def error_of(stored_MB: np.ndarray, source: Codec, recoded_MB: np.ndarray, target: Codec) -> dict[str, float]:
    """Error of the same rows in the target codec, and how large their values are, as a report names them."""
    truth = source.decode(stored_MB).astype(np.float64)
    is_number = np.isfinite(truth)  # a table kept bit for bit may hold codes that are none
    errors = np.zeros(1) if target == source else target.decode(recoded_MB) - truth
    return {
        "rms_error": float(np.sqrt(np.mean(errors**2))),
        "largest_error": float(np.abs(errors).max()),
        "rms_value": float(np.sqrt(np.mean(truth[is_number] ** 2))) if is_number.any() else 0.0,
    }
