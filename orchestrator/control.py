"""Celery's way to the tick: beat sends it, and so does every worker that has completed a shard."""

import contextlib

from celery import current_app, shared_task

from orchestrator import tick as ticks
from tasks import outage


@shared_task(name="strandline.tick")
def tick() -> None:
    """One pass of the tick."""
    runtime = current_app.runtime
    with contextlib.suppress(outage.Away), outage.here.noted(runtime.engine):  # the next one tries again
        ticks.tick(current_app._get_current_object(), runtime.engine, runtime.settings)
