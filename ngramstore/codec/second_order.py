"""Rows -> the bytes of codec int4, rounded so that the model that reads them notices least; readers see no difference.

Plain rounding makes the squared error of a row least, as if every direction of a row counted alike. To a decoder they do not: an
error e costs about e H e / 2 nats, H the second moments of the loss's gradient at the decoder's input. So each value takes the
level nearest to it, and what it misses is made good by the values that follow, as far as H lets one stand for another:
GPTQ (arXiv 2210.17323), which rounds weights for H of a layer's inputs, here for rows under H of what comes behind.

`ngramstore_torch.input_sensitivity` measures H. How much it saves: docs/codecs.md, from bench/results/codecs.json.

Shapes: M rows, D row width, S values of a group, G groups of a row.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from ngramstore.codec.base import Codec, refuse
from ngramstore.codec.int4 import Int4
from ngramstore.errors import UsageError

_ROWS = 4096
"""Encoded at a time: a few copies of them, in f32, is all the memory this takes."""
_DAMPING = 0.01
"""This share of the mean of H's diagonal is added to the diagonal: directions that the text never used are not free."""


_HINT = "rounding by sensitivity takes values below 2**110; scale the rows, or encode them without a sensitivity"
_TOO_LARGE = np.float32(2.0**110)
"""What a value misses is added to those that follow, in f32: this far below its end they do not overflow."""


class SecondOrderInt4:
    """Encodes rows for `codec`, an int4 codec, under a sensitivity (D, D): symmetric, no negative eigenvalues, any unit.

    The same rows in the same parts give the same bytes on one machine; elsewhere, products summed in another order can
    move a value that lies between two levels. Raises UsageError for another codec or a matrix that is none.
    """

    def __init__(self, codec: Codec, sensitivity_DD: np.ndarray) -> None:
        if not isinstance(codec, Int4):
            raise UsageError(
                f"rounding by sensitivity is for int4, not for {codec.name}",
                hint="the other codecs lose too little to gain from it",
            )
        self.codec = codec
        self.row_bytes = codec.row_bytes
        self._factor_DD = _factor(sensitivity_DD, codec.dim)
        self._groups = [
            (start, Int4(min(codec.group, codec.dim - start), codec.group))
            for start in range(0, codec.dim, codec.group)
        ]

    @property
    def identity(self) -> str:
        """SHA-256 of what the rounding depends on beside the codec."""
        return hashlib.sha256(self._factor_DD.tobytes()).hexdigest()

    def spec(self) -> dict[str, Any]:
        """Of the codec: a store does not say how its rows were rounded."""
        return self.codec.spec()

    def encode(self, rows_MD: np.ndarray, *, first_row: int = 0) -> np.ndarray:
        """As `Codec.encode`: rows (M, D) -> (M, row_bytes) u8. Raises what it raises, and UsageError from 2**110 on."""
        encoded_MB = self.codec.encode(rows_MD, first_row=first_row)  # checks them, and is replaced
        rows_MD = np.asarray(rows_MD)
        for start in range(0, len(rows_MD), _ROWS):
            part = slice(start, start + _ROWS)
            some_MD = rows_MD[part].astype(np.float32)
            refuse(np.abs(some_MD) >= _TOO_LARGE, rows_MD[part], first_row + start, _HINT)
            encoded_MB[part] = self._encode(some_MD)
        return encoded_MB

    def _encode(self, rows_MD: np.ndarray) -> np.ndarray:
        from ngramstore.kernels.native.quantize import compensate_int4

        codes_MD = np.empty(rows_MD.shape, np.int8)
        scales_MG = np.empty((len(rows_MD), self.codec.num_groups), np.uint16)
        for g, (start, group) in enumerate(self._groups):
            end = start + group.dim
            values_MS = np.ascontiguousarray(rows_MD[:, start:end])
            scales_MG[:, g] = group.unpack(group.encode(values_MS))[1][:, 0]
            scales_M = (scales_MG[:, g].astype(np.uint32) << 16).view(np.float32)
            factor_SS = np.ascontiguousarray(self._factor_DD[start:end, start:end])
            codes_MS, errors_MS = np.empty(values_MS.shape, np.int8), np.empty_like(values_MS)
            compensate_int4(values_MS, scales_M, factor_SS, codes_MS, errors_MS)
            codes_MD[:, start:end] = codes_MS
            rows_MD[:, end:] -= errors_MS @ self._factor_DD[start:end, end:]
        return self.codec.pack(codes_MD, scales_MG)


def _factor(sensitivity_DD: np.ndarray, dim: int) -> np.ndarray:
    """U (D, D) f32, upper triangular, U^T U = (H + damping)^-1: row s says how later values make good an error of value s."""
    moments_DD = np.asarray(sensitivity_DD, np.float64)
    if moments_DD.shape != (dim, dim):
        raise UsageError(f"a sensitivity of shape {moments_DD.shape} for rows of {dim} values", hint="it is (D, D)")
    mean = float(np.trace(moments_DD)) / dim
    if not np.isfinite(moments_DD).all() or not mean > 0 or not np.allclose(moments_DD, moments_DD.T, atol=1e-6 * mean):
        raise UsageError(
            "the sensitivity is not a matrix of second moments: finite, symmetric, of positive trace",
            hint="measure it with ngramstore_torch.input_sensitivity",
        )
    damped_DD = moments_DD / mean + _DAMPING * np.eye(dim)
    try:
        np.linalg.cholesky(damped_DD)
        return np.linalg.cholesky(np.linalg.inv(damped_DD)).T.astype(np.float32)
    except np.linalg.LinAlgError:
        raise UsageError("the sensitivity has negative eigenvalues: it is not a matrix of second moments") from None
