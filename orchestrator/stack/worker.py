"""Celery's worker, which ends within seconds however it comes to its end."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

from celery.apps import worker
from celery.worker import state

from tasks.drain import WITHIN_S
from tasks.redis.transport import MALFORMED

# Celery takes leave of Redis on connections of its own. Where a name is not looked up, or a server is gone, that lasts,
# and helps nobody once nothing is held.
LEAVE_S = 5.0
LOOKED_EVERY_S = 0.2


def _unsaid(*_: object) -> None:
    """Celery would write past the log, with an empty line, that it was told to end."""


worker.safe_say = _unsaid


class Worker(worker.Worker):
    """Tells its children to put back what they hold, and waits for them so long and no longer."""

    _is_ending = False

    def begin_end(self) -> None:
        """From now on nothing is begun. What Celery would wait for without end is killed with us."""
        if not self._is_ending:
            self._is_ending = True
            self.app.runtime.drain.begin()
            threading.Thread(target=_end_at_last, daemon=True).start()

    def _process_task(self, req: Any) -> None:
        """As Celery's, but what it took of the pool for a message that is none of ours is given back."""
        try:
            super()._process_task(req)
        except MALFORMED:
            self._quick_release()
            raise

    def stop(self, *args: Any, **more: Any) -> None:
        """After a signal, or an error that nobody foresaw."""
        self.begin_end()
        super().stop(*args, **more)


def _end_at_last() -> None:
    """Where Celery does not come to its end: with what is held after WITHIN_S, and without it after LEAVE_S."""
    free_s = time.monotonic()  # since when nothing is held
    until_s = free_s + WITHIN_S
    while True:
        now_s, holds = time.monotonic(), bool(state.reserved_requests or state.active_requests)
        free_s = now_s if holds else free_s
        if now_s >= min(until_s, free_s + LEAVE_S):
            os._exit(os.EX_TEMPFAIL if holds else os.EX_OK)
        time.sleep(LOOKED_EVERY_S)
