"""Live progress of a running scan: each shard tells what it has done by now, several times a second; lost without harm.

What is told are totals, not what was added since: after a Redis was emptied the next word makes it right again.
"""

from __future__ import annotations

import json
import logging
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self

import redis

from db.progress import COUNTED
from db.shards import Lease
from db.types import LeaseLost
from tasks.redis.connection import BROKER_ERRORS
from tasks.redis.keys import Keys
from tasks.redis.outage import Outage

log = logging.getLogger(__name__)

TOLD_EVERY_S = 0.25
# An event for Flower costs more than a word for Redis, and every process that listens.
ANNOUNCED_EVERY_S = 2.0
KEPT_S = 3600
# The rate is that of so many seconds: long enough to be steady, short enough to be true now.
RATE_OVER_S = 5.0
_ERROR = "error"
# Nobody counts further.
_MOST = 1 << 63


class Told(NamedTuple):
    """What the holder of a shard has told: its totals, those of earlier attempts included, and files a second."""

    attempt: int
    directories: int
    files: int
    bytes: int
    hashed_files: int
    hashed_bytes: int
    rate: float


class Rate:
    """Files a second within the last seconds."""

    def __init__(self, now_s: float) -> None:
        self._marks = deque([(now_s, 0)])

    def at(self, now_s: float, files: int) -> float:
        """The rate, with so many files since the beginning."""
        self._marks.append((now_s, files))
        while len(self._marks) > 2 and self._marks[1][0] <= now_s - RATE_OVER_S:
            self._marks.popleft()
        then_s, before = self._marks[0]
        return (files - before) / (now_s - then_s) if now_s > then_s else 0.0


class Progress:
    """Counts in memory what a shard does, and tells Redis from time to time. Without Redis the scan goes on. Less often
    the same is given to `announce`, which may raise one of BROKER_ERRORS.

    with Progress(…) as progress:  # what was told is taken back at the end: from then on the database knows it
        progress.add(files=1)
    """

    def __init__(self, client: redis.Redis, keys: Keys, lease: Lease, clock_s: Callable[[], float],
                 outage: Outage, announce: Callable[..., None] | None = None) -> None:  # fmt: skip
        self._client = client
        self._announce = announce
        self._key = keys.progress(lease.scan_id)
        self._lease = lease
        self._clock_s = clock_s
        self._outage = outage
        self._looked_s = self._announced_s = clock_s()
        self._rate = Rate(self._looked_s)
        self._told = False
        self._counted: Counter[str] = Counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._told and not isinstance(error, LeaseLost):  # else it is another's word by now
            self._do(lambda: self._client.hdel(self._key, str(self._lease.number)))

    @property
    def counted(self) -> dict[str, int]:
        """What was done by this holder, by the names in COUNTED."""
        return {name: self._counted[name] for name in COUNTED}

    def add(self, **counted: int) -> None:
        """Count, by the names in COUNTED."""
        self._counted.update(counted)
        now_s = self._clock_s()
        if now_s - self._looked_s > TOLD_EVERY_S:
            self._looked_s = now_s
            self._tell(self._rate.at(now_s, self._counted["files"]))

    def _tell(self, rate: float) -> None:
        totals = {name: getattr(self._lease, name) + self._counted[name] for name in COUNTED}
        word = Told(self._lease.attempt, **totals, rate=round(rate, 1))

        def tell() -> None:
            with self._client.pipeline(transaction=False) as pipeline:
                pipeline.hset(self._key, str(self._lease.number), json.dumps(word._asdict(), separators=(",", ":")))
                pipeline.expire(self._key, KEPT_S)
                pipeline.execute()

        self._told |= self._do(tell)
        if self._announce is not None and self._looked_s - self._announced_s >= ANNOUNCED_EVERY_S:
            self._announced_s, announce = self._looked_s, self._announce
            self._do(lambda: announce(**totals, rate=word.rate))

    def _do(self, what: Callable[[], Any]) -> bool:
        if self._outage.paused:
            return False
        try:
            what()
        except BROKER_ERRORS as error:
            self._outage.failed("progress is not shown", error)
            return False
        self._outage.over()
        return True


def read(client: redis.Redis, keys: Keys, scan_ids: Sequence[str]) -> dict[str, dict[int, Told]]:
    """What was told of these scans, by scan and shard. Raises redis.RedisError."""
    if not scan_ids:
        return {}
    with client.pipeline(transaction=False) as pipeline:
        for scan_id in scan_ids:
            pipeline.hgetall(keys.progress(scan_id))
        answers = pipeline.execute()
    return {scan_id: _words(answer) for scan_id, answer in zip(scan_ids, answers, strict=True)}


def _words(answer: Mapping[bytes, bytes]) -> dict[int, Told]:
    found = {}
    for field, value in answer.items():
        word = _word(value) if field.isdigit() else None  # an error stands there too, and totals of the release before
        if word is not None:
            found[int(field)] = word
    return found


def _word(value: bytes) -> Told | None:
    """Of another release's words, what is understood; none where that is too little."""
    try:
        found = json.loads(value)
        counts = {name: int(found[name]) for name in Told._fields if name != "rate"}
        word = Told(**counts, rate=float(found["rate"]))
    except (ValueError, TypeError, KeyError, OverflowError):
        return None
    return word if all(0 <= value < _MOST for value in word) else None


def tell_error(client: redis.Redis, keys: Keys, scan_id: str, sentence: str) -> None:
    """Say why a scan cannot go on, to whoever waits for it; as well as it can be said."""
    try:
        client.hset(keys.progress(scan_id), _ERROR, sentence)
        client.expire(keys.progress(scan_id), KEPT_S)
    except redis.RedisError as error:
        log.warning("nobody could be told of it: Redis answers %s", error)


def read_error(client: redis.Redis, keys: Keys, scan_id: str) -> str | None:
    """What was said by `tell_error`, if anything."""
    try:
        found: Any = client.hget(keys.progress(scan_id), _ERROR)
    except redis.RedisError:
        return None
    return None if found is None else bytes(found).decode()
