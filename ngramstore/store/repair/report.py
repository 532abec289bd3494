"""What a repair found, lost and made."""

from __future__ import annotations

from dataclasses import dataclass, field

from ngramstore.store.repair.check import Fault


@dataclass
class RepairReport:
    """What `repair` found and did. `lost`: a line for each row or change that could not be saved. `out`: the good store.

    `num_without_tokens`: how many of the lost rows are good but for their tokens, and kept with `drop_tokens`.
    """

    out: str
    is_dry_run: bool = False
    faults: list[Fault] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    num_rows: int = 0
    num_without_tokens: int = 0

    @property
    def is_changed(self) -> bool:
        """Whether there was anything to repair."""
        return bool(self.faults)
