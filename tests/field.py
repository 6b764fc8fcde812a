"""A cluster to try faults on, and tenants in it, asked from this process: that spares the start of a command for each.

    with tests.field.field(folder, database_url, redis_url, STRANDLINE_LEASE_S="2") as field:
        name, root = field.tenant(Dir({…}))
        scan_id = field.ask(name)
        …
        field.quiet({name: root})
"""

import contextlib
import itertools
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import Engine, text

from db import quarantine, scans, tenants
from db.engine import connect, reading, writing
from db.quarantine import Quarantined
from db.types import ENDED
from orchestrator.change import change_tenant
from orchestrator.cli.scan import asking
from orchestrator.documents import scan_document
from orchestrator.session import Session
from tasks import settings as all_settings
from tests import cluster as clusters
from tests import invariants, processes
from tests.cluster import Cluster
from tests.processes import Running
from tests.trees import Dir, File, build
from tests.waiting import wait_until

# Generous: other tests run beside this one.
SOON_S = 60
SMALL = Dir({b"%d" % d: Dir({b"%d" % n: File(b"%d %d" % (d, n)) for n in range(5)}) for d in range(5)})
HUGE = 100 << 30


@dataclass
class Field:
    """Processes, the database, and a session with which scans are asked for."""

    cluster: Cluster
    session: Session
    engine: Engine
    folder: Path
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    # Tenants and their scans

    def tenant(self, spec: Dir = SMALL, root: Path | None = None, **values: object) -> tuple[str, bytes]:
        """A new tenant, whose tree is made of `spec`, or is there already (`root`)."""
        name = f"t{next(self._numbers)}"
        path = os.fsencode(root or self.folder / name)
        if root is None:
            build(path, spec)
        self.session.tenant_for(path, name)
        if values:
            with writing(self.engine) as connection:
                change_tenant(connection, name, **values)
        return name, path

    def ask(self, name: str, **how: bool) -> str:
        with reading(self.engine) as connection:
            tenant = tenants.get(connection, name)
        return self.session.ask(tenant, **how)

    def document(self, scan_id: str) -> dict:
        with reading(self.engine) as connection:
            scan = scans.get(connection, scan_id)
            tenant = tenants.by_id(connection, scan.tenant_id)
            return scan_document(connection, scan, tenant.name)

    def ended(self, scan_id: str, deadline_s: float = SOON_S) -> dict:
        """The document of a scan, once it has ended by itself: beat's ticks are all that helps it on."""
        wait_until(lambda: self.document(scan_id)["state"] in ENDED, deadline_s, "the scan ends")
        return self.document(scan_id)

    def scan(self, name: str, **how: bool) -> dict:
        return self.ended(self.ask(name, **how))

    def others_go_on(self) -> None:
        """(8) While something is wrong with one tenant, another is scanned to its end."""
        name, root = self.tenant()
        assert self.scan(name)["state"] == "succeeded"
        invariants.check_tenants(self.engine, {name: root})

    def quiet(self, roots: dict[str, bytes], removed: Iterable[bytes] = ()) -> None:
        """One quiet scan of each, and then all that must hold does."""
        for name in roots:
            document = self.scan(name)
            assert document["state"] == "succeeded", document
        invariants.check(self.engine, roots, removed)

    # What the database says

    def rows(self, query: str, **values: object) -> list:
        with reading(self.engine) as connection:
            return list(connection.execute(text(query), values))

    def shards(self, scan_id: str) -> list:
        return self.rows("SELECT * FROM shards WHERE scan_id = :s ORDER BY number", s=scan_id)

    def quarantined(self, name: str) -> dict[bytes, Quarantined]:
        with reading(self.engine) as connection:
            found = quarantine.listed(connection, tenants.get(connection, name).id)
        return {one.path: one for one in found}

    # Processes

    def process(self, name: str) -> Running:
        return self.cluster.processes[name]

    def begin_worker(self, name: str, children: int = 1) -> Running:
        worker = self.cluster.begin(name, "worker", "--workers", str(children))
        assert worker.stderr.wait_for(b"ready", SOON_S), worker.stderr.content
        return worker

    def reads(self, path: bytes, past: int = 0, of: str | None = None) -> int | None:
        """Which child of the workers (or of that one) has this file open, and has read so much of it?"""
        for name, process in self.cluster.processes.items():
            if name.startswith(of or "worker"):
                for pid in process.descendants():
                    if position(pid, path) > past:
                        return pid
        return None


def large(root: bytes, name: bytes = b"large", size: int = HUGE) -> bytes:
    """A file that costs no room, and takes long to read."""
    path = root + b"/" + name
    with open(path, "wb") as file:
        file.truncate(size)
    return path


def position(pid: int, path: bytes) -> int:
    """How far a process has read a file; -1: it has none of that name open."""
    with contextlib.suppress(OSError):
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                if os.readlink(os.fsencode(f"/proc/{pid}/fd/{fd}")) == path:
                    return int(Path(f"/proc/{pid}/fdinfo/{fd}").read_text().split()[1])
    return -1


def alive(pid: int) -> bool:
    stat = processes.read_stat(pid)
    return stat is not None and not stat.ended


@contextlib.contextmanager
def running(folder: Path, database_url: str, redis_url: str, *, workers: int = 1, children: int = 2, beats: int = 1,
            **settings: str) -> Iterator[Field]:  # fmt: skip
    """A field with so many processes. Tenants are scanned when they are asked for, not by the clock."""
    settings = {"STRANDLINE_INTERVAL_S": "1000000"} | settings
    with clusters.running(
        folder, database_url, redis_url, workers=workers, children=children, beats=beats, **settings
    ) as cluster:
        engine = connect(database_url)
        with asking(all_settings.load(cluster.env)) as session:
            yield Field(cluster, session, engine, folder)
        engine.dispose()
