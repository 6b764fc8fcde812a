"""The cluster at a glance, by queries that stay cheap however many tenants there are and however long it has run."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import BigInteger, ColumnElement, Connection, Interval, and_, case, func, or_, select, type_coerce

from db.clock import Instant, clock, now
from db.tables import quarantine, said, scans, shards, tenants
from db.types import ScanState, ShardState


class Counts(NamedTuple):
    """How many there are of each."""

    tenants: int
    paused: int
    late_total: int  # tenants, see `late`
    running: int  # scans
    queued: int
    quarantined: int  # entries of trees
    suspect: int  # tenants whose deletions wait for somebody's word
    backlog: dict[str, int]  # open shards by state


class Late(NamedTuple):
    """A tenant whose index is older than its interval allows; `late_s` by so much."""

    tenant: str
    tier: str
    interval_s: int
    watermark_started_at: datetime | None  # of the last complete scan
    late_s: float


def counts(connection: Connection) -> Counts:
    """What there is, in all."""
    t = tenants.c
    paused = case((t.enabled, 0), else_=1)
    behind = case((and_(t.enabled, wanted_at(connection) < clock()), 1), else_=0)
    query = select(func.count(), *(func.coalesce(func.sum(one), 0) for one in (paused, behind)))
    known, resting, late_total = map(int, connection.execute(query.select_from(tenants)).one())
    states = (ScanState.RUNNING, ScanState.QUEUED)
    # Each by itself, since each has an index of its own.
    running, queued = (_count(connection, scans.c.state == said(state)) for state in states)
    suspect = select(func.count(t.id.distinct())).join(scans, scans.c.tenant_id == t.id).where(doubted())
    in_force = or_(quarantine.c.until.is_(None), quarantine.c.until > clock())
    return Counts(
        known, resting, late_total, running, queued, _count(connection, in_force),
        int(connection.execute(suspect).scalar_one()), backlog(connection),
    )  # fmt: skip


def doubted() -> ColumnElement[bool]:
    """Of scans beside their tenants: it is suspect, and no complete one has followed."""
    s = scans.c
    return and_(s.state == said(ScanState.SUSPECT), s.fence > func.coalesce(tenants.c.watermark_fence, 0))


def _count(connection: Connection, which: ColumnElement[bool]) -> int:
    return int(connection.execute(select(func.count()).where(which)).scalar_one())


def backlog(connection: Connection) -> dict[str, int]:
    """Number of open shards by state. Only those of running scans wait: to ask all that ever were would take long."""
    s = shards.c
    open_ones = select(s.state, func.count()).where(s.state.in_([said(ShardState.READY), said(ShardState.LEASED)]))
    found: dict[str, int] = {state: int(count) for state, count in connection.execute(open_ones.group_by(s.state))}
    waiting = (
        select(func.count())
        .select_from(scans.join(shards, s.scan_id == scans.c.id))
        .where(scans.c.state == said(ScanState.RUNNING), s.number == 0, s.state == ShardState.WAITING)
    )
    found[ShardState.WAITING] = int(connection.execute(waiting).scalar_one())
    return {str(state): found.get(state, 0) for state in (ShardState.WAITING, ShardState.READY, ShardState.LEASED)}


def late(connection: Connection, limit: int) -> Sequence[Late]:
    """The tenants that are not paused and have waited longest beyond their interval, since the last complete scan
    started, or since they were added where there is none.
    """
    t = tenants.c
    wanted = wanted_at(connection)
    query = (
        select(t.name, t.tier, t.interval_s, t.watermark_started_at, wanted.label("wanted"))
        .where(t.enabled, wanted < clock())
        .order_by(wanted, t.id)
        .limit(limit)
    )
    moment = now(connection)
    return [
        Late(row.name, row.tier, row.interval_s, row.watermark_started_at,
             max(0.0, (moment - row.wanted).total_seconds()))
        for row in connection.execute(query)
    ]  # fmt: skip


def wanted_at(connection: Connection) -> ColumnElement[datetime]:
    """When the next complete scan of a tenant should have begun at the latest."""
    t = tenants.c
    seen = func.coalesce(t.watermark_started_at, t.created_at)
    if connection.dialect.name == "sqlite":
        return type_coerce(type_coerce(seen, BigInteger) + t.interval_s * 1_000_000, Instant)
    return type_coerce(seen + func.make_interval(0, 0, 0, 0, 0, 0, t.interval_s, type_=Interval), Instant)
