"""What a repair found, lost and made."""

from __future__ import annotations

from dataclasses import dataclass, field

from ngramstore.store.repair.check import Fault


@dataclass
class RepairReport:
    """What `repair` found and did. `out`: the good store.

    `lost`: a line for each row or change that could not be saved, or for neighbouring rows lost in the same way.
    `num_lost`: how many rows and changes those lines name. Of unpublished changes it is not always known how many are lost.
    `num_without_tokens`: how many of the lost rows are good but for their tokens, and kept with `drop_tokens`.
    """

    out: str
    faults: list[Fault] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    num_lost: int = 0
    num_rows: int = 0
    num_without_tokens: int = 0

    @property
    def is_damaged(self) -> bool:
        """Whether there was anything to repair."""
        return bool(self.faults)
