"""Watermarks as every node sees them: the last complete scan of each tenant. The database's are the true ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import redis

from tasks.redis.keys import Keys
from tasks.redis.script import script

_MOVE = script("watermark")
# A tenant that is no more is forgotten after so long; one that is scanned is written again and again.
LIFE_S = 30 * 86400


class Watermark(NamedTuple):
    """The last complete scan: its fence, when it started (RFC 3339), and the files of the index after it."""

    fence: int
    started_at: str
    files: int


def move(client: redis.Redis, keys: Keys, marks: Iterable[tuple[int, int, datetime, int]]) -> int:
    """Move watermarks (tenant, fence, started_at, files) forward; how many there were. Raises RedisError."""
    script, count = client.register_script(_MOVE), 0
    with client.pipeline(transaction=False) as pipeline:
        for tenant_id, fence, started_at, files in marks:
            args: list[str | int] = [fence, started_at.isoformat(), files, LIFE_S]
            script(keys=[keys.watermark(tenant_id)], args=args, client=pipeline)
            count += 1
        if count:
            pipeline.execute()
    return count


def read(client: redis.Redis, keys: Keys, tenant_ids: Sequence[int]) -> Mapping[int, Watermark]:
    """The watermarks that are known of these tenants. Raises RedisError."""
    with client.pipeline(transaction=False) as pipeline:
        for tenant_id in tenant_ids:
            pipeline.hmget(keys.watermark(tenant_id), "fence", "started_at", "files")
        found: Any = pipeline.execute()
    return {
        tenant_id: Watermark(int(fence), started_at.decode(), int(files))
        for tenant_id, (fence, started_at, files) in zip(tenant_ids, found, strict=True)
        if fence is not None
    }
