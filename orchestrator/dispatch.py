"""Sending shards: a short queue, filled from the database whenever there is room."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import redis
from sqlalchemy import Connection, Engine

from db import shards, tenants
from db.engine import write
from db.shards import FINISH, Sendable
from orchestrator.fairness import allot
from tasks import release
from tasks.app import EXPIRES_S, App
from tasks.redis import mark
from tasks.redis.connection import BROKER_ERRORS
from tasks.settings import Settings

log = logging.getLogger(__name__)


def dispatch(app: App, engine: Engine, settings: Settings) -> int:
    """Send as many ready shards as the windows have room for; how many. They are marked before they are sent, and
    unmarked where the broker does not answer: a message too many does no harm, one too few costs a tick.
    """
    outage = app.runtime.outage
    try:
        mark.look(app.runtime.redis, app.runtime.keys, lambda: _forget(engine))
    except redis.RedisError as error:
        outage.failed("nothing can be sent", error)
        return 0
    batch = write(engine, _mark, settings)
    if not batch:
        return 0
    try:
        _send(app, batch)
    except BROKER_ERRORS as error:
        outage.failed("nothing can be sent", error)
        write(engine, shards.mark_sent, batch, None)
        return 0
    outage.over()
    return len(batch)


def _forget(engine: Engine) -> None:
    forgotten = write(engine, shards.forget_sent)
    if forgotten:
        log.warning("what was sent may be lost with Redis or a connection to it: %d shards are sent again", forgotten)


def _mark(connection: Connection, settings: Settings) -> Sequence[Sendable]:
    given = allot(shards.contenders(connection), settings.window, settings.scan_window, settings.ageing_s)
    batch = [shard for scan_id, number in given.items() for shard in shards.sendable(connection, number, scan_id)]
    if batch:
        shards.mark_sent(connection, batch, EXPIRES_S)
        tenants.note_served(connection, [shard.tenant_id for shard in batch])
    return batch


def _send(app: App, batch: Sequence[Sendable]) -> None:
    with app.producer_pool.acquire(block=True) as producer, producer.batch(max_size=500):
        for shard in batch:
            task = "strandline.finish" if shard.number == FINISH else "strandline.scan_shard"
            args = [shard.scan_id] if shard.number == FINISH else [shard.scan_id, shard.number]
            app.send_task(
                task, args, queue=shard.queue, producer=producer, retry=False, headers=release.headers()
            )  # fmt: skip
