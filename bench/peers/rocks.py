"""RocksDB through rocksdict: as opened by default, tuned for point look-ups with a cache of blocks or of rows, and with zstd."""

from __future__ import annotations

import multiprocessing
import os
from abc import abstractmethod
from pathlib import Path
from typing import ClassVar

import numpy as np
from rocksdict import (
    AccessType,
    BlockBasedOptions,
    Cache,
    ChecksumType,
    DataBlockIndexType,
    DBCompressionType,
    IngestExternalFileOptions,
    Options,
    Rdict,
    SstFileWriter,
)

from bench.data import Batch, Dataset
from bench.peers.base import Peer, big_endian_keys
from bench.rows import decoder

_SST_ROWS = 1 << 17


class _Rocks(Peer):
    """Bulk load by SST ingest in key order; one batched `get` a call."""

    has_cache = True
    _rows: Cache | None = None

    @abstractmethod
    def _options(self, cache_bytes: int) -> Options: ...

    def build(self, source: Dataset, folder: Path) -> None:
        order_N = np.argsort(source.ids_N)
        tasks = []
        for start in range(0, source.num_keys, _SST_ROWS):
            path = str(folder.parent / f"{folder.name}-{start}.sst")
            tasks.append((source, order_N[start : start + _SST_ROWS], path))
        self._write_all(tasks)
        options = self._options(8 << 20)
        options.create_if_missing(True)
        db = Rdict(str(folder), options)
        ingest = IngestExternalFileOptions()
        ingest.set_move_files(True)
        db.ingest_external_file([path for _, _, path in tasks], ingest)
        db.close()

    def _write_all(self, tasks: list[tuple[Dataset, np.ndarray, str]]) -> None:
        """By one process a core: a writer holds the GIL."""
        if len(tasks) == 1:
            self._write_some(tasks)
            return
        running: list[multiprocessing.process.BaseProcess] = []
        fork = multiprocessing.get_context("fork")  # children share the source's arrays without copying them
        for start in range(os.cpu_count() or 1):
            running.append(fork.Process(target=self._write_some, args=(tasks[start :: os.cpu_count() or 1],)))
            running[-1].start()
        for process in running:
            process.join()
            assert process.exitcode == 0, f"a writer ended with {process.exitcode}"

    def _write_some(self, tasks: list[tuple[Dataset, np.ndarray, str]]) -> None:
        for task in tasks:
            self._write_sst(*task)

    def _write_sst(self, source: Dataset, numbers_M: np.ndarray, path: str) -> None:
        """One file of rows in key order."""
        writer = SstFileWriter(self._options(8 << 20))
        writer.open(path)
        for key, row_R in zip(big_endian_keys(source.ids_N[numbers_M]), source.stored_NR[numbers_M], strict=True):
            writer[key] = row_R.tobytes()
        writer.finish()

    def open(self, folder: Path, source: Dataset, cache_bytes: int) -> None:
        self._db = self._reopen(str(folder), self._options(cache_bytes))
        self._zero = bytes(source.stored_NR.shape[1])
        self._decode = decoder(source.codec, source.dim)

    def _reopen(self, path: str, options: Options) -> Rdict:
        """Without column_families, rocksdict takes the table options from the stored file and drops ours."""
        return Rdict(path, options, column_families={"default": options}, access_type=AccessType.read_only())

    def get(self, batch: Batch, out_BD: np.ndarray) -> np.ndarray:
        zero = self._zero
        values = self._db.get(big_endian_keys(batch.ids_B), zero)
        self._decode(np.frombuffer(b"".join(values), np.uint8).reshape(len(values), -1), out_BD)
        return np.array([value is not zero for value in values], np.bool_)

    def facts(self) -> dict:
        """What RocksDB says it runs with: proof that the options survived the reopening."""
        sizes = {name: self._db.property_int_value(f"rocksdb.block-cache-{name}") for name in ("capacity", "usage")}
        of_rows = {} if self._rows is None else {"row_cache_usage": self._rows.get_usage()}
        return {f"block_cache_{name}": size for name, size in sizes.items()} | of_rows

    def _split_cache(self, options: Options, cache_bytes: int, block_bytes: int) -> None:
        """Nine tenths of a budget for rows, the rest for blocks."""
        for_rows = cache_bytes // 10 * 9
        self._rows = Cache(for_rows)
        options.set_row_cache(self._rows)
        options.set_block_based_table_factory(_tables(cache_bytes - for_rows, block_bytes))

    def close(self) -> None:
        self._db.close()


class Default(_Rocks):
    """Options(raw_mode=True) and nothing else: 8 MiB block cache, snappy, no bloom filter."""

    name = "rocks_default"
    layout = "rocks-default"
    settings: ClassVar[dict] = {"options": "Options(raw_mode=True)"}

    def _options(self, cache_bytes: int) -> Options:
        del cache_bytes
        return Options(raw_mode=True)

    def _reopen(self, path: str, options: Options) -> Rdict:
        return Rdict(path, options, access_type=AccessType.read_only())


class Tuned(_Rocks):
    """No compression, bloom filter, hash index in blocks, xxh3, block cache of the given size."""

    name = "rocks_tuned"
    layout = "rocks-tuned"
    settings: ClassVar[dict] = {
        "compression": "none",
        "block_bytes": 4096,
        "bloom_bits": 10,
        "block_index": "binary and hash, ratio 0.75",
        "checksum": "xxh3",
        "cache": "HyperClock, the budget of the case",
        "reopened": 'with column_families={"default": options}',
        "written": "SST files, one process a core, then ingested",
    }

    def _options(self, cache_bytes: int) -> Options:
        options = Options(raw_mode=True)
        options.set_compression_type(DBCompressionType.none())
        options.set_block_based_table_factory(_tables(cache_bytes, 4096))
        return options


class TunedRows(Tuned):
    """The same files and options, the cache split as that of `Zstd` is."""

    name = "rocks_tuned_rows"
    settings: ClassVar[dict] = {
        **Tuned.settings,
        "cache": "nine tenths of the budget for rows (LRU), the rest for blocks (HyperClock)",
    }

    def _options(self, cache_bytes: int) -> Options:
        options = Options(raw_mode=True)
        options.set_compression_type(DBCompressionType.none())
        self._split_cache(options, cache_bytes, 4096)
        return options


class Zstd(_Rocks):
    """zstd level 3 in blocks of a few rows, nine tenths of the cache for decompressed rows, otherwise as tuned."""

    name = "rocks_zstd"
    layout = "rocks-zstd-4k"
    settings: ClassVar[dict] = {
        **TunedRows.settings,
        "compression": "zstd level 3",
        "dictionary": "none: one of 16 KiB from 1.6 MB of samples makes files 1.5 % smaller and look-ups a quarter slower",
    }
    level = 3
    block_bytes = 4096

    def _options(self, cache_bytes: int) -> Options:
        options = Options(raw_mode=True)
        options.set_compression_type(DBCompressionType.zstd())
        options.set_compression_options(-14, self.level, 0, 0)
        self._split_cache(options, cache_bytes, self.block_bytes)
        return options


class Zstd1(Zstd):
    """For bulk loading: zstd level 1, larger blocks."""

    name = "rocks_zstd1"
    layout = "rocks-zstd1"
    settings: ClassVar[dict] = {
        **Zstd.settings,
        "compression": "zstd level 1",
        "block_bytes": 16384,
    }
    level = 1
    block_bytes = 16384


def _tables(cache_bytes: int, block_bytes: int) -> BlockBasedOptions:
    tables = BlockBasedOptions()
    tables.set_block_size(block_bytes)
    tables.set_bloom_filter(10, False)
    tables.set_data_block_index_type(DataBlockIndexType.binary_and_hash())
    tables.set_data_block_hash_ratio(0.75)
    tables.set_checksum_type(ChecksumType.xxh3())
    tables.set_block_cache(Cache.new_hyper_clock_cache(cache_bytes, block_bytes))
    return tables
