"""A large scan under faults that come again and again: it ends by itself, and nothing is lost."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from db.engine import connect, reading
from db.tables import shards as shards_table
from tests import invariants, trees
from tests.cluster import Cluster, running
from tests.servers import PostgresServer, RedisServer
from tests.waiting import wait_until

FOLDERS, FILES = 1_000, 50
FLUSHES, RESTARTS = 10, 3
ENDS_WITHIN_S = 300

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(2 * ENDS_WITHIN_S)]


class Storm:
    """A cluster, and how far its scan has come."""

    def __init__(self, cluster: Cluster, broker: RedisServer, database: PostgresServer, url: str) -> None:
        self.cluster, self.broker, self.database = cluster, broker, database
        self.engine = connect(url)

    def done(self) -> int:
        """Directories that the scan's shards have behind them, roughly: the shards that are done."""
        with reading(self.engine) as connection:
            found = connection.execute(shards_table.select().with_only_columns(shards_table.c.state)).scalars().all()
        return found.count("done")

    def is_over(self) -> bool:
        [status] = self.cluster.read("status")
        return not status["running"] and not status["queued"]

    def flush(self) -> None:
        with redis.Redis.from_url(self.broker.url) as client:
            client.flushall()

    def restart(self) -> None:
        self.database.stop()
        self.database.start()


@pytest.fixture
def storm(own_redis, own_postgres, tmp_path: Path) -> Iterator[Storm]:
    with contextlib.ExitStack() as stack:
        broker, server = stack.enter_context(own_redis()), stack.enter_context(own_postgres())
        server.execute("CREATE DATABASE storm")
        url = server.url("storm")
        cluster = stack.enter_context(
            running(tmp_path, url, broker.url, children=2, STRANDLINE_SHARD_ENTRIES="1500")
        )  # fmt: skip
        yield Storm(cluster, broker, server, url)


def both(storm: Storm, number: int) -> None:
    """Flushed each time, and restarted three times in between."""
    storm.flush()
    if number % (FLUSHES // RESTARTS) == 1:
        storm.restart()


FAULTS: dict[str, tuple[int, Callable[[Storm, int], None]]] = {
    "flushed": (FLUSHES, lambda storm, _: storm.flush()),
    "restarted": (RESTARTS, lambda storm, _: storm.restart()),
    "flushed and restarted": (FLUSHES, both),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.fault(5, "FLUSHALL ten times during a scan of 50,000 files; and with the database restarted three times")
@pytest.mark.fault(10, "PostgreSQL restarted (immediate) three times during a scan of 50,000 files")
def test_a_scan_of_50_000_files_ends_by_itself(storm: Storm, tmp_path: Path, fault: str) -> None:
    root = os.fsencode(tmp_path / "root")
    trees.make_many(root, FOLDERS, FILES)
    times, strike = FAULTS[fault]
    assert storm.cluster.run("tenant", "add", "t", os.fsdecode(root)).returncode == 0
    began = time.monotonic()
    assert storm.cluster.run("enqueue", "t").returncode == 0

    for number in range(times):
        wait_until(lambda number=number: storm.done() > 2 * number, ENDS_WITHIN_S, "it goes on")
        strike(storm, number)
    struck_s = time.monotonic() - began
    wait_until(storm.is_over, ENDS_WITHIN_S, "the scan ends")
    took_s = time.monotonic() - began

    [scan] = storm.cluster.read("scans", "t")
    print(
        f"\n{fault} × {times}: over after {took_s:.1f} s, the last fault after {struck_s:.1f} s; "
        f"{scan['shards']} shards in {scan['attempts']} attempts, {scan['state']}"
    )
    assert scan["state"] == "succeeded" and scan["added"] == FOLDERS * FILES
    storm.cluster.json("enqueue", "t", "--wait")
    invariants.check(storm.engine, {"t": root})
