"""Celery's scheduler, which says once that a broker does not take its ticks, not at each with a stack trace."""

from __future__ import annotations

from typing import Any

import celery.beat
from celery.beat import SchedulingError


class Scheduler(celery.beat.Scheduler):
    """Sends the few static entries; what was not sent is not made up for."""

    def apply_entry(self, entry: Any, producer: Any = None) -> None:
        """Send one that is due."""
        outage = self.app.runtime.outage
        try:
            self.apply_async(entry, producer=producer, advance=False)
        except SchedulingError as error:
            outage.failed(f"{entry.name} cannot be sent", error)
        else:
            outage.over()
