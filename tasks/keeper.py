"""Keeping a lease: renewed by a thread of its own, for as long as the thread that works gets anywhere.

A process that was killed renews nothing, and its shard goes to another within seconds. One that hangs (in a dead mount,
say) still could: so what counts is the processor time of the working thread, which moves with every call that returns,
however slow, and stands still in one that does not.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextvars import copy_context

from sqlalchemy.exc import SQLAlchemyError

from db.types import Exhausted, LeaseLost
from tasks.lease import Holder

log = logging.getLogger(__name__)

# Renewals in the time of a lease: some may come late, or fail.
RENEWALS = 4


class Keeper:
    """`with Keeper(holder, stall_s, stalled):` renews the lease of this thread's shard until the end of the block.

    Where the thread did not move for `stall_s` seconds, `stalled` is called, once, and the lease is renewed no more.
    Raises Exhausted.
    """

    def __init__(self, holder: Holder, stall_s: float, stalled: Callable[[], None]) -> None:
        self._holder, self._stall_s, self._stalled = holder, stall_s, stalled
        self._over = threading.Event()
        self._thread = threading.Thread(
            target=copy_context().run, args=(self._keep,), name="keeper", daemon=True
        )  # what it logs is of the same shard
        self._clock = time.pthread_getcpuclockid(threading.get_ident())

    def __enter__(self) -> Keeper:
        try:
            self._thread.start()
        except RuntimeError as error:  # what Python makes of EAGAIN
            raise Exhausted(f"this process is at its limits: {error}") from error
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _keep(self) -> None:
        used_s, moved_s = -1.0, time.monotonic()
        while not self._over.wait(self._holder.lease_s / RENEWALS):
            now_s, before_s = time.monotonic(), used_s
            used_s = time.clock_gettime(self._clock)
            if used_s != before_s:
                moved_s = now_s
            elif now_s - moved_s > self._stall_s:
                self._stalled()
                return
            try:
                self._holder.renew()
            except LeaseLost:
                return
            except SQLAlchemyError as error:
                log.warning("a lease could not be renewed: %s", getattr(error, "orig", None) or error)
