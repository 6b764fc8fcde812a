"""Forgetting ended scans with what they changed, once all of that is older than it is to be kept.

The newest ended scan of a tenant stays, however old: it says how the tenant is, and its cursor is where the feed ends.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Mapping
from datetime import datetime, timedelta

from sqlalchemy import Connection, case, delete, exists, or_, select, update

from db.clock import now
from db.removals import ROWS_AT_ONCE, delete_first
from db.tables import changes, scans, tenants

SCANS_AT_ONCE = 100


def prune_some(connection: Connection, days: float) -> int:
    """One batch, of what ended longer ago than so many days; how many rows. 0: there is nothing to do, or somebody
    else does it.

    Where the feed begins is moved in the same transaction: who reads it looks at that after what he has read.
    """
    most = ROWS_AT_ONCE[connection.dialect.name]
    oldest = _oldest(connection, now(connection) - timedelta(days=days), most)
    if not oldest:
        return 0
    up_to: dict[int, int] = {}
    for _, tenant_id, fence in oldest:
        up_to[tenant_id] = max(up_to.get(tenant_id, 0), fence or 0)
    _move_the_beginning(connection, up_to)
    rows, empty = 0, set()
    for tenant_id, fence in sorted(up_to.items()):
        left = most - rows
        if left <= 0:
            break
        deleted = delete_first(connection, changes, left, changes.c.tenant_id == tenant_id, changes.c.fence <= fence)
        rows += deleted
        if deleted < left:
            empty.add(tenant_id)
    ended = [scan_id for scan_id, tenant_id, _ in oldest if tenant_id in empty]
    return rows + connection.execute(delete(scans).where(scans.c.id.in_(ended))).rowcount


def _oldest(connection: Connection, before: datetime, most: int) -> list[tuple[str, int, int | None]]:
    """Some that ended before: ids, tenants, fences. They take no more than so many rows along, or it is one alone."""
    s, later = scans.c, scans.alias()
    newer = exists().where(later.c.tenant_id == s.tenant_id, later.c.fence > s.fence, later.c.finished_at.is_not(None))
    query = (
        select(s.id, s.tenant_id, s.fence, (s.shards + s.errors_total + s.skipped_total).label("rows"))
        .where(s.id < _first_id_of(before), s.finished_at < before, or_(s.fence.is_(None), newer))
        .order_by(s.id)
        .limit(SCANS_AT_ONCE)
        .with_for_update(skip_locked=True, of=scans)
    )
    found = connection.execute(query).all()
    fits = sum(1 for rows in itertools.accumulate(row.rows for row in found) if rows <= most)
    return [(row.id, row.tenant_id, row.fence) for row in found[: max(fits, 1)]]


def _first_id_of(instant: datetime) -> str:
    """Scans' ids begin with the millisecond in which they were asked for."""
    return str(uuid.UUID(int=int(instant.timestamp() * 1000) << 80))


def _move_the_beginning(connection: Connection, up_to: Mapping[int, int]) -> None:
    t = tenants.c
    fence = case(up_to, value=t.id)
    connection.execute(update(tenants).where(t.id.in_(up_to), t.pruned_fence < fence).values(pruned_fence=fence))
