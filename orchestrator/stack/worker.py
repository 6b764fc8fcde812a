"""Celery's worker, which ends within seconds however it comes to its end."""

from __future__ import annotations

import os
import threading
from typing import Any

from celery.apps import worker

from tasks.drain import WITHIN_S
from tasks.redis.transport import MALFORMED


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
            last = threading.Timer(WITHIN_S, os._exit, [os.EX_TEMPFAIL])
            last.daemon = True
            last.start()

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
