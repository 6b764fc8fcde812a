"""Shards: claim, renew, release, flush, complete; nothing else ever changes who holds one.

The statements are those of the design: a claim takes what is ready or whose lease has run out, and every write of a
holder begins with one that extends its own lease, so that a process that was stopped can wake up and write nothing.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, RowMapping, and_, case, func, or_, select, update

from db import scans
from db.bulk import merge
from db.clock import clock
from db.tables import shards
from db.types import SETTLED_SHARDS, LeaseLost, ScanState, ShardState

FINISH = 0
# Changes of one shard are numbered below this.
NUMBERS_PER_SHARD = 1 << 32


@dataclass(frozen=True, slots=True)
class Lease:
    """A shard that this process holds."""

    scan_id: str
    number: int
    tenant_id: int
    fence: int
    frontier: str
    attempt: int
    deaths: int
    suspect: bytes | None
    suspect_deaths: int
    error: str | None
    queue: str
    token: str
    directories: int  # from here on: what earlier attempts have settled, so that it is not done again
    files: int
    bytes: int
    hashed_files: int
    hashed_bytes: int


def add_first(connection: Connection, begun: Sequence[tuple[scans.Scan, str, Sequence[str]]]) -> None:
    """The shards of scans that are being started, as (scan, queue, frontiers): the finish, which waits for the others,
    and one ready for each frontier.
    """
    _insert(connection, [
        row for scan, queue, frontiers in begun
        for row in (_row(scan, FINISH, "{}", queue, ShardState.WAITING), *_ready(scan, FINISH + 1, frontiers, queue))
    ])  # fmt: skip


def add(connection: Connection, scan: scans.Scan, frontiers: Sequence[str], queue: str) -> list[int]:
    """More ready shards of a running scan, one for each frontier; their numbers. The caller holds the scan's lock."""
    if not frontiers:
        return []
    top = connection.execute(select(func.max(shards.c.number)).where(shards.c.scan_id == scan.id)).scalar_one()
    _insert(connection, _ready(scan, top + 1, frontiers, queue))
    return list(range(top + 1, top + 1 + len(frontiers)))


def _insert(connection: Connection, rows: Sequence[tuple[Any, ...]]) -> None:
    columns = ("scan_id", "tenant_id", "fence", "number", "frontier", "queue", "state")
    merge(connection, shards, columns, rows, "", {"not_before": clock()})


def _ready(scan: scans.Scan, first: int, frontiers: Sequence[str], queue: str) -> list[tuple[Any, ...]]:
    return [_row(scan, first + i, frontier, queue, ShardState.READY) for i, frontier in enumerate(frontiers)]


def _row(scan: scans.Scan, number: int, frontier: str, queue: str, state: ShardState) -> tuple[Any, ...]:
    return scan.id, scan.tenant_id, scan.fence, number, frontier, queue, state


def claim(connection: Connection, scan_id: str, number: int, lease_s: float) -> Lease | None:
    """Take a shard that is ready, or whose holder's lease has run out. None: somebody else has it, or it is over."""
    s = shards.c
    expired = and_(s.state == ShardState.LEASED, s.lease_until < clock())
    query = (
        update(shards)
        .where(s.scan_id == scan_id, s.number == number, s.not_before <= clock())
        .where(or_(s.state == ShardState.READY, expired))
        .values(
            **_counting_death(),
            state=ShardState.LEASED,
            attempt=s.attempt + 1,
            token=str(uuid.uuid4()),
            lease_until=clock(lease_s),
            sent_until=None,
        )
        .returning(*(s[name] for name in Lease.__slots__))
    )
    row: RowMapping | None = connection.execute(query).mappings().first()
    return None if row is None else Lease(**row)


def _counting_death() -> dict[str, Any]:
    """What is noted where a shard is taken from a dead holder: its death, and the entry that it had named."""
    s = shards.c
    died = s.state == ShardState.LEASED
    named = and_(died, s.entry.is_not(None))
    again = case((s.suspect == s.entry, s.suspect_deaths + 1), else_=1)
    return {
        "deaths": s.deaths + case((died, 1), else_=0),
        "suspect_deaths": case((named, again), else_=s.suspect_deaths),
        "suspect": case((named, s.entry), else_=s.suspect),
        "entry": None,
    }


def _held(lease: Lease) -> ColumnElement[bool]:
    s = shards.c
    return and_(
        s.scan_id == lease.scan_id,
        s.number == lease.number,
        s.token == lease.token,
        s.state == ShardState.LEASED,
        s.lease_until > clock(),
    )


def flush(connection: Connection, lease: Lease, lease_s: float, reserve: int = 0, *, settles: bool = False,
          **counted: int) -> int:  # fmt: skip
    """The first statement of every flush: extends the lease, reserves `reserve` numbers for changes, adds to counters.

    `settles`: the flush brings the work on, so that earlier deaths are forgotten. Returns the first reserved number.
    Raises LeaseLost, and then the transaction must be rolled back.
    """
    s = shards.c
    query = (
        update(shards)
        .where(_held(lease))
        .values(
            lease_until=clock(lease_s),
            sequence=s.sequence + reserve,
            **({"deaths": 0} if settles else {}),
            **{name: s[name] + value for name, value in counted.items()},
        )
        .returning(s.sequence)
    )
    sequence = connection.execute(query).scalar()
    if sequence is None:
        raise _lost(lease)
    return lease.number * NUMBERS_PER_SHARD + int(sequence) - reserve


def renew(connection: Connection, lease: Lease, lease_s: float) -> None:
    """Extend the lease while progress is made. Raises LeaseLost."""
    flush(connection, lease, lease_s)


def _write(connection: Connection, lease: Lease, **values: Any) -> None:
    """Change a shard that is held. Raises LeaseLost, and then the transaction must be rolled back."""
    if connection.execute(update(shards).where(_held(lease)).values(values)).rowcount != 1:
        raise _lost(lease)


def _lost(lease: Lease) -> LeaseLost:
    return LeaseLost(f"shard {lease.number} of scan {lease.scan_id} is no longer held by this process")


def name(connection: Connection, lease: Lease, entry: bytes) -> None:
    """Say which path is about to be touched, in case that ends this process. Raises LeaseLost."""
    _write(connection, lease, entry=entry, error=None)


def clear(connection: Connection, lease: Lease) -> None:
    """What was suspected is in quarantine now. Raises LeaseLost."""
    _write(connection, lease, suspect=None, suspect_deaths=0, error=None)


def quarantine(connection: Connection, lease: Lease, error: str) -> None:
    """Leased → quarantined: whoever holds it dies. The caller holds the scan's lock. Raises LeaseLost."""
    _write(connection, lease, state=ShardState.QUARANTINED, token=None, lease_until=None, sent_until=None, error=error)


def abandon(connection: Connection, lease: Lease, entry: bytes | None, error: str) -> None:
    """End the lease now, as by a death that can be told of: whoever takes over counts it, against `entry`. Nothing
    happens where it is no longer held.
    """
    values = {"lease_until": clock(-1.0), "entry": entry, "error": error}
    connection.execute(update(shards).where(_held(lease)).values(values))


def release(connection: Connection, lease: Lease, *, delay_s: float = 0.0, error: str | None = None) -> None:
    """Give the shard back as it is, to be tried again after `delay_s`. Nothing happens where it is no longer held."""
    connection.execute(
        update(shards)
        .where(_held(lease))
        .values(state=ShardState.READY, token=None, lease_until=None, sent_until=None, error=error,
                not_before=clock(delay_s))
    )  # fmt: skip


def release_all(connection: Connection) -> int:
    """Give back every leased shard, and forget every message under way. Only for the embedded stack at its start,
    which holds the state folder's lock and so knows that no worker and no broker of before is alive.
    """
    s = shards.c
    query = update(shards).where(s.state.in_((ShardState.LEASED, ShardState.READY)))
    return connection.execute(
        query.values(
            **_counting_death(), state=ShardState.READY, token=None, lease_until=None, sent_until=None,
        )
    ).rowcount  # fmt: skip


def complete(connection: Connection, lease: Lease, *, peak_memory_bytes: int, place: str | None = None,
             directories_unchanged: int = 0, other: int = 0, **walked: int) -> None:  # fmt: skip
    """Leased → done; `walked` is added to the counters. The caller holds the scan's lock. Raises LeaseLost."""
    highest = func.max if connection.dialect.name == "sqlite" else func.greatest
    _write(
        connection, lease, state=ShardState.DONE, token=None, lease_until=None, sent_until=None, entry=None, error=None,
        directories_unchanged=directories_unchanged, other=other, place=place,
        peak_memory_bytes=highest(shards.c.peak_memory_bytes, peak_memory_bytes),
        **{name: shards.c[name] + value for name, value in walked.items()},
    )  # fmt: skip


def ready_finish(connection: Connection, scan_id: str) -> bool:
    """Waiting → ready for shard 0 once all others are settled. The caller holds the scan's lock."""
    s = shards.c
    open_ones = select(s.number).where(s.scan_id == scan_id, s.number != FINISH, s.state.not_in(SETTLED_SHARDS))
    query = (
        update(shards)
        .where(s.scan_id == scan_id, s.number == FINISH, s.state == ShardState.WAITING, ~open_ones.exists())
        .values(state=ShardState.READY, not_before=clock())
    )
    return connection.execute(query).rowcount == 1


def drop_open(connection: Connection, scan_id: str) -> int:
    """Drop every unfinished shard but the finish. The caller holds the scan's lock."""
    s = shards.c
    query = update(shards).where(s.scan_id == scan_id, s.number != FINISH, s.state.not_in(SETTLED_SHARDS))
    return connection.execute(
        query.values(state=ShardState.DROPPED, token=None, lease_until=None, sent_until=None)
    ).rowcount


def end_early(connection: Connection, scan_id: str, ending: ScanState, error: str | None) -> bool:
    """Let a running scan end cancelled or failed: drop its open shards and make its finish ready.

    False where it is not running (any more), or too late. Takes the scan's lock.
    """
    if scans.lock(connection, scan_id) is None or not scans.decide_ending(connection, scan_id, ending, error):
        return False
    drop_open(connection, scan_id)
    ready_finish(connection, scan_id)
    return True


def fail(connection: Connection, lease: Lease, error: str) -> None:
    """Let the scan end failed, as the holder of one of its shards. Raises LeaseLost: who has lost it says nothing."""
    scans.lock(connection, lease.scan_id)
    _write(connection, lease, error=error)
    end_early(connection, lease.scan_id, ScanState.FAILED, error)


def any_errors(connection: Connection, scan_id: str) -> bool:
    """Could something not be looked at?"""
    s = shards.c
    query = select(s.number).where(s.scan_id == scan_id, s.errors_total > 0).limit(1)
    return connection.execute(query).first() is not None


def any_not_done(connection: Connection, scan_id: str) -> bool:
    """Was a shard quarantined or dropped, so that the scan has not seen everything?"""
    s = shards.c
    query = select(s.number).where(s.scan_id == scan_id, s.number != FINISH, s.state != ShardState.DONE).limit(1)
    return connection.execute(query).first() is not None


def places(connection: Connection, scan_id: str) -> set[str]:
    """Which folders the root was to the shards that are done."""
    query = select(shards.c.place).where(shards.c.scan_id == scan_id, shards.c.place.is_not(None)).distinct()
    return {str(row.place) for row in connection.execute(query)}


def is_scan_id(text: str) -> bool:
    """Could it be the id of a scan?"""
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False
