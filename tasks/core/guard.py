"""The pure decision whether to believe that so much was deleted, or to ask a person first."""

from __future__ import annotations

import os
from typing import NamedTuple

# Below these numbers of files nothing is doubted: small folders are emptied and rewritten every day.
DOUBTED_SHARE_FROM = 50
DOUBTED_ALL_FROM = 10


class Place(NamedTuple):
    """What tells a root from another folder, volume or empty mount point at the same path, on every node alike (so
    no device number). The inode is None where it is not stable.
    """

    filesystem: str
    inode: int | None

    def __str__(self) -> str:
        return self.filesystem if self.inode is None else f"{self.filesystem} inode {self.inode}"


def doubt_root(known: Place | None, found: Place, familiar: bool) -> str | None:
    """Why the root is not the place that it was, in words; None: it is. `familiar`: something of what was known at its
    top is there, or it is no mount point. (The roots of two volumes have the same inode; other folders hardly ever.)
    """
    if known is not None and known != found:
        return f"the root is another folder than before ({found}, it was {known})"
    return None if familiar else "another volume seems to be mounted on the root: nothing at its top is known"


def mixed_root(seen: set[str]) -> str | None:
    """Why the root was not one place during the scan, in words; None: it was."""
    if len(seen) < 2:
        return None
    return f"the root was not the same folder all the time ({' and '.join(sorted(seen))})"


def doubt_mount(path: bytes) -> str:
    """Why deletions below the root are not believed where a mount came, went or changed, in words."""
    return f"{os.fsdecode(path)!r} is on another file system than before, and nothing of what was known there is there"


def doubt(deleted: int, known: int, limit_percent: int) -> str | None:
    """Why `deleted` of `known` files are too many, in words; None: they may go."""
    if deleted >= max(known, DOUBTED_ALL_FROM):
        return f"all {known:,} files are gone"
    if deleted >= DOUBTED_SHARE_FROM and deleted * 100 > limit_percent * known:
        share = deleted * 100 // known
        return f"{deleted:,} of {known:,} files are gone ({share} %, the limit is {limit_percent} %)"
    return None
