"""Rows 1, 4, 9 and 14 of the catalogue of faults: processes that are killed, or stopped and continued, in mid-work."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import redis

from db.engine import writing
from orchestrator.change import change_tenant
from tests import invariants
from tests.field import SOON_S, Field, alive, cut, large, made, position
from tests.field import field as field  # the fixture
from tests.storm import SHIFTED
from tests.waiting import wait_until

pytestmark = pytest.mark.chaos

LEASE_S = 2
FIELD = {"workers": 2, "children": 1, "STRANDLINE_LEASE_S": str(LEASE_S)}
fault = pytest.mark.fault
# So much of the large file is read: its shard is in its middle.
HALF_WAY = 64 << 20


@pytest.fixture
def two(field: Field) -> Field:
    """A test may have killed one."""
    for name in ("worker", "worker2"):
        if field.process(name).alive() == set():
            field.process(name).close()
            field.begin_worker(name)
    return field


def with_large(field: Field) -> tuple[str, bytes, bytes]:
    """A tenant with one file that is not read to its end before somebody cuts it."""
    name, root = field.tenant()
    return name, root, large(root)


@fault(1, "SIGKILL of a pool's child that reads a large file")
def test_a_child_that_is_killed_in_a_shard_costs_its_lease(two: Field) -> None:
    field = two
    name, root, path = with_large(field)
    scan_id = field.ask(name)
    its_worker, child = field.holder(path, past=HALF_WAY)

    os.kill(child, signal.SIGKILL)
    field.others_go_on()
    wait_until(lambda: field.shards(scan_id)[-1].attempt == 2, SOON_S, "somebody takes over")
    cut(path)

    document = field.ended(scan_id)
    assert document["state"] == "succeeded" and document["attempts"] == document["shards"] + 1
    wait_until(lambda: len(field.process(its_worker).descendants()) == 1, SOON_S, "the pool has a child again")
    field.quiet({name: root})


@fault(1, "SIGKILL of a pool's child whose parent has connected by then")
def test_a_child_that_takes_a_dead_ones_place_has_none_of_its_parents_connections(two: Field) -> None:
    worker = two.process("worker")
    [first] = worker.descendants()
    assert connections(worker.pid)

    os.kill(first, signal.SIGKILL)
    wait_until(lambda: worker.descendants() - {first}, SOON_S, "another takes its place")
    [second] = worker.descendants()

    wait_until(lambda: not connections(second) & connections(worker.pid), SOON_S, "it has closed what it was given")


def connections(pid: int) -> set[int]:
    """A process's own ports to Redis."""
    return {one.laddr.port for one in psutil.Process(pid).net_connections("tcp")}


@fault(1, "SIGKILL of a worker, one of whose children reads a large file")
def test_a_worker_that_is_killed_leaves_its_shard_to_another(two: Field) -> None:
    field = two
    name, root, path = with_large(field)
    scan_id = field.ask(name)
    its_worker, child = field.holder(path, past=HALF_WAY)

    field.process(its_worker).send(signal.SIGKILL)
    assert field.process(its_worker).wait_gone(SOON_S) == set() and not alive(child)
    field.holder(path, unlike=its_worker)
    cut(path)

    document = field.ended(scan_id)
    assert document["state"] == "succeeded" and document["attempts"] == document["shards"] + 1
    field.quiet({name: root})


@fault(4, "SIGSTOP of a pool's child in mid-hash for three times its lease, then SIGCONT")
def test_a_child_that_was_stopped_and_wakes_writes_nothing_and_goes_on(two: Field) -> None:
    field = two
    name, root, path = with_large(field)
    scan_id = field.ask(name)
    its_worker, child = field.holder(path, past=HALF_WAY)

    os.kill(child, signal.SIGSTOP)
    wakes_s = time.monotonic() + 3 * LEASE_S
    other, _ = field.holder(path, unlike=its_worker)
    cut(path)
    assert field.ended(scan_id)["state"] == "succeeded"
    field.others_go_on()
    wait_until(lambda: time.monotonic() > wakes_s, SOON_S, "three leases are over")
    before = invariants.everything(field.engine)
    os.kill(child, signal.SIGCONT)

    worker = field.process(its_worker)
    assert worker.stderr.wait_for(b"no longer held by this process", SOON_S), worker.stderr.content
    assert invariants.everything(field.engine) == before
    field.process(other).send(signal.SIGKILL)
    field.process(other).wait_gone(SOON_S)
    field.quiet({name: root})  # by who woke
    assert alive(child)


@fault(15, "time.time and datetime.now of one of two workers are an hour ahead, or behind")
@pytest.mark.parametrize("hours", [-1, 1])
def test_a_worker_whose_clock_is_off_neither_drops_messages_nor_spoils_them(two: Field, hours: int) -> None:
    off = two.cluster.processes.pop("worker2")
    off.close()
    try:
        workers = [two.process("worker"), two.begin_worker("worker2", program=SHIFTED.format(off_s=hours * 3600))]
        for _ in range(5):
            roots = dict(two.tenant() for _ in range(4))
            for scan_id in [two.ask(name) for name in roots]:
                assert two.ended(scan_id)["state"] == "succeeded"
        two.quiet(roots)
        assert [worker.stderr.content.count(b"Discarding revoked") for worker in workers] == [0, 0]
        assert b"strandline.scan_shard" in workers[1].stderr.content, "it had some of the work"
    finally:
        two.process("worker2").close()
        two.begin_worker("worker2")


# Messages that come again. Celery's visibility timeout, 300 s as shipped, is 2 s here, and a worker says what it sees.

IMPATIENT = """
import os, sys
from celery import signals
from orchestrator.cli import main
from tasks.redis.connection import Address

options = Address.broker_options
soon = {"visibility_timeout": 2, "unacked_restore_interval": 1, "unacked_restore_throttle": 1}
Address.broker_options = lambda *args: options(*args) | soon

@signals.task_prerun.connect(weak=False)
def say(task, **_):
    if task.request.delivery_info.get("redelivered"):
        os.write(2, b"delivered again: %s" % task.name.encode())

sys.argv[0] = "strandline"
main()
"""
AGAIN = b"delivered again: strandline.scan_shard"


@pytest.fixture(scope="module")
def impatient(_postgres_servers, server_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Field]:
    """A cluster whose one worker has two children, and is given again soon what it has not acknowledged."""
    with made(_postgres_servers, server_folder, tmp_path_factory, workers=0) as field:
        field.begin_worker("worker", 2, IMPATIENT)
        field.settle()
        yield field


@fault(9, "a visibility timeout of 2 s, and a shard that takes longer")
def test_a_message_that_comes_again_while_its_shard_is_worked_on_does_nothing(impatient: Field) -> None:
    field = impatient
    name, root, path = with_large(field)
    scan_id = field.ask(name)
    _, child = field.holder(path)

    assert field.process("worker").stderr.wait_for(AGAIN, SOON_S)
    field.others_go_on()
    assert position(child, path) > HALF_WAY, "the first is still at it"
    cut(path)

    document = field.ended(scan_id)
    assert document["state"] == "succeeded" and document["attempts"] == document["shards"]
    field.quiet({name: root})


@fault(1, "SIGKILL of a worker that was stopped, so that it could not acknowledge what its child had committed")
def test_a_message_that_was_not_acknowledged_comes_again_and_does_nothing(impatient: Field) -> None:
    field = impatient
    name, root, path = with_large(field)
    scan_id = field.ask(name)
    field.holder(path, past=HALF_WAY)

    worker = field.process("worker")
    worker.send(signal.SIGSTOP)
    cut(path)
    wait_until(lambda: {one.state for one in field.shards(scan_id)[1:]} == {"done"}, SOON_S, "the shard is done")
    worker.send(signal.SIGKILL)
    assert worker.wait_gone(SOON_S) == set()
    worker.close()
    with redis.Redis.from_url(field.broker.url) as client:
        assert client.hlen("strandline:unacked") >= 1
        again = field.begin_worker("worker", 2, IMPATIENT)
        assert again.stderr.wait_for(AGAIN, SOON_S), again.stderr.content
        wait_until(lambda: not client.hlen("strandline:unacked"), SOON_S, "it is acknowledged")

    document = field.ended(scan_id)
    assert document["state"] == "succeeded" and document["attempts"] == document["shards"]
    field.quiet({name: root})


# Beat

INTERVAL_S = 1


@pytest.fixture(scope="module")
def scheduled(_postgres_servers, server_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Field]:
    """A cluster with two beats, whose tenants are due every second."""
    soon = {"STRANDLINE_INTERVAL_S": str(INTERVAL_S), "STRANDLINE_STAGGER_WINDOW_S": "0"}
    with made(_postgres_servers, server_folder, tmp_path_factory, beats=2, **soon) as field:
        yield field


def due_scans(field: Field, name: str) -> list[float]:
    """When the schedule asked for a scan, in seconds."""
    query = (
        "SELECT extract(epoch FROM s.requested_at) AS at FROM scans s JOIN tenants t ON t.id = s.tenant_id "
        "WHERE t.name = :n AND s.trigger = 'schedule' ORDER BY at"
    )
    return [float(row.at) for row in field.rows(query, n=name)]


def one_an_interval(times: list[float]) -> bool:
    """Each in an interval of its own? Somewhere in it, so that two may follow each other closely, but never three."""
    late_s = 0.1  # from the tick's clock to the row's
    return all(
        later - earlier > (n - 1) * INTERVAL_S - late_s
        for first, earlier in enumerate(times)
        for n, later in enumerate(times[first + 1 :], start=1)
    )


@pytest.mark.long
@fault(14, "two beats; then both stopped for ten intervals, and continued")
def test_two_beats_or_one_that_wakes_ask_for_one_scan_an_interval(scheduled: Field) -> None:
    field = scheduled
    roots = dict(field.tenant() for _ in range(3))
    wait_until(lambda: all(len(due_scans(field, name)) >= 3 for name in roots), SOON_S, "the schedule goes on")

    beats = [field.process(name) for name in ("beat", "beat2")]
    for beat in beats:
        beat.send(signal.SIGSTOP)
    wakes_s = time.monotonic() + 10 * INTERVAL_S
    field.others_go_on(interval_s=10**6)  # asked for, not due
    before = {name: len(due_scans(field, name)) for name in roots}
    wait_until(lambda: time.monotonic() > wakes_s, SOON_S, "ten intervals are over")
    for beat in beats:
        beat.send(signal.SIGCONT)
    wait_until(lambda: all(len(due_scans(field, n)) >= before[n] + 3 for n in roots), SOON_S, "it goes on again")

    with writing(field.engine) as connection:
        for name in roots:
            change_tenant(connection, name, enabled=False)
    for name in roots:
        assert one_an_interval(due_scans(field, name)), due_scans(field, name)
    field.quiet(roots)
