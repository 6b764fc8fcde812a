"""A process that is stopped, and wakes when its shard is somebody else's, writes nothing; nor does a message too many.

The tasks run in this process; being stopped is time in which another does the same shard to its end.
"""

import os
import threading
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Connection, Engine

from db import postgresql, shards
from db.engine import reading
from tasks.lease import Holder
from tasks.scan_shard import scan_shard
from tests import in_process, invariants
from tests.invariants import everything
from tests.storage import NEWEST_SQLITE_LATER, ONLY_POSTGRES, remove_tenant
from tests.test_interleavings import Make, World
from tests.test_interleavings import world as world  # the fixture
from tests.trees import Dir, File, build
from tests.waiting import wait_until

FLUSHES_AT_MOST = 90
TREE = Dir({b"%d" % folder: Dir({b"%d" % n: File(b"%d" % n) for n in range(6)}) for folder in range(4)})


@pytest.fixture
def changed(world: Make, migrated_url: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[], World]:
    """A tenant scanned once; since then some files are gone, some have moved, some are new."""
    monkeypatch.setattr("tasks.memory.governor.Governor.rows", 4)  # many flushes

    def make() -> World:
        it = world(TREE, migrated_url)
        it.scan()
        for folder in (b"0", b"1"):
            os.rename(it.root + b"/%s/1" % folder, it.root + b"/%s/moved" % folder)
            os.unlink(it.root + b"/%s/2" % folder)
        build(it.root + b"/new", Dir({b"%d" % n: File(b"new %d" % n) for n in range(9)}))
        return it

    return make


class Stopped:
    """Stops the first holder at its so manieth flush: `meanwhile` is what happens until it wakes."""

    def __init__(self, at: int, meanwhile: Callable[[], None]) -> None:
        self.at, self._meanwhile, self.happened = at, meanwhile, False

    def flush_changes(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def stopping(holder: Holder, *args: Any, **more: Any) -> Any:
            self.at -= 1
            if self.at == 0 and not self.happened:
                self.happened = True
                self._meanwhile()
            return real(holder, *args, **more)

        return stopping


@NEWEST_SQLITE_LATER
@pytest.mark.fault(4, "stopped before each of its flushes in turn, until another has done its work")
def test_who_wakes_at_any_flush_after_another_has_done_his_work_writes_nothing(
    changed: Callable[[], World], monkeypatch: pytest.MonkeyPatch
) -> None:
    for at in range(1, FLUSHES_AT_MOST, 3):
        it = changed()
        scan_id = it.start()
        after: list[dict[str, Any]] = []

        def meanwhile(it: World = it, scan_id: str = scan_id, after: list[dict[str, Any]] = after) -> None:
            it.carry_on(scan_id)  # which takes what is held for left by the dead
            after.append(everything(it.engine))

        stopped = Stopped(at, meanwhile)
        with monkeypatch.context() as patch:
            patch.setattr(Holder, "flush_changes", stopped.flush_changes(Holder.flush_changes))
            while it.step():
                pass
        if not stopped.happened:
            assert at > 3, "it is stopped at some"
            return
        assert after == [everything(it.engine)], f"flush {at}"
        invariants.check(it.engine, {"t": it.root}, removed(it))
        _forget(it)


def removed(it: World) -> set[bytes]:
    return {folder + name for folder in (b"0/", b"1/") for name in (b"1", b"2")}


def _forget(it: World) -> None:
    """The same database is used for the next."""
    remove_tenant(it.engine, it.tenant_id)


@ONLY_POSTGRES
@pytest.mark.fault(4, "stopped within a flush, until its transaction is ended by the server")
def test_who_is_stopped_within_a_flush_has_written_nothing_of_it(
    changed: Callable[[], World], monkeypatch: pytest.MonkeyPatch
) -> None:
    it = changed()
    scan_id = it.start()
    [shard, *_] = in_process.ready(it.engine)
    inside, wake = threading.Event(), threading.Event()
    real = shards.flush

    def stopping(connection: Connection, *args: Any, **more: Any) -> int:
        first = real(connection, *args, **more)
        if threading.current_thread().name == "zombie":
            patience = connection.exec_driver_sql("SHOW idle_in_transaction_session_timeout").scalar_one()
            assert patience == f"{postgresql.IDLE_IN_TRANSACTION_TIMEOUT_S}s"
            connection.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = '1s'")
            inside.set()
            assert wake.wait(60)
        return first

    monkeypatch.setattr(shards, "flush", stopping)

    def be_stopped() -> None:
        it.app.set_current()  # of this thread
        scan_shard(shard.scan_id, shard.number)

    zombie = threading.Thread(target=be_stopped, name="zombie")
    zombie.start()
    assert inside.wait(60)
    wait_until(lambda: not in_transaction(it.engine), 60, "the server has no patience any more")
    it.carry_on(scan_id)
    after = everything(it.engine)
    wake.set()
    zombie.join(60)

    assert not zombie.is_alive() and everything(it.engine) == after
    invariants.check(it.engine, {"t": it.root}, removed(it))


def in_transaction(engine: Engine) -> int:
    """How many sessions are in a transaction in which nothing happens."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction' AND datname = current_database()"
    with reading(engine) as connection:
        return int(connection.exec_driver_sql(query).scalar_one())


# Messages


def deliver(scan_id: str, shard_count: int, times: int) -> None:
    for _ in range(times):
        for number in range(shard_count):
            if number:
                scan_shard(scan_id, number)


@NEWEST_SQLITE_LATER
@pytest.mark.fault(8, "each shard's message a hundred times: before it starts, at each of its flushes, after its end")
def test_a_message_delivered_a_hundred_times_has_the_effect_of_one(
    changed: Callable[[], World], monkeypatch: pytest.MonkeyPatch
) -> None:
    it = changed()
    scan_id = it.start()
    others = [shard for shard in in_process.ready(it.engine) if shard.number]
    assert others
    delivering = False
    real = Holder.flush_changes

    def delivered(holder: Holder, *args: Any, **more: Any) -> Any:
        nonlocal delivering
        if not delivering:  # not within what is delivered
            delivering = True
            deliver(scan_id, holder.lease.number + 1, 100)
            delivering = False
        return real(holder, *args, **more)

    monkeypatch.setattr(Holder, "flush_changes", delivered)

    ended = it.carry_on(scan_id)
    before = everything(it.engine)
    deliver(scan_id, 5, 100)

    assert everything(it.engine) == before
    assert ended.state == "succeeded" and ended.attempts == ended.shards
    assert (ended.added, ended.deleted, ended.moved) == (9, 2, 2)
    invariants.check(it.engine, {"t": it.root}, removed(it))
