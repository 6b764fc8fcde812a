"""The processes that containers run, on PostgreSQL and a Redis that are configured."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tasks.app import QUEUES, make_app
from tasks.redis import presence
from tasks.redis.keys import Keys
from tasks.settings import load
from tests import scenarios
from tests.cluster import Cluster, running
from tests.command import STRANDLINE, each_change_once
from tests.processes import start
from tests.servers import PostgresServer
from tests.storage import NEWEST_POSTGRES
from tests.trees import Dir, File, apply_feed, build, listing
from tests.waiting import wait_until


@pytest.fixture
def cluster(postgres_url: str, own_redis, tmp_path: Path) -> Iterator[Cluster]:
    with own_redis() as broker, running(tmp_path, postgres_url, broker.url) as cluster:
        yield cluster


@pytest.mark.row(1, "the 29 scenarios on PostgreSQL")
def test_the_29_scenarios_on_postgresql(cluster: Cluster, tmp_path: Path) -> None:
    root, outside = os.fsencode(tmp_path / "root"), os.fsencode(tmp_path / "outside")
    os.mkdir(outside)
    scenarios.setup_all(root, outside)
    assert cluster.run("tenant", "add", "all", os.fsdecode(root)).returncode == 0
    [first] = cluster.json("enqueue", "all", "--wait")
    before = listing(root)
    assert cluster.index("all") == before

    scenarios.do_all(root, outside)
    cluster.json("enqueue", "all", "--wait")

    after = listing(root)
    assert cluster.index("all") == after
    assert each_change_once(cluster.feed("all")) and apply_feed(cluster.feed("all")) == after
    assert apply_feed(cluster.feed("all", since=first["cursor"]), before) == after


@NEWEST_POSTGRES
def test_beat_and_the_worker_do_what_was_only_asked_for(cluster: Cluster, tmp_path: Path) -> None:
    root = os.fsencode(tmp_path / "root")
    build(root, Dir({b"f": File(b"1"), b"d": Dir({b"g": File(b"2")})}))
    assert cluster.run("tenant", "add", "notes", os.fsdecode(root), "--interval", "1").returncode == 0

    wait_until(lambda: cluster.index("notes") == listing(root), 30, "the schedule has scanned")

    assert cluster.json("scans", "notes")[0]["trigger"] == "schedule"
    [status] = cluster.json("status")
    assert [worker["processes"] for worker in status["workers"]] == [2]


@pytest.mark.needs("pid namespace")
def test_a_containers_first_process_that_waits_ends_when_it_is_told(tmp_path: Path) -> None:
    """The kernel drops TERM to such a one where nothing is set, and its container is killed at the end of its grace."""
    env = {**os.environ, "STRANDLINE_DATABASE_URL": f"postgresql+psycopg://nobody@/none?host={tmp_path}"}
    with start(["unshare", "--pid", "--fork", "--kill-child", STRANDLINE, "migrate", "--wait"], env=env) as container:
        assert container.stderr.wait_for(b"waiting", 30), container.stderr.content
        [first] = container.descendants()
        os.kill(first, signal.SIGTERM)
        assert container.wait(10).returncode == 128 + signal.SIGTERM


def test_workers_say_how_much_they_can_do_for_as_long_as_they_do_it(own_redis, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/test.db"
    with own_redis() as broker, running(tmp_path, url, broker.url, workers=2, children=3, beats=0) as cluster:
        keys = Keys("strandline:")
        with redis.Redis.from_url(broker.url) as client:
            wait_until(lambda: presence.slots(client, keys) == 6, 30, "both are there")
            client.flushall()
            wait_until(lambda: presence.slots(client, keys) == 6, 30, "they say so again")

            cluster.processes["worker"].send(signal.SIGTERM)
            wait_until(lambda: presence.slots(client, keys) == 3, 30, "one says that it goes")
            cluster.processes["worker2"].send(signal.SIGKILL)
            wait_until(lambda: presence.slots(client, keys) == 0, 30, "the other says nothing any more")


def catches(pid: int, number: signal.Signals) -> bool:
    """Has the process a handler for this signal by now?"""
    [caught] = [line.split()[1] for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "SigCgt" in line]
    return bool(int(caught, 16) >> (number - 1) & 1)


@pytest.mark.chaos
@NEWEST_POSTGRES
def test_a_worker_ends_on_term_and_takes_its_pool_along_when_killed(cluster: Cluster) -> None:
    worker, beat = cluster.processes["worker"], cluster.processes["beat"]
    wait_until(lambda: catches(beat.pid, signal.SIGTERM), 30, "beat is up")
    beat.send(signal.SIGTERM)
    assert beat.wait(10).returncode == 0
    worker.send(signal.SIGKILL)
    worker.wait(10)
    assert worker.wait_gone(5) == set()


@NEWEST_POSTGRES
def test_processes_refuse_to_run_without_addresses_or_on_another_schema(
    cluster: Cluster, postgres_server: PostgresServer, tmp_path: Path
) -> None:
    with postgres_server.database() as empty:
        cluster.env = {**cluster.env, "STRANDLINE_DATABASE_URL": empty}
        done = cluster.run("worker")
        assert done.returncode == 2 and "strandline migrate" in done.stderr and "Traceback" not in done.stderr
    cluster.env = {"STRANDLINE_STATE_DIR": str(tmp_path / "never made")}
    done = cluster.run("worker")
    assert done.returncode == 2 and "STRANDLINE_DATABASE_URL" in done.stderr


def holds_nothing(cluster: Cluster) -> bool:
    """Is no message left for the worker, nor in its hands? Each thing is looked at after what it may come from."""
    app = make_app(load({}, redis_url=cluster.env["STRANDLINE_REDIS_URL"]))
    told = app.control.inspect(timeout=2)
    none_active = [one == [] for one in (told.active() or {}).values()]
    with redis.Redis.from_url(cluster.env["STRANDLINE_REDIS_URL"]) as client:
        none_waits = not any(client.llen(app.runtime.keys.queue(queue)) for queue in QUEUES)
    none_taken = [one == [] for each in (told.reserved, told.active) for one in (each() or {}).values()]
    return none_waits and [*none_active, *none_taken] == [True] * 3


@NEWEST_POSTGRES
def test_a_worker_that_holds_nothing_ends_well_where_no_name_is_looked_up_any_more(
    cluster: Cluster, tmp_path: Path
) -> None:
    """As where a container's network goes before it does: Celery takes leave of Redis on a new connection."""
    gone = tmp_path / "no names"
    program = (
        "import os, socket, time; look_up = socket.getaddrinfo\n"
        "def waiting(*args, **more):\n"
        f"    while os.path.exists({str(gone)!r}): time.sleep(0.1)\n"
        "    return look_up(*args, **more)\n"
        "socket.getaddrinfo = waiting\n"
        "from orchestrator.cli import main; main()"
    )
    cluster.processes["worker"].close()
    worker = cluster.begin("worker", "worker", "--workers", "2", program=program)
    assert worker.stderr.wait_for(b"ready", 30), worker.stderr.content
    root = os.fsencode(tmp_path / "root")
    build(root, Dir({b"note": File(b"text")}))
    assert cluster.run("tenant", "add", "notes", os.fsdecode(root)).returncode == 0
    cluster.json("enqueue", "notes", "--wait")
    cluster.processes["beat"].send(signal.SIGTERM)
    cluster.processes["beat"].wait(10)
    wait_until(lambda: holds_nothing(cluster), 30, "the ticks that the scan asked for are over")
    gone.touch()
    worker.send(signal.SIGTERM)
    assert worker.wait(12).returncode == 0
