"""The trees that `make bench-memory` scans, each made once and then only read.

python -m tests.memory_trees FOLDER KIND…     (kinds: pdfs, small:1000000, sparse, and those of tests.memory_large)
"""

import os
import random
import sys
from pathlib import Path

from tests import trees
from tests.field import large
from tests.memory_large import LARGE

# What the issue names: so many files, of which so many are PDFs of so many bytes in all.
PDFS_FILES, PDFS, PDFS_BYTES = 2_621, 31, 80_000_000
SPARSE_BYTES = 20 << 30
NOTES_FOLDERS = 70
SMALL_PER_FOLDER = 100
AGE_S = 3600


def path_of(folder: Path, kind: str) -> bytes:
    """Where the tree of that kind lies, or will."""
    return os.fsencode(folder / kind.replace(":", "-"))


def files_of(kind: str) -> int:
    """How many files it has."""
    name, _, number = kind.partition(":")
    if name in LARGE:
        return LARGE[name].files(int(number))
    return {"pdfs": PDFS_FILES, "sparse": 1}.get(name) or int(number)


def make(folder: Path, kind: str) -> None:
    """A tree of that kind; its files were changed an hour ago, as far as that can be set (ctime is now)."""
    root = path_of(folder, kind)
    name, _, number = kind.partition(":")
    if name == "pdfs":
        _make_pdfs(root)
    elif name == "small":
        _make_small(root, int(number))
    elif name == "sparse":
        os.makedirs(root)
        large(root, b"sparse", SPARSE_BYTES)
    elif name in LARGE:
        LARGE[name].make(root, int(number))
    else:
        raise ValueError(f"no such kind of tree: {kind}")


def _make_pdfs(root: bytes) -> None:
    """Small notes, and between them PDFs of equal size, whose content nothing could compress."""
    notes = PDFS_FILES - PDFS
    trees.make_many(root, NOTES_FOLDERS, notes // NOTES_FOLDERS, size=1500, age_s=AGE_S)
    chance = random.Random(1)
    for number in range(PDFS):
        here = PDFS_BYTES // PDFS + (number < PDFS_BYTES % PDFS)
        content = b"%PDF-1.7\n" + chance.randbytes(here - 9)
        trees.build(b"%s/000/%03d/report.pdf" % (root, number), trees.File(content), age_s=AGE_S)


def _make_small(root: bytes, number: int) -> None:
    folders, rest = divmod(number, SMALL_PER_FOLDER)
    trees.make_many(root, folders, SMALL_PER_FOLDER, age_s=AGE_S)
    for one in range(rest):
        trees.build(b"%s/rest%02d" % (root, one), trees.File(b"%d" % one), age_s=AGE_S)


def main() -> None:
    folder = Path(sys.argv[1])
    for kind in sys.argv[2:]:
        make(folder, kind)


if __name__ == "__main__":
    main()
