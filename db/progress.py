"""How far running scans have come, as far as the database knows: what is told in between is in Redis."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Connection, and_, case, func, null, select

from db.clock import clock, now
from db.tables import said, scans, shards, tenants
from db.types import ScanState, ShardState, Strategy

# What is counted of a shard while it is worked on.
COUNTED = ("directories", "files", "bytes", "hashed_files", "hashed_bytes")


class Running(NamedTuple):
    """A running scan, for whoever watches it."""

    scan_id: str
    tenant: str
    tier: str
    trigger: str
    strategy: str
    started_at: datetime
    age_s: float
    expected_files: int | None  # of the tenant's last complete scan; none where this one is of a part


class Shards(NamedTuple):
    """The shards of a scan that are in one state, added up. One that somebody holds stands by itself (`number`, and
    how often it was begun).
    """

    scan_id: str
    state: str
    number: int | None
    attempt: int | None
    shards: int
    directories: int
    files: int
    bytes: int
    hashed_files: int
    hashed_bytes: int


def running(connection: Connection, limit: int, scan_id: str | None = None, *,
            scan_ids: Sequence[str] | None = None, of: Collection[str] | None = None) -> Sequence[Running]:  # fmt: skip
    """Running scans, the longest under way first; or one, or those of some that run. `of`: of these tenants."""
    query = (
        select(scans.c.id, tenants.c.name, tenants.c.tier, scans.c.trigger, scans.c.strategy, scans.c.started_at,
               tenants.c.watermark_files)
        .join(tenants, tenants.c.id == scans.c.tenant_id)
        .where(scans.c.state == said(ScanState.RUNNING))
        .order_by(scans.c.started_at, scans.c.id)
        .limit(limit)
    )  # fmt: skip
    if scan_id is not None:
        query = query.where(scans.c.id == scan_id)
    if of is not None:
        query = query.where(tenants.c.name.in_(of))
    if scan_ids is not None:
        query = query.where(scans.c.id.in_(scan_ids))
    found = connection.execute(query).all()
    moment = now(connection) if found else None
    return [
        Running(*row[:6], max(0.0, (moment - row.started_at).total_seconds()),
                row.watermark_files if row.strategy != Strategy.PATHS else None)
        for row in found if moment
    ]  # fmt: skip


def shards_of(connection: Connection, scan_ids: Sequence[str]) -> Sequence[Shards]:
    """The shards of these scans. A lease that has run out is nobody's: such a shard waits to be taken over."""
    if not scan_ids:
        return []
    s = shards.c
    held = and_(s.state == ShardState.LEASED, s.lease_until >= clock())
    left = and_(s.state == ShardState.LEASED, s.lease_until < clock())
    each = (
        select(
            s.scan_id,
            case((left, ShardState.READY), else_=s.state).label("state"),
            case((held, s.number), else_=null()).label("number"),
            case((held, s.attempt), else_=null()).label("attempt"),
            *(s[name] for name in COUNTED),
        )
        .where(s.scan_id.in_(scan_ids))
        .subquery()
        .c
    )
    query = select(
        each.scan_id, each.state, each.number, each.attempt, func.count(), *(func.sum(each[name]) for name in COUNTED)
    ).group_by(each.scan_id, each.state, each.number, each.attempt)
    return [Shards(*row[:5], *(int(one) for one in row[5:])) for row in connection.execute(query)]
