"""Celery's autoscaler, which has no more children than memory allows, and takes none that holds work.

The cap is the worker's, too: of messages it takes no more than it may have children.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from celery.worker import autoscale

from tasks.app import Runtime
from tasks.memory.cap import Cap
from tasks.memory.watch import LOOKED_EVERY_S, Seen, Watch

log = logging.getLogger(__name__)

# After so long without a message a child that has nothing to do is given up.
IDLE_S = 30.0


class Autoscaler(autoscale.Autoscaler):
    """`seen` is what was seen of memory last."""

    seen: Seen

    def __init__(self, pool: Any, max_concurrency: int, min_concurrency: int = 0, worker: Any = None,
                 keepalive: float = LOOKED_EVERY_S, mutex: Any = None) -> None:  # fmt: skip
        super().__init__(pool, max_concurrency, min_concurrency, worker, keepalive, mutex)
        self._runtime: Runtime = worker.app.runtime
        self._watch = Watch(self._runtime.settings)
        self._cap = Cap(most=max_concurrency, value=max_concurrency)
        self._look()

    def _maybe_scale(self, req: Any = None) -> bool:
        if time.monotonic() - self._looked_s >= LOOKED_EVERY_S:
            self._look()
        over = self.processes - self._cap.value
        self._give_up(over)
        return over > 0 or bool(super()._maybe_scale(req))

    def _look(self) -> None:
        self._looked_s = time.monotonic()
        pool = self.pool._pool  # which is not there yet at the first look
        children = pool._pool if pool is not None else []
        seen = self.seen = self._watch.look([child.pid for child in children])
        before = self._cap.value
        cap = self._cap.step(seen.reading, seen.marks, seen.level, [size for _, size in seen.children], self._looked_s)
        if cap != before:
            log.warning("memory is %s: %d children instead of %d at most: %s", seen.level.name, cap, before, seen.why)
        self.max_concurrency = self.worker.max_concurrency = self.pool.limit = cap

    def _give_up(self, count: int) -> None:
        """Take idle children, and ask as many others as are too many to hand on what they have not begun."""
        pool = self.pool._pool
        idle = pool.idle()[: max(0, count)]
        busy = [child.index for child in pool._pool if child not in idle]
        if idle:
            self._shrink(len(idle))
        self._runtime.board.ask(set(busy[: max(0, count - len(idle))]))

    def scale_down(self, n: int) -> None:
        """Where there is less to do than children: only after a while, since the next may be asked for soon."""
        last_s = self._last_task_received
        if last_s is None or time.monotonic() - last_s > IDLE_S:
            idle = len(self.pool._pool.idle())
            if idle:
                self._shrink(min(n, idle))

    def info(self) -> dict[str, Any]:
        """For `inspect stats`."""
        return {**super().info(), "memory": self.seen.document()}
