"""Faults of schedule, tenants and database, forced at the very step; the tasks run in this process."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, text

from db import changes, scans, sending, tenants
from db.clock import clock
from db.engine import reading, writing
from db.tables import directories, files
from db.tables import scans as scans_table
from db.tables import shards as shards_table
from db.types import CursorLost, Trigger
from orchestrator import tick as ticks
from orchestrator.change import change_tenant
from tasks.core.breaker import ROOT, Failed, failed
from tasks.lease import Holder
from tasks.redis import breaker, watermark
from tasks.scan_shard import limits_of
from tests import in_process, invariants
from tests.storage import ONLY_SQLITE, add_tenant, at_once, remove_tenant, rows, run_scan
from tests.test_interleavings import Make, World
from tests.test_interleavings import world as world  # the fixture
from tests.trees import Dir, File, build, listing

pytestmark = pytest.mark.chaos

HOUR_NS = 3_600 * 10**9
TREE = Dir({b"%d" % folder: Dir({b"%d" % n: File(b"%d" % n) for n in range(6)}) for folder in range(4)})


@contextmanager
def at_flush(number: int, happens: Callable[[], None]) -> Iterator[list[int]]:
    """Something happens just before the so manieth flush; gives how often one was begun."""
    real, count = Holder.flush_changes, [0]

    def flush(holder: Holder, *args: Any, **more: Any) -> Any:
        count[0] += 1
        if count[0] == number:
            happens()
        return real(holder, *args, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Holder, "flush_changes", flush)
        patch.setattr("tasks.memory.governor.Governor.rows", 4)  # many flushes
        yield count


def quiet(it: World) -> scans.Scan:
    """All that is queued or running to its end, and then one scan more."""
    in_process.expire_leases(it.engine)
    with writing(it.engine) as connection:
        sending.forget_sent(connection)  # there is nobody to take what was sent
    while True:
        ticks.start_queued(it.engine, it.settings)
        if not it.step():
            break
    return it.scan()


# Clocks, the schedule


@pytest.mark.fault(15, "the worker's clock is given, an hour ahead or behind")
@pytest.mark.parametrize("hours", [-1, 1])
def test_a_clock_that_is_an_hour_off_costs_no_change(world: Make, tmp_path: Path, hours: int) -> None:
    both = f"sqlite:///{tmp_path}/both.db"
    it, other = world(TREE, both), world(TREE, both, "other")
    it.app.runtime.clock_ns = lambda: time.time_ns() + hours * HOUR_NS
    it.scan()
    build(it.root + b"/0/new", File(b"new"))
    os.unlink(it.root + b"/1/1")
    os.utime(it.root + b"/2/2", ns=(0, time.time_ns() + hours * HOUR_NS))

    assert (it.scan().state, other.scan().state) == ("succeeded", "succeeded")

    invariants.check(it.engine, {"t": it.root, "other": other.root}, {b"1/1"})


def _set_due(it: World, seconds: float) -> None:
    with writing(it.engine) as connection:
        tenants.change(connection, it.tenant_id, next_scan_at=clock(seconds))


@pytest.mark.fault(14, "a tenant that has been due for ten intervals; ten ticks at once")
def test_ten_ticks_at_once_after_ten_missed_intervals_make_one_scan(world: Make, migrated_url: str) -> None:
    it = world(TREE, migrated_url)
    ticks.tick(it.app, it.engine, it.settings)  # finds Redis empty, and that is not what is meant here
    _set_due(it, -600.0)

    done = at_once(*[lambda: ticks.tick(it.app, it.engine, it.settings)] * 10)

    assert [one for one in done if not isinstance(one, int)] == []
    assert sum(done) == 1, "its one shard is sent once"
    assert [row["state"] for row in rows(it.engine, scans_table)] == ["running"]
    quiet(it)
    invariants.check(it.engine, {"t": it.root})


# Tenants


@pytest.mark.fault(18, "a tenant removed at each flush of its scan in turn")
def test_a_tenant_that_is_removed_in_mid_scan_leaves_nothing(world: Make, migrated_url: str) -> None:
    for number in range(1, 40, 3):
        it = world(TREE, migrated_url)
        other = world(TREE, migrated_url, "other")
        scan_id = it.start()

        def remove(it: World = it) -> None:
            remove_tenant(it.engine, it.tenant_id)

        with at_flush(number, remove) as flushes:
            while it.step():
                pass
        if flushes[0] < number:
            assert number > 4
            return
        with reading(it.engine) as connection:
            assert scans.get(connection, scan_id) is None
            for table in (files, directories):
                left = select(func.count()).select_from(table).where(table.c.tenant_id == it.tenant_id)
                assert connection.execute(left).scalar() == 0, number
        other.scan()
        invariants.check(other.engine, {"other": other.root})
        remove_tenant(other.engine, other.tenant_id)


@pytest.mark.fault(18, "a tenant's root changed at each flush of its scan in turn")
def test_a_tenant_whose_root_is_changed_in_mid_scan_is_scanned_there(world: Make, tmp_path: Path) -> None:
    for number in range(1, 40, 3):
        it = world(TREE)
        it.scan()
        build(it.root + b"/more", TREE)
        elsewhere = os.fsencode(tmp_path / f"elsewhere {number}")
        shutil.copytree(it.root, elsewhere)
        build(elsewhere + b"/there", File(b"only there"))
        it.start()

        def change(it: World = it, elsewhere: bytes = elsewhere) -> None:
            with writing(it.engine) as connection:
                change_tenant(connection, "t", root=elsewhere)

        with at_flush(number, change) as flushes:
            while it.step():
                pass
        if flushes[0] < number:
            assert number > 4
            return
        quiet(it)
        assert it.index == listing(elsewhere), number
        invariants.check(it.engine, {"t": elsewhere})


@pytest.mark.fault(18, "a tenant paused in mid-scan")
def test_a_tenant_that_is_paused_in_mid_scan_ends_it_and_begins_none(world: Make) -> None:
    it = world(TREE)
    scan_id = it.start()
    with writing(it.engine) as connection:
        change_tenant(connection, "t", enabled=False, next_scan_at=clock(-1.0))

    assert it.carry_on(scan_id).state == "succeeded"

    ticks.tick(it.app, it.engine, it.settings)
    assert len(rows(it.engine, scans_table)) == 1


@ONLY_SQLITE
@pytest.mark.fault(
    19, "the index that forbids two running scans dropped, and a second one begun, their shards in turns"
)
def test_two_scans_of_a_tenant_that_overlap_leave_an_index_that_the_next_one_mends(
    world: Make, migrated_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.trouble.RETRY_DELAY_S", 0.0)
    it, other = world(TREE, migrated_url), world(TREE, migrated_url, "other")
    it.scan()
    build(it.root + b"/new", TREE)
    os.unlink(it.root + b"/1/1")
    first = it.start()
    with writing(it.engine) as connection:
        connection.execute(text("DROP INDEX uq_scans_running"))
        queued, _ = scans.request(connection, it.tenant_id, trigger=Trigger.REQUEST)
        frontiers = [row["frontier"] for row in rows(it.engine, shards_table, scan_id=first) if row["number"]]
        second = run_scan(connection, queued, frontiers)

    def interleave() -> None:
        for shard in in_process.ready(it.engine):
            if shard.scan_id == second.id:
                in_process.run(shard)

    for number in (2, 4):
        with at_flush(number, interleave):
            while it.step():
                pass
        assert other.scan().state == "succeeded"

    quiet(it)
    invariants.check(it.engine, {"t": it.root}, {b"1/1"}, overlapped=True)
    invariants.check(it.engine, {"other": other.root})


@pytest.mark.fault(23, "the database's file put back as it was two scans ago")
def test_a_database_restored_from_an_older_copy_is_brought_forward_and_refuses_cursors_of_the_lost_time(
    world: Make, tmp_path: Path
) -> None:
    it = world(TREE)
    it.scan()
    it.engine.dispose()
    path = str(it.engine.url.database)
    shutil.copy(path, tmp_path / "dump")
    early = it.feed[-1]["cursor"]
    build(it.root + b"/lost", File(b"1"))
    it.scan()
    build(it.root + b"/lost too", File(b"2"))
    it.scan()
    lost = it.feed[-1]["cursor"]
    it.engine.dispose()
    for old in Path(path).parent.glob(Path(path).name + "*"):
        old.unlink()
    shutil.copy(tmp_path / "dump", path)

    assert it.scan().added == 2
    assert it.scan().added == 0

    invariants.check(it.engine, {"t": it.root})
    with reading(it.engine) as connection:
        with pytest.raises(CursorLost):
            changes.after(connection, it.tenant_id, lost, 10)
        assert len(changes.after(connection, it.tenant_id, early, 10)) == 2


# Many roots gone


@pytest.mark.fault(24, "so many tenants with no root, and one that has")
@pytest.mark.parametrize(
    ("many", "failed_before"),
    [(25, 0), pytest.param(10_000, 3, marks=[pytest.mark.large, pytest.mark.timeout(3600)])],
)
def test_tenants_whose_roots_are_all_gone_are_left_alone_and_others_are_served(
    world: Make, many: int, failed_before: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    if many < ticks.DUE_AT_ONCE:
        monkeypatch.setattr(ticks, "DUE_AT_ONCE", 10)
    it = world(TREE, breaker_window_s=10.0**6, breaker_open_s=10.0**6)  # a round of thousands takes a while
    for number in range(many):
        _failed(it, add_tenant(it.engine, f"gone-{number}", interval_s=10**6), failed_before)

    rounds = it.settings.breaker_failures + 1 - failed_before
    asked = [_round(it) for _ in range(rounds)]
    assert asked == [many + 1] * rounds, "each is tried until it has failed more than three times"
    caplog.clear()

    assert _round(it) == 1, "only the one whose root is there"

    assert len(caplog.records) <= 2 + many // ticks.DUE_AT_ONCE
    assert len([row for row in rows(it.engine, scans_table) if row["state"] == "succeeded"]) == rounds + 1
    quiet(it)
    invariants.check(it.engine, {"t": it.root})


def _failed(it: World, tenant: tenants.Tenant, times: int) -> None:
    """So many scans of it have failed at its root, as the breaker knows."""
    runtime, limits, event = it.app.runtime, limits_of(it.settings, tenant), Failed(ROOT, "no such file or directory")
    for fence in range(-times, 0):
        breaker.change(
            runtime.redis, runtime.keys, tenant.id, limits,
            lambda entries, now, fence=fence: failed(entries, [event], fence, now, limits),
        )  # fmt: skip


def _round(it: World) -> int:
    """Everybody is due, once; how many scans that makes."""
    before = len(rows(it.engine, scans_table))
    with writing(it.engine) as connection:
        connection.execute(text("UPDATE tenants SET next_scan_at = 0"))
    while ticks.request_due(it.engine, it.settings, *ticks.look(it.app.runtime, it.engine)):
        continue
    while ticks.start_queued(it.engine, it.settings):
        while it.step():
            pass
    return len(rows(it.engine, scans_table)) - before


def test_a_finish_that_slipped_by_is_made_ready_by_the_tick(world: Make) -> None:
    it = world(TREE)
    scan_id = it.start()
    with writing(it.engine) as connection:
        s = shards_table.c
        connection.execute(shards_table.update().where(s.number != 0).values(state="done"))
    assert in_process.ready(it.engine) == []

    ticks.tick(it.app, it.engine, it.settings)

    quiet(it)
    assert it.scan_of(scan_id).finished_at is not None
    invariants.check(it.engine, {"t": it.root})


def test_redis_is_filled_in_once_and_again_when_it_was_emptied(world: Make, caplog: pytest.LogCaptureFixture) -> None:
    it = world(TREE)
    runtime = it.app.runtime
    it.scan()
    runtime.redis.flushall()
    for _ in range(3):
        ticks.tick(it.app, it.engine, it.settings)

    found = watermark.read(runtime.redis, runtime.keys, [it.tenant_id, 99])

    assert {one: (mark.fence, mark.files) for one, mark in found.items()} == {it.tenant_id: (1, 24)}
    assert caplog.text.count("Redis held nothing of ours: 1 watermarks are filled in") == 1
    it.scan()
    assert watermark.read(runtime.redis, runtime.keys, [it.tenant_id])[it.tenant_id].fence == 2
    watermark.move(runtime.redis, runtime.keys, [(it.tenant_id, 1, datetime.now(), 7)])
    assert watermark.read(runtime.redis, runtime.keys, [it.tenant_id])[it.tenant_id].fence == 2, "never backwards"
