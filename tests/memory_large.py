"""The large things that `make bench-memory ARGS="--data large"` scans, each in two sizes, between which the memory of a
worker must not grow.

python -m tests.memory_trees FOLDER names:2000000 …
"""

import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tests import trees
from tests.field import large

FILES_PER_FOLDER = 1_000
# Of the files of a directory so many are not deleted: were all gone, that would be doubted.
KEPT = 1_000
# One shard does it all.
ONE_SHARD = {"STRANDLINE_SHARD_ENTRIES": "1000000000", "STRANDLINE_SHARD_SECONDS": "36000"}
_EMPTY = stat.S_IFREG | 0o644


def _files_as_numbered(number: int) -> int:
    return number


@dataclass(frozen=True)
class Large:
    """One kind, whose size is a number. `change` is done before a second scan, to so many files."""

    sizes: tuple[int, int]
    make: Callable[[bytes, int], None]
    change: Callable[[bytes, int], None] | None = None
    files: Callable[[int], int] = _files_as_numbered  # that a tree of that size has at first
    settings: Mapping[str, str] = field(default_factory=dict)

    def changes(self, number: int, scan: int) -> int:
        """How many changes the first, or the second scan finds."""
        return self.files(number) if scan == 1 else number


def _make_file(root: bytes, gigabytes: int) -> None:
    os.makedirs(root)
    large(root, size=gigabytes << 30)


def _make_names(root: bytes, number: int) -> None:
    os.makedirs(root)
    here = os.open(root, trees.DIRECTORY)
    for one in range(number):
        os.mknod(b"n%07d" % one, _EMPTY, dir_fd=here)
    os.close(here)


def _make_folders(root: bytes, number: int) -> None:
    os.makedirs(root)
    here = os.open(root, trees.DIRECTORY)
    for one in range(number):
        os.mkdir(b"d%06d" % one, dir_fd=here)
        os.mknod(b"d%06d/f" % one, _EMPTY, dir_fd=here)
    os.close(here)


def _make_deep(root: bytes, depth: int) -> None:
    """Names of one byte, and a file in each folder: the last path has twice as many bytes as folders."""
    os.makedirs(root)
    here = os.open(root, trees.DIRECTORY)
    for _ in range(depth):
        os.mkdir(b"d", dir_fd=here)
        below = os.open(b"d", trees.DIRECTORY, dir_fd=here)
        os.close(here)
        here = below
        os.mknod(b"f", _EMPTY, dir_fd=here)
    os.close(here)


def _make_changes(root: bytes, number: int) -> None:
    trees.make_many(root, number // FILES_PER_FOLDER, FILES_PER_FOLDER, size=16)


def _rewrite(root: bytes, number: int) -> None:
    for path in trees.many_paths(number // FILES_PER_FOLDER, FILES_PER_FOLDER):
        trees.write(os.path.join(root, path), b"rewritten: %s" % path)


def _make_deletions(root: bytes, number: int) -> None:
    trees.make_many(root, 1, number + KEPT, size=16)


def _delete(root: bytes, number: int) -> None:
    [folder] = trees.many_folders(1)
    here = os.open(os.path.join(root, folder), trees.DIRECTORY)
    for one in range(number):
        os.unlink(b"f%05d" % one, dir_fd=here)
    os.close(here)


LARGE = {
    "huge-file": Large((1, 100), _make_file, files=lambda _: 1),
    "names": Large((200_000, 2_000_000), _make_names),
    "folders": Large((10_000, 100_000), _make_folders),
    "deep": Large((200, 2_000), _make_deep),
    "changes": Large((30_000, 300_000), _make_changes, _rewrite, settings=ONE_SHARD),
    "deletions": Large((5_000, 50_000), _make_deletions, _delete, files=lambda number: number + KEPT),
}
