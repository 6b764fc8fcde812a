"""What is sent through the broker, in numbers: how much lies there, how much was sent, and how long that took.

For metrics alone. Where Redis was emptied the sums begin anew, as counters may.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import redis

from tasks.redis.keys import Keys


class Traffic(NamedTuple):
    """Messages that nobody has taken, by queue; and batches of shards that were sent, with their seconds."""

    unread: dict[str, int]
    batches: int
    shards: int
    seconds: float


def note(client: redis.Redis, keys: Keys, shards: int, seconds: float) -> None:
    """A batch of so many shards was sent in so many seconds. Raises RedisError."""
    with client.pipeline(transaction=False) as pipeline:
        pipeline.hincrby(keys.sending(), "batches", 1)
        pipeline.hincrby(keys.sending(), "shards", shards)
        pipeline.hincrbyfloat(keys.sending(), "seconds", round(seconds, 6))
        pipeline.execute()


def read(client: redis.Redis, keys: Keys, queues: tuple[str, ...]) -> Traffic:
    """All of it. Raises RedisError."""
    with client.pipeline(transaction=False) as pipeline:
        for queue in queues:
            pipeline.llen(keys.queue(queue))
        pipeline.hgetall(keys.sending())
        *lengths, found = pipeline.execute()
    sent: dict[bytes, Any] = found
    return Traffic(
        dict(zip(queues, map(int, lengths), strict=True)), int(sent.get(b"batches", 0)), int(sent.get(b"shards", 0)),
        float(sent.get(b"seconds", 0.0)),
    )  # fmt: skip
