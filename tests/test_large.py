"""A million files, in 40,000 folders and in one: scanned, scanned again, renamed, within 200 MB a process.

Only `make test-large` runs this: it makes two trees of 5 GB, one after the other. What it measures it prints as
a table; it fails on what is wrong or too large, never on time. LARGE_FILES says how many files, for a try.
"""

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import processes, trees
from tests.bench import AGED_S, FIND, cost_of
from tests.command import Command
from tests.waiting import wait_until

pytestmark = [pytest.mark.large, pytest.mark.timeout(0)]

FILES = int(os.environ.get("LARGE_FILES", "1000000"))
SIZE = 64
BOUND_BYTES = 200 << 20
BYTES_NEEDED = FILES * (4096 + 256) + (4 << 30)  # a block and an inode each, and the database
WITHIN_S = 3 * 3600
SCANS = "first scan", "nothing changed", "folder renamed"


@dataclass(frozen=True)
class Shape:
    folders: int

    @property
    def files_per_folder(self) -> int:
        return FILES // self.folders

    def paths(self) -> list[tuple[bytes, int]]:
        """Each path with its number, in the order of the index: by folder, then by name."""
        numbered = ((path, number) for number, path in enumerate(trees.many_paths(self.folders, self.files_per_folder)))
        return sorted(numbered, key=lambda one: one[0].replace(b"/", b"\0"))

    def number(self, path: bytes) -> int:
        """Of a file by its path."""
        first, second, name = path.split(b"/")
        folder = int(first) * trees.FOLDERS_PER_FOLDER + int(second)
        return folder * self.files_per_folder + int(name[1:])


SHAPES = {"many folders": Shape(FILES // 25), "one folder": Shape(1)}


@dataclass
class Measured:
    """A command that has ended."""

    wall_s: float
    cpu_s: float
    peaks: list[processes.Peak]
    output: bytes


def measured(cli: Command, *words: str | bytes) -> Measured:
    began = time.monotonic()
    with cli.start(*words) as running:
        running.watch_memory()
        ended = running.wait(WITHIN_S)
        assert ended.returncode == 0, ended.stderr[-2000:]
        return Measured(time.monotonic() - began, ended.cpu_s, running.peaks(), ended.stdout)


@pytest.fixture
def folder() -> Iterator[Path]:
    """On a disk with room, or else in memory."""
    for place in (tempfile.gettempdir(), "/dev/shm"):
        if os.path.isdir(place) and has_room(place):
            made = Path(tempfile.mkdtemp(prefix="strandline-large-", dir=place))
            yield made
            trees.remove(os.fsencode(made))
            return
    pytest.skip(f"no folder with room for {BYTES_NEEDED >> 30} GB and {FILES:,} files")


def has_room(place: str) -> bool:
    inodes = os.statvfs(place).f_favail
    return shutil.disk_usage(place).free > BYTES_NEEDED and (inodes > 1.1 * FILES or inodes == 0)


@pytest.mark.parametrize("what", SHAPES)
def test_a_million_files(folder: Path, what: str) -> None:
    # Whose turn it is to be verified is read again, and would be counted as hashed.
    cli = Command(folder / "state", {"STRANDLINE_VERIFY_DAYS": "1000000"})
    shape, root = SHAPES[what], os.fsencode(folder / "root")
    began = time.monotonic()
    trees.make_many(root + b"/in", shape.folders, shape.files_per_folder, size=SIZE)
    made = time.monotonic()
    tell(f"\n{what}: {FILES:,} files made in {made - began:.0f} s; letting them age")
    wait_until(lambda: time.monotonic() > made + AGED_S, AGED_S + 5, "the tree ages")

    first = check_scan(cli, root, SCANS[0], added=FILES, hashed_files=FILES, moved=0, deleted=0)
    second = check_scan(cli, root, SCANS[1], added=0, hashed_files=0, moved=0, deleted=0)
    assert second["directories_unchanged"] == second["directories"]
    tell_ratio(cli, root, folder)
    check_index(cli, shape, b"in/")
    source, target = (b"/in", b"/out") if shape.folders > 1 else (b"/in/000/000", b"/in/000/001")
    os.rename(root + source, root + target)
    check_scan(cli, root, SCANS[2], added=0, hashed_files=0, moved=FILES, deleted=0, modified=0)

    renamed = (lambda path: path.replace(source[1:], target[1:], 1)) if shape.folders > 1 else rename_one
    check_index(cli, shape, b"out/" if shape.folders > 1 else b"in/", renamed)
    check_moves(cli, shape, second["cursor"])
    assert first["files"] == second["files"] == FILES


def tell(line: str) -> None:
    print(line, flush=True)


def check_scan(cli: Command, root: bytes, name: str, **expected: int) -> dict[str, Any]:
    """A scan with these counts, and no process of it larger than allowed."""
    done = measured(cli, "scan", root, "--tenant", "t", "--json")
    document: dict[str, Any] = json.loads(done.output)
    largest = ", ".join(f"{peak.name} {peak.peak_bytes >> 20}" for peak in done.peaks[:6])
    tell(
        f"  {name:16} {done.wall_s:7.1f} s  {done.cpu_s:7.1f} s CPU  {document['shards']:4} shards  "
        f"told {document['peak_memory_bytes'] >> 20} MB, sampled {largest} MB  "
        f"database {sum(file.stat().st_size for file in cli.state.glob('strandline.db*')) >> 20} MB"
    )
    assert document["state"] == "succeeded" and document["errors_total"] == 0, document
    assert {name: document[name] for name in expected} == expected
    assert document["peak_memory_bytes"] <= BOUND_BYTES
    assert [peak for peak in done.peaks if peak.peak_bytes > BOUND_BYTES] == []
    return document


def tell_ratio(cli: Command, root: bytes, folder: Path) -> None:
    """As `make bench` has it: CPU of a scan with nothing changed, less that of an empty folder, over that of find."""
    empty = os.fsencode(folder / "empty")
    os.mkdir(empty)
    find = cost_of(["find", root, *FIND], discard=True).cpu_s
    nothing, whole = (cost_of(cli.argv("scan", one, "--json")).cpu_s for one in (empty, root))
    tell(f"  nothing changed: {(whole - nothing) / find:.2f} × find (bound 4); find {find:.1f} s CPU")


def check_index(cli: Command, shape: Shape, prefix: bytes, renamed: Any = lambda path: path) -> None:
    """Every path in its order, with its digest, read as it comes."""
    expected = iter(sorted_by_folder((renamed(b"in/" + path), number) for path, number in shape.paths()))
    for document in lines(cli, "files", "t", "--json"):
        path, number = next(expected)
        content = (b"%d" % number).rjust(SIZE, b".")
        assert (trees.exact(document, "path"), document["size"]) == (path, SIZE)
        assert document["digest"] == hashlib.sha256(content).hexdigest(), path
    assert next(expected, None) is None
    some = sum(1 for _ in lines(cli, "files", "t", "--prefix", (prefix + b"000/0").decode(), "--json"))
    assert some == min(FILES, 100 * shape.files_per_folder)


def sorted_by_folder(paths: Any) -> list[tuple[bytes, int]]:
    return sorted(paths, key=lambda one: one[0].replace(b"/", b"\0"))


def rename_one(path: bytes) -> bytes:
    return path.replace(b"in/000/000/", b"in/000/001/", 1)


def check_moves(cli: Command, shape: Shape, since: str) -> None:
    """Each file once, from its old name to its new one."""
    seen = bytearray(FILES)
    for change in lines(cli, "changes", "t", "--since", since, "--json"):
        old, new = trees.exact(change, "old_path"), trees.exact(change, "path")
        assert change["kind"] == "moved" and new in (old.replace(b"in/", b"out/", 1), rename_one(old)), change
        seen[shape.number(old.removeprefix(b"in/"))] += 1
    assert seen == b"\1" * FILES


def lines(cli: Command, *words: str) -> Iterator[dict[str, Any]]:
    """What a command prints, line by line; its memory is bounded, too."""
    with subprocess.Popen(cli.argv(*words), stdout=subprocess.PIPE) as reading:
        assert reading.stdout is not None
        peak = 0
        for count, line in enumerate(reading.stdout):
            yield json.loads(line)
            if count % 50_000 == 0 and (now := processes.read_peak(reading.pid)) is not None:
                peak = now.peak_bytes
    assert reading.returncode == 0 and peak <= BOUND_BYTES, (reading.returncode, peak)
