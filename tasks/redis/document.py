"""A small document in Redis that several may change at once: read with Redis's time, decided on, and swapped."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any, NamedTuple

import redis

from tasks.redis.script import script

_LOAD = script("load")
_SWAP = script("swap")
# Whoever lost the race so often does without: somebody else is changing it all the time.
TRIES = 50


class Loaded(NamedTuple):
    """A document (none: there is none), and when it was read: seconds since the epoch by Redis's clock."""

    version: str
    text: str | None
    now: float


def load(client: redis.Redis, key: str) -> Loaded:
    """Read it. Raises RedisError."""
    found: Any = client.register_script(_LOAD)(keys=[key])
    version, text, seconds, microseconds = found
    now = int(seconds) + int(microseconds) / 1e6
    return Loaded("" if version is None else version.decode(), None if text is None else text.decode(), now)


def change(client: redis.Redis, key: str, life_s: float, decide: Callable[[str | None, float], str | None]) -> bool:
    """Replace the document by what `decide(document, now)` makes of it (None: remove it), again where somebody was
    quicker. False where that did not end, or nothing was to be changed. Raises RedisError.
    """
    for _ in range(TRIES):
        found = load(client, key)
        text = decide(found.text, found.now)
        if text == found.text:
            return False
        arguments: list[str | int] = [found.version, str(uuid.uuid4()), text or "", int(life_s * 1000)]
        if client.register_script(_SWAP)(keys=[key], args=arguments):
            return True
    return False
