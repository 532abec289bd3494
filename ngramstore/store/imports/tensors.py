"""The tensors of a checkpoint's tables, found by the ends of their names.

Names are matched by regular expressions; what stands before them (`model.`, `base_model.model.`) differs from file to file.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from ngramstore.errors import UsageError
from ngramstore.safetensors_header import TensorEntry

ITEM_BYTES = {"F8_E4M3": 1, "BF16": 2, "F16": 2, "F32": 4}
"""Types that rows may have."""
FLOAT_CODECS = {"BF16": "bf16", "F16": "f16", "F32": "f32"}
"""Those that are a codec of their own."""
_NAMED = 10  # missing shards in a message


@dataclass(frozen=True)
class Tensor:
    """A tensor of the checkpoint and the file it lies in."""

    name: str
    path: Path
    entry: TensorEntry

    def __str__(self) -> str:
        return f"{self.name} ({self.entry.dtype} {list(self.entry.shape)}, {self.path.name})"

    def as_hex(self) -> str:
        """The one number that it holds as a hexadecimal float, bit for bit. UsageError where it is none."""
        entry = self.entry
        if entry.dtype not in FLOAT_CODECS or int(np.prod(entry.shape)) != 1:
            raise UsageError(f"{self} is not a scale", hint="expected one number, BF16, F16 or F32")
        with open(self.path, "rb") as file:
            file.seek(entry.begin)
            data = file.read(ITEM_BYTES[entry.dtype])
        if entry.dtype == "BF16":
            return float(np.frombuffer(b"\0\0" + data, "<f4")[0]).hex()
        return float(np.frombuffer(data, "<f2" if entry.dtype == "F16" else "<f4")[0]).hex()


@dataclass(frozen=True)
class Tensors:
    """Those of a checkpoint that may be of a table, by name."""

    directory: Path
    by_name: dict[str, Tensor]

    def find(self, pattern: str) -> list[Tensor]:
        """All whose names end so."""
        return [tensor for name, tensor in self.by_name.items() if re.fullmatch(rf"(?:.*\.)?{pattern}", name)]

    def one(self, pattern: str) -> Tensor:
        """The one whose name ends so. UsageError where there is none, or another."""
        found = self.find(pattern)
        if len(found) != 1:
            wanted = pattern.replace("\\", "").replace("(?:shard_0.)?", "")
            near = list(self.by_name)[:5]
            raise UsageError(
                f"{self.directory}: {len(found)} tensors are named ...{wanted}, expected one",
                hint=f"its table tensors are {', '.join(near)}" if near else "it holds no table tensors",
            )
        return found[0]

    def shards(self, stem: str, count_of: Callable[[], int] | None) -> list[Tensor]:
        """The shards of a table in the order of their numbers, whatever the order of files; or its one tensor.

        count_of: says how many there have to be, where there are some; None: as many as their highest number says.
        UsageError where it is not so.
        """
        numbered: dict[int, Tensor] = {}
        for name, tensor in self.by_name.items():
            found = re.fullmatch(rf"(?:.*\.)?{stem}\.shard_(\d{{1,9}})\.weight", name)
            if found and int(found[1]) in numbered:
                raise UsageError(
                    f"{self.directory}: {numbered[int(found[1])]} and {tensor} are both shard {int(found[1])}",
                    hint="leave the files of one model in the directory",
                )
            if found:
                numbered[int(found[1])] = tensor
        if not numbered:
            return [self.one(rf"{stem}\.(?:shard_0\.)?weight")]
        expected = max(numbered) + 1 if count_of is None else count_of()
        missing = list(islice((i for i in range(expected) if i not in numbered), _NAMED))
        if missing or len(numbered) != expected:
            raise UsageError(
                f"{self.directory}: found {len(numbered)} shards of {stem.replace(chr(92), '')}, expected {expected}",
                hint=f"missing: shard_{', shard_'.join(map(str, missing))}"
                if missing
                else "shards are numbered from 0",
            )
        return [numbered[i] for i in range(expected)]
