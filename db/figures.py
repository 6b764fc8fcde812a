"""What metrics tell of the cluster now: by index, and by tier, so that it stays cheap and small for many tenants.

Nothing here reads what grows with files, directories, changes or with the scans that ever were.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import BigInteger, ColumnElement, Connection, Row, and_, bindparam, case, func, or_, select, type_coerce

from db import overview, tallies
from db.clock import EPOCH, Instant, clock, now
from db.overview import Late
from db.tables import quarantine, said, scans, shards, tenants
from db.types import ScanState, ShardState


class OfTier(NamedTuple):
    """The tenants of a tier. Ages are those of the oldest, in seconds, and 0 where there is none."""

    tier: str
    enabled: int
    paused: int
    late: int  # whose index is older than their interval allows; `lag_s` by so much
    lag_s: float
    watermark_age_s: float  # since the start of the last complete scan, of those that had one
    overdue_s: float  # since the slot of the schedule that nobody has claimed yet


class Open(NamedTuple):
    """Scans of a tier that are queued or running, and for how long the oldest."""

    tier: str
    state: str
    scans: int
    oldest_s: float


class Figures(NamedTuple):
    """All of it, from one transaction."""

    schema: str
    tiers: Sequence[OfTier]
    suspect: dict[str, int]  # tenants by tier, of whom a suspect scan was not confirmed or followed by a complete one
    open: Sequence[Open]
    backlog: dict[tuple[str, str], int]  # open shards by queue and state
    quarantined: int
    late: Sequence[Late]
    ended: Sequence[Row[Any]]  # see tallies.totals


def read(connection: Connection, late: int) -> Figures:
    """The figures, with the `late` tenants that are behind most."""
    moment, states = now(connection), (ScanState.QUEUED, ScanState.RUNNING)
    return Figures(
        str(connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()),
        _tiers(connection, moment),
        _suspect(connection),
        [row for state in states for row in _open(connection, state, moment)],
        _backlog(connection),
        _quarantined(connection),
        overview.late(connection, late) if late else [],
        tallies.totals(connection),
    )


def _age_s(connection: Connection, since: ColumnElement[Any], moment: datetime) -> ColumnElement[Any]:
    # The moment is a parameter: SQLite would call back into Python for the clock of each row.
    if connection.dialect.name == "sqlite":
        at = bindparam(None, (moment - EPOCH) // timedelta(microseconds=1), BigInteger())
        return (at - type_coerce(since, BigInteger)) / 1e6
    return func.extract("epoch", bindparam(None, moment, Instant()) - since)


def _oldest_s(age: ColumnElement[Any], which: ColumnElement[bool]) -> ColumnElement[Any]:
    return func.coalesce(func.max(case((and_(which, age > 0), age))), 0.0)


def _tiers(connection: Connection, moment: datetime) -> Sequence[OfTier]:
    t = tenants.c
    wanted = type_coerce(overview.wanted_at(connection), Instant)
    late = and_(t.enabled, wanted < moment)
    lag, age, overdue = (
        _age_s(connection, since, moment) for since in (wanted, t.watermark_started_at, t.next_scan_at)
    )
    query = select(
        t.tier,
        func.count().filter(t.enabled),
        func.count().filter(~t.enabled),
        func.count().filter(late),
        _oldest_s(lag, late),
        _oldest_s(age, t.enabled),
        _oldest_s(overdue, t.enabled),
    ).group_by(t.tier)
    return [
        OfTier(row[0], *(int(one) for one in row[1:4]), *(float(one) for one in row[4:]))
        for row in connection.execute(query)
    ]


def _suspect(connection: Connection) -> dict[str, int]:
    t = tenants.c
    query = (
        select(t.tier, func.count(t.id.distinct())).join(scans, scans.c.tenant_id == t.id).where(overview.doubted())
    )  # fmt: skip
    return {tier: int(count) for tier, count in connection.execute(query.group_by(t.tier))}


def _open(connection: Connection, state: ScanState, moment: datetime) -> Sequence[Open]:
    since = scans.c.requested_at if state == ScanState.QUEUED else scans.c.started_at
    query = (
        select(tenants.c.tier, func.count(), func.max(_age_s(connection, since, moment)))
        .join(scans, scans.c.tenant_id == tenants.c.id)
        .where(scans.c.state == said(state))
        .group_by(tenants.c.tier)
    )
    return [Open(tier, str(state), int(n), max(0.0, float(age))) for tier, n, age in connection.execute(query)]


def _backlog(connection: Connection) -> dict[tuple[str, str], int]:
    s = shards.c
    query = select(s.queue, s.state, func.count()).where(s.state.in_([said(ShardState.READY), said(ShardState.LEASED)]))
    rows = connection.execute(query.group_by(s.state, s.queue))
    return {(queue, state): int(count) for queue, state, count in rows}


def _quarantined(connection: Connection) -> int:
    in_force = or_(quarantine.c.until.is_(None), quarantine.c.until > clock())
    return int(connection.execute(select(func.count()).select_from(quarantine).where(in_force)).scalar_one())
