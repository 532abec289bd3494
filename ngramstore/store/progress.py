"""Progress bars on stderr for work that reads or writes all of a store."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

import numpy as np
from tqdm import tqdm


class HasIds(Protocol):
    """Part of a store's rows."""

    @property
    def ids(self) -> np.ndarray: ...


Part = TypeVar("Part", bound=HasIds)


def over_rows(parts: Iterable[Part], num_rows: int, what: str, shown: bool) -> Iterator[Part]:
    """The parts as they come, with a bar of `num_rows` rows where `shown`."""
    with tqdm(total=num_rows, desc=what, unit="row", unit_scale=True, disable=not shown) as bar:
        for part in parts:
            yield part
            bar.update(len(part.ids))
