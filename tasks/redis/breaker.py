"""The breaker in Redis: one document a tenant, which outlives workers. Without Redis everything is tried.

What it decides is said in tasks/core/breaker.py; here it is read at the start of a shard, asked without a call, and
told what failed.
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import redis

from tasks.core import breaker
from tasks.core.breaker import ROOT, Covers, Entries, Entry, Failed, Key, Limits, State
from tasks.redis import document
from tasks.redis.keys import Keys
from tasks.redis.outage import Outage

log = logging.getLogger(__name__)

# So many files are tried as the probe of an entry that stands for many.
PROBES = 10
# Redis is told at the latest after so many failures.
TOLD_AFTER = 1_000


def _dump(entries: Entries) -> str | None:
    """As it is stored: JSON, paths as Latin-1 so that every byte survives."""
    if not entries:
        return None
    return json.dumps(
        [
            [
                key.covers,
                key.path.decode("latin-1"),
                one.failures,
                one.error,
                one.mark,
                one.stamp_ns,
                one.open_until,
                one.probe_until,
            ]
            for key, one in entries.items()
        ]
    )


def _load(text: str | None) -> Entries:
    found: dict[Key, Entry] = {}
    for covers, path, failures, *rest in json.loads(text or "[]"):
        failed = tuple((int(fence), float(at)) for fence, at in failures)
        found[Key(Covers(covers), path.encode("latin-1"))] = Entry(failed, *rest)
    return found


def read(client: redis.Redis, keys: Keys, tenant_id: int) -> tuple[Entries, float]:
    """The entries of a tenant, and the time. Raises RedisError."""
    found = document.load(client, keys.breaker(tenant_id))
    return _load(found.text), found.now


def read_all(client: redis.Redis, keys: Keys, tenant_ids: Sequence[int]) -> Iterator[tuple[Entries, float]]:
    """The entries of these tenants, in the same order, and the time. Raises RedisError."""
    with client.pipeline(transaction=False) as pipeline:
        for tenant_id in tenant_ids:
            pipeline.exists(keys.breaker(tenant_id))
        known = pipeline.execute()
    for tenant_id, exists in zip(tenant_ids, known, strict=True):
        yield read(client, keys, tenant_id) if exists else ({}, 0.0)


class States(NamedTuple):
    """Entries by what they cover and by their state, the roots by theirs, of so many tenants; `more` have some too."""

    entries: Counter[tuple[Covers, State]]
    roots: Counter[State]
    tenants: int
    more: bool


def states(client: redis.Redis, keys: Keys, most: int) -> States:
    """How many entries there are, of so many tenants at most. Raises RedisError."""
    found: Any = client.time()
    now = found[0] + found[1] / 1e6
    client.zremrangebyscore(keys.breakers(), "-inf", now)
    members: Any = client.zrange(keys.breakers(), 0, most)
    with client.pipeline(transaction=False) as pipeline:
        for tenant_id in members[:most]:
            pipeline.hget(keys.breaker(int(tenant_id)), "document")
        documents = [_load(text.decode()) for text in pipeline.execute() if text is not None]
    of_all = [(key, entry.state(now)) for entries in documents for key, entry in entries.items()]
    return States(
        Counter((key.covers, state) for key, state in of_all), Counter(state for key, state in of_all if key == ROOT),
        len(documents), len(members) > most,
    )  # fmt: skip


def roots_open(client: redis.Redis, keys: Keys, tenant_ids: Sequence[int]) -> set[int]:
    """Those of these tenants whose root must not be tried now. Raises RedisError."""
    found = zip(tenant_ids, read_all(client, keys, tenant_ids), strict=True)
    return {one for one, (entries, now) in found if ROOT in entries and entries[ROOT].state(now) == State.OPEN}


def change(client: redis.Redis, keys: Keys, tenant_id: int, limits: Limits,
           decide: Callable[[Entries, float], Entries]) -> None:  # fmt: skip
    """Replace a tenant's entries by what `decide(entries, now)` makes of them. Raises RedisError."""

    told: list[tuple[Entries, Entries, float]] = []

    def swap(text: str | None, now: float) -> str | None:
        before = _load(text)
        told[:] = [(before, decide(before, now), now)]
        return _dump(told[0][1])

    life_s = limits.window_s + limits.open_s
    if document.change(client, keys.breaker(tenant_id), life_s, swap):
        before, after, now = told[0]
        if after:
            client.zadd(keys.breakers(), {str(tenant_id): now + life_s})
        _tell(tenant_id, before, after, now)


def reset(client: redis.Redis, keys: Keys, tenant_id: int, path: bytes | None, limits: Limits) -> int:
    """Forget what is known of a path (None: of all paths of the tenant); how many entries. Raises RedisError."""
    removed = 0

    def without(entries: Entries, _now: float) -> Entries:
        nonlocal removed
        kept = {key: entry for key, entry in entries.items() if path is not None and key.path != path}
        removed = len(entries) - len(kept)
        return kept

    change(client, keys, tenant_id, limits, without)
    return removed


def _tell(tenant_id: int, before: Entries, after: Entries, now: float) -> None:
    for key in before.keys() | after.keys():
        old, new = before.get(key), after.get(key)
        was = State.CLOSED if old is None else old.state(now)
        state = State.CLOSED if new is None else new.state(now)
        if was != state:
            path, known = os.fsdecode(key.path), new or old
            assert known is not None
            log.warning("tenant %d: breaker %s for %s %r: %s", tenant_id, state, key.covers, path, known.error)


def until(at: float) -> str:
    """A time, for people."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Breaker:
    """The breaker of a tenant as one shard of a scan sees it. `clock_s` is a monotonic clock."""

    def __init__(self, client: redis.Redis, keys: Keys, outage: Outage, tenant_id: int, fence: int, limits: Limits,
                 clock_s: Callable[[], float]) -> None:  # fmt: skip
        self._client, self._keys, self._outage, self._tenant_id = client, keys, outage, tenant_id
        self._fence, self._limits, self._clock_s = fence, limits, clock_s
        self._entries: Entries = {}
        self._ahead_s = 0.0  # of our clock
        self._probes: dict[Key, int] = {}
        self._refused: set[Key] = set()
        self._failed: list[Failed] = []
        self._succeeded: dict[Key, Key] = {}  # by what covers it; one of each says it for all
        self._try(self._read)

    @property
    def knows_of_any(self) -> bool:
        """Did anything of this tenant fail lately?"""
        return bool(self._entries)

    def has(self, key: Key) -> bool:
        """Is there an entry of exactly that?"""
        return key in self._entries

    def refuses(self, key: Key, mark: str | None, *, failed_before: bool = True,
                stamp_ns: int = 0) -> str | None:  # fmt: skip
        """Why this must not be tried; None: it may be, since it is closed, has changed, or is the probe.

        `mark` and `stamp_ns` are what stat shows of it now; `failed_before`: it is one of those that an entry of many
        stands for.
        """
        own = breaker.covering(self._entries, key)
        entry = self._entries.get(own)
        if entry is None or entry.open_until is None:
            return None
        has_changed = entry.mark != mark if own == key else not failed_before or stamp_ns > entry.stamp_ns
        now = self._clock_s() - self._ahead_s
        if has_changed or entry.state(now) == State.CLOSED or (
            entry.state(now) == State.HALF_OPEN and self._is_probe(own)
        ):  # fmt: skip
            return None
        self._refused.add(own)
        if entry.state(now) == State.OPEN:
            return f"breaker open until {until(entry.open_until)}: {entry.error}"
        return f"breaker half-open, a probe is under way: {entry.error}"

    def _is_probe(self, key: Key) -> bool:
        if key not in self._probes:
            self._probes[key] = 0
            self._try(lambda: self._take_probe(key))
        self._probes[key] -= 1
        return self._probes[key] >= 0

    def _take_probe(self, key: Key) -> None:
        def take(entries: Entries, now: float) -> Entries:
            probed = breaker.probed(entries, key, now)
            self._probes[key] = 0 if probed is None else PROBES if key.covers == Covers.FILES else 1
            return entries if probed is None else probed

        change(self._client, self._keys, self._tenant_id, self._limits, take)

    def failed(self, event: Failed) -> None:
        """It was tried and failed."""
        self._failed.append(event)
        if len(self._failed) >= TOLD_AFTER:
            self.tell()

    def succeeded(self, key: Key) -> None:
        """It had failed, was tried, and did not fail."""
        own = breaker.covering(self._entries, key)
        if own in self._entries:
            self._succeeded[own] = key

    def tell(self) -> None:
        """Tell Redis what was found since the last time."""
        if self._failed or self._succeeded:
            self._try(self._write)

    def _write(self) -> None:
        failed, succeeded = self._failed, list(self._succeeded.values())
        self._failed, self._succeeded = [], {}

        def decide(entries: Entries, now: float) -> Entries:
            closed = breaker.succeeded(entries, succeeded, now, self._limits, self._refused)
            return breaker.failed(closed, failed, self._fence, now, self._limits)

        change(self._client, self._keys, self._tenant_id, self._limits, decide)
        self._read()

    def _read(self) -> None:
        self._entries, now = read(self._client, self._keys, self._tenant_id)
        self._ahead_s = self._clock_s() - now

    def _try(self, call: Callable[[], Any]) -> None:
        if self._outage.paused:
            return
        try:
            call()
        except redis.RedisError as error:
            self._outage.failed("the breaker lets everything through", error)
        else:
            self._outage.over()
