"""One look at everything: request what is due, start what is queued, send what is ready. Two at once do no harm."""

from __future__ import annotations

import logging
from collections.abc import Container, Sequence

import redis
from sqlalchemy import Connection, Engine

from db import audit, clock, idempotency, scans, tenants
from db.engine import reading, write
from orchestrator import removal
from orchestrator.dispatch import dispatch, windows_of
from orchestrator.reaper import reap
from orchestrator.refill import refill
from orchestrator.schedule import next_slot
from orchestrator.start import STARTED_AT_ONCE, start_queued
from orchestrator.webhooks import send_due
from tasks.app import App, Runtime
from tasks.redis import breaker
from tasks.settings import Settings

log = logging.getLogger(__name__)

DUE_AT_ONCE = 200
# … and so often in one pass, so that it comes to its end.
BATCHES = 10
# So many tenants are named in one line of the log.
NAMED = 3


def tick(app: App, engine: Engine, settings: Settings) -> int:
    """One pass; the number of shards that were sent."""
    reaping, window = _begin(app.runtime, settings), windows_of(app.runtime, settings).in_all
    for _ in range(BATCHES):
        due, refused = look(app.runtime, engine)
        request_due(engine, settings, due, refused)
        if start_queued(engine, settings, window) < STARTED_AT_ONCE and len(due) < DUE_AT_ONCE:
            break
    if reaping:
        reap(engine)
    sent = dispatch(app, engine, settings)
    send_due(app, engine)
    if reaping:
        removal.go_on(engine)
        removal.prune(engine, settings.retention_days)
        write(engine, idempotency.prune)
        write(engine, audit.prune, settings.audit_days)
    return sent


def _begin(runtime: Runtime, settings: Settings) -> bool:
    """What comes to be from here on wants a tick of its own. Is it time to look for what slipped by? Ticks that were
    asked for come many times a second, and that hardly ever happens.
    """
    if runtime.outage.paused:
        return True
    try:
        with runtime.redis.pipeline(transaction=False) as pipeline:
            pipeline.delete(runtime.keys.nudged())
            pipeline.set(runtime.keys.reaped(), "1", nx=True, px=round(settings.tick_s * 1000))
            return bool(pipeline.execute()[-1])
    except redis.RedisError as error:
        runtime.outage.failed("a tick may come late", error)
        return True


def look(runtime: Runtime, engine: Engine) -> tuple[Sequence[int], Container[int]]:
    """Some tenants that are due, and those of them whose root the breaker leaves alone. Redis is filled in where it was
    emptied.
    """
    with reading(engine) as connection:  # not locked: nobody waits while Redis is asked
        due = tenants.due(connection, clock.now(connection), DUE_AT_ONCE)
    if runtime.outage.paused:
        return due, ()
    try:
        refill(runtime.redis, runtime.keys, engine)
        return due, breaker.roots_open(runtime.redis, runtime.keys, due)
    except redis.RedisError as error:
        runtime.outage.failed("the breaker lets every tenant through", error)
        return due, ()


def request_due(engine: Engine, settings: Settings, due: Sequence[int], refused: Container[int] = ()) -> int:
    """Ask for a scan of each of these tenants, but for those that are refused; how many have had their time. Missed
    slots are not made up for.
    """
    if not due:
        return 0
    return write(engine, _request_due, settings.stagger_window_s, due, refused)


def _request_due(
    connection: Connection, stagger_window_s: float, looked_at: Sequence[int], refused: Container[int]
) -> int:
    now = clock.now(connection)  # by which a time has come, too
    due = tenants.lock_due(connection, looked_at, now)  # another tick may have been quicker
    left = [tenant.name for tenant in due if tenant.id in refused]
    if left:  # a line for all: they may be thousands
        named = ", ".join(left[:NAMED]) + (", …" if len(left) > NAMED else "")
        log.warning("tenants not scanned, since their roots fail and the breaker is open: %d (%s)", len(left), named)
    asked = [tenant.id for tenant in due if tenant.id not in refused and tenant.next_scan_at is not None]
    scans.request_scheduled(connection, asked)
    tenants.schedule(connection, {one.id: next_slot(one.id, one.interval_s, now, stagger_window_s) for one in due})
    return len(due)
