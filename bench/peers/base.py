"""What the harness asks of a subject: write files, open them, answer batches into a given array."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from bench.data import Batch, Dataset

if TYPE_CHECKING:
    from bench.text import Positions


class Peer(ABC):
    """One subject. `build` and `open` run in different processes; one thread."""

    name: ClassVar[str]
    layout: ClassVar[str]
    """Name of the folder with its files; peers that read the same files share it."""
    settings: ClassVar[dict[str, Any]] = {}
    """Everything that was chosen, shown in the result."""
    index_apart: ClassVar[bool] = False
    """True where finding a row reads no page of the row files, so that rows can be cold under a warm index."""

    @abstractmethod
    def build(self, source: Dataset, folder: Path) -> None:
        """Write the files for all of `source` into the empty `folder`."""

    @abstractmethod
    def open(self, folder: Path, source: Dataset, cache_bytes: int) -> None:
        """Get ready to answer, with at most `cache_bytes` of rows in a cache of its own where it has one."""

    @abstractmethod
    def get(self, batch: Batch, out_BD: np.ndarray) -> np.ndarray:
        """Rows of a batch into out (B, D) f32, zeros where absent -> found (B,) bool."""

    has_cache: ClassVar[bool] = False
    """True where it keeps rows in a cache of its own, which has to be filled before anything is called warm."""

    probes: ClassVar[bool] = True
    """False where `longest` is told which n-gram matches and only fetches it."""

    def longest(self, stretch: Positions, out_TD: np.ndarray) -> np.ndarray:
        """Row of the longest stored n-gram ending at each position, zeros where none does -> its length (T,), 0 = none.

        As it stands: the exact keys are known, one `get`.
        """
        return self.get(stretch.exact, out_TD) * stretch.exact.lengths_B

    def tails(self, windows_BK: np.ndarray, stretch: Positions, out_BD: np.ndarray) -> np.ndarray:
        """`longest` for the last token of B windows of K tokens that have nothing to do with each other -> lengths (B,).

        As it stands: the IDs of the suffixes are ready-made, so `longest` serves.
        """
        del windows_BK
        return self.longest(stretch, out_BD)

    def close(self) -> None:  # noqa: B027 - most peers have nothing to let go of
        """Let go of files and maps, so that their pages can be dropped."""

    def files(self, folder: Path) -> list[Path]:
        """Every file the peer reads."""
        return sorted(path for path in folder.rglob("*") if path.is_file())

    def row_files(self, folder: Path) -> list[Path]:
        """The files that hold rows; all of them where index and rows are not apart."""
        return self.files(folder)

    def build_facts(self) -> dict[str, Any]:
        """What the subject knows of the build it did last, such as where its time went."""
        return {}

    def facts(self) -> dict[str, Any]:
        """Numbers of its own worth keeping with the result, such as its hit rate."""
        return {}


def big_endian_keys(ids_B: np.ndarray) -> list[bytes]:
    """u64 IDs as the 8-byte strings that ordered stores take; byte order is number order.

    V8, not S8, which would drop trailing zero bytes.
    """
    return ids_B.astype(">u8").view("V8").tolist()
