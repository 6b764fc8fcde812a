"""Celery's way to the tick: beat sends it, and so does every worker that has completed a shard."""

import contextlib

from celery import current_app, shared_task

from orchestrator import tick as ticks
from tasks import outage, traces


@shared_task(name="strandline.tick")
def tick() -> None:
    """One pass of the tick."""
    runtime = current_app.runtime
    # Where the database is away the next one tries again.
    with traces.span("tick"), contextlib.suppress(outage.Away), outage.here.noted(runtime.engine):
        ticks.tick(current_app._get_current_object(), runtime.engine, runtime.settings)
