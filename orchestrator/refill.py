"""Redis was emptied, or is new: what it should hold is filled in from the database, and somebody is told."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

import redis
from sqlalchemy import Engine

from db import tenants
from db.engine import reading
from tasks.redis import watermark
from tasks.redis.keys import Keys

log = logging.getLogger(__name__)

PAGE = 1_000


def refill(client: redis.Redis, keys: Keys, engine: Engine, *, expected: bool = False) -> bool:
    """Fill in what is missing; False where Redis was filled already. `expected`: it was started just now and keeps
    nothing, so that nobody needs to be told. Raises RedisError.
    """
    if client.exists(keys.filled()):
        return False
    count, after = 0, 0
    while True:
        with reading(engine) as connection:
            page = tenants.watermarks(connection, after, PAGE)
        count += watermark.move(client, keys, page)
        if len(page) < PAGE:
            break
        after = page[-1][0]
    # Last: whoever dies before it does it again.
    client.set(keys.filled(), datetime.now(UTC).isoformat())
    level = logging.INFO if expected else logging.WARNING
    log.log(level, "Redis held nothing of ours: %d watermarks are filled in, the breaker begins anew", count)
    return True
