"""The product's tasks in this process, on a SQLite of their own: quick, and they can be made to die and to see badly.

    place = InProcess(app, engine, root, policy={}, shard_entries=20)
    place.request()
    place.carry_on()  # True: the scan has ended
    place.document(), place.news(), place.index()

Dying is an exception at a commit, before it or just after it, that nothing in the product catches. Seeing badly is
real where permissions can say it (`os.seteuid` of the file system only, so that root's rights do not count), and
otherwise an EIO at the one place that lists folders and the one that reads files.
"""

import contextlib
import ctypes
import errno
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Self
from unittest import mock

import fakeredis
from sqlalchemy import Engine, update

from db import changes, indexed, scans, schema, sending, shards, tenants
from db.clock import clock
from db.engine import connect, reading, writing
from db.tables import shards as shards_table
from db.types import ScanState, ShardState, Trigger
from orchestrator.documents import change_document, file_document, scan_document
from orchestrator.start import start_queued
from tasks import settings as all_settings
from tasks.app import App, Runtime
from tasks.core import hashing
from tasks.core import listing as core_listing
from tasks.finish import finish
from tasks.redis import document
from tasks.scan_shard import scan_shard
from tests import trees
from tests.command import tmpfs_folder
from tests.storage import remove_tenant

AGED_NS = 100 * trees.SECOND_NS
NOBODY = 65534
TASKS_AT_MOST = 2_000
_libc = ctypes.CDLL(None)


@contextlib.contextmanager
def database() -> Iterator[Engine]:
    """A migrated SQLite in memory, which whoever scans without root's rights may write to."""
    with tempfile.TemporaryDirectory(prefix="strandline-in-process-", dir=tmpfs_folder()) as folder:
        os.chmod(folder, 0o777)
        file = f"{folder}/test.sqlite"
        os.close(os.open(file, os.O_CREAT))
        os.chmod(file, 0o666)  # and so are the log's files, of whoever opens it first
        engine = connect(f"sqlite:///{file}")
        schema.migrate(engine)
        yield engine
        engine.dispose()


def ready(engine: Engine) -> list[sending.Sendable]:
    """The shards that may be done now."""
    with writing(engine) as connection:
        running = sending.contenders(connection, 1)
        return list(sending.sendable(connection, [one.scan_id for one in running], 100))


def run(shard: sending.Sendable) -> None:
    """Do one, by the very task."""
    if shard.number == shards.FINISH:
        finish(shard.scan_id)
    else:
        scan_shard(shard.scan_id, shard.number)


def expire_leases(engine: Engine) -> None:
    """What the dead held is free."""
    s = shards_table.c
    with writing(engine) as connection:
        connection.execute(update(shards_table).where(s.state == ShardState.LEASED).values(lease_until=clock(-1.0)))


def scan_once(engine: Engine, tenant_id: int) -> str:
    """One scan, its tasks called here so that their statements can be seen."""
    with writing(engine) as connection:
        scan, _ = scans.request(connection, tenant_id, trigger=Trigger.REQUEST)
    start_queued(engine, all_settings.load({}))
    while some := ready(engine):
        for shard in some:
            run(shard)
    return scan.id


class Died(BaseException):
    """The process that worked on a shard is no more."""


@dataclass
class Eyes:
    """What cannot be looked at: inodes of folders, whose listing breaks off after so many entries, and of files. And
    what is deadly to look at.
    """

    folders: dict[int, int] = field(default_factory=dict)
    files: set[int] = field(default_factory=set)
    deadly: set[int] = field(default_factory=set)
    reads: Counter[int] = field(default_factory=Counter)  # how often a file was read from, by inode

    def scandir(self, fd: int) -> Any:
        inode = os.fstat(fd).st_ino
        if inode in self.deadly:
            raise Died
        entries = os.scandir(fd)
        after = self.folders.get(inode)
        return entries if after is None else _Broken(entries, after)

    def readv(self, fd: int, buffers: Any) -> int:
        inode = os.fstat(fd).st_ino
        self.reads[inode] += 1
        if inode in self.deadly:
            raise Died
        if inode in self.files:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return os.readv(fd, buffers)


class _Broken:
    """A listing that breaks off."""

    def __init__(self, entries: Any, after: int) -> None:
        self._entries, self._left = entries, after

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._entries.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> os.DirEntry[str]:
        self._left -= 1
        found = next(self._entries, None) if self._left >= 0 else None
        if found is None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return found


def but(module: ModuleType, **other: Any) -> Any:
    """The module with some other functions, for one that imports it."""
    return type("But", (), {"__getattr__": lambda _, name: getattr(module, name), **other})()


@contextlib.contextmanager
def without_rights_of_root() -> Iterator[None]:
    """This thread opens and lists what nobody in particular may; capabilities that overrule permissions go too."""
    if os.geteuid():
        yield
        return
    _libc.setfsuid(NOBODY)
    try:
        yield
    finally:
        _libc.setfsuid(0)


class InProcess:
    """One tenant. `settings` are the product's; `policy` is the tenant's."""

    def __init__(self, app: App, engine: Engine, root: bytes, *, policy: dict[str, Any], **settings: Any) -> None:
        self._app, self.engine, self.root, self.eyes = app, engine, root, Eyes()
        self.settings = all_settings.load({}, redis_url="redis://nowhere", **settings)
        self._commit = type(engine.dialect).do_commit
        engine.dialect.do_commit = self._do_commit
        self._dies_at: tuple[int, bool] | None = None
        self.redis_server = fakeredis.FakeServer()
        self.redis = fakeredis.FakeRedis(server=self.redis_server)
        self.later_s = 0.0  # by so much Redis's clock is ahead
        self.racy = False
        self._new_process()
        with writing(self.engine) as connection:
            self.tenant = tenants.add(
                connection, name="t", root=root, tier="standard", interval_s=60, algorithm="sha256", **policy
            )
        self.scan_id: str | None = None  # asked for last
        self._read_to: str | None = None

    def close(self) -> None:
        remove_tenant(self.engine, self.tenant.id)
        del self.engine.dialect.do_commit

    def keep(self) -> None:
        """`again` brings the database back to what it is now."""
        self.engine.dispose()  # SQLite writes its log back into the file
        self._kept = Path(str(self.engine.url.database)).read_bytes(), self.scan_id, self._read_to

    def again(self) -> Self:
        """As it was at `keep`, with a Redis that knows nothing: for what is tried many times from there."""
        self.engine.dispose()
        content, self.scan_id, self._read_to = self._kept
        Path(str(self.engine.url.database)).write_bytes(content)
        self.redis.flushall()
        self._new_process()
        return self

    def _new_process(self) -> None:
        runtime = Runtime(self.settings)
        # Unless the scan shall find everything touched just now, its clock is ahead: then all stamps are old.
        runtime.clock_ns = lambda: time.time_ns() + (0 if self.racy else AGED_NS)
        runtime.__dict__.update(engine=self.engine, redis=self.redis)
        self._app.runtime = runtime
        self._app.set_current()

    # Dying

    def _do_commit(self, connection: Any) -> None:
        if self._dies_at is None:
            self._commit(self.engine.dialect, connection)
            return
        left, committed = self._dies_at
        self._dies_at = (left - 1, committed)
        if left > 0:
            self._commit(self.engine.dialect, connection)
            return
        self._dies_at = None
        if committed:
            self._commit(self.engine.dialect, connection)
        raise Died

    # Scanning

    def request(self, **how: Any) -> str:
        with writing(self.engine) as connection:
            scan, _ = scans.request(connection, self.tenant.id, trigger=Trigger.REQUEST, **how)
        start_queued(self.engine, self.settings)
        self.scan_id = scan.id
        return scan.id

    def carry_on(self, dies_at: tuple[int, bool] | None = None, order: Callable[[int], int] = lambda n: 0) -> bool:
        """Do what there is to do, until the scan has ended (True), or death at the commit of that number (False).

        Everything that is ready may be next, by the choice of `order`.
        """
        expire_leases(self.engine)
        self._dies_at = dies_at
        try:
            with without_rights_of_root(), self._seeing():
                for _ in range(TASKS_AT_MOST):
                    if not (some := ready(self.engine)):
                        return True
                    run(some[order(len(some))])
                raise AssertionError("the scan does not come to an end")
        except Died:
            self._new_process()
            return False
        finally:
            self._dies_at = None
            trees.next_tick(os.path.dirname(self.root))  # what is changed from here on has another stamp

    @contextlib.contextmanager
    def _seeing(self) -> Iterator[None]:
        """With these eyes and that clock, and without what would only wait or send messages."""
        eyes, load = self.eyes, document.load

        def load_later(client: Any, key: str) -> document.Loaded:
            found = load(client, key)
            return found._replace(now=found.now + self.later_s)

        with contextlib.ExitStack() as stack:
            for place, value in {
                "tasks.scan_shard.nudge": lambda app: None,
                "tasks.finish.nudge": lambda app: None,
                "tasks.trouble.RETRY_DELAY_S": 0.0,
                "tasks.redis.document.load": load_later,
            }.items():
                stack.enter_context(mock.patch(place, value))
            for module, other in (
                (core_listing, but(os, scandir=staticmethod(eyes.scandir))),
                (hashing, but(os, readv=staticmethod(eyes.readv), fsync=staticmethod(lambda fd: None))),
            ):
                stack.enter_context(mock.patch.object(module, "os", other))
            yield

    def cancel(self) -> bool:
        """As a person does; False: too late."""
        assert self.scan_id is not None
        with writing(self.engine) as connection:
            return shards.end_early(connection, self.scan_id, ScanState.CANCELLED, "cancelled")

    # What is known

    def scan(self) -> scans.Scan:
        assert self.scan_id is not None
        with reading(self.engine) as connection:
            scan = scans.get(connection, self.scan_id)
        assert scan is not None
        return scan

    def document(self) -> dict[str, Any]:
        scan = self.scan()
        with reading(self.engine) as connection:
            return scan_document(connection, scan, "t")

    def index(self) -> trees.State:
        with reading(self.engine) as connection:
            found = indexed.page(connection, self.tenant.id, limit=10**6)
        return trees.index([file_document(one) for one in found])

    def feed(self, since: str | None = None) -> list[dict[str, Any]]:
        with reading(self.engine) as connection:
            return [change_document(one) for one in changes.after(connection, self.tenant.id, since, 10**6)]

    def news(self) -> list[dict[str, Any]]:
        """What the feed says since this was last asked."""
        found = self.feed(self._read_to)
        if found:
            self._read_to = found[-1]["cursor"]
        return found
