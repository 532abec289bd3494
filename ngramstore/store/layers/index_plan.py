"""Where each section of an index begins, and what its pages are checked by: the same for who writes one and who reads one.

Format: docs/format.md, section Index. The top b bits of an ID are its bucket (8 to 15 IDs each); a directory says where buckets
begin; the next 32 bits lie in a plane of their own, the last 32 - b bits in a packed one.

Shapes: N rows of the index.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ngramstore.hashing import checksums
from ngramstore.layout import BLOCK_ROWS, PAGE_BYTES
from ngramstore.store.layers.datafile import content_digest

GROUP_BITS = 16
SPARE_BYTES = 8  # kernels load 8 bytes where the last low bits begin


@dataclass(frozen=True)
class IndexPlan:
    """Where each section of an index of N rows begins: computed, never read.

    `is_keyed`: rows are found by ID (else by number). `is_sized`: rows have sizes of their own (compressed).
    """

    num_rows: int
    is_keyed: bool
    is_sized: bool
    group_bits: int = GROUP_BITS

    @cached_property
    def bucket_bits(self) -> int:
        """8 to 15 IDs a bucket."""
        return min(32, max(1, self.num_rows.bit_length() - 4)) if self.is_keyed else 0

    @property
    def low_bits(self) -> int:
        """Bits of an ID in the packed plane."""
        return 32 - self.bucket_bits

    def sections(self) -> dict[str, tuple[int, int]]:
        """Name -> (position, bytes), in file order; positions are page-aligned."""
        return self._sections

    @cached_property
    def _sections(self) -> dict[str, tuple[int, int]]:
        buckets = 1 << self.bucket_bits
        blocks = -(-self.num_rows // BLOCK_ROWS)
        keyed, sized = int(self.is_keyed), int(self.is_sized)
        sizes = {
            "groups": keyed * 8 * ((buckets >> self.group_bits) + 1),
            "directory": keyed * 4 * (buckets + 1),
            "remainders": keyed * 4 * self.num_rows,
            "low_bits": keyed * (-(-self.num_rows * self.low_bits // 8) + SPARE_BYTES),
            "offsets": sized * 8 * blocks,
            "lengths": sized * 2 * self.num_rows,
        }
        position = PAGE_BYTES
        result = {}
        for name, size in sizes.items():
            result[name] = (position, size)
            position += -(-size // PAGE_BYTES) * PAGE_BYTES
        pages = position // PAGE_BYTES - 1
        result["checksums"] = (position, 4 * pages + 4)
        return result

    @property
    def file_bytes(self) -> int:
        """Size of the whole file."""
        position, size = self.sections()["checksums"]
        return position + size

    def header_fields(self) -> dict[str, int]:
        """The fields of the header that describe the sections."""
        at = {name: position for name, (position, _) in self.sections().items()}
        return {
            "num_rows": self.num_rows,
            "bucket_bits": self.bucket_bits,
            "group_bits": self.group_bits,
            "groups_at": at["groups"],
            "directory_at": at["directory"],
            "remainders_at": at["remainders"],
            "low_bits_at": at["low_bits"],
            "offsets_at": at["offsets"] if self.is_sized else 0,
            "lengths_at": at["lengths"] if self.is_sized else 0,
            "checksums_at": at["checksums"],
        }


def index_content(table: bytes) -> bytes:
    """What the header says of an index whose page checksums these are."""
    digest = content_digest()
    digest.update(table)
    return digest.digest()


def page_checksums(section: np.ndarray, first_page: int) -> np.ndarray:
    """Checksums of whole pages of a u8 array, seeded by page number: (bytes,) u8 -> (pages,) u32."""
    pages = np.arange(len(section) // PAGE_BYTES)
    return checksums(
        section, pages * PAGE_BYTES, np.full(len(pages), PAGE_BYTES), (pages + first_page).astype(np.uint64)
    )
