"""A cluster to try faults on, and tenants in it, asked from this process: that spares the start of a command for each.

from tests.field import field as field  # one for all tests of a file, with the settings that it names in FIELD

with tests.field.running(folder, database_url, broker, STRANDLINE_LEASE_S="2") as field:
    name, root = field.tenant(Dir({…}))
    scan_id = field.ask(name)
    …
    field.quiet({name: root})
"""

import contextlib
import itertools
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from dataclasses import field as each
from pathlib import Path
from typing import Any, TypeVar

import pytest
import redis
from click.testing import CliRunner
from sqlalchemy import Engine, select, text

from db import quarantine, scans, tenants
from db.engine import reading, writing
from db.quarantine import Quarantined
from db.tables import shards as shards_table
from db.types import ENDED
from orchestrator.change import change_tenant
from orchestrator.cli import group
from orchestrator.cli.scan import asking
from orchestrator.documents import scan_document
from orchestrator.session import Session
from tasks import settings as all_settings
from tests import aftermath, invariants, processes
from tests import cluster as clusters
from tests.aftermath import Usual
from tests.cluster import Cluster
from tests.processes import Running
from tests.servers import PostgresServer, RedisServer, postgres_kinds
from tests.trees import Dir, File, build
from tests.waiting import wait_until

# Generous: other tests run beside this one.
SOON_S = 60
SMALL = Dir({b"%d" % d: Dir({b"%d" % n: File(b"%d %d" % (d, n)) for n in range(5)}) for d in range(5)})
HUGE = 100 << 30

F = TypeVar("F", bound="Field")


@dataclass
class Field:
    """Processes, the database, and a session with which scans are asked for."""

    cluster: Cluster
    session: Session
    folder: Path
    broker: RedisServer
    buffers_bytes: int = 48 << 20  # that its processes keep for the next time
    usual: Usual | None = None
    _numbers: Iterator[int] = each(default_factory=lambda: itertools.count(1))

    @property
    def engine(self) -> Engine:
        return self.session.engine

    def redis(self) -> redis.Redis:
        """The server itself, whatever lies between it and the cluster."""
        return redis.Redis.from_url(self.broker.url, socket_timeout=10)

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

    def state(self, scan_id: str) -> str:
        with reading(self.engine) as connection:
            return scans.get(connection, scan_id).state

    def document(self, scan_id: str) -> dict:
        with reading(self.engine) as connection:
            scan = scans.get(connection, scan_id)
            tenant = tenants.by_id(connection, scan.tenant_id)
            return scan_document(connection, scan, tenant.name)

    def ended(self, scan_id: str, deadline_s: float = SOON_S) -> dict:
        """The document of a scan, once it has ended by itself: beat's ticks are all that helps it on."""
        wait_until(lambda: self.state(scan_id) in ENDED, deadline_s, "the scan ends")
        return self.document(scan_id)

    def scan(self, name: str, **how: bool) -> dict:
        return self.ended(self.ask(name, **how))

    def others_go_on(self, **values: object) -> None:
        """(8) While something is wrong with one tenant, another is scanned to its end."""
        name, root = self.tenant(**values)
        assert self.scan(name)["state"] == "succeeded"
        invariants.check_tenants(self.engine, {name: root})

    def quiet(self, roots: dict[str, bytes], removed: Iterable[bytes] = ()) -> None:
        """One quiet scan of each, and then all that must hold does."""
        for name in roots:
            document = self.scan(name)
            assert document["state"] == "succeeded", document
        invariants.check(self.engine, roots, removed)

    def settle(self) -> None:
        """Once its processes run, and before the first fault: what they hold now is usual, and must be again."""
        self.usual = aftermath.settled(self)

    # What the database says

    def rows(self, query: str, **values: object) -> list:
        with reading(self.engine) as connection:
            return list(connection.execute(text(query), values))

    def shards(self, scan_id: str) -> list:
        s = shards_table.c
        with reading(self.engine) as connection:
            return list(connection.execute(select(shards_table).where(s.scan_id == scan_id).order_by(s.number)))

    def quarantined(self, name: str) -> dict[bytes, Quarantined]:
        with reading(self.engine) as connection:
            found = quarantine.listed(connection, tenants.get(connection, name).id)
        return {one.path: one for one in found}

    # Processes

    def process(self, name: str) -> Running:
        return self.cluster.processes[name]

    def command(self, *words: str) -> None:
        """A command that must do what it says, in this process."""
        done = CliRunner(env=self.cluster.env).invoke(group, words)
        assert done.exit_code == 0, done.output

    def holder(self, path: bytes, *, past: int = 0, unlike: str | None = None) -> tuple[str, int]:
        """Wait until a worker, not the one that is unlike, has read so much of this file: its name, and the child. It
        reads on without end, so that whatever else has to be done comes first.
        """

        def look() -> tuple[str, int] | None:
            names = [name for name in self.cluster.processes if name.startswith("worker") and name != unlike]
            found = ((name, pid) for name in names if (pid := self.reader(name, path, past)) is not None)
            return next(found, None)

        name, child = wait_until(look, SOON_S, f"{path!r} is read")
        os.setpriority(os.PRIO_PROCESS, child, 15)
        return name, child

    def begin_worker(self, name: str, children: int = 1, program: str | None = None) -> Running:
        worker = self.cluster.begin(name, "worker", "--workers", str(children), program=program)
        assert worker.stderr.wait_for(b"ready", SOON_S), worker.stderr.content
        return worker

    def reader(self, name: str, path: bytes, past: int = 0) -> int | None:
        """Which child of that worker has read so much of this file?"""
        found = (pid for pid in self.process(name).descendants() if position(pid, path) > past)
        return next(found, None)


def large(root: bytes, name: bytes = b"large", size: int = HUGE) -> bytes:
    """A file that costs no room, and takes long to read."""
    path = root + b"/" + name
    with open(path, "wb") as file:
        file.truncate(size)
    return path


def cut(path: bytes) -> None:
    """Whoever reads it comes to its end."""
    os.truncate(path, 1 << 20)


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


OPEN: list[Field] = []


@contextlib.contextmanager
def on(cluster: Cluster, broker: RedisServer, folder: Path, kind: type[F] = Field, **more: object) -> Iterator[F]:
    """A field of that kind on a cluster that runs. As long as it is open, each test of a fault ends with what
    tests.aftermath looks at.
    """
    cluster.starts_nothing = False  # what a command holds must be gone with its process
    with asking(all_settings.load(cluster.env | {"STRANDLINE_REDIS_URL": broker.url})) as session:
        field = kind(cluster, session, folder, broker, **more)
        if "worker" in cluster.processes:
            field.settle()
        OPEN.append(field)
        try:
            yield field
        finally:
            OPEN.remove(field)


@contextlib.contextmanager
def running(
    folder: Path, database_url: str, broker: RedisServer, *, of_field: Mapping[str, Any] = {}, **settings: Any
) -> Iterator[Field]:
    """A field with a cluster as tests.cluster.running makes it."""
    with (
        clusters.running(folder, database_url, broker.url, **settings) as cluster,
        on(cluster, broker, folder, **of_field) as field,
    ):
        yield field


@contextlib.contextmanager
def made(
    _postgres_servers: Callable[..., PostgresServer], server_folder: Path, folders: pytest.TempPathFactory, **settings
) -> Iterator[Field]:  # fmt: skip
    """The same on the newest PostgreSQL, and a Redis of its own."""
    folder = folders.mktemp("field")
    with (
        _postgres_servers(postgres_kinds()[-1]).database() as url,
        RedisServer(Path(tempfile.mkdtemp(dir=server_folder))) as broker,
        running(folder, url, broker, **settings) as field,
    ):
        yield field


@pytest.fixture(scope="module")
def field(_postgres_servers, server_folder: Path, tmp_path_factory: pytest.TempPathFactory, request) -> Iterator[Field]:
    with made(_postgres_servers, server_folder, tmp_path_factory, **getattr(request.module, "FIELD", {})) as field:
        yield field
