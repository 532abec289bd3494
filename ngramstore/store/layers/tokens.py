"""The tokens of every stored n-gram, beside the IDs: what lets a put detect a collision and `items()` list n-grams.

Format: docs/format.md, section Tokens. Blocks of 64 rows, each the varints of its n-grams and a checksum seeded with the
block's number; then where each block begins.

Shapes: M n-grams, N tokens of the longest (K).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ngramstore.errors import DamagedStore
from ngramstore.file_writer import FileWriter
from ngramstore.hashing import MAX_N, checksums
from ngramstore.kernels.native import tokens as native
from ngramstore.layout import BLOCK_ROWS, CHECKSUM_BYTES, KIND_TOKENS, PAGE_BYTES, TOKENS_HEADER
from ngramstore.store.layers.datafile import DataFile, FileEntry, FileStamp, content_digest, finish_file

_MAX_TOKEN_BYTES = 5
_RUN_BLOCKS = 1024


class TokensWriter:
    """Writes n-grams in row order; whole blocks as they fill."""

    def __init__(self, path: Path, max_n: int) -> None:
        self.num_rows = 0
        self._max_n = max_n
        self._writer = FileWriter(path)
        self._writer.write(bytes(PAGE_BYTES))
        self._starts: list[np.ndarray] = []
        self._content = content_digest()
        self._num_blocks = 0
        self._pending: list[tuple[np.ndarray, np.ndarray]] = []
        self._pending_rows = 0

    def write(self, tokens_MN: np.ndarray, lengths_M: np.ndarray) -> None:
        """Append M n-grams: (M, N) u32 left-aligned, (M,) u8."""
        self._pending.append((tokens_MN, lengths_M))
        self._pending_rows += len(lengths_M)
        self.num_rows += len(lengths_M)
        if self._pending_rows >= _RUN_BLOCKS * BLOCK_ROWS:
            self._drain(whole_blocks=True)

    def _drain(self, *, whole_blocks: bool) -> None:
        if not self._pending:
            return
        tokens_MN = np.concatenate([tokens for tokens, _ in self._pending])
        lengths_M = np.concatenate([lengths for _, lengths in self._pending])
        count = len(lengths_M) // BLOCK_ROWS * BLOCK_ROWS if whole_blocks else len(lengths_M)
        self._pending = [(tokens_MN[count:], lengths_M[count:])]
        self._pending_rows = len(lengths_M) - count
        if count == 0:
            return
        data = np.empty(int(lengths_M[:count].sum()) * _MAX_TOKEN_BYTES + count, np.uint8)
        ends = np.empty(count, np.int64)
        native.encode_ngrams(np.ascontiguousarray(tokens_MN[:count]), lengths_M[:count], data, ends)
        block_ends = np.append(ends[BLOCK_ROWS - 1 : count - 1 : BLOCK_ROWS], ends[-1])
        block_starts = np.append(0, block_ends[:-1])
        numbers = np.arange(len(block_ends)) + self._num_blocks
        sums = (
            checksums(data, block_starts, block_ends - block_starts, numbers.astype(np.uint64)).astype("<u4").tobytes()
        )
        self._content.update(sums)
        self._starts.append(self._writer.position + block_starts + CHECKSUM_BYTES * np.arange(len(block_ends)))
        out = bytearray()
        for i, (start, end) in enumerate(zip(block_starts.tolist(), block_ends.tolist(), strict=True)):
            out += data[start:end].data
            out += sums[4 * i : 4 * i + 4]
        self._writer.write(bytes(out))
        self._num_blocks += len(block_ends)

    def finish(self, stamp: FileStamp) -> FileEntry:
        """Write what is pending and the block table; make the file durable."""
        self._drain(whole_blocks=False)
        end = self._writer.position
        self._writer.pad(PAGE_BYTES)
        offsets_at = self._writer.position
        self._writer.write(np.concatenate([*self._starts, [end]]).astype("<u8"))
        return finish_file(
            self._writer,
            TOKENS_HEADER,
            stamp,
            KIND_TOKENS,
            self._content.digest(),
            num_rows=self.num_rows,
            max_n=self._max_n,
            reserved2=0,
            num_blocks=self._num_blocks,
            data_at=PAGE_BYTES,
            offsets_at=offsets_at,
        )

    def close(self) -> None:
        """Give up: close without making anything durable."""
        self._writer.close()


class TokensFile:
    """Reads n-grams back by row number."""

    def __init__(self, directory: Path, entry: FileEntry, stamp: FileStamp) -> None:
        self.file = file = DataFile(directory, entry, TOKENS_HEADER, KIND_TOKENS, stamp)
        self.path = file.path
        self.num_rows = file.number("num_rows")
        self.num_blocks = file.number("num_blocks")
        self._max_n = file.number("max_n")
        self._offsets_at = file.number("offsets_at")
        if (
            not 1 <= self._max_n <= MAX_N
            or self.num_blocks != -(-self.num_rows // BLOCK_ROWS)
            or self._offsets_at % PAGE_BYTES
            or entry.file_bytes != self._offsets_at + 8 * (self.num_blocks + 1)
        ):
            raise DamagedStore(f"{file.path}: impossible sizes in the header: {file.header}")

    def require(self, num_rows: int, max_n: int) -> None:
        """DamagedStore unless it holds so many n-grams, of up to so many tokens."""
        if (self.num_rows, self._max_n) != (num_rows, max_n):
            raise DamagedStore(
                f"{self.path} holds {self.num_rows:,} n-grams of up to {self._max_n} tokens, "
                f"wanted {num_rows:,} of up to {max_n}"
            )

    def blocks(self, first_block: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """N-grams of consecutive blocks: tokens (rows, K) u32 left-aligned, lengths (rows,) u8. DamagedStore names a
        bad block."""
        table = np.frombuffer(self.file.read(self._offsets_at + 8 * first_block, 8 * count + 8), "<u8").astype(np.int64)
        numbers = np.arange(first_block, first_block + count)
        self._check_places(numbers, table[:-1], table[1:])
        return self._decoded(numbers, np.diff(table), self.file.read(int(table[0]), int(table[-1] - table[0])))

    def rows(self, rows_M: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """N-grams of M rows in the order given: tokens (M, K) u32, lengths (M,) u8."""
        tokens = np.zeros((len(rows_M), self._max_n), np.uint32)
        lengths = np.zeros(len(rows_M), np.uint8)
        blocks, where = np.unique(rows_M // BLOCK_ROWS, return_inverse=True)
        order = np.argsort(where, kind="stable")
        for at in range(0, len(blocks), _RUN_BLOCKS):
            begin, end = np.searchsorted(where[order], (at, at + _RUN_BLOCKS))
            of_run = order[begin:end]
            run_tokens, run_lengths = self._scattered(blocks[at : at + _RUN_BLOCKS])
            inside = (where[of_run] - at) * BLOCK_ROWS + rows_M[of_run] % BLOCK_ROWS
            tokens[of_run] = run_tokens[inside]
            lengths[of_run] = run_lengths[inside]
        return tokens, lengths

    def _scattered(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `blocks`, of any blocks in ascending order: read one by one, checked and decoded together."""
        read, table_at = self.file.read, self._offsets_at
        table = b"".join(read(table_at + 8 * number, 16) for number in numbers.tolist())
        starts, ends = np.frombuffer(table, "<u8").astype(np.int64).reshape(-1, 2).T
        self._check_places(numbers, starts, ends)
        sizes = ends - starts
        data = b"".join(read(start, size) for start, size in zip(starts.tolist(), sizes.tolist(), strict=True))
        return self._decoded(numbers, sizes, data)

    def _check_places(self, numbers: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> None:
        worst = BLOCK_ROWS * (1 + MAX_N * _MAX_TOKEN_BYTES) + CHECKSUM_BYTES
        sizes = ends - starts
        bad = (sizes < CHECKSUM_BYTES) | (sizes > worst) | (starts < PAGE_BYTES) | (ends > self._offsets_at)
        if bad.any():
            raise self._damaged(int(numbers[bad.argmax()]), "its place in the table is impossible")

    def _decoded(self, numbers: np.ndarray, sizes: np.ndarray, stored: bytes) -> tuple[np.ndarray, np.ndarray]:
        """Blocks that lie one behind the other in `stored`, each of `sizes` bytes with its checksum."""
        data = np.frombuffer(stored, np.uint8)
        ends = np.cumsum(sizes) - CHECKSUM_BYTES
        starts = ends + CHECKSUM_BYTES - sizes
        got = checksums(data, starts, ends - starts, numbers.astype(np.uint64))
        sums_at = ends[:, None] + np.arange(CHECKSUM_BYTES)
        bad = got != data[sums_at].reshape(-1).view("<u4")
        if bad.any():
            raise self._damaged(int(numbers[bad.argmax()]), "it fails its checksum")
        keep = np.ones(len(data), bool)
        keep[sums_at] = False
        stream = data[keep]
        rows = int(np.minimum(BLOCK_ROWS, self.num_rows - numbers * BLOCK_ROWS).sum())
        tokens = np.empty((rows, self._max_n), np.uint32)
        lengths = np.empty(rows, np.uint8)
        if native.decode_ngrams(stream, tokens, lengths) != len(stream):
            raise self._damaged(int(numbers[0]), "it, or one behind it, does not hold n-grams")
        return tokens, lengths

    def _damaged(self, block: int, what: str) -> DamagedStore:
        return DamagedStore(f"{self.path}: block {block} (rows {block * BLOCK_ROWS:,} and on): {what}")
