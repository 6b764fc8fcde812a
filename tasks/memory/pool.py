"""Celery's prefork pool: no child is taken that holds work, and it lives on where no other can be started."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from billiard.pool import RUN
from celery.concurrency import asynpool, prefork

from tasks.memory.child import Child

log = logging.getLogger(__name__)


class Children(asynpool.AsynPool):
    """Celery's takes a child for idle until it has said that it began with what it was given (celery #7266)."""

    Worker = Child

    def idle(self) -> list[Any]:
        """The children that wait for work."""
        return [child for child in self._pool if self._takes(child) and not self._holds(child)]

    def busy(self) -> list[Any]:
        """The children that hold work."""
        return [child for child in self._pool if self._takes(child) and self._holds(child)]

    def _takes(self, child: Any) -> bool:
        """Is it up, and not told to end?"""
        return child.inqW_fd in self._all_inqueues

    def _holds(self, child: Any) -> bool:
        """Was anything given to it, is just being, or about to be?"""
        if child.inqW_fd in self._busy_workers or child.inqW_fd in self._active_writes:
            return True
        jobs = self._cache.values()
        return any(child in (job._write_to, job._scheduled_for) or child.pid in job.worker_pids() for job in jobs)

    def shrink(self, n: int = 1) -> None:
        """Give up so many children, or as many as are idle."""
        for child in self.idle()[:n]:
            self._all_inqueues.discard(child.inqW_fd)  # or it would be given work while it ends
            self._processes -= 1
            self._putlock.shrink()
            child.terminate_controlled()

    def on_grow(self, n: int) -> None:
        """The pipes are made with the child: see below."""

    def _create_worker_process(self, i: int) -> Any:
        super().on_grow(1)
        try:
            return super()._create_worker_process(i)
        except OSError:
            # It is among the children already, and has its pipes.
            self._process_cleanup_queues(self._pool.pop())
            raise

    def _repopulate_pool(self, exitcodes: Sequence[int]) -> None:
        try:
            super()._repopulate_pool(exitcodes)
        except OSError as error:
            if not self._pool:
                raise  # then the worker ends, and another goes on
            log.warning("no child can be started now, which is tried again in some seconds: %s", error)


class TaskPool(prefork.TaskPool):
    """`cap`: of so many children at most it tells, however many it has."""

    Pool = Children
    cap = 1

    @property
    def running(self) -> Children | None:
        """The pool itself, from when it has started until it is told to end."""
        pool = self._pool
        return pool if pool is not None and pool._state == RUN else None

    def _get_info(self) -> dict[str, Any]:
        return {**super()._get_info(), "max-concurrency": self.cap}
