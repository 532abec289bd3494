"""zstd, one frame a row with a shared dictionary, and the decision whether it is worth it. Only file importing zstandard.

One frame a row, so that one row is read and decompressed alone; the dictionary gives back what small frames lose
(docs/design.md, Decisions). Level 1: levels 3 and 19 give the same size on quantized rows, slower.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol, TypeVar

import numpy as np
import zstandard

from ngramstore.errors import FormatError, UsageError

LEVEL = 1
DICTIONARY_BYTES = 16 << 10
WORTH_SAVING = 0.05
"""Rows are stored compressed where that saves at least this share of them."""
MAX_COMPRESSED_ROW_BYTES = (1 << 16) - 1
_MIN_SAMPLE = 256
_TRAIN_BYTES = 1 << 20  # training takes 0.15 s a MiB, and twice as much gave the same ratio
_SHORT_WINDOW_LOG = 10  # zstd's smallest
_MAX_SHORT_LOSS = 1.01
_SAMPLE_ROWS = 2048  # what builds try windows on
_UNSAID = -1  # the content size of a frame that does not tell
_FEW_ROWS = 16  # the multi call has a fixed cost of about 19 us; single calls 1.2 us a row


def train_dictionary(sample_MB: np.ndarray) -> bytes:
    """A dictionary for rows like the sample (M, B) u8; empty when the sample is too small or too random to train on."""
    if len(sample_MB) < _MIN_SAMPLE:
        return b""
    try:
        some = sample_MB[: max(_MIN_SAMPLE, _TRAIN_BYTES // sample_MB.shape[1])]
        return zstandard.train_dictionary(DICTIONARY_BYTES, [row.tobytes() for row in some]).as_bytes()
    except zstandard.ZstdError:
        return b""


class RowCompressor:
    """Compresses rows. Threads: one at a time; the GIL is not held.

    window_log: 0 is zstd's own choice; see `window_log_for`.
    """

    def __init__(self, dictionary: bytes, window_log: int = 0) -> None:
        options: dict[str, Any] = {"write_checksum": False, "write_dict_id": False, "write_content_size": True}
        if window_log:
            parameters = zstandard.ZstdCompressionParameters.from_level(LEVEL, window_log=window_log, **options)
            options = {"compression_params": parameters}
        else:
            options["level"] = LEVEL
        self._compressor = zstandard.ZstdCompressor(
            dict_data=zstandard.ZstdCompressionDict(dictionary) if dictionary else None, **options
        )

    def compress(self, rows_MB: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """One frame a row, in order: (M, B) u8 -> all frames end to end, u8, and their sizes (M,) i64."""
        count = len(rows_MB)
        if count == 0:
            return np.empty(0, np.uint8), np.empty(0, np.int64)
        rows_MB = np.ascontiguousarray(rows_MB)
        segments = _segments(np.arange(count) * rows_MB.shape[1], np.full(count, rows_MB.shape[1]))
        batch = zstandard.BufferWithSegments(rows_MB.reshape(-1).data, segments)
        frames: Any = list(self._compressor.multi_compress_to_buffer(batch, threads=0))  # type: ignore[call-overload]
        return np.frombuffer(b"".join(frames), np.uint8), np.fromiter(map(len, frames), np.int64, count)


def saving(sample_MB: np.ndarray, dictionary: bytes, window_log: int = 0) -> float:
    """Share of the sample's bytes that compression saves, 0 if none."""
    if sample_MB.size == 0:
        return 0.0
    _, sizes_M = RowCompressor(dictionary, window_log).compress(sample_MB)
    return 1 - int(np.minimum(sizes_M, sample_MB.shape[1]).sum()) / sample_MB.size


def window_log_for(sample_MB: np.ndarray, dictionary: bytes) -> int:
    """The window for rows like the sample: 0 (zstd's choice), or that of short blocks where those cost next to nothing.

    zstd takes the dictionary's own Huffman table without trying another one for blocks of up to 1 KiB, and no block is longer
    than the window. int8 rows of 1,028 bytes then take 2.9 us each instead of 8.6, for 0.4 % more bytes; f16 rows of 2,048 take
    5.9 instead of 12.4 for 0.9 % (zstd 1.5.7, CPU time of one core).
    """
    if not dictionary or sample_MB.shape[1] <= 1 << _SHORT_WINDOW_LOG:
        return 0
    best, short = 1 - saving(sample_MB, dictionary), 1 - saving(sample_MB, dictionary, _SHORT_WINDOW_LOG)
    return _SHORT_WINDOW_LOG if short <= best * _MAX_SHORT_LOSS else 0


@dataclass(frozen=True)
class Trial:
    """What compression makes of rows like a sample: the dictionary and window to use, the share of their bytes that it saves."""

    dictionary: bytes
    window_log: int
    saving: float

    def chosen(self, compression: str) -> bytes | None:
        """The dictionary to store rows with, for "auto", "none" or "zstd"; None stores them as they are."""
        is_wanted = compression == "zstd" or (compression == "auto" and self.saving >= WORTH_SAVING)
        return self.dictionary if is_wanted else None


def trial(sample_MB: np.ndarray) -> Trial:
    """Try it on a sample (M, B) u8: half of the rows train the dictionary, the others say what it saves."""
    if sample_MB.shape[1] > MAX_COMPRESSED_ROW_BYTES:
        return Trial(b"", 0, 0.0)
    dictionary = train_dictionary(sample_MB[::2])
    window_log = window_log_for(sample_MB[1::2], dictionary)
    return Trial(dictionary, window_log, saving(sample_MB[1::2], dictionary, window_log))


def refuse_too_long(compression: str, row_bytes: int) -> None:
    """UsageError where rows are to be compressed that are too long for it."""
    if compression == "zstd" and row_bytes > MAX_COMPRESSED_ROW_BYTES:
        raise UsageError(
            f"rows of {row_bytes:,} bytes cannot be compressed; {MAX_COMPRESSED_ROW_BYTES:,} is the limit",
            hint="leave compression at auto",
        )


class HasRows(Protocol):
    """Some of the rows to compress, (M, B) u8."""

    @property
    def rows(self) -> np.ndarray: ...


Part = TypeVar("Part", bound=HasRows)


def with_window_log(parts: Iterator[Part], dictionary: bytes | None) -> tuple[int, Iterator[Part]]:
    """`window_log_for` the first rows of a stream, and the whole stream."""
    ahead: list[Part] = []
    while dictionary and sum(len(part.rows) for part in ahead) < _SAMPLE_ROWS:
        part = next(parts, None)
        if part is None:
            break
        ahead.append(part)
    sample = [part.rows[:_SAMPLE_ROWS] for part in ahead]
    window_log = window_log_for(np.concatenate(sample)[:_SAMPLE_ROWS], dictionary) if dictionary and sample else 0
    return window_log, chain(ahead, parts)


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

    def decompress(self, data: np.ndarray, starts_U: np.ndarray, lengths_U: np.ndarray) -> np.ndarray:
        """Rows (U, B) u8 of the frames data[starts[u] : starts[u] + lengths[u]]. FormatError if one is not such a frame."""
        try:
            rows = bytearray().join(
                self._few(data, starts_U, lengths_U)
                if len(starts_U) < _FEW_ROWS
                else self._many(data, starts_U, lengths_U)
            )
        except (zstandard.ZstdError, ValueError) as error:
            raise FormatError(f"a row is not the zstd frame it should be: {error}") from error
        if len(rows) != len(starts_U) * self.row_bytes:
            raise FormatError(f"rows decompress to {len(rows):,} bytes, wanted {len(starts_U) * self.row_bytes:,}")
        return np.frombuffer(rows, np.uint8).reshape(len(starts_U), self.row_bytes)

    def _few(self, data: np.ndarray, starts_U: np.ndarray, lengths_U: np.ndarray) -> list[bytes]:
        view, row_bytes, rows = data.data, self.row_bytes, []
        decompress, size_of = self._decompressor().decompress, zstandard.frame_content_size
        for start, length in zip(starts_U.tolist(), lengths_U.tolist(), strict=True):
            frame = view[start : start + length]
            size = size_of(frame)
            if size == row_bytes:
                rows.append(decompress(frame))
            elif size == _UNSAID:
                rows.append(decompress(frame, max_output_size=row_bytes))
            else:  # zstd would allocate what a frame says of itself
                raise FormatError(f"a row's frame says that it holds {size:,} bytes, wanted {row_bytes:,}")
            if len(rows[-1]) != row_bytes:
                raise FormatError(f"a row's frame holds {len(rows[-1]):,} bytes, wanted {row_bytes:,}")
        return rows

    def _many(self, data: np.ndarray, starts_U: np.ndarray, lengths_U: np.ndarray) -> Any:
        sizes = np.full(len(starts_U), self.row_bytes, np.uint64).tobytes()
        batch = zstandard.BufferWithSegments(data.data, _segments(starts_U, lengths_U))
        return self._decompressor().multi_decompress_to_buffer(batch, decompressed_sizes=sizes, threads=0)


def _segments(starts: np.ndarray, lengths: np.ndarray) -> bytes:
    return np.stack([starts, lengths], axis=1).astype("=u8").tobytes()
