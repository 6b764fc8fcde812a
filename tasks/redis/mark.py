"""A mark in Redis that says: the messages that the database believes to be under way may still be there.

It is gone where Redis was emptied or restarted, and a worker wipes it when it connects again, since what was being
handed over when it lost its connection is lost as well. Whoever then looks (the tick) lets all shards be sent again, so
that this costs seconds and not the life of a message; that some are sent twice does no harm.
"""

from __future__ import annotations

from collections.abc import Callable

import redis

from tasks.redis.keys import Keys


def look(client: redis.Redis, keys: Keys, forget: Callable[[], None]) -> None:
    """Call `forget` where the mark is gone, then set it: died in between, it is done again. Raises RedisError."""
    if not client.exists(keys.mark()):
        forget()
        client.set(keys.mark(), "1")


def wipe(client: redis.Redis, keys: Keys) -> None:
    """Let the next look find no mark. Raises RedisError."""
    client.delete(keys.mark())
