"""Two invariants that no table tells: after a fault (7) all that was held is given back, (8) other tenants are served.

Looked at after the body of each test that is marked as a fault, in each field that is open then (tests/conftest.py).
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from db import tenants
from db.engine import reading
from db.types import ENDED, ScanState
from tests import invariants
from tests.cluster import YEAR_S
from tests.storage import remove_tenant
from tests.trees import Dir, File
from tests.waiting import wait_until

if TYPE_CHECKING:
    from tests.field import Field

SOON_S = 60
# So many at once that each child of a few is needed.
BYSTANDERS = 6
# A child that takes a dead one's place is given what its parent has open by then: sockets, so that each counts once,
# and what the pool itself is made of, which is not ours to count.
THE_POOL_S = ("pipe:", "anon_inode:[eventpoll]")
TREE = Dir({b"%d" % d: Dir({b"%d" % n: File(b"%d %d" % (d, n)) for n in range(3)}) for d in range(3)})


@dataclass(frozen=True)
class Held:
    """What processes hold of the machine: descriptors, threads, and memory that is their own."""

    descriptors: int
    threads: int
    processes: int
    memory_bytes: int

    @classmethod
    def by(cls, pids: Iterable[int]) -> Held:
        """By these processes together; one that ended meanwhile holds nothing."""
        found = [one for one in map(_looked_at, pids) if one is not None]
        names = [name for names, _, _ in found for name in names if not name.startswith(THE_POOL_S)]
        sockets = {name for name in names if name.startswith("socket:")}
        others = [name for name in names if name not in sockets]
        threads, memory_bytes = (sum(one[column] for one in found) for column in (1, 2))
        return cls(len(sockets) + len(others), threads, len(found), memory_bytes)

    def no_more_than(self, before: Held, buffers_bytes: int, descriptors: int = 4) -> bool:
        """Is it back where it was, but for a pooled connection or two and buffers? Or it has ended."""
        return (
            self.descriptors <= before.descriptors + descriptors
            and self.threads <= before.threads
            and self.processes in (0, before.processes)
            and self.memory_bytes <= before.memory_bytes + buffers_bytes
        )


def _looked_at(pid: int) -> tuple[list[str], int, int] | None:
    """What its descriptors are open on, its threads, its memory."""
    folder = Path("/proc", str(pid))
    try:
        names = list(_open(folder / "fd"))
        private = [line.split()[1] for line in (folder / "smaps_rollup").read_text().splitlines()
                   if line.startswith(("Private_Clean", "Private_Dirty"))]  # fmt: skip
        return names, len(list((folder / "task").iterdir())), 1024 * sum(map(int, private))
    except (FileNotFoundError, ProcessLookupError):
        return None


def _open(descriptors: Path) -> Iterator[str]:
    for one in descriptors.iterdir():
        with contextlib.suppress(FileNotFoundError):  # the one that lists them, maybe
            yield os.readlink(one)


@dataclass(frozen=True)
class Usual:
    """What a field holds when nothing is to be done."""

    held: dict[str, Held]  # by each process that the cluster began, with all below it
    connections: tuple[int, int]  # to the database, to Redis
    files: list[str]  # in the folder for temporary ones

    @classmethod
    def of(cls, field: Field) -> Usual:
        held = {name: Held.by(process.alive()) for name, process in field.cluster.processes.items()}
        return cls(held, _connections(field), files(Path(field.cluster.env["TMPDIR"])))

    def excess(self, before: Usual, buffers_bytes: int) -> dict[str, object]:
        """What is held now and was not before; a process that another test began anew may hold what the former did."""
        largest = max(before.held.values(), key=lambda one: (one.processes, one.descriptors))
        found: dict[str, object] = {
            name: (then, now)
            for name, now in self.held.items()
            if not now.no_more_than(then := before.held.get(name, largest), buffers_bytes)
        }
        processes = sum(one.processes for one in self.held.values())  # of which each keeps two to the database, or one
        database, broker = (now - then for now, then in zip(self.connections, before.connections, strict=True))
        if database > processes or broker > 1:
            found["connections"] = (before.connections, self.connections)
        if set(self.files) - set(before.files):
            found["files"] = self.files
        return found


def files(folder: Path) -> list[str]:
    """In a folder for temporary ones, but for what multiprocessing makes there, which whom SIGKILL ends leaves."""
    return sorted(one.name for one in folder.iterdir() if not one.name.startswith("pymp-"))


def _connections(field: Field) -> tuple[int, int]:
    of_database = 0
    if field.engine.dialect.name == "postgresql":
        query = "SELECT count(*) AS n FROM pg_stat_activity WHERE datname = current_database()"
        of_database = field.rows(query)[0].n
    with field.redis() as client:
        return of_database, len(client.client_list())


@contextlib.contextmanager
def none_kept_here() -> Iterator[None]:
    """(7) of tasks that run in this process: no thread is left, nor anything open in the trees that they scanned."""
    before = _here()
    yield
    wait_until(lambda: _here() <= before, SOON_S, "(7) no more is held than before the fault")


def _here() -> Counter[str]:
    """All but an engine's own, which lives on."""
    names = [name for name in _open(Path("/proc/self/fd")) if name.startswith("/") and not _A_DATABASE.search(name)]
    return Counter([*names, *(f"thread {thread.name}" for thread in threading.enumerate())])


_A_DATABASE = re.compile(r"\.(db|sqlite)(-wal|-shm|\.copy)*( \(deleted\))?$")


def settled(field: Field) -> Usual:
    """What is usual, once a round of scans leaves nothing more held than the round before did."""
    rounds = [Usual.of(field)]
    for _ in range(6):
        serve(field)
        rounds.append(Usual.of(field))
        if not rounds[-1].excess(rounds[-2], field.buffers_bytes) and len(rounds) > 3:
            break
    return rounds[-1]


def check(field: Field) -> None:
    """(8) others are served, and then (7) no more is held than was usual. Raises AssertionError."""
    serve(field)
    assert field.usual is not None, "nobody called settle"
    excess: dict[str, object] = {}

    def given_back() -> bool:
        nonlocal excess
        excess = Usual.of(field).excess(field.usual, field.buffers_bytes)
        return not excess

    try:
        wait_until(given_back, SOON_S, "all is given back")
    except AssertionError:
        opened = {name: _open_by(field.process(name).alive()) for name in field.cluster.processes if name in excess}
        raise AssertionError(f"(7) more is held than before the fault: {excess}; open now: {opened}") from None


def _open_by(pids: Iterable[int]) -> dict[int, list[str]]:
    """What each of them has open, for people."""
    return {pid: sorted(found[0]) for pid in pids if (found := _looked_at(pid)) is not None}


def serve(field: Field) -> None:
    """Some tenants who come, are scanned to their end, and go: they are nobody whom the test knows."""
    field.engine.dispose()  # connections that a fault has cut
    # (Not by the clock either, where the test's own are due every second.)
    roots = dict(field.tenant(TREE, interval_s=YEAR_S) for _ in range(BYSTANDERS))
    asked = [field.ask(name) for name in roots]
    for scan_id in asked:
        wait_until(lambda scan_id=scan_id: field.state(scan_id) in ENDED, SOON_S, "(8) another tenant is served")
    assert {field.state(scan_id) for scan_id in asked} == {ScanState.SUCCEEDED}
    invariants.check_tenants(field.engine, roots)
    for name, root in roots.items():
        with reading(field.engine) as connection:
            tenant_id = tenants.get(connection, name).id
        remove_tenant(field.engine, tenant_id)
        shutil.rmtree(root)
