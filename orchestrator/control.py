"""Celery's way to the tick: beat sends it, and so does every worker that has completed a shard."""

from celery import current_app, shared_task

from orchestrator import tick as ticks
from tasks import outage


@shared_task(name="strandline.tick")
def tick() -> None:
    """One pass of the tick."""
    runtime = current_app.runtime
    with outage.here.borne(runtime.engine):
        ticks.tick(current_app._get_current_object(), runtime.engine, runtime.settings)
