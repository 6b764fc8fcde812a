"""Celery's prefork pool, from which no child is taken that holds work."""

from __future__ import annotations

from typing import Any

from celery.concurrency import asynpool, prefork


class Pool(asynpool.AsynPool):
    """Celery's takes a child for idle until it has said that it began with what it was given (celery #7266)."""

    def _worker_active(self, worker: Any) -> bool:
        if worker.inqW_fd in self._busy_workers or worker.inqW_fd in self._active_writes:
            return True
        if getattr(worker, "_controlled_termination", False):
            return True  # taken already, and not gone yet
        given = any(worker in (job._write_to, job._scheduled_for) for job in self._cache.values())
        return given or bool(super()._worker_active(worker))

    def idle(self) -> list[Any]:
        """The children that hold no work."""
        return list(self._iterinactive())


class TaskPool(prefork.TaskPool):
    """As the name of the setting wants it."""

    Pool = Pool
