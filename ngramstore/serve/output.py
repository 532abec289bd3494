"""The caller's buffer for rows, or a new one: shapes, types, contiguity.

bfloat16 has no numpy type: bf16 rows are u16 bits, and arrays of ml_dtypes.bfloat16 are taken for what they are.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ngramstore.errors import UsageError

_DTYPES = {"f32": np.float32, "f16": np.float16, "bf16": np.uint16}
_KERNELS_TAKE = frozenset(
    map(np.dtype, _DTYPES.values())
)  # not by their letters: ml_dtypes has another "e", of one byte


def output_array(out: np.ndarray | None, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """`out` as an array that kernels can fill (f32, f16, or u16 for bf16), or a new one of `dtype`. UsageError otherwise."""
    if out is None:
        if not isinstance(dtype, str) or dtype not in _DTYPES:
            raise UsageError(f"dtype is {dtype!r}", hint=f"choose one of {', '.join(_DTYPES)}")
        return np.empty(shape, _DTYPES[dtype])
    require_array(out, str(shape))
    if out.shape != shape:
        raise UsageError(f"out must be an array of shape {shape}, got {out.shape}")
    if out.dtype not in _KERNELS_TAKE:
        if out.dtype.name != "bfloat16":
            raise UsageError(f"out has dtype {out.dtype}", hint="give float32, float16, or uint16 / bfloat16 for bf16")
        out = out.view(np.uint16)
    if not out.flags.c_contiguous or not out.flags.writeable:
        raise UsageError("out must be C-contiguous and writeable")
    return out


def require_array(out: Any, shape: str) -> None:
    """UsageError for what is no numpy array, such as a tensor."""
    if not isinstance(out, np.ndarray):
        raise UsageError(
            f"out must be a numpy array of shape {shape}, got a {type(out).__name__}",
            hint="of a CPU tensor give `t.numpy()`, of bfloat16 `t.view(torch.uint16).numpy()`",
        )
