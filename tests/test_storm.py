"""A large scan under faults that come again and again: it ends by itself, and nothing is lost."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from dataclasses import field as each
from pathlib import Path

import pytest

from tests import field as fields
from tests import trees
from tests.cluster import running
from tests.field import Field
from tests.servers import PostgresServer
from tests.trees import Dir
from tests.waiting import wait_until

FOLDERS, FILES = 1_000, 50
FLUSHES, RESTARTS = 10, 3
ENDS_WITHIN_S = 300

BOTH = "flushed and restarted"

pytestmark = pytest.mark.timeout(2 * ENDS_WITHIN_S)


@dataclass
class Storm(Field):
    """A cluster with a database of its own, and how far its scan has come."""

    database: PostgresServer = each(kw_only=True)

    def done(self, scan_id: str) -> int:
        """How many shards are done."""
        self.engine.dispose()  # connections that are no more
        return [shard.state for shard in self.shards(scan_id)].count("done")

    def flush(self) -> None:
        with self.redis() as client:
            client.flushall()

    def restart(self) -> None:
        self.database.stop()
        self.database.start()


@pytest.fixture
def storm(own_redis, own_postgres, tmp_path: Path) -> Iterator[Storm]:
    with own_redis() as broker, own_postgres() as server:
        server.execute("CREATE DATABASE storm")
        with (
            running(tmp_path, server.url("storm"), broker.url, STRANDLINE_SHARD_ENTRIES="1500") as cluster,
            fields.on(cluster, broker, tmp_path, Storm, database=server) as field,
        ):
            yield field


def both(storm: Storm, number: int) -> None:
    """Flushed each time, and restarted three times in between."""
    storm.flush()
    if number % (FLUSHES // RESTARTS) == 1:
        storm.restart()


FAULTS: dict[str, tuple[int, Callable[[Storm, int], None]]] = {
    "flushed": (FLUSHES, lambda storm, _: storm.flush()),
    "restarted": (RESTARTS, lambda storm, _: storm.restart()),
    BOTH: (FLUSHES, both),
}


# Each by itself is in both, and left to test-large: one takes minutes.
@pytest.mark.parametrize(
    "fault",
    [pytest.param(one, marks=[pytest.mark.chaos, pytest.mark.long] if one == BOTH else pytest.mark.large)
     for one in FAULTS],
)  # fmt: skip
@pytest.mark.fault(5, "FLUSHALL ten times during a scan of 50,000 files; and with the database restarted three times")
@pytest.mark.fault(10, "PostgreSQL restarted (immediate) three times during a scan of 50,000 files")
def test_a_scan_of_50_000_files_ends_by_itself(storm: Storm, fault: str) -> None:
    name, root = storm.tenant(Dir())
    other, its_root = storm.tenant()
    trees.make_many(root, FOLDERS, FILES)
    times, strike = FAULTS[fault]
    began = time.monotonic()
    scan_id, others = storm.ask(name), storm.ask(other)

    for number in range(times):
        wait_until(lambda number=number: storm.done(scan_id) > 2 * number, ENDS_WITHIN_S, "it goes on")
        strike(storm, number)
    struck_s = time.monotonic() - began
    scan = storm.ended(scan_id, ENDS_WITHIN_S)
    took_s = time.monotonic() - began

    print(
        f"\n{fault} × {times}: over after {took_s:.1f} s, the last fault after {struck_s:.1f} s; "
        f"{scan['shards']} shards in {scan['attempts']} attempts, {scan['state']}"
    )
    assert scan["state"] == "succeeded" and scan["added"] == FOLDERS * FILES
    assert storm.ended(others)["state"] == "succeeded"
    storm.quiet({name: root, other: its_root})
