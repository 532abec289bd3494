"""The f-gram table: run any model over a vocabulary, batch by batch, straight into a store build.

Only one batch of rows is in memory at a time, beside what the build itself keeps. Batches are spooled to disk as they
are computed: an export that was killed resumes, without running the model again for what was done.

Shapes: M f-grams of a batch, K tokens of the longest, D row width.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from tqdm import tqdm

import ngramstore
from ngramstore.codec import Codec, SecondOrderInt4, codec_from_spec
from ngramstore.errors import IncompleteStore, NgramStoreError, UsageError
from ngramstore_torch.data.batches import VocabularyLike, require_ids, require_lengths
from ngramstore_torch.data.identities import vocabulary_identity
from ngramstore_torch.export.spool import Spool, discard_spool, spool_path
from ngramstore_torch.model.hashed import HashedModel
from ngramstore_torch.model.kinds import LanguageModel
from ngramstore_torch.model.scone import SconeModel


class RowSource(Protocol):
    """Anything that maps an n-gram to a vector can be exported.

    With a str attribute `identity` besides, which differs wherever rows would, an export that was killed can go on;
    without one it begins again.
    """

    dim: int
    """Width of a row, D."""
    max_n: int
    """Longest n-gram it takes, K."""

    def rows(self, tokens_MK: np.ndarray, lengths_M: np.ndarray) -> np.ndarray:
        """Left-aligned tokens (M, K) u32, zeros behind each length, and lengths (M,) -> rows (M, D) f32."""
        ...


class SconeRows:
    """Rows of a SCONE model: A_f over its own T, in float32 (bf16=True: matrix products in bfloat16)."""

    def __init__(self, model: LanguageModel, *, device: torch.device | str = "cpu", bf16: bool = False) -> None:
        if not isinstance(model, SconeModel):
            raise UsageError(f"a model of kind {model.kind!r} has no f-gram table to export", hint=_instead(model))
        self.model = model.to(device).eval()
        self.device, self.bf16 = torch.device(device), bf16
        self.dim = model.decoder.config.dim
        self.max_n = model.fgram_model.config.max_n

    @property
    def identity(self) -> str:
        """SHA-256 of what the rows are computed from: every weight of A_f and T, its head count, and the type of its products."""
        digest = hashlib.sha256(f"{self.model.fgram_model.config} bf16={self.bf16}".encode())
        tensors = self.model.fgram_model.state_dict() | {"T": self.model.decoder.tokens.weight}
        for name, tensor in sorted(tensors.items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
        return digest.hexdigest()

    @torch.no_grad()
    def rows(self, tokens_MK: np.ndarray, lengths_M: np.ndarray) -> np.ndarray:
        """See RowSource. Batch sizes change the last bits of a row (about 1e-6), as in any matrix product."""
        order_M = np.argsort(lengths_M, kind="stable")
        lengths = torch.from_numpy(lengths_M[order_M].astype(np.int64))
        tokens = torch.from_numpy(tokens_MK[order_M, : int(lengths_M.max(initial=1))].astype(np.int64))
        counts = tuple(np.bincount(lengths_M, minlength=2)[2:].tolist())
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            sorted_MD = self.model.rows(tokens.to(self.device), lengths.to(self.device), counts).float().cpu().numpy()
        rows_MD = np.empty_like(sorted_MD)
        rows_MD[order_M] = sorted_MD
        return rows_MD


def _instead(model: LanguageModel) -> str:
    """What to do with a model that has no f-grams."""
    if not isinstance(model, HashedModel):
        return "train one without --plain"
    return (
        "its rows are in its checkpoint: `ngramstore build rows/ --rows RUN/model-*.safetensors --tensor tables.weight --codec f32`, then "
        f"RowTableEmbedding(store, TrainedTableHash({model.config.rows_per_table}, {model.config.max_n}), "
        "model.decoder.tokens) of ngramstore_torch"
    )


@dataclass(frozen=True)
class Exported:
    """What an export wrote, and where its time went."""

    path: Path
    num_rows: int
    dim: int
    num_resumed: int = 0
    """Rows that an earlier export had computed before it was killed."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Wall time by part: model (the vectors), then the store's: quantize, spool (the safety copy), sort, pack (and write)."""
    cpu_seconds: Mapping[str, float] = field(default_factory=dict)
    """Processor time of all threads, by the same parts."""

    @property
    def store_seconds(self) -> float:
        """Wall time of all but the model."""
        return sum(self.seconds.values()) - self.seconds.get("model", 0.0)


def export_table(
    source: RowSource,
    vocabulary: VocabularyLike,
    path: str | os.PathLike[str],
    *,
    codec: str | Mapping[str, Any] = "int8",
    sensitivity: np.ndarray | None = None,
    batch_size: int = 4096,
    metadata: Mapping[str, Any] | None = None,
    progress: bool = False,
    restart: bool = False,
    **build_options: Any,
) -> Exported:
    """Write the row of every f-gram of a vocabulary into a new store at `path`.

    sensitivity: (D, D), of `input_sensitivity`: int4 rounds so that this decoder notices least (codec.second_order).
    metadata: kept in the store's manifest (identities of tokenizer, vocabulary and checkpoint belong there).
    An export that was killed or interrupted leaves `path`.export; the same call resumes there and removes it in the end.
    restart: begin again, whatever was left. build_options go to `ngramstore.build`.
    Raises UsageError where the vocabulary has longer n-grams than the source takes or tokens that the model does not
    have, or what was left is of another export.
    """
    tokens_NK, lengths_N = vocabulary.ngrams
    require_lengths(lengths_N, source.max_n)
    if batch_size < 1:
        raise UsageError(f"batch_size must be at least 1, got {batch_size}")
    if len(lengths_N) == 0:
        raise UsageError("the vocabulary holds no n-gram, there is nothing to export")
    if isinstance(source, SconeRows):
        require_ids(tokens_NK, source.model.decoder.config.vocab_size, "the n-grams of the vocabulary")
    require_parent(path)
    plain = codec_from_spec(codec, source.dim)
    encoder: Codec | SecondOrderInt4 = plain if sensitivity is None else SecondOrderInt4(plain, sensitivity)
    if restart:
        discard_spool(path)
    with ExitStack() as stack:
        spool = _open_spool(source, vocabulary, path, encoder)
        if spool is not None:
            stack.enter_context(spool)
            if not spool.is_new and _is_finished(path, len(lengths_N), metadata):  # killed between publishing and this
                spool.remove()
                return Exported(Path(path), len(lengths_N), source.dim, len(lengths_N))
        build = _begin(
            spool,
            path,
            restart,
            dim=source.dim,
            max_n=vocabulary.max_n,
            codec=codec,
            metadata=metadata,
            **build_options,
        )
        exported = _fill(build, spool, encoder, source, tokens_NK, lengths_N, batch_size, progress)
        if spool is not None:
            spool.remove()
    return exported


def require_parent(path: str | os.PathLike[str]) -> None:
    """UsageError where the folder that a store at `path` would stand in is not there."""
    parent = Path(path).absolute().parent
    if not parent.is_dir():
        raise UsageError(f"{path}: {parent} is not a folder", hint="create it first")


def _open_spool(
    source: RowSource, vocabulary: VocabularyLike, path: str | os.PathLike[str], encoder: Codec | SecondOrderInt4
) -> Spool | None:
    identity = getattr(source, "identity", None)
    if identity is None:
        return None
    job = {"model": identity, "vocabulary": vocabulary_identity(vocabulary), "codec": encoder.spec()}
    job["rounding"] = encoder.identity if isinstance(encoder, SecondOrderInt4) else None
    return Spool(spool_path(path), job, encoder.row_bytes)


def _is_finished(path: str | os.PathLike[str], num_rows: int, metadata: Mapping[str, Any] | None) -> bool:
    try:
        with ngramstore.open(path) as store:
            return len(store) == num_rows and store.metadata == dict(metadata or {})
    except NgramStoreError:
        return False


def _begin(
    spool: Spool | None, path: str | os.PathLike[str], restart: bool, **build_options: Any
) -> ngramstore.Builder:
    """The build; what a killed one left is in its way no more than its spool is."""
    try:
        return ngramstore.build(path, restart=restart or (spool is not None and not spool.is_new), **build_options)
    except NgramStoreError as error:
        if spool is not None and spool.is_new:
            spool.remove()
        if (
            isinstance(error, IncompleteStore) and error.hint == IncompleteStore.default_hint
        ):  # others know how to go on
            hint = "no rows of it are left to go on with: add --restart (restart=True) to export from the beginning"
            raise IncompleteStore(error.message, hint=hint) from None
        raise


def _fill(
    build: ngramstore.Builder,
    spool: Spool | None,
    encoder: Codec | SecondOrderInt4,
    source: RowSource,
    tokens_NK: np.ndarray,
    lengths_N: np.ndarray,
    batch_size: int,
    progress: bool,
) -> Exported:
    """Every row into the build: first those of the spool, then the model's. Ends the build."""
    clock = _Clock()
    num_rows, first, num_resumed = len(lengths_N), 0, 0
    with (
        clock.end_of(build),
        tqdm(total=num_rows, unit="row", unit_scale=True, desc="export", file=sys.stderr, disable=not progress) as bar,
    ):
        for encoded_MB in spool.batches() if spool is not None else ():
            with clock.part("sort"):
                first += len(encoded_MB)
                batch = slice(first - len(encoded_MB), first)
                build.add_encoded((tokens_NK[batch], lengths_N[batch]), encoded_MB)
            num_resumed = first
            bar.update(len(encoded_MB))
        while first < num_rows:
            batch = slice(first, first + batch_size)
            tokens_MK, lengths_M = tokens_NK[batch], lengths_N[batch]
            with clock.part("model"):
                rows_MD = source.rows(tokens_MK, lengths_M)
            with clock.part("quantize"):
                encoded_MB = encoder.encode(rows_MD, first_row=first)
            if len(encoded_MB) != len(lengths_M):  # in the spool they would go to other n-grams when the export goes on
                raise UsageError(
                    f"the source gave {len(encoded_MB)} rows for {len(lengths_M)} n-grams",
                    hint="a RowSource gives one row for each n-gram",
                )
            if spool is not None:
                with clock.part("spool"):
                    spool.add(encoded_MB)
            with clock.part("sort"):
                build.add_encoded((tokens_MK, lengths_M), encoded_MB)
            first += len(lengths_M)
            bar.update(len(lengths_M))
    return Exported(build.path, num_rows, source.dim, num_resumed, clock.wall, clock.cpu)


class _Clock:
    """Wall and processor seconds by part."""

    def __init__(self) -> None:
        self.wall = dict.fromkeys(("model", "quantize", "spool", "sort", "pack"), 0.0)
        self.cpu = dict(self.wall)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What the block takes is added to one part; a block that raises counts for nothing."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.wall[name] += time.perf_counter() - wall
        self.cpu[name] += time.process_time() - cpu

    @contextmanager
    def end_of(self, build: ngramstore.Builder) -> Iterator[None]:
        """The build as a context manager, the time that its end takes under "pack"."""
        with build:
            yield
            wall, cpu = time.perf_counter(), time.process_time()
        self.wall["pack"] += time.perf_counter() - wall
        self.cpu["pack"] += time.process_time() - cpu
