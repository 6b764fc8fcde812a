"""Whose turn it is: which queued scans are started, which shards are offered to the broker or are under way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, Subquery, and_, case, func, literal, or_, select, update

from db import clock as clocks
from db.bulk import set_values
from db.clock import Instant, clock
from db.scans import is_startable
from db.tables import said, scans, shards, tenants
from db.tenants import TIERS
from db.types import ScanState, ShardState, Trigger

# What one worker may not take another may.
PUT_BACK_FOR_S = 2.0
# The advisory lock of whoever fills the window.
_DISPATCHING = 0x7374726E646C6E


@dataclass(frozen=True, slots=True)
class Sendable:
    """A ready shard that the dispatcher may send."""

    scan_id: str
    number: int
    tenant_id: int
    queue: str


@dataclass(frozen=True, slots=True)
class Contender:
    """A running scan, for whoever decides whose shards are sent: so many are `ready`, `in_flight` (sent or leased) and
    `done` (counted up to a limit). `waited_s`: seconds since a shard of its tenant was sent, or it was started.
    """

    scan_id: str
    tenant_id: int
    tier: str
    trigger: str
    ready: int
    in_flight: int
    done: int
    waited_s: float
    tenant: str = ""  # its name, for people


def _is_sendable() -> ColumnElement[bool]:
    """Ready, or left by a dead holder, and without a message under way."""
    s = shards.c
    nothing_under_way = or_(s.sent_until.is_(None), s.sent_until <= clock())
    left_by_a_dead_holder = and_(s.state == ShardState.LEASED, s.lease_until < clock())
    return and_(or_(s.state == ShardState.READY, left_by_a_dead_holder), nothing_under_way, s.not_before <= clock())


def _is_in_flight() -> ColumnElement[bool]:
    """Leased, or sent and not yet expired. An expired lease counted would fill the window for ever once as many workers
    died: nothing more were sent, and so nobody took over.
    """
    s = shards.c
    return or_(and_(s.state == ShardState.LEASED, s.lease_until >= clock()), s.sent_until > clock())


def startable(connection: Connection, limit: int, most: int) -> Sequence[tuple[str, int]]:
    """Queued scans (and their tenants) to start next, those first that wait longest: of each trigger and tier only so
    many that `most` run and have nothing under way. What cannot be served soon waits where nobody looks at it.
    """
    kind, s, t = urgency(), shards.c, tenants.c
    served = select(s.number).where(s.scan_id == scans.c.id, _is_in_flight())
    idle = connection.execute(
        select(kind, func.count()).join(tenants, t.id == scans.c.tenant_id)
        .where(scans.c.state == said(ScanState.RUNNING), ~served.exists()).group_by(kind)
    )  # fmt: skip
    place = func.row_number().over(partition_by=kind, order_by=(scans.c.requested_at, scans.c.id)).label("place")
    queued = (
        select(scans.c.id, scans.c.tenant_id, scans.c.requested_at, kind.label("kind"), place)
        .join(tenants, t.id == scans.c.tenant_id)
        .where(*is_startable())
        .subquery()
    )
    left = {row[0]: most - row[1] for row in idle}
    room = case(left, value=queued.c.kind, else_=most) if left else literal(most)
    query = select(queued.c.id, queued.c.tenant_id).where(queued.c.place <= room)
    return [(row[0], row[1]) for row in connection.execute(query.order_by(queued.c.requested_at).limit(limit))]


def urgency() -> ColumnElement[int]:
    """A number for each trigger and tier, of a scan that is joined with its tenant. (To sort by texts, compared as a
    language wants them, takes most of the time of what sorts by them.)
    """
    kinds = [and_(scans.c.trigger == trigger, tenants.c.tier == tier) for trigger in Trigger for tier in TIERS]
    return case(*((kind, number) for number, kind in enumerate(kinds)), else_=len(kinds))


def contenders(connection: Connection, most: int) -> Sequence[Contender]:
    """The running scans that `most` shards at once can be of: all that have some under way, and of the others, for each
    trigger and tier, so many that have waited longest. (There may be thousands, and each tick asks.) Of their shards
    that are done no more are counted either, and only where there are others that it matters for. Whoever asks
    dispatches alone until the transaction ends, so that two do not fill the same room.
    """
    if connection.dialect.name == "postgresql":  # on SQLite there is one writer
        connection.execute(select(func.pg_advisory_xact_lock(_DISPATCHING)))
    now, ranked = clocks.now(connection), _ranked(connection.dialect.name)
    found = connection.execute(
        select(*ranked.c).where(or_(ranked.c.place <= most, ranked.c.in_flight > 0))
    ).all()  # fmt: skip
    done = {row.id: _done(connection, row.id, most) for row in found if row.ready + row.in_flight > 1}
    return [
        Contender(row.id, row.tenant_id, row.tier, row.trigger, row.ready, row.in_flight, done.get(row.id, 0),
                  (now - row.since).total_seconds(), row.name)
        for row in found
    ]  # fmt: skip


def _ranked(dialect: str) -> Subquery:
    """Running scans with open shards; `place`: among those alike, by how long one has waited."""
    s, t = shards.c, tenants.c
    is_open = (
        select(s.scan_id, func.count().filter(_is_sendable()).label("ready"),
               func.count().filter(_is_in_flight()).label("in_flight"))
        .where(s.state.in_([said(ShardState.READY), said(ShardState.LEASED)]))
        .group_by(s.scan_id)
        .subquery()
    )  # fmt: skip
    later = func.max if dialect == "sqlite" else func.greatest
    since = later(func.coalesce(t.served_at, scans.c.started_at), scans.c.started_at, type_=Instant())
    alike = (urgency(), is_open.c.ready > 0, is_open.c.in_flight > 0)
    place = func.row_number().over(partition_by=alike, order_by=since).label("place")
    return (
        select(scans.c.id, scans.c.tenant_id, t.tier, scans.c.trigger, is_open.c.ready, is_open.c.in_flight, t.name,
               since.label("since"), place)
        .join(tenants, t.id == scans.c.tenant_id)
        .join(is_open, is_open.c.scan_id == scans.c.id)
        .where(scans.c.state == said(ScanState.RUNNING))
        .subquery()
    )  # fmt: skip


def _done(connection: Connection, scan_id: str, most: int) -> int:
    some = select(shards.c.number).where(shards.c.scan_id == scan_id, shards.c.state == ShardState.DONE).limit(most)
    return int(connection.execute(select(func.count()).select_from(some.subquery())).scalar_one())


def sendable(connection: Connection, scan_ids: Sequence[str], limit: int) -> Sequence[Sendable]:
    """Shards of these scans, where they run, that may be sent now; locked."""
    s = shards.c
    query = (
        select(s.scan_id, s.number, s.tenant_id, s.queue)
        .join(scans, scans.c.id == s.scan_id)
        .where(s.scan_id.in_(scan_ids), _is_sendable(), scans.c.state == said(ScanState.RUNNING))
        .order_by(s.scan_id, s.number)
        .limit(limit)
        .with_for_update(of=shards, skip_locked=True)
    )
    return [Sendable(**row) for row in connection.execute(query).mappings()]


def mark_sent(connection: Connection, sent: Sequence[Sendable], expires_s: float | None) -> None:
    """Note that messages for these are under way for `expires_s`; None: they are not, after all."""
    these = [(shard.scan_id, shard.number) for shard in sent]
    until = None if expires_s is None else clock(expires_s)
    set_values(connection, shards, [], ["scan_id", "number"], these, {"sent_until": until})


def note_served(connection: Connection, tenant_ids: Sequence[int]) -> None:
    """Remember that shards of these tenants are sent just now. Whom somebody holds is not waited for."""
    t = tenants.c
    free = select(t.id).where(t.id.in_(tenant_ids)).with_for_update(skip_locked=True)
    connection.execute(update(tenants).where(t.id.in_(free)).values(served_at=clock()))


def put_back(connection: Connection, scan_id: str, number: int) -> None:
    """A message for a ready shard came to somebody who may not take it: let it be sent again, a little later."""
    s = shards.c
    query = update(shards).where(s.scan_id == scan_id, s.number == number, s.state == ShardState.READY)
    connection.execute(query.values(sent_until=None, not_before=clock(PUT_BACK_FOR_S)))


def forget_sent(connection: Connection) -> int:
    """No message is under way any more, or none that one could rely on; how many were."""
    return connection.execute(update(shards).where(shards.c.sent_until.is_not(None)).values(sent_until=None)).rowcount
