"""The catalogue: what a file tree may do and what may break, and which tests show what Strandline does then.

A test says what it shows by `@pytest.mark.row(number, "what it asserts")` for an input, and by
`@pytest.mark.fault(number, "how it is injected")` for a fault, after which the test
checks the invariants (tests/invariants.py). `python -m tests.catalogue` prints all.
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

FAULTS = {
    1: "kill -9 of a child in a shard; of the whole worker; between commit and ack",
    2: "a child killed for memory by the kernel",
    3: "TERM, then TERM again; TERM while 100 GB are hashed",
    4: "a worker stopped for three times its lease, then continued",
    5: "Redis restarted empty; FLUSHALL; killed and back after 30 s",
    6: "Redis read-only; out of memory; started with an evicting policy",
    7: "Redis accepts and never answers",
    8: "a message twice, at once and later; lost; late, after the scan ended; forged",
    9: "a message delivered again while its first delivery still runs",
    10: "PostgreSQL restarted in mid-transaction; all connections killed",
    11: "a deadlock, a serialization failure, a statement timeout",
    12: "the database's disk full; its connection limit reached; a half-open connection",
    13: "SQLite busy for 10 s; killed while it writes",
    14: "beat dead for 10 intervals; two beats; ten ticks at once",
    15: "a worker's clock an hour ahead or behind",
    16: "the root unmounted, before and during; another volume there; a FUSE dead, hung, slow",
    17: "a file whose reading kills or hangs the worker",
    18: "a tenant removed, its root changed, paused, in mid-scan",
    19: "two scans of one tenant forced to overlap",
    20: "a worker cut off from the database only; from Redis only",
    21: "old and new code side by side",
    22: "no descriptors left, no processes left",
    23: "the database restored from an older dump",
    24: "10,000 tenants with all roots gone",
}


class Shown(NamedTuple):
    row: int
    test: str
    asserted: str
    in_ci: bool  # as far as the marks of the test itself tell


def shown(marker: str = "row") -> Iterator[Shown]:
    """Every marker of that name of every test here, as it is written; nothing is imported for that."""
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                marks = {ast.unparse(decorator) for decorator in node.decorator_list}
                in_ci = marks.isdisjoint({"pytest.mark.large", "pytest.mark.long"})
                for decorator in node.decorator_list:
                    if (found := _marked(decorator, marker)) is not None:
                        yield Shown(found[0], f"{path.name}::{node.name}", found[1], in_ci)


def _marked(decorator: ast.expr, marker: str) -> tuple[int, str] | None:
    if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) in (marker, f"pytest.mark.{marker}"):
        number, asserted = (ast.literal_eval(argument) for argument in decorator.args)
        return number, asserted
    return None


def main() -> None:
    for title, rows, marker in (("Inputs", ROWS, "row"), ("Faults", FAULTS, "fault")):
        print(f"\n{title}")
        for number, words in rows.items():
            print(f"\n{number}. {words}")
            for one in (one for one in shown(marker) if one.row == number):
                print(f"   {one.test}\n      {one.asserted}")


if __name__ == "__main__":
    main()
