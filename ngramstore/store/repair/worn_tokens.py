"""The tokens file in any state: which n-grams are certain, because they hash to the ID of their row.

A block that fails its checksum is searched: every byte of it is tried as the beginning of an n-gram, and what hashes to an ID
of the block is that n-gram.

Shapes: M rows of a chunk, K longest n-gram.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from ngramstore.hashing import checksums, ngram_ids
from ngramstore.kernels.native import tokens as native
from ngramstore.layout import BLOCK_ROWS, CHECKSUM_BYTES, KIND_TOKENS, PAGE_BYTES, TOKENS_HEADER
from ngramstore.store.layers.datafile import NO_CONTENT, FileEntry, FileStamp, content_digest
from ngramstore.store.layers.manifest import Spec
from ngramstore.store.repair.mending import mended_piece
from ngramstore.store.repair.raw_file import Fault, RawFile, find_length
from ngramstore.store.repair.stretches import Stretch, StretchLines

_MAX_VARINT = 5
_MOST_MENDED = 64  # blocks: trying every bit of one takes some hundredths of a second


class WornTokens:
    """Reads n-grams in row order, block by block."""

    def __init__(
        self, directory: Path, entry: FileEntry, stamp: FileStamp, spec: Spec, num_rows: int, faults: list[Fault]
    ) -> None:
        self._file = RawFile(directory, entry, faults)
        self._bad_blocks: StretchLines[int, Fault] = StretchLines(faults, partial(_fault_of_blocks, entry.name))
        self._foreign_rows: StretchLines[str, Fault] = StretchLines(faults, partial(_fault_of_rows, entry.name))
        self._max_n, self._seed, self._num_rows = spec.max_n, spec.seed, num_rows
        blocks = -(-num_rows // BLOCK_ROWS)
        self._table_at = entry.file_bytes - 8 * (blocks + 1)
        fields = {
            "num_rows": num_rows,
            "max_n": spec.max_n,
            "reserved2": 0,
            "num_blocks": blocks,
            "data_at": PAGE_BYTES,
            "offsets_at": max(0, self._table_at),
        }
        self._file.header(TOKENS_HEADER, KIND_TOKENS, stamp, [fields])
        self.most_rows = self._file.size // 2  # an n-gram takes two bytes and more
        self._num_mended = 0
        self._end = PAGE_BYTES
        self._content, self._is_whole = content_digest(), True
        self._most = BLOCK_ROWS * (1 + spec.max_n) * _MAX_VARINT

    def read(
        self, first: int, ids: np.ndarray, has_id: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """N-grams of M rows from row `first`, a multiple of 64, on: tokens (M, K), lengths (M,), certain (M,), their IDs.

        ids: what the index says, where `has_id`. To be called for all rows in order.
        """
        if first == 0:
            self._end = PAGE_BYTES
            self._content, self._is_whole = content_digest(), True
        count = len(ids)
        tokens, lengths = np.zeros((count, self._max_n), np.uint32), np.zeros(count, np.uint8)
        is_read = np.zeros(count, bool)
        if self._read_blocks(first // BLOCK_ROWS, tokens, lengths):
            is_read[:] = True
        else:
            self._is_whole = False
        for at in range(0, count if not is_read.all() else 0, BLOCK_ROWS):
            part = slice(at, min(count, at + BLOCK_ROWS))
            self._read_block((first + at) // BLOCK_ROWS, ids[part], tokens[part], lengths[part], is_read[part])
        if first + count >= self._num_rows:
            self._check_end()
        token_ids = np.zeros(count, np.uint64)
        token_ids[is_read] = ngram_ids(tokens[is_read], lengths[is_read], self._seed)
        is_wrong = is_read & has_id & (token_ids != ids)
        self._foreign_rows.add(
            first,
            is_wrong,
            lambda m: f"{tuple(tokens[m, : lengths[m]].tolist())} does not hash to its ID 0x{int(ids[m]):016x}",
        )
        is_read[is_wrong] = False
        return tokens, lengths, is_read, token_ids

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def _read_blocks(self, first_block: int, tokens: np.ndarray, lengths: np.ndarray) -> bool:
        """All blocks of a chunk at once, if every one of them is good; else nothing is changed but the arrays."""
        count = -(-len(lengths) // BLOCK_ROWS)
        table = np.frombuffer(self._file.read(self._table_at + 8 * first_block, 8 * count + 8), "<u8").astype(np.int64)
        sizes = np.diff(table) - CHECKSUM_BYTES
        if table[0] != self._end or table[-1] > self._table_at or (sizes < 1).any() or (sizes > self._most).any():
            return False
        data = self._file.array(int(table[0]), int(table[-1] - table[0]))
        starts = table[:-1] - table[0]
        sums_at = (starts + sizes)[:, None] + np.arange(CHECKSUM_BYTES)
        seeds = np.arange(first_block, first_block + count).astype(np.uint64)
        if (checksums(data, starts, sizes, seeds) != data[sums_at].reshape(-1).view("<u4")).any():
            return False
        is_body = np.ones(len(data), bool)
        is_body[sums_at] = False
        body = data[is_body]
        if native.decode_ngrams(body, tokens, lengths) != len(body):
            return False
        self._end = int(table[-1])
        self._content.update(data[sums_at].tobytes())
        return True

    def _read_block(
        self, block: int, ids: np.ndarray, tokens: np.ndarray, lengths: np.ndarray, is_read: np.ndarray
    ) -> None:
        begin, end = np.frombuffer(self._file.read(self._table_at + 8 * block, 16), "<u8").tolist()
        is_possible = PAGE_BYTES <= begin <= end - CHECKSUM_BYTES <= begin + self._most and end <= self._table_at
        if is_possible and self._decode(block, begin, end - begin, tokens, lengths):
            if begin != self._end:
                self._file.fault(
                    self._table_at + 8 * block, f"block {block} begins at {begin}, the one before ends at {self._end}"
                )
            self._end = end
            is_read[:] = True
            return
        for start in {self._end, begin}:
            if not PAGE_BYTES <= start < self._table_at:
                continue
            size = find_length(self._file.array(start, min(self._most, self._table_at - start)), block)
            if size is not None and self._decode(block, start, size + CHECKSUM_BYTES, tokens, lengths):
                self._file.fault(
                    self._table_at + 8 * block,
                    f"block {block} lies at {start} to {start + size + CHECKSUM_BYTES}, the table says {begin} to {end}",
                )
                self._end = start + size + CHECKSUM_BYTES
                is_read[:] = True
                return
        start = begin if is_possible else self._end
        self._bad_blocks.add(block, np.ones(1, bool), lambda _: start)
        stop = min(end if is_possible else start + self._most, self._table_at)
        data = self._file.read(start, stop - start)
        if is_possible and self._num_mended < _MOST_MENDED:
            self._num_mended += 1
            body = np.frombuffer(data[:-CHECKSUM_BYTES], np.uint8)
            right = mended_piece(body, block, int.from_bytes(data[-CHECKSUM_BYTES:], "little"))
            data = data if right is None else right.tobytes()
        self._search(
            data[: max(0, self._file.size - start)], ids, tokens, lengths, is_read
        )  # behind its end it is zeros
        self._end = end if is_possible else start

    def _decode(self, block: int, start: int, size: int, tokens: np.ndarray, lengths: np.ndarray) -> bool:
        data = self._file.array(start, size)
        body = data[: size - CHECKSUM_BYTES]
        one = np.zeros(1, np.int64)
        sums = checksums(data, one, one + len(body), np.array([block], np.uint64))
        if sums.astype("<u4").tobytes() != data[len(body) :].tobytes():
            return False
        if native.decode_ngrams(body, tokens, lengths) != len(body):
            self._file.fault(start, f"block {block} passes its checksum and does not hold {len(lengths)} n-grams")
            tokens[:] = 0
            return False
        return True

    def _search(
        self, data: bytes, ids: np.ndarray, tokens: np.ndarray, lengths: np.ndarray, is_read: np.ndarray
    ) -> None:
        """Find n-grams of the block wherever they begin."""
        tries = []
        for at in range(len(data)):
            ngram = _ngram_at(data, at, self._max_n)
            if ngram:
                tries.append(ngram)
        if not tries:
            return
        found_lengths = np.array([len(ngram) for ngram in tries], np.uint8)
        found = np.zeros((len(tries), self._max_n), np.uint32)
        for i, ngram in enumerate(tries):
            found[i, : len(ngram)] = ngram
        row_of = {identity: row for row, identity in enumerate(ids.tolist())}
        for i, identity in enumerate(ngram_ids(found, found_lengths, self._seed).tolist()):
            row = row_of.get(identity)
            if row is not None:
                tokens[row], lengths[row], is_read[row] = found[i], found_lengths[i], True

    def _check_end(self) -> None:
        blocks = -(-self._num_rows // BLOCK_ROWS)
        end = int.from_bytes(self._file.read(self._table_at + 8 * blocks, 8), "little")
        if end != self._end:
            self._file.fault(self._table_at + 8 * blocks, f"the last block ends at {self._end}, the table says {end}")
        self._file.check_zeros(min(self._end, self._table_at), self._table_at)
        if self._is_whole and self._file.entry.content not in (NO_CONTENT, self._content.digest()):
            self._file.fault(PAGE_BYTES, "these are not the n-grams that the manifest names")


def _fault_of_blocks(file: str, stretch: Stretch[int]) -> Fault:
    blocks = f"block {stretch.first}" if stretch.num_rows == 1 else f"blocks {stretch.first} to {stretch.last}"
    what = "fails its checksum" if stretch.num_rows == 1 else "fail their checksums"
    return Fault(file, stretch.names[0], f"{blocks} (rows {stretch.first * BLOCK_ROWS} and on) {what}")


def _fault_of_rows(file: str, stretch: Stretch[str]) -> Fault:
    what = f"the n-gram {stretch.names[0]}" if stretch.num_rows == 1 else "the n-grams do not hash to their IDs"
    return Fault(file, None, f"{stretch.rows}: {what}")


def _ngram_at(data: bytes, at: int, max_n: int) -> list[int] | None:
    """The n-gram whose varints begin at a byte, if there is one."""
    numbers: list[int] = []
    wanted = 1
    while len(numbers) < wanted:
        value = shift = 0
        while True:
            if at >= len(data) or shift > 28:
                return None
            value |= (data[at] & 127) << shift
            shift += 7
            at += 1
            if data[at - 1] < 128:
                break
        if value >= 1 << 32:
            return None
        numbers.append(value)
        if len(numbers) == 1:
            if not 1 <= value <= max_n:
                return None
            wanted = value + 1
    return numbers[1:]
