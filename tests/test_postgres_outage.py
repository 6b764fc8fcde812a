"""PostgreSQL goes away under a running cluster, in each of its ways, and comes back: the scan ends right by itself."""

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from dataclasses import field as each
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest
from sqlalchemy.exc import DBAPIError

from db import postgresql, schema
from db.engine import connect, reading
from db.failures import Failure, failure_of
from tests import aftermath, invariants
from tests import field as fields
from tests.cable import Cable
from tests.cluster import running
from tests.command import Command
from tests.field import Field
from tests.servers import PostgresServer
from tests.standby import Standby
from tests.trees import Dir, File, build
from tests.waiting import wait_until

pytestmark = pytest.mark.chaos

OVER_S = 60  # generous: what is waited for takes some seconds on an idle machine
CHILDREN = 2
# Of its own, so that the port is free.
ADDRESS = f"127.{random.randrange(1, 255)}.{random.randrange(256)}.{random.randrange(1, 255)}"
QUICK = {"STRANDLINE_LEASE_S": "5", "STRANDLINE_SHARD_ENTRIES": "100"}
MANY = Dir({b"%02d" % number: File(b"%d" % number) for number in range(40)})
TREE = Dir({b"%02d" % number: MANY for number in range(30)})


@dataclass
class Outage(Field):
    """A cluster whose database is not a superuser's, as in the field."""

    server: PostgresServer = each(kw_only=True)

    def admin(self, statement: str) -> list[tuple]:
        with psycopg.connect(f"host={self.server.folder} user=strandline dbname=field", autocommit=True) as admin:
            found = admin.execute(statement)
            return found.fetchall() if found.description else []

    def add(self, name: str) -> bytes:
        root = os.fsencode(self.folder / name)
        build(root, TREE)
        assert self.cluster.run("tenant", "add", name, os.fsdecode(root)).returncode == 0
        return root

    def begin(self, name: str) -> bytes:
        """Ask for a first scan of a new tenant."""
        root = self.add(name)
        asked = self.cluster.run("enqueue", name)
        assert asked.returncode == 0, asked.stderr
        return root

    def ends(self, name: str, root: bytes) -> dict:
        """The scan, once it has ended; nothing but waiting is done for that."""
        try:
            [scan] = wait_until(lambda: self._if_ended(name), OVER_S, "the scan ends")
        except AssertionError as error:
            left = self.admin("SELECT number, state, attempt, lease_until, sent_until, error, now() FROM shards "
                              "WHERE state NOT IN ('done', 'dropped')")  # fmt: skip
            raise AssertionError(f"{error}; {left}; {self.log().decode()[-4000:]}") from None
        assert scan["state"] == "succeeded" and scan["added"] == 1200, scan
        self.engine.dispose()  # connections that are no more
        invariants.check(self.engine, {name: root})
        return scan

    def _if_ended(self, name: str) -> list[dict]:
        rows = self.admin("SELECT count(*) FROM scans WHERE finished_at IS NULL")
        return self.cluster.read("scans", name) if rows == [(0,)] else []

    def blocked(self) -> bool:
        """Does a worker wait, in the middle of a flush, for what the test holds?"""
        return self.admin("SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' AND wait_event_type = 'Lock' "
                          "AND query LIKE '%files%'") != [(0,)]  # fmt: skip

    def flush_held(self, database: str = "field") -> psycopg.Connection:
        """Until this is rolled back, no flush of files gets on."""
        holder = psycopg.connect(f"host={self.server.folder} user=strandline dbname={database}")
        holder.execute("LOCK TABLE files IN SHARE MODE")
        return holder

    def no_traceback(self, name: str = "worker") -> None:
        before, found, after = self.log(name).decode().partition("Traceback")
        assert not found, f"{before[-1000:]}{found}{after[-4000:]}"

    def log(self, name: str = "worker") -> bytes:
        return self.cluster.processes[name].stderr.content


@pytest.fixture(scope="module")
def field(own_postgres, own_redis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outage]:
    folder = tmp_path_factory.mktemp("field")
    with own_postgres(settings=[f"listen_addresses={ADDRESS}"]) as server, own_redis() as broker:
        server.execute("CREATE ROLE app LOGIN")
        server.execute("CREATE DATABASE field OWNER app")
        url = server.url("field", "app")
        with (
            running(folder, url, broker.url, children=CHILDREN, **QUICK) as cluster,
            fields.on(cluster, broker, folder, Outage, server=server) as field,
        ):
            yield field


@pytest.fixture
def timed(record_property) -> Iterator[Callable[[], None]]:
    """Notes how long recovery took, from the call on."""
    begun: list[float] = []
    yield lambda: begun.append(time.monotonic())
    if begun:
        record_property("recovered_after_s", round(time.monotonic() - begun[0], 1))


@pytest.mark.fault(10, "kill -9 of the server in mid-transaction, started again while beat ticks")
def test_a_server_that_crashed_and_came_back(field: Outage, timed) -> None:
    holder = field.flush_held()
    root = field.begin("crashed")
    wait_until(field.blocked, OVER_S, "a flush is under way")
    said = field.log().count(b"trying again")

    field.server.kill()
    holder.close()
    asked = field.cluster.run("enqueue", "crashed")
    assert asked.returncode == 2 and "cannot be used" in asked.stderr and "Traceback" not in asked.stderr
    wait_until(lambda: b"; trying again" in field.log(), OVER_S, "the worker has said it")
    ticks = field.log().count(b"strandline.tick")
    wait_until(lambda: field.log().count(b"strandline.tick") > ticks + 8, OVER_S, "it went on trying")
    field.server.start()
    timed()

    field.ends("crashed", root)
    assert field.log().count(b"trying again") - said <= CHILDREN, "one line a process, not one a tick"
    wait_until(lambda: b"the database answers again" in field.log(), OVER_S, "the worker says that it is back")
    field.no_traceback()
    assert field.cluster.processes["worker"].alive() and field.cluster.processes["beat"].alive()


@pytest.mark.fault(10, "kill -9 of the server before a worker starts")
def test_a_worker_that_finds_no_server_says_so_and_starts_once_there_is_one(field: Outage) -> None:
    field.server.kill()
    worker = field.cluster.begin("late", "worker", "--workers", "1")
    assert worker.stderr.wait_for(b"trying again", OVER_S), worker.stderr.content
    field.server.start()
    assert worker.stderr.wait_for(b"ready", OVER_S), worker.stderr.content
    worker.send(signal.SIGTERM)
    assert worker.wait(OVER_S).returncode == 0 and b"Traceback" not in worker.stderr.content


@pytest.mark.fault(10, "kill -9 of the server while `up` waits for its first scan")
def test_up_outlasts_a_server_that_crashed(field: Outage, tmp_path: Path) -> None:
    root = os.fsencode(tmp_path / "root")
    build(root, TREE)
    field.server.execute("CREATE DATABASE up OWNER app")
    url = field.server.url("up", "app")
    engine = connect(url)
    schema.migrate(engine)
    holder = field.flush_held("up")
    command = Command(tmp_path / "state", {"STRANDLINE_DATABASE_URL": url})
    with command.start("up", "--dir", root, "--workers", "1") as up:
        wait_until(field.blocked, OVER_S, "a flush is under way")

        field.server.kill()
        holder.close()
        assert up.stderr.wait_for(b"trying again", OVER_S), up.stderr.content
        field.server.start()

        assert up.stderr.wait_for(b"the database answers again", OVER_S), up.stderr.content
        assert up.stdout.wait_for(b"Press Ctrl-C", 2 * OVER_S), up.stderr.content  # the lease has to run out, maybe
        assert b"Traceback" not in up.stderr.content and b"1200 added" in up.stdout.content.replace(b",", b"")
        up.send(signal.SIGINT)
        assert up.wait(OVER_S).returncode == 0
    invariants.check(engine, {"root": root})
    engine.dispose()


@pytest.mark.long
@pytest.mark.fault(10, "pg_terminate_backend of all its connections, ten times in one scan")
def test_connections_that_are_ended_again_and_again(field: Outage, timed) -> None:
    root = field.begin("ended")
    end_all = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'app' AND query <> ''"

    for _ in range(10):
        wait_until(lambda: field.admin(end_all) != [(0,)], OVER_S, "somebody was connected")
    timed()

    field.ends("ended", root)


@pytest.mark.fault(11, "deadlocks, serialization failures, lock timeouts of what claims, holds and completes")
def test_a_cluster_whose_transactions_are_undone_now_and_then(field: Outage) -> None:
    field.admin(UNDOING)
    try:
        scan = field.ends("undone", field.begin("undone"))
        assert field.admin("SELECT last_value > 100 FROM statements") == [(True,)]
        assert scan["attempts"] == scan["shards"], "no shard heard of it"
    finally:
        field.admin("DROP FUNCTION undo CASCADE")


UNDOING = """
CREATE SEQUENCE statements;
GRANT ALL ON statements TO app;
CREATE FUNCTION undo() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE n bigint := nextval('statements');
BEGIN
    IF n % 29 = 0 THEN RAISE 'injected' USING ERRCODE = (ARRAY['40P01', '40001', '55P03'])[1 + n % 3]; END IF;
    RETURN NULL;
END $$;
""" + "".join(
    f"CREATE TRIGGER undo AFTER INSERT OR UPDATE OR DELETE ON {table} EXECUTE FUNCTION undo();\n"
    for table in ("scans", "shards")
)


@pytest.mark.long
@pytest.mark.fault(12, "ALTER ROLE … CONNECTION LIMIT 1, for a worker of two processes")
def test_fewer_connections_than_processes(field: Outage, timed) -> None:
    root = field.add("limited")
    field.admin("ALTER ROLE app CONNECTION LIMIT 1")
    holder = field.flush_held()  # so that one process keeps the only connection while the other wants one
    try:
        field.admin("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app'")
        field.admin("UPDATE tenants SET next_scan_at = now() WHERE name = 'limited'")
        wait_until(lambda: b"too many connections" in field.log(), OVER_S, "one process finds no connection")
        holder.close()
        timed()
        done = "SELECT count(*) FROM scans WHERE state = 'succeeded' AND trigger = 'schedule'"
        wait_until(lambda: field.admin(done) == [(1,)], OVER_S, "the schedule has scanned it")
    finally:
        holder.close()
        field.admin("ALTER ROLE app CONNECTION LIMIT -1")
    field.ends("limited", root)


@pytest.mark.long
@pytest.mark.fault(12, "a connection cut in silence, both ways, while a flush waits for its answer")
@pytest.mark.fault(20, "from the database only: the path of one of two workers is cut in mid-transaction")
def test_a_worker_that_is_cut_off_from_the_database(field: Outage, timed) -> None:
    near, env = field.cluster.processes["worker"], field.cluster.env
    with Cable((ADDRESS, 5432)) as proxy:
        # given a worker behind the proxy, in mid-transaction
        far_url = f"postgresql+psycopg://app@127.0.0.1:{proxy.port}/field"
        field.cluster.env = {**env, "STRANDLINE_DATABASE_URL": far_url}
        far = field.cluster.begin("far", "worker", "--workers", "1")
        field.cluster.env = env
        assert far.stderr.wait_for(b"ready", OVER_S)
        holder = field.flush_held()
        near.send_group(signal.SIGSTOP)
        root = field.begin("cut")
        wait_until(field.blocked, OVER_S, "a flush is under way")

        # when
        proxy.vanish()
        timed()
        near.send_group(signal.SIGCONT)
        holder.close()

        # then the other does it, and this one hears of it by itself
        field.ends("cut", root)
        assert far.stderr.wait_for(b"cannot be used", OVER_S), far.stderr.content
        field.no_traceback("far")
        wait_until(lambda: b"trying again" in far.stderr.content, OVER_S, "it tries")
        proxy.back()
        assert far.stderr.wait_for(b"the database answers again", OVER_S), far.stderr.content
        far.close()
    del field.cluster.processes["far"]


@pytest.mark.fault(12, "a host that accepts and acknowledges all, and never answers")
def test_a_server_that_hangs_is_not_waited_for_without_end(field: Outage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(postgresql._BOUNDS, "", (postgresql._BOUNDS[""][0], 1.0))
    with Cable((ADDRESS, 5432)) as proxy:
        engine = connect(f"postgresql+psycopg://app@127.0.0.1:{proxy.port}/field")
        with pytest.raises(DBAPIError, match="no answer") as raised, reading(engine) as connection:
            proxy.hang()
            connection.exec_driver_sql("SELECT 1")
        assert failure_of(raised.value) is Failure.LATER and raised.value.connection_invalidated
        proxy.back()
        with reading(engine) as connection:
            assert connection.exec_driver_sql("SELECT 1").scalar_one() == 1
        engine.dispose()


@pytest.mark.long
@pytest.mark.fault(10, "failover: the primary is killed in mid-transaction and its standby promoted")
def test_a_standby_that_takes_over(own_postgres, own_folder: Path, own_redis, tmp_path: Path, timed) -> None:
    with own_postgres() as primary, Standby(primary, own_folder) as standby, own_redis() as broker:
        primary.execute("CREATE DATABASE field")
        url = (f"postgresql+psycopg://strandline@/field?host={quote(str(primary.folder))}"
               f"&host={quote(str(standby.folder))}&target_session_attrs=read-write")  # fmt: skip
        with (
            running(tmp_path, url, broker.url, children=CHILDREN, **QUICK) as cluster,
            fields.on(cluster, broker, tmp_path, Outage, server=primary) as field,
        ):
            root = field.begin("t")
            wait_until(lambda: field.admin("SELECT count(*) FROM shards WHERE state = 'leased' AND number > 0")
                       != [(0,)], OVER_S, "a shard is under way")  # fmt: skip

            primary.kill()
            timed()
            field.server = standby
            standby.promote()

            scan = field.ends("t", root)
            field.no_traceback()
            assert scan["attempts"] >= scan["shards"]
            aftermath.check(field)
