"""Sending shards: a short queue, filled from the database whenever there is room."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import timedelta

import redis
from kombu.utils.uuid import uuid
from sqlalchemy import Connection, Engine

from db import sending
from db.engine import write
from db.sending import Contender, Sendable
from db.shards import FINISH
from orchestrator.fairness import allot
from orchestrator.windows import Windows
from tasks import release, traces
from tasks.app import BULK, EXPIRES_S, INTERACTIVE, LIVES_S, App, Runtime
from tasks.redis import mark, presence, traffic
from tasks.redis.connection import BROKER_ERRORS
from tasks.settings import Settings

log = logging.getLogger(__name__)


def windows_of(runtime: Runtime, settings: Settings) -> Windows:
    """How much may be under way, by the workers that live; where nobody tells, as if there were the least."""
    slots = 0
    if not runtime.outage.paused:
        try:
            slots = presence.slots(runtime.redis, runtime.keys)
        except redis.RedisError as error:
            runtime.outage.failed("nobody tells which workers live", error)
    return Windows(slots, settings.window, settings.scan_window)


def dispatch(app: App, engine: Engine, settings: Settings) -> int:
    """Send as many ready shards as the windows have room for; how many. They are marked before they are sent, and
    unmarked where the broker does not answer: a message too many does no harm, one too few costs a tick.
    """
    runtime, outage = app.runtime, app.runtime.outage
    try:
        mark.look(runtime.redis, runtime.keys, lambda: _forget(engine))
        windows, unread = windows_of(runtime, settings), _unread(runtime)
    except redis.RedisError as error:
        outage.failed("nothing can be sent", error)
        return 0
    batch, names = write(engine, _mark, windows, settings.ageing_s, unread)
    if not batch:
        return 0
    try:
        began_s = runtime.clock_s()
        _send(app, batch, names)
        took_s = runtime.clock_s() - began_s
    except BROKER_ERRORS as error:
        outage.failed("nothing can be sent", error)
        write(engine, sending.mark_sent, batch, None)
        return 0
    outage.over()
    with suppress(redis.RedisError):  # it is on its way, counted or not
        traffic.note(runtime.redis, runtime.keys, len(batch), took_s)
    return len(batch)


def _forget(engine: Engine) -> None:
    forgotten = write(engine, sending.forget_sent)
    if forgotten:
        log.warning("what was sent may be lost with Redis or a connection to it: %d shards are sent again", forgotten)


def _unread(runtime: Runtime) -> int:
    """Messages for shards that nobody has taken: they may have expired long ago, and still be there."""
    with runtime.redis.pipeline(transaction=False) as pipeline:
        for queue in (INTERACTIVE, BULK):
            pipeline.llen(runtime.keys.queue(queue))
        return sum(pipeline.execute())


def _mark(
    connection: Connection, windows: Windows, ageing_s: float, unread: int
) -> tuple[Sequence[Sendable], Mapping[str, str]]:
    """What is to be sent, and of each scan the name of its tenant."""
    running = sending.contenders(connection, windows.in_all)
    given = allot(running, windows, ageing_s, unread)
    if given:
        sending.note_served(connection, [one.tenant_id for one in running if one.scan_id in given])
    batch = _chosen(connection, running, given)
    if batch:
        sending.mark_sent(connection, batch, EXPIRES_S)
    return batch, {one.scan_id: one.tenant for one in running}


def _chosen(connection: Connection, running: Sequence[Contender], given: Mapping[str, int]) -> list[Sendable]:
    """The shards: in one question for all scans that get all they have, which most do, and in one for each other."""
    whole = [one.scan_id for one in running if given.get(one.scan_id) == one.ready]
    batch = list(sending.sendable(connection, whole, sum(given[scan_id] for scan_id in whole))) if whole else []
    for scan_id in given.keys() - set(whole):
        batch += sending.sendable(connection, [scan_id], given[scan_id])
    return batch


def _send(app: App, batch: Sequence[Sendable], names: Mapping[str, str]) -> None:
    """By the two halves of Celery's `send_task`, which finds out anew for each message what is the same for all of
    them, and that takes half of its time.
    """
    amqp, expires = app.amqp, (app.now() + timedelta(seconds=LIVES_S)).isoformat()
    with app.producer_pool.acquire(block=True) as producer, producer.batch(max_size=500):
        for shard in batch:
            task = "strandline.finish" if shard.number == FINISH else "strandline.scan_shard"
            args = [shard.scan_id] if shard.number == FINISH else [shard.scan_id, shard.number]
            message = amqp.create_task_message(
                uuid(), task, args, expires=expires, kwargsrepr="{}",
                argsrepr=shown(shard, names.get(shard.scan_id, "")),
            )  # fmt: skip
            amqp.send_task_message(
                producer, task, message, queue=shard.queue, expiration=LIVES_S, retry=False,
                declare=(),  # a list of Redis needs none
                headers=release.headers() | traces.headers(shard.scan_id),
            )  # fmt: skip


def shown(shard: Sendable, tenant: str) -> str:
    """What Flower and the log show of a message, which itself holds ids only."""
    number = "" if shard.number == FINISH else f", shard {shard.number}"
    return f"(tenant {tenant}, scan {shard.scan_id}{number})"
