"""One look at everything: request what is due, start what is queued, send what is ready. Two at once do no harm."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import Connection, Engine

from db import scans, tenants
from db.engine import write
from db.types import Trigger
from orchestrator.dispatch import dispatch
from orchestrator.schedule import next_slot
from orchestrator.start import start_queued
from tasks.app import App
from tasks.settings import Settings

DUE_AT_ONCE = 100


def tick(app: App, engine: Engine, settings: Settings) -> int:
    """One pass; the number of shards that were sent."""
    request_due(engine, settings)
    start_queued(engine, settings)
    return dispatch(app, engine, settings.window)


def request_due(engine: Engine, settings: Settings) -> int:
    """Ask for a scan of each tenant whose time has come; how many. Missed slots are not made up for."""
    return write(engine, _request_due, datetime.now(UTC), settings.stagger_window_s)


def _request_due(connection: Connection, now: datetime, stagger_window_s: float) -> int:
    due = tenants.due(connection, DUE_AT_ONCE)
    for tenant in due:
        following = next_slot(tenant.id, tenant.interval_s, now, stagger_window_s)
        if tenant.next_scan_at is not None:
            scans.request(connection, tenant.id, trigger=Trigger.SCHEDULE)
        tenants.change(connection, tenant.id, next_scan_at=following)
    return len(due)
