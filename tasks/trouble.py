"""When the database fails under a task: what is held is given back, or, where the disk is full, the scan fails.

Only trouble of the field is met here. A statement that is wrong is a mistake of ours: it counts as any other failed
attempt, or a shard would be tried for ever.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Concatenate, ParamSpec

from celery import current_task
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from db import schema, shards
from db.engine import write
from db.failures import Failure, failure_of
from db.types import LeaseLost
from tasks import outage, release
from tasks.app import LIVES_S, Runtime
from tasks.lease import Claimed, claim
from tasks.redis import progress
from tasks.redis.connection import BROKER_ERRORS

log = logging.getLogger(__name__)

P = ParamSpec("P")

RETRY_DELAY_S = 2.0
# A restart or a failover takes seconds: worth waiting for, where else a lease would have to run out.
OUTLASTED_S = 10.0
PAUSES_S = (0.25, 0.5, 1.0, 2.0, 2.0, 2.0, 2.0)
# So that a message does not go round and round.
SENT_AGAIN_AFTER_S = 1.0


def carried() -> Mapping[str, Any]:
    """The headers of the message that this task came with; none where it was called."""
    return (current_task.request.headers or {}) if current_task else {}


def claimed(runtime: Runtime, scan_id: str, number: int) -> Claimed | None:
    """The shard that a message names, if it is to be had. Where this process cannot reach the database, or is too old
    for it, the message is sent again: another one may, and this one a little later.
    """
    with suppress(outage.Away, release.TooOld), outage.here.noted(runtime.engine):
        if not release.takes(runtime, scan_id, number):
            return None
        return write(runtime.engine, claim, scan_id, number, runtime.settings.lease_s)
    time.sleep(SENT_AGAIN_AFTER_S)
    _send_again()
    return None


def _send_again() -> None:
    if not current_task:  # called, not sent
        return
    request = current_task.request
    try:
        # Not Celery's own `Reject`, which writes a traceback into the log each time.
        current_task.apply_async(
            request.args, queue=request.delivery_info["routing_key"], expires=LIVES_S, retry=False,
            headers=request.headers, argsrepr=getattr(request, "argsrepr", None),
        )  # fmt: skip
    except BROKER_ERRORS as error:
        log.warning("a message could not be sent again, the broker does not answer: %s", error)


def give_back(runtime: Runtime, lease: shards.Lease, error: str) -> None:
    """Let somebody try this shard again, a little later."""
    _outlast(runtime, shards.release, lease, delay_s=RETRY_DELAY_S, error=error)


def abandon(runtime: Runtime, lease: shards.Lease, at: bytes | None, error: str) -> None:
    """Let somebody take this shard over, as from one that died of a mistake at that path."""
    _outlast(runtime, shards.abandon, lease, at, error)


def _outlast(runtime: Runtime, work: Callable[Concatenate[Connection, P], None], *args: P.args,
             **more: P.kwargs) -> None:  # fmt: skip
    """Write this. A database that is away is waited for, some seconds."""
    last_s = time.monotonic() + OUTLASTED_S
    for pause_s in PAUSES_S:
        try:
            write(runtime.engine, work, *args, **more)
            return
        except DBAPIError as again:
            if failure_of(again) is not Failure.LATER or time.monotonic() + pause_s > last_s:
                raise
        time.sleep(pause_s)
    write(runtime.engine, work, *args, **more)


def database_failed(runtime: Runtime, lease: shards.Lease, error: Exception) -> bool:
    """A statement failed under a shard, and its transaction is rolled back; False: that is no trouble of the field.

    Whatever cannot be written now either, the end of the lease does.
    """
    if not isinstance(error, DBAPIError) or failure_of(error) is Failure.OURS:
        return False
    full = failure_of(error) is Failure.FULL
    sentence = str(schema.unusable(runtime.engine, error))
    log.error("shard %d of scan %s: %s", lease.number, lease.scan_id, sentence)
    try:
        if full and lease.number != shards.FINISH:
            write(runtime.engine, shards.fail, lease, sentence)
        else:
            give_back(runtime, lease, sentence)
    except LeaseLost as lost:
        log.warning("%s", lost)
    except DBAPIError as again:
        log.error("shard %d of scan %s could not be given back: %s", lease.number, lease.scan_id, again.orig)
    if full:
        # Whoever waits must hear of it also where not even the failure could be written down.
        progress.tell_error(runtime.redis, runtime.keys, lease.scan_id, sentence)
    return True
