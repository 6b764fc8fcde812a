"""Who wants to be told of a tenant's ended scans, and what is still to be told, in the order in which they ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Connection, and_, delete, exists, func, insert, literal, or_, select, update

from db.clock import clock
from db.tables import deliveries, webhooks


@dataclass(frozen=True, slots=True)
class Webhook:
    """Where a tenant's ended scans are told, and the secret that proves who tells."""

    url: str
    secret: str


@dataclass(frozen=True, slots=True)
class Delivery:
    """A scan that has ended and is to be told; its id is the scan's. `attempts`: how often that was tried."""

    tenant_id: int
    scan_id: str
    since: datetime
    attempts: int


class Waiting(NamedTuple):
    """So many ended `scans` are still to be told; of the first: since when, how often that failed, when it is tried."""

    scans: int
    since: datetime | None = None
    attempts: int = 0
    next_at: datetime | None = None


NOTHING = Waiting(0)


def get(connection: Connection, tenant_id: int) -> Webhook | None:
    """The webhook of a tenant, if it has one."""
    row = connection.execute(select(webhooks.c.url, webhooks.c.secret).where(webhooks.c.tenant_id == tenant_id)).first()
    return None if row is None else Webhook(*row)


def put(connection: Connection, tenant_id: int, webhook: Webhook | None) -> None:
    """Set it, or take it away; then nothing is left to be told."""
    connection.execute(delete(webhooks).where(webhooks.c.tenant_id == tenant_id))
    if webhook is None:
        connection.execute(delete(deliveries).where(deliveries.c.tenant_id == tenant_id))
        return
    connection.execute(insert(webhooks).values(tenant_id=tenant_id, url=webhook.url, secret=webhook.secret))


def scan_ended(connection: Connection, tenant_id: int, scan_id: str) -> None:
    """Somebody may want to be told; part of the transaction that ends the scan."""
    wanted = exists().where(webhooks.c.tenant_id == tenant_id)
    columns = (literal(tenant_id), literal(scan_id, deliveries.c.scan_id.type), literal(0), clock(), clock())
    connection.execute(
        insert(deliveries).from_select(["tenant_id", "scan_id", "attempts", "since", "next_at"],
                                       select(*columns).where(wanted))
    )  # fmt: skip


def any_due(connection: Connection) -> bool:
    """Is there anything that may be told now?"""
    return (
        connection.execute(select(deliveries.c.n).where(deliveries.c.next_at <= clock()).limit(1)).first() is not None
    )


def claim_due(connection: Connection, at_once: int, for_s: float) -> Sequence[int]:
    """Tenants whose first delivery is due, so many that not more than `at_once` are under way in all; nobody else is
    offered them for so long.
    """
    d, earlier = deliveries.c, deliveries.alias("earlier").c
    is_claimed = d.claimed_until > clock()
    room = at_once - int(connection.execute(select(func.count()).where(is_claimed)).scalar_one())
    if room <= 0:
        return []
    is_first = ~exists().where(earlier.tenant_id == d.tenant_id, earlier.n < d.n)
    is_due = and_(d.next_at <= clock(), or_(d.claimed_until.is_(None), ~is_claimed), is_first)
    due = select(d.n, d.tenant_id).where(is_due).order_by(d.next_at).limit(room).with_for_update(skip_locked=True)
    found = connection.execute(due).all()
    if found:
        these = d.n.in_([row.n for row in found])
        connection.execute(update(deliveries).where(these).values(claimed_until=clock(for_s)))
    return [row.tenant_id for row in found]


def first(connection: Connection, tenant_id: int) -> Delivery | None:
    """What is to be told of a tenant next."""
    d = deliveries.c
    query = select(d.tenant_id, d.scan_id, d.since, d.attempts).where(d.tenant_id == tenant_id).order_by(d.n).limit(1)
    row = connection.execute(query).first()
    return None if row is None else Delivery(row.tenant_id, str(row.scan_id), row.since, row.attempts)


def told(connection: Connection, scan_id: str) -> None:
    """It need not be told any more."""
    connection.execute(delete(deliveries).where(deliveries.c.scan_id == scan_id))


def try_later(connection: Connection, scan_id: str, after_s: float, tried: int = 1) -> None:
    """It could not be told, and is tried again after so long."""
    query = update(deliveries).where(deliveries.c.scan_id == scan_id)
    connection.execute(query.values(attempts=deliveries.c.attempts + tried, next_at=clock(after_s), claimed_until=None))


def waiting(connection: Connection, tenant_id: int) -> Waiting:
    """What of a tenant is still to be told."""
    d = deliveries.c
    first = select(d.since, d.attempts, d.next_at).where(d.tenant_id == tenant_id).order_by(d.n).limit(1)
    row = connection.execute(first).first()
    if row is None:
        return NOTHING
    count = select(func.count()).select_from(deliveries).where(d.tenant_id == tenant_id)
    return Waiting(int(connection.execute(count).scalar_one()), *row)
