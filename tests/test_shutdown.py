"""A worker that is told to end: it is gone within seconds, and what it held goes on elsewhere."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from db.engine import connect, reading
from db.tables import shards as shards_table
from tests import invariants
from tests.cluster import Cluster, running
from tests.servers import RedisServer
from tests.trees import Dir, File, build
from tests.waiting import wait_until

pytestmark = pytest.mark.chaos

GONE_WITHIN_S = 20
HUGE = 100 << 30


@pytest.fixture
def broker(own_redis) -> Iterator[RedisServer]:
    with own_redis() as broker:
        yield broker


@pytest.fixture
def cluster(newest_postgres_url: str, broker: RedisServer, tmp_path: Path) -> Iterator[Cluster]:
    with running(tmp_path, newest_postgres_url, broker.url, children=1) as cluster:
        yield cluster


def states(cluster: Cluster) -> list[tuple[int, str, int]]:
    engine = connect(cluster.env["STRANDLINE_DATABASE_URL"])
    s = shards_table.c
    with reading(engine) as connection:
        found = connection.execute(shards_table.select().order_by(s.number)).all()
    engine.dispose()
    return [(row.number, row.state, row.deaths) for row in found]


def hashing(cluster: Cluster) -> bool:
    """Does a child of the worker read the large file?"""
    for pid in cluster.processes["worker"].descendants():
        for fd in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                if os.readlink(fd).endswith("/large"):
                    position = Path(f"/proc/{pid}/fdinfo/{fd.name}").read_text().split()[1]
                    return int(position) > 64 << 20
            except OSError:
                continue
    return False


@pytest.mark.fault(3, "TERM, and TERM again, while a file of 100 GB is half hashed; then another worker")
@pytest.mark.parametrize("times", [1, 3], ids=["once", "thrice"])
def test_a_worker_is_gone_in_seconds_with_a_large_file_half_hashed(
    cluster: Cluster, tmp_path: Path, times: int
) -> None:
    root = half_hashed(cluster, tmp_path)

    worker, began = cluster.processes["worker"], time.monotonic()
    for _ in range(times):
        worker.send(signal.SIGTERM)
    ended = worker.wait(GONE_WITHIN_S)
    took_s = time.monotonic() - began

    assert worker.wait_gone(5) == set() and b"Traceback" not in ended.stderr
    assert {(state, deaths) for _, state, deaths in states(cluster)} <= {("waiting", 0), ("ready", 0), ("done", 0)}
    print(f"TERM to the end of the worker: {took_s:.2f} s")
    ends_elsewhere(cluster, root)


@pytest.mark.fault(3, "KILL of a worker that was told to end")
def test_a_worker_that_is_killed_while_it_ends_loses_nothing(cluster: Cluster, tmp_path: Path) -> None:
    root = half_hashed(cluster, tmp_path)

    cluster.processes["worker"].send(signal.SIGTERM)
    cluster.processes["worker"].send(signal.SIGKILL)
    cluster.processes["worker"].wait(10)

    ends_elsewhere(cluster, root)


@pytest.mark.fault(3, "TERM while Redis hangs")
@pytest.mark.fault(7, "SIGSTOP while a worker is told to end")
def test_a_worker_is_gone_in_seconds_also_while_redis_hangs(
    cluster: Cluster, broker: RedisServer, tmp_path: Path
) -> None:
    root = half_hashed(cluster, tmp_path)
    os.kill(broker.pid, signal.SIGSTOP)

    began = time.monotonic()
    cluster.processes["worker"].send(signal.SIGTERM)
    cluster.processes["worker"].wait(GONE_WITHIN_S)
    print(f"TERM to the end of the worker, while Redis hangs: {time.monotonic() - began:.2f} s")

    assert cluster.processes["worker"].wait_gone(5) == set()
    os.kill(broker.pid, signal.SIGCONT)
    ends_elsewhere(cluster, root)


def half_hashed(cluster: Cluster, tmp_path: Path) -> Path:
    """A tenant of some small files and a huge one, which its scan is reading."""
    root = tmp_path / "root"
    build(os.fsencode(root), Dir({b"a": Dir({b"%d" % n: File(b"%d" % n) for n in range(50)})}))
    with open(root / "large", "wb") as file:
        file.truncate(HUGE)
    assert cluster.run("tenant", "add", "t", str(root)).returncode == 0
    assert cluster.run("enqueue", "t").returncode == 0
    wait_until(lambda: hashing(cluster), 60, "the large file is read")
    return root


def ends_elsewhere(cluster: Cluster, root: Path) -> None:
    os.truncate(root / "large", 1 << 20)
    cluster.begin("second", "worker", "--workers", "1")
    wait_until(lambda: not cluster.read("status")[0]["running"], 60, "another worker ends the scan")
    cluster.json("enqueue", "t", "--wait")
    engine = connect(cluster.env["STRANDLINE_DATABASE_URL"])
    invariants.check(engine, {"t": os.fsencode(root)})
    engine.dispose()
