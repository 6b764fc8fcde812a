"""Which workers live, how many shards each can work on at once, and how full its memory is: told by their main
processes, for the dispatcher and for people.

Nothing depends on it: where Redis was emptied, each tells again within seconds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import redis

from tasks.redis.keys import Keys

TOLD_EVERY_S = 2.0
# Who has told nothing for so long is gone.
LIVES_S = 10.0


def tell(client: redis.Redis, keys: Keys, worker: str, slots: int, memory: Mapping[str, Any] | None = None) -> None:
    """A worker lives, with so many slots, and with that memory. Raises RedisError."""
    with client.pipeline(transaction=False) as pipeline:
        pipeline.set(keys.worker(worker), slots, px=round(LIVES_S * 1000))
        if memory is not None:
            pipeline.set(keys.memory(worker), json.dumps(memory), px=round(LIVES_S * 1000))
        pipeline.sadd(keys.workers(), worker)
        pipeline.execute()


def leave(client: redis.Redis, keys: Keys, worker: str) -> None:
    """A worker takes nothing any more. Raises RedisError."""
    client.delete(keys.worker(worker), keys.memory(worker))


def slots(client: redis.Redis, keys: Keys) -> int:
    """Of all workers that live, together. Raises RedisError."""
    names = sorted(name.decode() for name in _names(client, keys))
    found: Any = client.mget([keys.worker(name) for name in names]) if names else []
    gone = [name for name, value in zip(names, found, strict=True) if value is None]
    if gone:
        client.srem(keys.workers(), *gone)
    return sum(int(value) for value in found if value is not None)


def seen(client: redis.Redis, keys: Keys) -> dict[str, tuple[int, Mapping[str, Any] | None]]:
    """The workers that live, by name: slots, and what each told of its memory. Raises RedisError."""
    names = sorted(name.decode() for name in _names(client, keys))
    if not names:
        return {}
    with client.pipeline(transaction=False) as pipeline:
        pipeline.mget([keys.worker(name) for name in names])
        pipeline.mget([keys.memory(name) for name in names])
        slots_of, memory_of = pipeline.execute()
    return {
        name: (int(slots), None if told is None else json.loads(told))
        for name, slots, told in zip(names, slots_of, memory_of, strict=True)
        if slots is not None
    }


def memory(client: redis.Redis, keys: Keys) -> dict[str, Mapping[str, Any]]:
    """What each worker that lives told of its memory, by its name. Raises RedisError."""
    names = sorted(name.decode() for name in _names(client, keys))
    found: Any = client.mget([keys.memory(name) for name in names]) if names else []
    return {name: json.loads(value) for name, value in zip(names, found, strict=True) if value is not None}


def _names(client: redis.Redis, keys: Keys) -> set[bytes]:
    found: Any = client.smembers(keys.workers())
    return set(found)
