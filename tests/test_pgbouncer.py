"""Strandline through PgBouncer in transaction mode, with fewer sessions than it has processes."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from db import schema
from db.bulk import COPY_FROM_ROWS, merge, run_many
from db.engine import connect, patient, reading, write
from db.tables import id_blocks
from tests import invariants
from tests.cluster import running
from tests.pgbouncer import PgBouncer
from tests.servers import PostgresServer
from tests.storage import NEWEST_POSTGRES
from tests.trees import Dir, File, build, remove
from tests.trees import write as write_file

pytestmark = pytest.mark.needs("pgbouncer")
BOUNDS = ("lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout", "transaction_isolation")


@pytest.fixture
def pooler(own_folder: Path, postgres_server: PostgresServer) -> Iterator[PgBouncer]:
    with PgBouncer(own_folder, postgres_server, sessions=2) as pooler:
        yield pooler


@pytest.fixture
def url(postgres_server: PostgresServer, pooler: PgBouncer) -> Iterator[str]:
    with postgres_server.database() as direct:
        yield pooler.url(direct.partition("@/")[2].partition("?")[0])


@pytest.fixture
def engines(url: str) -> Iterator[list[Engine]]:
    made = [connect(url) for _ in range(2)]
    yield made
    for engine in made:
        engine.dispose()


def bounds(engine: Engine) -> list[str]:
    with reading(engine) as connection:
        return shown(connection.connection.driver_connection)


def test_every_transaction_has_its_bounds_and_leaves_none_behind(
    engines: list[Engine], postgres_server: PostgresServer
) -> None:
    one, other = engines
    with postgres_server.connect() as fresh:
        unset = shown(fresh)

    assert bounds(patient(one)) == ["5s", "0", "6s", "read committed"]
    assert bounds(one) == bounds(other) == ["5s", "30s", "6s", "read committed"]

    with one.connect() as connection:  # the session is whose turn it is: nothing of it is ours
        assert shown(connection.connection.driver_connection) == unset


def shown(connection: Any) -> list[str]:
    return [connection.execute(f"SHOW {name}").fetchone()[0] for name in BOUNDS]


def test_what_is_done_often_or_in_bulk_does_not_care_which_session_it_gets(engines: list[Engine]) -> None:
    one, other = engines
    schema.migrate(one)
    rows = [(f"{number}", number) for number in range(COPY_FROM_ROWS)]
    by_one = [(1, name) for name, _ in rows]
    again = "ON CONFLICT (name) DO UPDATE SET next = excluded.next"

    def both() -> None:
        write(one, merge, id_blocks, ("name", "next"), rows, again)
        assert write(one, run_many, "UPDATE id_blocks SET next = next + ? WHERE name = ?", by_one) == len(rows)

    both()
    with reading(other):  # has the session that was `one`'s, so that `one` gets the next
        assert write(one, run_many, "UPDATE id_blocks SET next = next + ? WHERE name = ?", by_one) == len(rows)
        both()
    both()


@NEWEST_POSTGRES
def test_a_cluster_scans_through_it(url: str, pooler: PgBouncer, own_redis, tmp_path: Path) -> None:
    # given
    root = os.fsencode(tmp_path / "root")
    many = Dir({b"%03d" % number: File(b"%d" % number) for number in range(150)})
    build(root, Dir({b"%02d" % number: many for number in range(8)} | {b"moving": many, b"f": File(b"f")}))
    small = {"STRANDLINE_SHARD_ENTRIES": "200"}
    with own_redis() as broker, running(tmp_path, url, broker.url, children=3, **small) as cluster:
        assert cluster.run("tenant", "add", "t", os.fsdecode(root)).returncode == 0
        [first] = cluster.json("enqueue", "t", "--wait")

        # when
        os.rename(root + b"/moving", root + b"/moved")
        os.unlink(root + b"/f")
        remove(root + b"/00/001")
        write_file(root + b"/01/new", b"new")
        [second] = cluster.json("enqueue", "t", "--wait")

        # then
        assert (first["added"], second["moved"], second["deleted"], second["added"]) == (1351, 150, 2, 1)
        assert second["shards"] > 2
        [pool] = [one for one in pooler.ask("SHOW POOLS") if one["user"] == "strandline" and one["database"] in url]
        assert pool["sv_idle"] + pool["sv_used"] + pool["sv_active"] <= 2
        log = cluster.processes["worker"].stderr.content
        assert b"Traceback" not in log and b"cannot be used" not in log, log[-2000:]
        engine = connect(url)
        gone = {b"moving/%03d" % number for number in range(150)} | {b"f", b"00/001"}
        invariants.check(engine, {"t": root}, gone)
        engine.dispose()
