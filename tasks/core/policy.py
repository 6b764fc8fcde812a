"""How much of a file its digest covers: all, but for large files as the tenant says.

`partial` covers the first and last 64 KiB and the size, `skip` only size and modification time: neither reads much of
a large file, and neither sees every change of one. What a digest covers is said by its algorithm and is hashed with it,
so that none is ever taken for another.
"""

from __future__ import annotations

from dataclasses import dataclass

FULL, PARTIAL, SKIP = "full", "partial", "skip"
PART_BYTES = 64 << 10
# The algorithm of files that are not read.
STAT = "stat"


@dataclass(frozen=True, slots=True)
class Policy:
    """A tenant's: the hash, and what is done with files of at least `large_file_bytes` (None: no file is large)."""

    algorithm: str
    large_file: str = FULL
    large_file_bytes: int | None = None

    def algorithm_for(self, size: int) -> str:
        """The algorithm of a file of so many bytes: a hash, that of its parts, or none."""
        if self.large_file == FULL or self.large_file_bytes is None or size < self.large_file_bytes:
            return self.algorithm
        return STAT if self.large_file == SKIP else f"{self.algorithm}-{PARTIAL}"
