"""When the database fails under a task: try again later, or, where the disk is full, let the scan fail and say so."""

from __future__ import annotations

import logging

from sqlalchemy.exc import DBAPIError

from db import schema, shards
from db.engine import disk_full, writing
from db.types import ScanState
from tasks.app import Runtime
from tasks.redis import progress

log = logging.getLogger(__name__)

RETRY_DELAY_S = 2.0


def give_back(runtime: Runtime, lease: shards.Lease, error: str) -> None:
    """Let somebody try this shard again, a little later."""
    with writing(runtime.engine) as connection:
        shards.release(connection, lease, delay_s=RETRY_DELAY_S, error=error)


def database_failed(runtime: Runtime, lease: shards.Lease, error: DBAPIError) -> None:
    """A statement failed and its transaction is rolled back. Whatever cannot be written now either, the end of the
    lease does.
    """
    sentence = str(schema.unusable(runtime.engine, error))
    log.error("shard %d of scan %s: %s", lease.number, lease.scan_id, sentence)
    try:
        if disk_full(error) and lease.number != shards.FINISH:
            with writing(runtime.engine) as connection:
                shards.end_early(connection, lease.scan_id, ScanState.FAILED, sentence)
        else:
            give_back(runtime, lease, sentence)
    except DBAPIError as again:
        log.error("shard %d of scan %s could not be given back: %s", lease.number, lease.scan_id, again.orig)
    if disk_full(error):
        # Whoever waits must hear of it also where not even the failure could be written down.
        progress.tell_error(runtime.redis, runtime.keys, lease.scan_id, sentence)
