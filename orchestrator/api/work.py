"""Doing what blocks in threads, and answering in time whatever becomes of them."""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, NamedTuple, ParamSpec, TypeVar

from orchestrator.api.problems import Away

P = ParamSpec("P")
T = TypeVar("T")
A = TypeVar("A")

# Whoever asks is answered within so long …
ANSWERED_WITHIN_S = 1.85
# … and nothing is committed later than so long before that.
MARGIN_S = 0.15
THREADS = 8
# Requests for scans come by hundreds a second: what waits for one of these threads is done together. They have their
# own, so that nobody's long list holds them up.
REQUEST_THREADS, MOST_TOGETHER = 2, 32
# What looks at a tenant's files has threads of its own: its mount may hang for ever.
FILE_THREADS = 6
STREAM_THREADS = 4

_this = threading.local()


def is_too_late() -> bool:
    """Was whoever waits for this thread told by now that it failed? Never in a thread of somebody else."""
    deadline_s: float | None = getattr(_this, "deadline_s", None)
    return deadline_s is not None and time.monotonic() > deadline_s


class Desk:
    """Threads of one kind; `within_s`: how long somebody waits for one."""

    def __init__(self, threads: int, name: str, within_s: float = ANSWERED_WITHIN_S) -> None:
        self._within_s = within_s
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)

    async def do(self, work: Callable[[], T]) -> T:
        """What `work()` answers. Raises Away where that takes too long: what was not begun then is not done; a thread
        that is at it goes on, and its own bounds end it.
        """
        deadline_s = time.monotonic() + self._within_s - MARGIN_S
        doing = asyncio.get_running_loop().run_in_executor(self._pool, _do, work, deadline_s)
        try:
            return await asyncio.wait_for(doing, self._within_s)
        except TimeoutError:
            raise Away("the answer takes too long") from None


def _do(work: Callable[[], T], deadline_s: float) -> T:
    _this.deadline_s = deadline_s
    return work()


class _Waiting(NamedTuple, Generic[A, T]):
    item: A
    deadline_s: float
    answer: asyncio.Future[T]


class Together(Generic[A, T]):
    """Threads for what comes by hundreds: whatever waits for one of them and is of one kind is done in one go.

    `work(items)` answers each of them, in their order, by what it gives or by an error.
    """

    def __init__(self, work: Callable[[Sequence[A]], Sequence[T | Exception]], kind: Callable[[A], object]) -> None:
        self._work, self._kind = work, kind
        self._waiting: list[_Waiting[A, T]] = []
        self._free = REQUEST_THREADS
        self._pool = ThreadPoolExecutor(REQUEST_THREADS, thread_name_prefix="requests")

    async def do(self, item: A) -> T:
        """What is answered to this one. Raises Away where that takes too long, and then it was not begun or is undone,
        and whatever it is answered by.
        """
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(item, time.monotonic() + ANSWERED_WITHIN_S - MARGIN_S, answer))
        self._begin()
        try:
            return await asyncio.wait_for(answer, ANSWERED_WITHIN_S)
        except TimeoutError:
            raise Away("the answer takes too long") from None

    def _begin(self) -> None:
        self._waiting = [one for one in self._waiting if not one.answer.done()]  # nobody waits for what is too late
        if not self._free or not self._waiting:
            return
        kind, waiting = self._kind(self._waiting[0].item), self._waiting
        taken: list[_Waiting[A, T]] = []
        self._waiting = []
        for one in waiting:
            goes_along = len(taken) < MOST_TOGETHER and self._kind(one.item) == kind
            (taken if goes_along else self._waiting).append(one)
        self._free -= 1
        doing = asyncio.get_running_loop().run_in_executor(
            self._pool, _do, functools.partial(self._work, [one.item for one in taken]), taken[0].deadline_s
        )
        doing.add_done_callback(functools.partial(self._ended, taken))

    def _ended(self, taken: Sequence[_Waiting[A, T]], doing: asyncio.Future[Sequence[T | Exception]]) -> None:
        self._free += 1
        failed = doing.exception()
        for one, found in zip(taken, [failed] * len(taken) if failed else doing.result(), strict=True):
            if one.answer.done():
                continue
            if isinstance(found, BaseException):
                one.answer.set_exception(found)
            else:
                one.answer.set_result(found)
        self._begin()


database = Desk(THREADS, "database")
files = Desk(FILE_THREADS, "files")
# Thousands of readers may ask at once, beside whom others want their answers: these can wait.
streams = Desk(STREAM_THREADS, "streams", within_s=60.0)


def blocking(desk: Desk = database) -> Callable[[Callable[P, T]], Callable[P, Awaitable[T]]]:
    """A route that is written plainly, and run in a thread."""

    def of(work: Callable[P, T]) -> Callable[P, Awaitable[T]]:
        @functools.wraps(work)
        async def run(*args: P.args, **more: P.kwargs) -> T:
            return await desk.do(functools.partial(work, *args, **more))

        return run

    return of
