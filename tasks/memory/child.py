"""A process of the pool, which ends between two tasks where it holds memory that others need."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any

from billiard.pool import EX_RECYCLE
from celery import current_app
from celery.concurrency import asynpool

log = logging.getLogger(__name__)


class Child(asynpool.Worker):
    """Celery's own limits look at the most that a process ever used, and count what it has inherited."""

    def on_loop_start(self, pid: int) -> None:
        """It is forked, and about to wait for its first task."""
        super().on_loop_start(pid)
        wait: Callable[[], Any] = self.wait_for_job  # type: ignore[has-type]

        def wait_unless_worn() -> Any:
            if current_app.runtime.governor.hands_on:
                # The pool starts another in its place, which takes what this one has been given.
                log.info("this process ends, so that another begins with little memory")
                sys.exit(EX_RECYCLE)
            return wait()

        self.wait_for_job = wait_unless_worn
