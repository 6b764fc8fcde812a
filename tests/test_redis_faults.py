"""Rows 5, 6, 7 and 20 of the catalogue of faults: what Redis may do while a scan runs. One worker and beat for all."""

import contextlib
import os
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import field as each
from pathlib import Path

import pytest
import redis

from db import scans, tenants
from db.engine import writing
from db.types import Trigger
from orchestrator.beat import UNREAD
from orchestrator.start import start_queued
from tasks import settings as all_settings
from tasks.app import QUEUES
from tasks.redis.keys import Keys
from tests import field as fields
from tests import trees
from tests.cluster import running
from tests.field import Field
from tests.proxy import ANSWERED, Proxy
from tests.servers import RedisServer
from tests.trees import Dir
from tests.waiting import wait_until

pytestmark = pytest.mark.chaos

# Far below the minute after which a message is given up: what is lost must be noticed, not waited for.
SOON_S = 40
FOLDERS, FILES = 60, 20

fault = pytest.mark.fault


@dataclass
class Cut(Field):
    """A cluster whose worker and beat reach Redis through a proxy, and a test that reaches it directly."""

    proxy: Proxy = each(kw_only=True)

    def many(self) -> tuple[str, bytes]:
        """A tenant with many folders."""
        name, root = self.tenant(Dir())
        trees.make_many(root, FOLDERS, FILES)
        return name, root

    def request(self, name: str) -> str:
        """A scan that is started, and of which nothing is sent yet."""
        with writing(self.engine) as connection:
            scan, _ = scans.request(connection, tenants.get(connection, name).id, trigger=Trigger.REQUEST)
        start_queued(self.engine, all_settings.load({}))
        return scan.id

    def awaits_a_fresh_pop(self) -> None:
        """Return just after the worker, which pops for a second at a time, has begun anew."""
        calls = self._pops()
        wait_until(lambda: self._pops() > calls, 10, "the worker's pop ends")
        wait_until(self.pops, 10, "it pops again")

    def pops(self) -> bool:
        return any("b" in one["flags"] for one in self.redis().client_list())

    def _pops(self) -> int:
        return self.redis().info("commandstats").get("cmdstat_brpop", {"calls": 0})["calls"]

    def done(self, scan_id: str) -> int:
        return [shard.state for shard in self.shards(scan_id)].count("done")

    @contextlib.contextmanager
    def under_way(self) -> Iterator[None]:
        """In the middle of a tenant's first scan; at the end that ends by itself, soon, and all invariants hold."""
        name, root = self.many()
        scan_id = self.ask(name)
        wait_until(lambda: self.done(scan_id) >= 2, 30, "the scan is in its middle")
        assert self.state(scan_id) == "running"
        yield
        self.ends(scan_id, {name: root})

    def ends(self, scan_id: str, roots: dict[str, bytes]) -> None:
        assert self.ended(scan_id, SOON_S)["state"] == "succeeded"
        self.quiet(roots)

    def said(self, process: str, word: bytes) -> int:
        return self.process(process).stderr.content.count(word)

    @contextlib.contextmanager
    def said_once(self) -> Iterator[None]:
        """Beat, which tries twice a second, says once that it cannot, and the worker lives."""
        before = self.said("beat", b"cannot be sent"), self.said("beat", b"well again")
        yield
        wait_until(lambda: self.said("beat", b"well again") > before[1], SOON_S, "beat says that it is over")
        assert self.said("beat", b"cannot be sent") == before[0] + 1 and self.said("beat", b"Traceback") == 0
        assert all(process.alive() for process in self.cluster.processes.values())

    def waits_for(self, process: str, word: bytes, count: int) -> None:
        wait_until(lambda: self.said(process, word) > count, 30, f"{process} says {word.decode()}")


@pytest.fixture(scope="module")
def shared(server_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cut]:
    folder = tmp_path_factory.mktemp("field")
    with RedisServer(Path(tempfile.mkdtemp(dir=server_folder))) as server, Proxy(server.port) as proxy:
        database, url = f"sqlite:///{folder}/test.db", f"redis://127.0.0.1:{proxy.port}/0"
        with (
            running(folder, database, url, STRANDLINE_SHARD_ENTRIES="60", STRANDLINE_LEASE_S="10") as cluster,
            fields.on(cluster, server, folder, Cut, proxy=proxy) as field,
        ):
            yield field


@pytest.fixture
def field(shared: Cut, monkeypatch: pytest.MonkeyPatch) -> Cut:
    """Nothing is noted of an outage that another test made."""
    monkeypatch.setattr(shared.session._app.runtime.outage, "_since_s", None)
    return shared


@fault(5, "FLUSHALL while messages are under way that nobody has taken")
def test_messages_lost_by_flushall_are_sent_again_within_seconds(field: Cut) -> None:
    name, root = field.many()
    worker = field.process("worker")
    worker.send(signal.SIGSTOP)
    try:
        wait_until(lambda: not field.pops(), 10, "no pop of the worker is under way")
        scan_id = field.ask(name)
        assert field.redis().llen("strandline:interactive") > 0
        field.redis().flushall()
    finally:
        worker.send(signal.SIGCONT)
    field.ends(scan_id, {name: root})


@fault(5, "SIGKILL, and started again, empty, once the worker has tried to connect twice")
def test_a_redis_that_was_killed_and_comes_back_empty_costs_seconds(field: Cut) -> None:
    # Thirty seconds would show no more: attempts are at most INTERVAL_MAX_S apart, however long it takes.
    other, its_root = field.tenant()
    with field.said_once(), field.under_way():
        before = field.said("worker", b"Cannot connect")
        field.broker.kill()
        scan_id = field.ask(other)
        field.waits_for("worker", b"Cannot connect", before + 1)
        field.broker.start()
    field.ends(scan_id, {other: its_root})


@fault(6, "REPLICAOF a server that is not there")
def test_a_redis_that_is_read_only_is_waited_for(field: Cut) -> None:
    with field.said_once(), field.under_way():
        before = field.said("worker", b"Cannot connect")
        field.redis().replicaof("127.0.0.1", 1)
        field.waits_for("worker", b"Cannot connect", before + 1)
        field.redis().replicaof("NO", "ONE")


@fault(6, "CONFIG SET maxmemory 1 under noeviction")
def test_a_redis_without_memory_is_waited_for(field: Cut) -> None:
    with field.said_once(), field.under_way():
        before, worker = field.said("worker", b"Cannot connect"), field.process("worker")
        worker.send(signal.SIGSTOP)
        field.session.tick()  # something is there to be taken, and noted as taken, when nothing may be written any more
        field.redis().config_set("maxmemory", 1)
        worker.send(signal.SIGCONT)
        try:
            field.waits_for("worker", b"Cannot connect", before + 1)
        finally:
            field.redis().config_set("maxmemory", 0)


@fault(7, "SIGSTOP until beat has run into a timeout, and somebody has asked for the status")
def test_a_redis_that_hangs_holds_nobody_for_long(field: Cut) -> None:
    with field.said_once(), field.under_way():
        before = field.said("beat", b"cannot be sent")
        os.kill(field.broker.pid, signal.SIGSTOP)
        try:
            field.waits_for("beat", b"cannot be sent", before)
            done = field.cluster.run("status", timeout_s=60)
            assert done.returncode == 0 and "no worker can be seen" in done.stderr and "Traceback" not in done.stderr
        finally:
            os.kill(field.broker.pid, signal.SIGCONT)


@fault(20, "a proxy that forwards nothing any more between Redis and a worker, until beat has run into a timeout")
def test_a_worker_cut_off_from_redis_comes_back(field: Cut) -> None:
    with field.said_once(), field.under_way():
        before = field.said("beat", b"cannot be sent")
        field.proxy.cut()
        try:
            field.waits_for("beat", b"cannot be sent", before)
        finally:
            field.proxy.mend()


@fault(20, "a proxy that swallows the answer to a worker's pop, and with it the message")
def test_a_message_lost_with_the_connection_is_sent_again_within_seconds(field: Cut) -> None:
    name, root = field.many()
    beat, lists = field.process("beat"), [f"strandline:{queue}" for queue in QUEUES]
    wait_until(lambda: field.redis().exists(Keys("strandline:").mark()), 10, "the cluster trusts its messages")
    beat.send(signal.SIGSTOP)  # or the pop takes a tick
    try:
        wait_until(lambda: not field.redis().exists(*lists), 10, "no other message waits")
        scan_id = field.request(name)
        field.awaits_a_fresh_pop()
        field.proxy.cut(ANSWERED)
        field.session.tick()
        wait_until(lambda: not field.redis().exists(*lists), 10, "the message went into the void")
    finally:
        field.proxy.mend()
        beat.send(signal.SIGCONT)
    field.ends(scan_id, {name: root})


@fault(14, "beat alone, with nobody to take its ticks")
def test_ticks_that_nobody_takes_are_not_heaped_up(own_redis, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/test.db"
    with (
        own_redis() as server,
        running(tmp_path, url, server.url, workers=0, STRANDLINE_TICK_S="0.05"),
        redis.from_url(server.url) as client,
    ):
        wait_until(lambda: client.llen("strandline:control") == UNREAD, 30, "as many as may wait do")
        asked = client.info("commandstats")["cmdstat_llen"]["calls"]
        wait_until(lambda: client.info("commandstats")["cmdstat_llen"]["calls"] > asked + 10, 30, "beat goes on")
        assert client.llen("strandline:control") == UNREAD


@pytest.mark.long
@fault(7, "SIGSTOP, and TERM to a beat that waits for an answer")
def test_term_ends_a_beat_that_waits_for_a_redis_that_hangs(own_redis, tmp_path: Path) -> None:
    with own_redis() as server, running(tmp_path, f"sqlite:///{tmp_path}/test.db", server.url, workers=0) as cluster:
        beat = cluster.processes["beat"]
        with redis.from_url(server.url) as client:
            wait_until(lambda: client.exists("strandline:control"), 30, "beat has sent a tick")
        os.kill(server.pid, signal.SIGSTOP)
        assert beat.stderr.wait_for(b"cannot be sent", 30)
        beat.send(signal.SIGTERM)
        assert beat.wait(20).returncode == 0 and beat.wait_gone(5) == set()
