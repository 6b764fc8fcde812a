"""Celery's autoscaler, which has no more children than memory allows, and takes none that holds work.

The cap is the worker's, too: of messages it takes no more than it may have children.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from typing import Any

from billiard.exceptions import RestartFreqExceeded
from celery.worker import autoscale, state

from tasks.app import BULK, INTERACTIVE, Runtime
from tasks.memory.cap import Cap
from tasks.memory.level import Level
from tasks.memory.pool import Children, TaskPool
from tasks.memory.watch import LOOKED_EVERY_S, Seen, Watch

log = logging.getLogger(__name__)

# Whatever is in other queues keeps things moving.
SHARDS = (INTERACTIVE, BULK)
# A child that was not needed for so long is given up.
IDLE_S = 30.0


class Autoscaler(autoscale.Autoscaler):
    """Called in the worker's loop with each message, and each second without one. `seen` is what was seen of memory
    last.
    """

    pool: TaskPool
    seen: Seen

    def __init__(self, pool: TaskPool, max_concurrency: int, min_concurrency: int = 0, worker: Any = None,
                 keepalive: float = LOOKED_EVERY_S, mutex: Any = None) -> None:  # fmt: skip
        super().__init__(pool, max_concurrency, min_concurrency, worker, keepalive, mutex)
        self._runtime: Runtime = worker.app.runtime
        self._watch = Watch(self._runtime.settings)
        self._governs = self._runtime.settings.memory_governor == "on"
        self._cap = Cap(most=max_concurrency, value=max_concurrency)
        self._all_needed_s = time.monotonic()  # when every child was needed, last
        self._look()

    def maybe_scale(self, req: Any = None) -> None:
        """Whatever fails here must not end the worker."""
        if req is None:
            with _going_on():
                self._look()
        with _going_on():
            super().maybe_scale(req)

    def _look(self) -> None:
        pool, before = self.pool.running, self._cap.value
        seen = self.seen = self._watch.look([child.pid for child in pool._pool] if pool else [])
        sizes = [size for _, size in seen.children]
        cap = before
        if self._governs:
            cap = self._cap.step(seen.reading, seen.marks, seen.level, sizes, time.monotonic())
        if cap != before:
            log.warning("memory is %s: %d children instead of %d at most: %s", seen.level.name, cap, before, seen.why)
        self._set(cap)

    def _set(self, cap: int) -> None:
        self.max_concurrency = self.worker.max_concurrency = self.pool.cap = cap

    def _maybe_scale(self, req: Any = None) -> bool:
        pool = self.pool.running
        if pool is None:
            return False
        self._give_up(pool, self.processes - self.max_concurrency)
        self._admit()
        if self.qty >= self.processes:
            self._all_needed_s = time.monotonic()
        return bool(super()._maybe_scale(req))

    def _give_up(self, pool: Children, count: int) -> None:
        """Take idle children, and ask as many others as are too many to hand on what they have not begun."""
        idle = len(pool.idle()[: max(0, count)])
        if idle:
            self._shrink(idle)
        self._runtime.board.ask({child.index for child in pool.busy()[: max(0, count - idle)]})

    def _admit(self) -> None:
        """Where memory is HIGH no shard is begun until all others are done: another worker may have memory for it."""
        consumer = self.worker.consumer.task_consumer if self.worker.consumer else None
        if consumer is not None:
            queues = {request.delivery_info["routing_key"] for request in state.reserved_requests}
            closed = self._governs and self.seen.level >= Level.HIGH and not queues.isdisjoint(SHARDS)
            consumer.channel.refuse(SHARDS if closed else ())

    def scale_down(self, n: int) -> None:
        """Where there is less to do than children: only after a while, since more may be asked for soon."""
        if time.monotonic() - self._all_needed_s > IDLE_S:
            self._shrink(n)

    def update(self, max: int | None = None, min: int | None = None) -> tuple[int, int]:
        """`celery control autoscale` and Flower: from now on so many at most, as far as memory allows."""
        if max is not None:
            self._cap.most = max
            self._cap.value = self._cap.value if self._cap.value < max else max
            self._set(self._cap.value)
        least: tuple[int, int] = super().update(None, min)
        return least

    def info(self) -> dict[str, Any]:
        """For `inspect stats`, and Flower's page of a worker: flat, as that shows it."""
        told = {name: value for name, value in self.seen.document().items() if name != "children"}
        return {**super().info(), "most": self._cap.most, **{f"memory_{name}": value for name, value in told.items()}}


@contextlib.contextmanager
def _going_on() -> Iterator[None]:
    try:
        yield
    except RestartFreqExceeded:
        raise  # children die as fast as they are started: the pool has ended, and so must the worker
    except Exception:  # of whatever kind: without this thread nobody would look at memory again; logged
        log.exception("the pool stays as it is")
