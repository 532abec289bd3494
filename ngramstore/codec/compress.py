"""zstd, one frame a row with a shared dictionary, and the decision whether it is worth it. Only file importing zstandard.

One frame a row, so that one row is read and decompressed alone; the dictionary gives back what small frames lose
(docs/design.md, Compression). Level 1: levels 3 and 19 give the same size on quantized rows, slower.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import zstandard

from ngramstore.errors import FormatError

LEVEL = 1
DICTIONARY_BYTES = 16 << 10
WORTH_SAVING = 0.05
"""Rows are stored compressed where that saves at least this share of them."""
MAX_COMPRESSED_ROW_BYTES = (1 << 16) - 1
_MIN_SAMPLE = 256
_FEW_ROWS = 16  # the multi call has a fixed cost of about 19 us; single calls 1.2 us a row


def train_dictionary(sample_MB: np.ndarray) -> bytes:
    """A dictionary for rows like the sample (M, B) u8; empty when the sample is too small or too random to train on."""
    if len(sample_MB) < _MIN_SAMPLE:
        return b""
    try:
        return zstandard.train_dictionary(DICTIONARY_BYTES, [row.tobytes() for row in sample_MB]).as_bytes()
    except zstandard.ZstdError:
        return b""


class RowCompressor:
    """Compresses rows into one buffer. One per thread of use; `threads` worker threads of its own."""

    def __init__(self, dictionary: bytes, threads: int = 1) -> None:
        self._threads = threads
        self._compressor = zstandard.ZstdCompressor(
            level=LEVEL,
            dict_data=zstandard.ZstdCompressionDict(dictionary) if dictionary else None,
            write_checksum=False,
            write_dict_id=False,
            write_content_size=True,
        )

    def frames(self, rows_MB: np.ndarray) -> list[bytes | memoryview]:
        """One frame a row, in order: (M, B) u8 -> M buffers."""
        if len(rows_MB) == 0:
            return []
        rows_MB = np.ascontiguousarray(rows_MB)
        segments = _segments(np.arange(len(rows_MB)) * rows_MB.shape[1], np.full(len(rows_MB), rows_MB.shape[1]))
        batch = zstandard.BufferWithSegments(rows_MB.reshape(-1).data, segments)
        frames: Any = self._compressor.multi_compress_to_buffer(batch, threads=self._threads)
        return list(frames)


def saving(sample_MB: np.ndarray, dictionary: bytes) -> float:
    """Share of the sample's bytes that compression saves, 0 if none."""
    if sample_MB.size == 0:
        return 0.0
    row_bytes = sample_MB.shape[1]
    stored = sum(min(len(frame), row_bytes) for frame in RowCompressor(dictionary).frames(sample_MB))
    return 1 - stored / sample_MB.size


class RowDecompressor:
    """Decompresses frames of rows. Threads: any number; each gets a decompressor of its own."""

    def __init__(self, dictionary: bytes, row_bytes: int) -> None:
        self._dictionary = zstandard.ZstdCompressionDict(dictionary) if dictionary else None
        self.row_bytes = row_bytes
        self._local = threading.local()

    def _decompressor(self) -> zstandard.ZstdDecompressor:
        if not hasattr(self._local, "value"):
            self._local.value = zstandard.ZstdDecompressor(dict_data=self._dictionary)
        return self._local.value

    def decompress(self, data: np.ndarray, starts_U: np.ndarray, lengths_U: np.ndarray, out_UB: np.ndarray) -> None:
        """out[u] = row of the frame data[starts[u] : starts[u] + lengths[u]]. FormatError if one is not such a frame."""
        try:
            if len(starts_U) == 0:
                return
            if len(starts_U) < _FEW_ROWS:
                rows = b"".join(
                    self._decompressor().decompress(data[start : start + length].data, max_output_size=self.row_bytes)
                    for start, length in zip(starts_U.tolist(), lengths_U.tolist(), strict=True)
                )
            else:
                sizes = np.full(len(starts_U), self.row_bytes, np.uint64).tobytes()
                batch = zstandard.BufferWithSegments(data.data, _segments(starts_U, lengths_U))
                decompressor = self._decompressor()
                frames: Any = decompressor.multi_decompress_to_buffer(batch, decompressed_sizes=sizes, threads=0)
                rows = b"".join(frames)
        except (zstandard.ZstdError, ValueError) as error:
            raise FormatError(f"a row is not the zstd frame it should be: {error}") from error
        if len(rows) != out_UB.size:
            raise FormatError(f"rows decompress to {len(rows):,} bytes, wanted {out_UB.size:,}")
        out_UB[:] = np.frombuffer(rows, np.uint8).reshape(out_UB.shape)


def _segments(starts: np.ndarray, lengths: np.ndarray) -> bytes:
    return np.stack([starts, lengths], axis=1).astype("=u8").tobytes()
