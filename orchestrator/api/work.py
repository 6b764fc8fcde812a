"""Doing what blocks in threads, and answering in time whatever becomes of them."""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from orchestrator.api.problems import Away

P = ParamSpec("P")
T = TypeVar("T")

# Whoever asks is answered within so long …
ANSWERED_WITHIN_S = 1.85
# … and nothing is committed later than so long before that.
MARGIN_S = 0.15
THREADS = 8
# Requests for scans come by hundreds a second: more threads would wait for one another and not for the database, and
# each costs a wake-up every few milliseconds meanwhile. They have their own, so that nobody's long list holds them up.
REQUEST_THREADS = 3
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


database = Desk(THREADS, "database")
requests = Desk(REQUEST_THREADS, "requests")
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
