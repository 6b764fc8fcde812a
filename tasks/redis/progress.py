"""Live progress of a running scan: told by its workers several times a second, lost without harm."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

import redis

from tasks.redis.keys import Keys
from tasks.redis.outage import Outage

log = logging.getLogger(__name__)

FIELDS = ("directories", "files", "bytes", "hashed_files", "hashed_bytes")
TOLD_EVERY_S = 0.25
KEPT_S = 3600


class Progress:
    """Counts in memory and tells Redis from time to time. Without Redis the scan goes on, and what was counted is told
    once Redis is back.
    """

    def __init__(
        self, client: redis.Redis, keys: Keys, scan_id: str, clock_s: Callable[[], float], outage: Outage
    ) -> None:
        self._client = client
        self._key = keys.progress(scan_id)
        self._clock_s = clock_s
        self._outage = outage
        self._told_s = clock_s()
        self._untold: Counter[str] = Counter()

    def add(self, **counted: int) -> None:
        """Count, by the names in FIELDS."""
        self._untold.update(counted)
        if self._clock_s() - self._told_s > TOLD_EVERY_S:
            self.tell()

    def tell(self) -> None:
        """Send what was counted since the last time."""
        self._told_s = self._clock_s()
        if self._outage.paused or not self._untold:
            return
        try:
            with self._client.pipeline(transaction=False) as pipeline:
                for name, value in self._untold.items():
                    pipeline.hincrby(self._key, name, value)
                pipeline.expire(self._key, KEPT_S)
                pipeline.execute()
        except redis.RedisError as error:
            self._outage.failed("progress is not shown", error)
        else:
            self._untold.clear()
            self._outage.over()


def read(client: redis.Redis, keys: Keys, scan_id: str) -> dict[str, int]:
    """What has been told so far, by the names in FIELDS; zeros where nothing is known or Redis does not answer."""
    try:
        found: Any = client.hgetall(keys.progress(scan_id))
    except redis.RedisError:
        found = {}
    return {name: int(found.get(name.encode(), 0)) for name in FIELDS}


def tell_error(client: redis.Redis, keys: Keys, scan_id: str, sentence: str) -> None:
    """Say why a scan cannot go on, to whoever waits for it; as well as it can be said."""
    try:
        client.hset(keys.progress(scan_id), "error", sentence)
    except redis.RedisError as error:
        log.warning("nobody could be told of it: Redis answers %s", error)


def read_error(client: redis.Redis, keys: Keys, scan_id: str) -> str | None:
    """What was said by `tell_error`, if anything."""
    try:
        found: Any = client.hget(keys.progress(scan_id), "error")
    except redis.RedisError:
        return None
    return None if found is None else bytes(found).decode()
