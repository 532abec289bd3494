"""Arrays in `.npy` files: mapped, and what stands before the numbers of one that is written in parts."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from ngramstore.errors import FormatError, UsageError


def map_npy(path: Path) -> np.ndarray:
    """The array in a file, read-only. UsageError where there is none of that name or it is an archive; else FormatError."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise UsageError(f"there is no file {str(path)!r}") from None
    except Exception as error:  # a damaged header: numpy passes on what Python's parser, zipfile and mmap raise
        raise FormatError(
            f"{path} is not an array that can be mapped: {str(error) or type(error).__name__}",
            hint="save it with numpy.save",
        ) from error
    if not isinstance(array, np.ndarray):
        raise UsageError(f"{path} is an archive of arrays", hint="save one array with numpy.save")
    return array


def npy_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """What an `.npy` file begins with; the numbers follow it in C order."""
    file = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    return file.getvalue()
