"""Which child of a pool may be given up, and that the pool lives on where no other can be started."""

import errno
from types import SimpleNamespace
from typing import Any

import pytest
from billiard.pool import ApplyResult
from billiard.process import BaseProcess
from celery.concurrency import asynpool
from kombu.asynchronous.semaphore import LaxBoundedSemaphore

from tasks.memory.board import CHILDREN, Board
from tasks.memory.pool import Children

# What Children uses that celery and billiard promise to nobody.
OF_A_POOL = {
    "_pool", "_processes", "_putlock", "_cache", "_state", "_queues", "_all_inqueues", "_busy_workers",
    "_active_writes", "_process_cleanup_queues", "_create_worker_process", "_repopulate_pool", "on_grow",
}  # fmt: skip


class Child:
    """A process of which nothing is known but what a pool asks of it."""

    def __init__(self, number: int) -> None:
        self.pid, self.inqW_fd, self.index, self.ended = 100 + number, number, number, False

    def terminate_controlled(self) -> None:
        self.ended = True


def job(accepted_by: int | None = None, **to: Child) -> Any:
    return SimpleNamespace(_write_to=None, _scheduled_for=None, worker_pids=lambda: [accepted_by], **to)


@pytest.fixture
def pool() -> Children:
    """Three children that are up and have nothing to do."""
    made = Children.__new__(Children)
    made._pool = [Child(number) for number in range(3)]
    made._processes, made._putlock = 3, LaxBoundedSemaphore(3)
    made._all_inqueues = {0, 1, 2}
    made._busy_workers, made._active_writes, made._cache = set(), set(), {}
    return made


def given(pool: Children, how: str) -> None:
    """The first child holds work, in each way in which a pool may know of it."""
    first = pool._pool[0]
    if how in ("_busy_workers", "_active_writes"):
        getattr(pool, how).add(first.inqW_fd)
    elif how == "accepted":
        pool._cache[1] = job(accepted_by=first.pid)
    else:
        pool._cache[1] = job()
        setattr(pool._cache[1], how, first)


@pytest.mark.parametrize("how", ["_busy_workers", "_active_writes", "accepted", "_write_to", "_scheduled_for"])
def test_a_child_that_holds_work_is_never_given_up(pool: Children, how: str) -> None:
    given(pool, how)

    pool.shrink(3)

    assert [child.ended for child in pool._pool] == [False, True, True]
    assert pool._processes == 1 and pool._putlock.initial_value == 1
    assert pool.busy() == pool._pool[:1] and pool.idle() == []


def test_one_that_is_not_up_yet_is_about_to_be_given_what_waits(pool: Children) -> None:
    pool._all_inqueues.discard(0)

    pool.shrink(3)

    assert [child.ended for child in pool._pool] == [False, True, True] and pool.busy() == []


def test_one_that_was_told_to_end_is_given_nothing_and_is_not_told_again(pool: Children) -> None:
    pool.shrink(1)
    pool.shrink(1)

    assert [child.ended for child in pool._pool] == [True, True, False] and pool._processes == 1
    assert pool._all_inqueues == {2}


def test_where_no_other_process_can_be_started_the_pool_lives_on_and_tries_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = Children(0, threads=False)
    pool._terminate.cancel()  # these processes are none
    started: list[Any] = []

    def fails(process: BaseProcess) -> None:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    def starts(process: BaseProcess) -> None:
        process._popen = SimpleNamespace(pid=1000 + len(started), poll=lambda *_: None, sentinel=None)
        started.append(process)

    pool.grow(1)
    monkeypatch.setattr(BaseProcess, "start", fails)
    with pytest.raises(OSError, match="unavailable"):
        pool.maintain_pool()  # without any child it is no pool
    monkeypatch.setattr(BaseProcess, "start", starts)
    pool.maintain_pool()

    pool.grow(1)
    monkeypatch.setattr(BaseProcess, "start", fails)
    pool.maintain_pool()
    pool.maintain_pool()
    assert pool._pool == started and list(pool._queues.values()) == [started[0], None], "its pipes wait for the next"
    monkeypatch.setattr(BaseProcess, "start", starts)
    pool.maintain_pool()
    assert pool._pool == started and len(pool._queues) == len(started) == 2


def test_celery_and_billiard_are_as_we_know_them() -> None:
    """Where this fails after an update, read tasks/memory/pool.py beside the new asynpool.py and billiard/pool.py."""
    pool = asynpool.AsynPool(0, threads=False)

    assert not OF_A_POOL - set(dir(pool))
    assert {"_write_to", "_scheduled_for", "worker_pids"} <= set(dir(ApplyResult))
    assert "terminate_controlled" in dir(BaseProcess)


def test_a_child_beyond_the_page_is_never_asked_and_does_not_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    board, asked = Board(), {}
    board.ask({3, CHILDREN + 1})
    for index in (2, 3, CHILDREN, CHILDREN + 1):
        monkeypatch.setattr("tasks.memory.board.current_process", lambda index=index: SimpleNamespace(index=index))
        asked[index] = board.asked()

    assert asked == {2: False, 3: True, CHILDREN: False, CHILDREN + 1: False}
