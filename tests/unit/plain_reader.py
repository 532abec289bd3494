"""A reader of stores written from docs/format.md alone: no code of the package, no speed, every check."""

from __future__ import annotations

import hashlib
import json
import zlib
from pathlib import Path
from typing import Any

import xxhash
import zstandard

PAGE = 4096
MASK = (1 << 64) - 1


def mix64(z: int) -> int:
    """Stafford's variant 13, written again so that a change of ours shows."""
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ z >> 27) * 0x94D049BB133111EB & MASK
    return z ^ z >> 31


def ngram_id(tokens: tuple[int, ...], seed: int) -> int:
    """The formula of docs/format.md."""
    h = mix64(seed + 0x9E3779B97F4A7C15 & MASK)
    for token in reversed(tokens):
        h = mix64(h ^ token + 1)
    return h


def checksum(data: bytes, seed: int) -> int:
    return xxhash.xxh64_intdigest(data, seed) & 0xFFFFFFFF


def number(data: bytes, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size], "little")


class File:
    """A file that the manifest names, its header checked."""

    def __init__(self, directory: Path, entry: dict[str, Any], kind: int, identity: str, generation: int) -> None:
        self.data = data = (directory / entry["name"]).read_bytes()
        assert len(data) == entry["bytes"] == number(data, 48, 8)
        assert data[:8] == b"ngstore\x1a"
        assert (number(data, 8, 2), number(data, 10, 2)) == (1, kind)
        assert data[16:32].hex() == identity.replace("-", "")
        assert number(data, 32, 8) == generation
        assert number(data, PAGE - 4, 4) == zlib.crc32(data[: PAGE - 4]) == entry["header_crc"]
        self.content = data[120:136] if kind == 1 else data[88:104]
        assert self.content.hex() == entry.get("content", "0" * 32)
        self.num_rows = number(data, 40, 8)


class Index(File):
    def __init__(self, directory: Path, entry: dict[str, Any], identity: str, generation: int) -> None:
        super().__init__(directory, entry, 1, identity, generation)
        data = self.data
        self.bucket_bits, self.group_bits = number(data, 56, 4), number(data, 60, 4)
        places = [number(data, 64 + 8 * i, 8) for i in range(7)]
        self.groups, self.directory, self.remainders, self.low_bits, self.offsets, self.lengths, sums = places
        pages = sums // PAGE - 1
        for page in range(1, pages + 1):
            assert checksum(data[page * PAGE : (page + 1) * PAGE], page) == number(data, sums + 4 * (page - 1), 4)
        assert number(data, sums + 4 * pages, 4) == zlib.crc32(data[sums : sums + 4 * pages])
        assert len(data) == sums + 4 * pages + 4
        assert self.content in (bytes(16), hashlib.blake2b(data[sums : sums + 4 * pages], digest_size=16).digest())

    def start(self, bucket: int) -> int:
        group = bucket >> self.group_bits
        return number(self.data, self.groups + 8 * group, 8) + number(self.data, self.directory + 4 * bucket, 4)

    def rank(self, identity: int) -> int | None:
        width = 32 - self.bucket_bits
        bucket = identity >> 64 - self.bucket_bits
        for rank in range(self.start(bucket), self.start(bucket + 1)):
            remainder = number(self.data, self.remainders + 4 * rank, 4)
            low = number(self.data, self.low_bits + rank * width // 8, 8) >> rank * width % 8 & (1 << width) - 1
            if bucket << 64 - self.bucket_bits | remainder << width | low == identity:
                return rank
        return None


class Layer:
    def __init__(self, directory: Path, entry: dict[str, Any], identity: str, generation: int) -> None:
        self.index = Index(directory, entry["index"], identity, generation)
        self.rows = File(directory, entry["rows"], 2, identity, generation)
        data = self.rows.data
        self.row_bytes, self.is_zstd, self.data_at = number(data, 56, 4), number(data, 60, 4), number(data, 64, 8)
        at, size = number(data, 72, 8), number(data, 80, 4)
        dictionary = data[at : at + size] if size else b""
        assert zlib.crc32(dictionary) == number(data, 84, 4)
        self.zstd = zstandard.ZstdDecompressor(dict_data=zstandard.ZstdCompressionDict(dictionary) if size else None)
        self.tokens = File(directory, entry["tokens"], 3, identity, generation) if entry["tokens"] else None
        assert self.index.num_rows == self.rows.num_rows == entry["num_rows"]
        assert self.is_zstd == (entry["compression"] == "zstd")

    def row(self, rank: int, seed: int) -> bytes:
        if self.is_zstd:
            index, block = self.index.data, rank // 64
            lengths = [number(index, self.index.lengths + 2 * r, 2) for r in range(64 * block, rank + 1)]
            at = number(index, self.index.offsets + 8 * block, 8) + sum(length + 4 for length in lengths[:-1])
            size = lengths[-1]
        else:
            at, size = self.data_at + rank * (self.row_bytes + 4), self.row_bytes
        stored = self.rows.data[at : at + size]
        assert checksum(stored, seed) == number(self.rows.data, at + size, 4)
        return stored if size == self.row_bytes else self.zstd.decompress(stored)

    def ngrams(self) -> list[tuple[int, ...]]:
        assert self.tokens is not None
        data, result = self.tokens.data, []
        num_blocks, offsets_at = number(data, 64, 8), number(data, 80, 8)
        for block in range(num_blocks):
            at, end = number(data, offsets_at + 8 * block, 8), number(data, offsets_at + 8 * block + 8, 8) - 4
            assert checksum(data[at:end], block) == number(data, end, 4)
            values: list[int] = []
            shift = value = 0
            for byte in data[at:end]:
                value |= (byte & 127) << shift
                shift += 7
                if byte < 128:
                    values.append(value)
                    shift = value = 0
            while values:
                length = values[0]
                result.append(tuple(values[1 : 1 + length]))
                values = values[1 + length :]
        assert len(result) == self.tokens.num_rows == self.index.num_rows
        return result


class Reader:
    """A whole store."""

    def __init__(self, directory: Path) -> None:
        first, body = (directory / "MANIFEST").read_bytes().split(b"\n", 1)
        assert first == b"ngramstore manifest 1 %08x %d" % (zlib.crc32(body), len(body))
        self.manifest = manifest = json.loads(body)
        identity, overlay = manifest["identity"], manifest["overlay"]
        assert manifest["hash"]["name"] == "mix13-suffix-1"
        self.seed = int(manifest["hash"]["seed"])
        self.is_row = manifest["addressing"] == "row"
        self.base = Layer(directory, manifest["base"], identity, manifest["base"]["generation"])
        self.puts = Layer(directory, overlay["puts"], identity, overlay["generation"]) if overlay["puts"] else None
        self.tombstones = (
            Index(directory, overlay["tombstones"], identity, overlay["generation"]) if overlay["tombstones"] else None
        )

    def get(self, key: tuple[int, ...]) -> bytes | None:
        """Encoded row of an n-gram, or of a row number given as (number,)."""
        identity = mix64(key[0]) if self.is_row else ngram_id(key, self.seed)
        if self.tombstones and self.tombstones.rank(identity) is not None:
            return None
        if self.puts and (rank := self.puts.index.rank(identity)) is not None:
            return self.puts.row(rank, identity)
        if self.is_row:
            return self.base.row(key[0], key[0])
        rank = self.base.index.rank(identity)
        return None if rank is None else self.base.row(rank, identity)

    def ngrams(self) -> set[tuple[int, ...]]:
        """All n-grams of a store that keeps their tokens."""
        layers = [layer for layer in (self.base, self.puts) if layer]
        for layer in layers:
            for rank, ngram in enumerate(layer.ngrams()):
                assert layer.index.rank(ngram_id(ngram, self.seed)) == rank
        return {ngram for layer in layers for ngram in layer.ngrams() if self.get(ngram) is not None}
