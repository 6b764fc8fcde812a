"""How far running scans have come: what the database knows, and what those who work have told Redis since."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import redis
from sqlalchemy import Connection, Engine

from db import progress as settled
from db.engine import reading
from db.progress import COUNTED, Running, Shards
from db.types import SETTLED_SHARDS, ShardState
from tasks.redis import progress as live
from tasks.redis.keys import Keys
from tasks.redis.progress import Told

# Files a second; what is slower does not move.
SLOWEST = 0.001


@dataclass(frozen=True, slots=True)
class Progress:
    """What there is to show of a running scan. All counts but `expected_files` begin at zero with the scan."""

    directories: int  # listed, with all that was in them
    files: int
    bytes: int
    hashed_files: int
    hashed_bytes: int
    shards: int  # with the finish; more may come
    shards_done: int
    shards_leased: int
    shards_ready: int
    finishing: bool  # all is walked
    files_per_s: float
    expected_files: int | None  # of the tenant's last complete scan
    eta_s: float | None  # None: there is nothing to compare with, or nothing moves

    def document(self) -> dict[str, Any]:
        """As it is printed."""
        found = asdict(self)
        eta_s = self.eta_s
        return found | {"files_per_s": round(self.files_per_s, 1), "eta_s": None if eta_s is None else round(eta_s, 1)}


def progress_of(found: Iterable[Shards], told: Mapping[int, Told], age_s: float, expected: int | None) -> Progress:
    """The progress of one scan, from the rows of its shards and what was told before these were read.

    Told counts only what the present holder of a shard said. A row may be ahead of the word: its flush came later.
    """
    groups = list(found)
    counted = dict.fromkeys(COUNTED, 0)
    rates = []
    for group in groups:
        word = told.get(group.number) if group.number is not None else None
        if word is not None and word.attempt == group.attempt:
            rates.append(word.rate)
        else:
            word = None
        for name in COUNTED:
            counted[name] += max(getattr(group, name), getattr(word, name, 0))
    leased = _number(groups, ShardState.LEASED)
    # Where nobody who works has told anything (they just began, or Redis is away) the average is all that is known.
    rate = sum(rates) if rates or not leased else counted["files"] / max(age_s, 1.0)
    return Progress(
        **counted,
        shards=_number(groups, *ShardState),
        shards_done=_number(groups, *SETTLED_SHARDS),
        shards_leased=leased,
        shards_ready=_number(groups, ShardState.READY),
        finishing=bool(groups) and not _number(groups, ShardState.WAITING),
        files_per_s=rate,
        expected_files=expected,
        eta_s=eta_s(expected, counted["files"], rate),
    )


def _number(groups: Sequence[Shards], *states: ShardState) -> int:
    return sum(group.shards for group in groups if group.state in states)


def eta_s(expected: int | None, files: int, rate: float) -> float | None:
    """Seconds until as many files are walked as the last complete scan had; None where that tells nothing."""
    if not expected or files > expected or rate < SLOWEST:
        return None
    return (expected - files) / rate


def progress_in(
    connection: Connection, running: Sequence[Running], told: Mapping[str, Mapping[int, Told]]
) -> dict[str, Progress]:
    """The progress of running scans, by scan, with what Redis was told of them before this is asked."""
    found: dict[str, list[Shards]] = {one.scan_id: [] for one in running}
    for group in settled.shards_of(connection, list(found)):
        found[group.scan_id].append(group)
    return {
        one.scan_id: progress_of(found[one.scan_id], told.get(one.scan_id, {}), one.age_s, one.expected_files)
        for one in running
    }


class Reader:
    """Reads progress. `trouble` is what Redis answered the last time, where it did not do as asked."""

    def __init__(self, engine: Engine, client: redis.Redis | None, keys: Keys) -> None:
        self._engine, self._client, self._keys = engine, client, keys
        self.trouble: str | None = None

    def of(self, running: Sequence[Running]) -> dict[str, Progress]:
        """The progress of running scans, by scan: one look at Redis and one at the database, however many they are.

        Redis first: what is settled between the two looks is then in the database, and counted once.
        """
        told = self._told([one.scan_id for one in running])
        with reading(self._engine) as connection:
            return progress_in(connection, running, told)

    def of_scan(self, scan_id: str) -> Progress | None:
        """That of one scan; None: it does not run."""
        with reading(self._engine) as connection:
            running = settled.running(connection, 1, scan_id)
        return self.of(running).get(scan_id)

    def _told(self, scan_ids: Sequence[str]) -> Mapping[str, Mapping[int, Told]]:
        if self._client is None:
            return {}
        try:
            found = live.read(self._client, self._keys, scan_ids)
        except redis.RedisError as error:
            self.trouble = str(error)
            return {}
        self.trouble = None
        return found
