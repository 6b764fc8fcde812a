"""Celery's beat, which says once that a broker does not take its ticks, sends none while nobody takes them, and ends on
TERM also while the broker hangs.
"""

from __future__ import annotations

from typing import Any

import celery.apps.beat
import celery.beat
import redis
from celery.beat import SchedulingError

from tasks.app import CONTROL, Runtime
from tasks.health import TOUCHED_EVERY_S

# Over a weekend without a worker it would be a hundred thousand, and he who came would be busy with them.
UNREAD = 10


class Scheduler(celery.beat.Scheduler):
    """Sends the few static entries; what was not sent is not made up for."""

    def tick(self, *args: Any, **more: Any) -> Any:
        """Send what is due; seconds until the next is."""
        health = self.app.runtime.health
        health.alive()
        next_s = super().tick(*args, **more)
        health.alive()
        return min(next_s, TOUCHED_EVERY_S)

    def apply_entry(self, entry: Any, producer: Any = None) -> None:
        """Send one that is due."""
        outage = self.app.runtime.outage
        try:
            if self._unread() < UNREAD:
                self.apply_async(entry, producer=producer, advance=False)
        except (SchedulingError, redis.RedisError) as error:
            outage.failed(f"{entry.name} cannot be sent", error)
            self.app.runtime.health.busy()
        else:
            outage.over()
            self.app.runtime.health.ready()

    def _unread(self) -> int:
        runtime: Runtime = self.app.runtime
        found: Any = runtime.redis.llen(runtime.keys.queue(CONTROL))
        return int(found)


class Beat(celery.apps.beat.Beat):
    """Ends by the handler that stands. Celery's own closes the connection in the midst of what uses it, and what that
    raises then takes the place of the exit: with a hung broker beat went on for ever.
    """

    def install_sync_handler(self, service: Any) -> None:
        """Nothing is kept on disk, so nothing is to be saved."""
