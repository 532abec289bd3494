"""Checkpoints: safetensors for the numbers, one JSON file that names them, replaced atomically; nothing is unpickled.

A run directory holds `checkpoint.json` and the files it names. New files are written and synced under names of their
own first, then checkpoint.json is replaced by one rename: a crash leaves the old checkpoint or the new one.

    checkpoint.json             kind and shapes of the model, how it was trained, step, identities, files; a CRC-32 of all that
    model-<step>.safetensors    weights by parameter name; <step>-1, -2, .. where a file of that name was there
    optimizer-<step>.safetensors  AdamW's state by parameter name, and the loss of every step so far
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ngramstore.checked_json import CHANGED_HINT, crc_fits, with_crc
from ngramstore.errors import DiskFull, FormatError, MissingExtra, UnsupportedVersion, UsageError
from ngramstore.files import make_directory, publish, remove_if_possible
from ngramstore_torch.model.kinds import LanguageModel, build, describe
from ngramstore_torch.training.tensor_file import write_tensors

try:
    from safetensors import SafetensorError
    from safetensors.torch import load_file
except ImportError:
    raise MissingExtra("safetensors", "torch") from None

FILE_NAME = "checkpoint.json"
_STATE = ("step", "exp_avg", "exp_avg_sq")
FORMAT, VERSION = "ngramstore-checkpoint", 1
_OF_A_SAVE = re.compile(r"(model|optimizer)-\d{8,}(-\d+)?\.safetensors(\.tmp)?")
"""Names that `save` gives, and those of files that were being written. A run folder may hold files of others."""


@dataclass(frozen=True)
class Checkpoint:
    """What a run directory holds, read and checked. `model` is on the CPU."""

    model: LanguageModel
    step: int
    description: dict[str, Any]
    """checkpoint.json: "model", "train", "data", "files", ..."""
    optimizer: dict[str, Tensor] = field(default_factory=dict)

    @property
    def identity(self) -> str:
        """SHA-256 of the weights' file: what a store built from this checkpoint says it came from."""
        return self.description["files"]["model"]["sha256"]


def save(
    directory: str | os.PathLike,
    model: LanguageModel,
    *,
    step: int,
    optimizer: Mapping[str, Tensor],
    train: Mapping[str, Any],
    data: Mapping[str, Any],
) -> None:
    """Publish a checkpoint of a run; files of the ones before are removed afterwards, and no file of another name.

    After an error the one before is there, and no file of the new one: a full disk would stay full. Raises DiskFull.
    """
    directory = Path(directory)
    make_directory(directory)
    paths = {what: _unused(directory, f"{what}-{step:08d}") for what in ("model", "optimizer")}
    description: dict[str, Any] = {"format": FORMAT, "version": VERSION, "model": describe(model), "step": step}
    description |= {"train": dict(train), "data": dict(data)}
    try:
        tensors = {"model": model.state_dict(), "optimizer": optimizer}
        description["files"] = {what: write_tensors(path, tensors[what]) for what, path in paths.items()}
        publish(directory / FILE_NAME, (json.dumps(with_crc(description), indent=2) + "\n").encode())
    except BaseException as error:
        _give_up(directory, [path.name for path in paths.values()])
        if not isinstance(error, DiskFull):
            raise
        is_first = not (directory / FILE_NAME).exists()
        hint = "free some space" + ("" if is_first else "; --resume goes on from the checkpoint before")
        raise DiskFull(error.message, hint=hint) from error
    kept = {path.name for path in paths.values()}
    for left in directory.iterdir():
        if _OF_A_SAVE.fullmatch(left.name) and left.name not in kept:  # also of a run that was killed while it saved
            remove_if_possible(left)


def require_none(directory: Path) -> None:
    """UsageError where a folder holds a checkpoint."""
    if (directory / FILE_NAME).exists():
        raise UsageError(
            f"{directory} already holds a run", hint="add --resume to continue it, or choose another folder"
        )


def load(directory: str | os.PathLike, *, with_optimizer: bool = False) -> Checkpoint:
    """Read a run directory; every file's size and SHA-256 is checked before its numbers are used.

    A run may save while it is read: the answer is one of its checkpoints, whole.
    Raises UsageError where there is no checkpoint, FormatError where it is damaged or of another shape.
    """
    directory = Path(directory)
    text = _text(directory)
    while True:
        try:
            return _load(directory, text, with_optimizer)
        except FormatError:  # a save removes the files of the checkpoint before, and may use their names again
            before, text = text, _text(directory)
            if text == before:
                raise


def load_description(directory: str | os.PathLike) -> dict[str, Any]:
    """What checkpoint.json says, without a look at the files it names. Raises UsageError and FormatError as `load` does."""
    return _parse(_text(Path(directory)))


def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy weights into a model of exactly these names and shapes; UsageError names what differs."""
    own = model.state_dict()
    if faults := [f"{name} is missing" for name in own.keys() - weights.keys()]:
        raise UsageError(f"the checkpoint is not of this model: {sorted(faults)[0]} ({len(faults)} in all)")
    if faults := [f"{name} is unknown" for name in weights.keys() - own.keys()]:
        raise UsageError(f"the checkpoint is not of this model: {sorted(faults)[0]} ({len(faults)} in all)")
    for name, tensor in own.items():
        if tensor.shape != weights[name].shape:
            raise UsageError(
                f"the checkpoint is of another shape: {name} is {tuple(weights[name].shape)}, "
                f"this model's is {tuple(tensor.shape)}",
                hint="give the sizes that the run was started with, or start another run in another folder",
            )
    model.load_state_dict(weights)


def require_same(saved: Mapping[str, Any], wanted: Mapping[str, Any], what: str) -> None:
    """UsageError that names the first setting that differs from the saved one."""
    for name in (*saved, *(name for name in wanted if name not in saved)):
        old, new = saved.get(name), wanted.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            require_same(old, new, f"{what}.{name}")
        elif (list(old) if isinstance(old, tuple) else old) != (list(new) if isinstance(new, tuple) else new):
            raise UsageError(
                f"the checkpoint was made with {what}.{name} = {old!r}, this run asks for {new!r}",
                hint="resume with the settings of the run, or start another run in another folder",
            )


def _text(directory: Path) -> bytes:
    """What checkpoint.json holds now."""
    try:
        return (directory / FILE_NAME).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(
            f"there is no checkpoint in {directory}",
            hint=f"give the folder that `ngramstore train --out` wrote {FILE_NAME} to",
        ) from None


def _load(directory: Path, text: bytes, with_optimizer: bool) -> Checkpoint:
    """The checkpoint that this text of checkpoint.json describes."""
    description = _parse(text)
    weights = _read(directory, description, "model")
    try:
        with torch.device("cpu"):  # where `Checkpoint` says it is, whatever the default device
            model = build(description["model"], where=FILE_NAME)
        load_weights(model, weights)
    except UsageError as error:  # nobody gave these sizes: they were read
        raise FormatError(f"{directory / FILE_NAME} does not describe its weights: {error.message}") from error
    optimizer = _read(directory, description, "optimizer") if with_optimizer else {}
    return Checkpoint(model, int(description["step"]), description, optimizer)


def _give_up(directory: Path, names: list[str]) -> None:
    """Remove files of a checkpoint that could not be saved, unless checkpoint.json names them: the last sync had failed."""
    try:
        named = (directory / FILE_NAME).read_text()
    except FileNotFoundError:
        named = ""
    for name in names:
        if name not in named:
            remove_if_possible(directory / name)
            remove_if_possible(directory / f"{name}.tmp")


def _unused(directory: Path, stem: str) -> Path:
    """A name that no file has: a checkpoint saved anew at the same step must not touch what the old one names."""
    path, number = directory / f"{stem}.safetensors", 0
    while path.exists():
        number += 1
        path = directory / f"{stem}-{number}.safetensors"
    return path


def _read(directory: Path, description: Mapping[str, Any], what: str) -> dict[str, Tensor]:
    entry = description["files"][what]
    path = directory / entry["name"]
    try:
        size = path.stat().st_size
        if size != entry["bytes"]:
            raise FormatError(f"{path} is {size} bytes long, {FILE_NAME} says {entry['bytes']}")
        with open(path, "rb") as file:
            if _digest(file).hexdigest() != entry["sha256"]:
                raise FormatError(f"{path} is damaged: its SHA-256 is not the one that {FILE_NAME} names")
        return load_file(path)
    except FileNotFoundError:
        raise FormatError(f"{path} is missing, and {FILE_NAME} names it") from None
    except SafetensorError as error:
        raise FormatError(f"{path} is not a safetensors file: {error}") from None


def _parse(text: bytes) -> dict[str, Any]:
    try:
        description = json.loads(text)
        if description["format"] != FORMAT:
            raise FormatError(f"{FILE_NAME} is of format {description['format']!r}, not {FORMAT!r}")
        if description["version"] != VERSION:
            raise UnsupportedVersion(f"checkpoint version {description['version']!r}, this release reads {VERSION}")
        if not crc_fits(description, may_lack=True):
            raise FormatError(f"{FILE_NAME} is damaged, or was changed: its checksum differs", hint=CHANGED_HINT)
        for entry in (description["files"]["model"], description["files"]["optimizer"]):
            if (
                Path(entry["name"]).name != entry["name"]
                or "\0" in entry["name"]
                or not isinstance(entry["bytes"], int)
            ):
                raise FormatError(f"{FILE_NAME} names a file outside its own folder: {entry['name']!r}")
            _ = entry["sha256"]
        _ = description["model"]["kind"], description["train"], description["data"]
        if type(description["step"]) is not int:
            raise FormatError(f"{FILE_NAME} says step {description['step']!r}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise FormatError(f"{FILE_NAME} cannot be read: {error!r}") from None
    return description


def _digest(file: Any) -> Any:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer, losses: list[float]) -> dict[str, Tensor]:
    """AdamW's state by parameter name, and the losses so far (f64), for `save` to write at once."""
    tensors = {"losses": torch.tensor(losses, dtype=torch.float64, device="cpu")}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state[parameter].items():
            tensors[f"{key}/{name}"] = value.detach()
    return tensors


def restore_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> list[float]:
    """Put the saved state back, exactly, where the parameters are; returns the losses so far.

    A parameter that had no gradient yet has no state; AdamW makes it at the first one.
    """
    for name, parameter in model.named_parameters():
        saved = {key: tensors[f"{key}/{name}"] for key in _STATE if f"{key}/{name}" in tensors}
        if saved and len(saved) < len(_STATE):
            raise FormatError(f"the optimizer's file lacks {', '.join({*_STATE} - {*saved})} of {name}")
        for key, value in saved.items():
            dtype = torch.float32 if key == "step" else value.dtype  # a count of another type stops the fused kernel
            optimizer.state[parameter][key] = value.to(parameter.device, dtype, copy=True)
    return tensors["losses"].tolist()
