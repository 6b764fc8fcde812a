"""PostgreSQL as it is in the field, one statement at a time: what is done again, what is not, and what is given up."""

import contextlib
import itertools
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from db import engine as db_engine
from db import postgresql, schema
from db.engine import connect, reading, write, writing
from db.failures import Failure, failure_of
from db.sending import Sendable
from tasks import settings as all_settings
from tasks.app import make_app
from tasks.careful import DEATHS_AT_MOST
from tests import in_process, invariants
from tests.in_process import InProcess
from tests.servers import PostgresServer
from tests.trees import Dir, File, build
from tests.volumes import Volume

BOTH_S = 30


@pytest.fixture
def field(postgres_url: str) -> Iterator[Engine]:
    engine = connect(postgres_url)
    with writing(engine) as connection:
        connection.exec_driver_sql("CREATE TABLE two AS SELECT id, 0 AS n FROM generate_series(1, 2) AS id")
    yield engine
    engine.dispose()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    statement, answer_timeout_s = postgresql._BOUNDS[""]
    quick = statement.replace("'5000ms'", "'200ms'").replace("'30000ms'", "'500ms'")
    assert quick != statement
    monkeypatch.setitem(postgresql._BOUNDS, "", (quick, answer_timeout_s))


def fails(engine: Engine, work: Callable[[Connection], object]) -> DBAPIError:
    with pytest.raises(DBAPIError) as raised:
        write(engine, work)
    return raised.value


def together(*works: Callable[[], object]) -> None:
    """At once, in threads; what one of them raises is raised here."""
    with ThreadPoolExecutor(len(works)) as pool:
        for running in [pool.submit(work) for work in works]:
            running.result(BOTH_S)


# What is done again


@pytest.mark.fault(11, "two writers take two rows in opposite order")
def test_of_two_that_deadlock_one_is_done_again_as_a_whole(field: Engine) -> None:
    tried: list[int] = []
    both = threading.Barrier(2)

    def one_then_other(connection: Connection, first: int, second: int) -> None:
        tried.append(first)
        connection.exec_driver_sql("UPDATE two SET n = n + 1 WHERE id = %s", (first,))
        if len(tried) <= 2:  # whoever comes again finds nobody to wait for
            both.wait(BOTH_S)
        connection.exec_driver_sql("UPDATE two SET n = n + 10 WHERE id = %s", (second,))

    together(lambda: write(field, one_then_other, 1, 2), lambda: write(field, one_then_other, 2, 1))

    assert len(tried) == 3
    with reading(field) as connection:
        assert connection.exec_driver_sql("SELECT n FROM two").scalars().all() == [11, 11]


@pytest.mark.fault(11, "two serializable writers that read what the other writes")
def test_of_two_that_cannot_be_serialized_one_is_done_again_as_a_whole(field: Engine) -> None:
    tried: list[int] = []
    both = threading.Barrier(2)

    def sum_into(connection: Connection, row: int) -> None:
        tried.append(row)
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
        total = connection.exec_driver_sql("SELECT sum(n) FROM two").scalar_one()
        if len(tried) <= 2:
            both.wait(BOTH_S)
        connection.exec_driver_sql("UPDATE two SET n = %s WHERE id = %s", (total + 1, row))

    together(lambda: write(field, sum_into, 1), lambda: write(field, sum_into, 2))

    assert len(tried) == 3
    with reading(field) as connection:
        assert sorted(connection.exec_driver_sql("SELECT n FROM two").scalars()) == [1, 2]


def test_who_waits_too_long_for_a_lock_tries_again(field: Engine, impatient: None) -> None:
    tried: list[int] = []
    with writing(field) as other:
        other.exec_driver_sql("UPDATE two SET n = 1")

        def work(connection: Connection) -> None:
            tried.append(1)
            if len(tried) == 2:
                other.rollback()
            connection.exec_driver_sql("UPDATE two SET n = n + 1")

        write(field, work)

    assert len(tried) == 2
    with reading(field) as connection:
        assert connection.exec_driver_sql("SELECT n FROM two").scalars().all() == [1, 1]


def test_what_is_undone_again_and_again_is_given_up(field: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(db_engine, "PAUSES_S", (0.0,) * 5)
    tried: list[int] = []

    def work(connection: Connection) -> None:
        tried.append(1)
        connection.exec_driver_sql(raising("40001"))

    assert failure_of(fails(field, work)) is Failure.REPEAT
    assert len(tried) == 6
    tried.clear()
    monkeypatch.setattr(db_engine, "REPEATED_FOR_S", -1.0)
    assert failure_of(fails(field, work)) is Failure.REPEAT
    assert len(tried) == 1, "no time is left"


def raising(state: str) -> str:
    return f"DO $$ BEGIN RAISE 'injected' USING ERRCODE = '{state}'; END $$"


# What is not


@pytest.mark.fault(10, "pg_terminate_backend in the transaction itself")
def test_after_a_lost_connection_nothing_is_repeated_and_the_next_gets_a_new_one(field: Engine) -> None:
    tried: list[int] = []

    def work(connection: Connection) -> None:
        tried.append(1)
        connection.exec_driver_sql("UPDATE two SET n = n + 1")
        connection.exec_driver_sql("SELECT pg_terminate_backend(pg_backend_pid())")

    error = fails(field, work)

    assert len(tried) == 1 and failure_of(error) is Failure.LATER and error.connection_invalidated
    with reading(field) as connection:
        assert connection.exec_driver_sql("SELECT n FROM two").scalars().all() == [0, 0]


def test_a_server_that_has_become_read_only_is_left(field: Engine) -> None:
    def add(connection: Connection) -> None:
        connection.exec_driver_sql("UPDATE two SET n = n + 1")

    set_default(field, "read_only", "on")
    with reading(field), reading(field):
        pass  # two sessions that stay read-only, as those of a standby do
    assert failure_of(fails(field, add)) is Failure.LATER
    set_default(field, "read_only", "off", dispose=False)

    with reading(field):
        write(field, add)
    write(field, add)


def test_who_waited_for_a_lock_sees_what_was_committed_meanwhile_whatever_the_server_s_default(field: Engine) -> None:
    set_default(field, "isolation", "'repeatable read'")

    with writing(field) as connection:
        before = connection.exec_driver_sql("SELECT n FROM two WHERE id = 1").scalar_one()
        write(field, lambda other: other.exec_driver_sql("UPDATE two SET n = n + 1"))
        after = connection.exec_driver_sql("SELECT n FROM two WHERE id = 1 FOR UPDATE").scalar_one()

    assert (before, after) == (0, 1)


def set_default(engine: Engine, what: str, value: str, *, dispose: bool = True) -> None:
    """What the transactions of new sessions are."""
    if dispose:
        engine.dispose()
    url = engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute("SET default_transaction_read_only = off")
        admin.execute(f"ALTER DATABASE {engine.url.database} SET default_transaction_{what} = {value}")


@pytest.mark.fault(11, "a statement that takes longer than it may")
def test_a_statement_that_takes_too_long_is_ended_but_for_the_patient(field: Engine, impatient: None) -> None:
    def slow(connection: Connection) -> None:
        connection.exec_driver_sql("SELECT pg_sleep(0.7)")

    assert failure_of(fails(field, slow)) is Failure.LATER
    write(db_engine.patient(field), slow)
    assert fails(field, slow).orig.sqlstate == "57014", "the next is not patient"


def test_who_does_nothing_in_a_transaction_loses_it(field: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    statement, answer_timeout_s = postgresql._BOUNDS[""]
    monkeypatch.setitem(postgresql._BOUNDS, "", (statement.replace("'6s'", "'100ms'"), answer_timeout_s))

    def idle(connection: Connection) -> None:
        connection.exec_driver_sql("UPDATE two SET n = 1")
        threading.Event().wait(0.5)
        connection.exec_driver_sql("UPDATE two SET n = 2")

    assert failure_of(fails(field, idle)) is Failure.LATER
    with reading(field) as connection:
        assert connection.exec_driver_sql("SELECT n FROM two").scalars().all() == [0, 0]


def test_a_process_has_two_connections_at_most(field: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgresql, "POOL_TIMEOUT_S", 0.1)
    engine = connect(field.url.render_as_string(hide_password=False))

    with reading(engine), reading(engine), pytest.raises(PoolTimeout):
        engine.connect()

    engine.dispose()


# A whole scan


class Faults:
    """Makes statements of a scan's tasks that write fail, as told by their number; by the server, at the very place."""

    def __init__(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.states: Callable[[int, str], str | None] = lambda number, statement: None
        self._seen, self._running = 0, False
        real = in_process.run
        event.listen(engine, "after_cursor_execute", self._after)

        def run(shard: Sendable) -> None:
            self._running = True
            real(shard)
            self._running = False

        monkeypatch.setattr(in_process, "run", run)

    def _after(self, connection: Connection, cursor: psycopg.Cursor, statement: str, *_: object) -> None:
        if self._running and statement.startswith(("INSERT", "UPDATE", "DELETE")):
            self._seen += 1
            state = self.states(self._seen, statement)
            if state is not None:
                cursor.execute(raising(state))


@pytest.fixture
def scanned(field: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[InProcess, Faults]]:
    """A tenant of 20 files, and what shall go wrong in its scans."""
    schema.migrate(field)
    with tempfile.TemporaryDirectory(prefix="strandline-field-") as folder:
        os.chmod(folder, 0o755)
        root = os.fsencode(Path(folder, "root"))
        many = Dir({b"%d" % number: File(b"%d" % number) for number in range(9)})
        build(root, Dir({b"a": many, b"b": many, b"c": Dir({b"gone": File(b"gone"), b"old": File(b"old")})}))
        app = make_app(all_settings.load({}, redis_url="redis://nowhere"))
        yield InProcess(app, field, root, policy={}, shard_entries=10), Faults(field, monkeypatch)


def scan(it: InProcess) -> dict:
    it.request()
    assert it.carry_on()
    return it.document()


@pytest.mark.fault(11, "every thirteenth statement of a scan is a deadlock, a serialization failure or a lock timeout")
def test_a_scan_of_which_every_13th_statement_is_undone_is_exact(
    scanned: tuple[InProcess, Faults], monkeypatch: pytest.MonkeyPatch
) -> None:
    it, faults = scanned
    monkeypatch.setattr(db_engine, "PAUSES_S", (0.0,) * 20)
    undone = itertools.cycle(["40P01", "40001", "55P03"])
    faults.states = lambda number, _: None if number % 13 else next(undone)
    first = scan(it)
    os.unlink(it.root + b"/c/gone")
    os.rename(it.root + b"/c/old", it.root + b"/a/new")

    second = scan(it)

    assert (first["added"], second["deleted"], second["moved"]) == (20, 1, 1)
    assert (first["attempts"], second["attempts"]) == (first["shards"], second["shards"]), "no shard heard of it"
    invariants.check(it.engine, {"t": it.root}, {b"c/gone", b"c/old"})


@pytest.mark.fault(11, "some statements of a scan take too long")
def test_a_shard_whose_statement_took_too_long_is_tried_later(scanned: tuple[InProcess, Faults]) -> None:
    it, faults = scanned
    faults.states = lambda number, _: "57014" if number in (3, 9, 20) else None

    document = scan(it)

    assert document["state"] == "succeeded" and document["attempts"] == document["shards"] + 3
    invariants.check(it.engine, {"t": it.root})


def test_a_statement_that_is_wrong_leaves_its_shard_alone(
    scanned: tuple[InProcess, Faults],
) -> None:
    it, faults = scanned
    faults.states = lambda number, statement: "22012" if statement.startswith("INSERT INTO files") else None

    document = scan(it)

    assert document["state"] == "partial"
    assert f"{DEATHS_AT_MOST} holders died" in document["error"] and "injected" in document["error"]
    faults.states = lambda number, statement: None
    assert scan(it)["state"] == "succeeded"
    invariants.check(it.engine, {"t": it.root})


@pytest.mark.needs("root")
@pytest.mark.needs("mount")
@pytest.mark.fault(12, "the file system of the tables, a small tmpfs, is filled up in mid-scan")
def test_a_full_disk_fails_the_scan_with_that_sentence_and_the_next_completes(
    scanned: tuple[InProcess, Faults], postgres_server: PostgresServer, mounted: Callable[..., Volume]
) -> None:
    it, _ = scanned
    # More than the server itself may let go of meanwhile.
    build(it.root + b"/more", Dir({b"%03d" % n + b"." * 200: File(b"%d" % n) for n in range(900)}))
    small = mounted("tmpfs", size_mib=64)
    shutil.chown(small.path, postgres_server.user)
    postgres_server.execute(f"CREATE TABLESPACE small LOCATION '{small.path}'")
    move = f"ALTER DATABASE {it.engine.url.database} SET TABLESPACE"
    it.engine.dispose()
    postgres_server.execute(f"{move} small")
    try:
        it.request()
        fill(small.path / "filler")

        assert it.carry_on()

        document = it.document()
        assert document["state"] == "failed" and "No space left" in document["error"], document
        assert "make room" in document["error"]
        (small.path / "filler").unlink()
        assert scan(it)["state"] == "succeeded"
        invariants.check(it.engine, {"t": it.root})
    finally:
        it.engine.dispose()
        (small.path / "filler").unlink(missing_ok=True)
        postgres_server.execute(f"{move} pg_default")
        postgres_server.execute("DROP TABLESPACE small")


def fill(path: Path) -> None:
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
