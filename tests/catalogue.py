"""The catalogue of inputs: what a file tree may do, and which tests show what Strandline does then.

A test says which row it shows by `@pytest.mark.row(number, "what it asserts")`; `python -m tests.catalogue` prints all.
"""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROWS = {
    1: "delete one, create one: the count is unchanged",
    2: "an old file brought in by cp -p, rsync -t, tar x, unzip",
    3: "an old file, or an old tree, moved in",
    4: "a rename in a folder, between folders, of a folder with 100,000 files",
    5: "two files or folders swapped by three renames or exchanged, also of equal size and mtime",
    6: "a rewrite with the same size, and mtime set back",
    7: "cp -p over it, or an older file of the same size renamed over it",
    8: "a rewrite in the same tick of the clock as the scan",
    9: "a store through a memory map after the hash",
    10: "append, truncate, replace by rename while it is hashed",
    11: "a log that grows for ever",
    12: "it vanishes between list and open, or between open and read",
    13: "a file becomes a folder, a folder a file, either a symlink, under the same name",
    14: "pipe, socket, device; a pipe that takes a file's place between list and open",
    15: "a symlink to a file, a folder, out of the root, to another tenant, dangling, looping, retargeted",
    16: "a folder swapped for a symlink while it is walked",
    17: "a hard link added, removed, across folders",
    18: "a bind mount or another file system inside the root",
    19: "a rename by case alone; A beside a",
    20: "NFC beside NFD",
    21: "names that are not UTF-8, with control characters, quotes, a leading dash, of 255 bytes",
    22: "a path of more than 4,096 bytes; 10,000 levels",
    23: "a million entries in one folder",
    24: "a million empty files",
    25: "a hundred copies of one file, one deleted, one added",
    26: "a sparse file of 8 TB; a file that takes longer than a shard may",
    27: "mtime in the future, -1, 0, in the year 9999; nanoseconds cut by a remount",
    28: "a restore or migration: other inodes and change times, the same content",
    29: "chmod -R, chown -R, link counts",
    30: "a permission lost on a file or a sub-tree, then given back",
    31: "EIO, ESTALE, ENOTCONN, ETIMEDOUT on a file, a folder, half-way through a listing",
    32: "a listing torn by renames",
    33: "ignore rules changed",
    34: "the ways in which editors save",
    35: "an inode used again at once by a new file",
    36: "a root that is missing, a file, unreadable, empty, a symlink, /, in another tenant's, not allowed",
    37: "the root unmounted, or another volume there; the same volume on another node",
    38: "most files deleted for real; the only large folder renamed, or newly ignored",
    39: "stamps of 1-2 s, no change time, changing inodes, frozen folder times",
    40: "the clock steps back an hour; the file system's clock lags",
    41: "an empty tree, folders only, one file; a root with a slash, .., relative",
    42: "disk full, read-only or over quota under the state folder or the database",
}


class Shown(NamedTuple):
    row: int
    test: str
    asserted: str


def shown() -> Iterator[Shown]:
    """Every marker of every test here, as it is written; nothing is imported for that."""
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                for marker in map(_marker, node.decorator_list):
                    if marker is not None:
                        yield Shown(*marker[:1], f"{path.name}::{node.name}", *marker[1:])


def _marker(decorator: ast.expr) -> tuple[int, str] | None:
    if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) in ("row", "pytest.mark.row"):
        number, asserted = (ast.literal_eval(argument) for argument in decorator.args)
        return number, asserted
    return None


def main() -> None:
    tests: dict[int, list[Shown]] = {}
    for one in shown():
        tests.setdefault(one.row, []).append(one)
    for number, words in ROWS.items():
        print(f"\n{number}. {words}")
        for one in tests.get(number, []):
            print(f"   {one.test}\n      {one.asserted}")


if __name__ == "__main__":
    main()
