"""Tenants and suspect scans at a glance, for a page that a person looks at."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Connection, Select, and_, func, select

from db.tables import said, scans, tenants
from db.types import ScanState


class Glance(NamedTuple):
    """A tenant and its newest scan; `complete_at`: when its last complete scan began, which had so many `files`."""

    tenant: str
    tier: str
    enabled: bool
    interval_s: int
    complete_at: datetime | None
    files: int | None
    scan_id: str | None
    state: str | None
    requested_at: datetime | None


class Suspect(NamedTuple):
    """A scan whose deletions wait for somebody's word; `doubt`: why."""

    tenant: str
    scan_id: str
    finished_at: datetime
    doubt: str


def tenants_after(connection: Connection, name: str, limit: int, names: Collection[str] | None) -> Sequence[Glance]:
    """The next tenants by name; of `names` alone, None: of all."""
    t, newest = tenants.c, scans.alias("newest").c
    last = (
        select(newest.id).where(newest.tenant_id == t.id).order_by(newest.requested_at.desc(), newest.id).limit(1)
    )  # fmt: skip
    query = (
        select(t.name, t.tier, t.enabled, t.interval_s, t.watermark_started_at, t.watermark_files,
               scans.c.id, scans.c.state, scans.c.requested_at)
        .select_from(tenants.outerjoin(scans, scans.c.id == last.scalar_subquery()))
        .where(t.name > name)
        .order_by(t.name)
        .limit(limit)
    )  # fmt: skip
    return [Glance._make(row) for row in connection.execute(_of(query, names))]


def suspects(connection: Connection, limit: int, names: Collection[str] | None) -> Sequence[Suspect]:
    """Suspect scans that no complete one has followed, the latest first, one a tenant; of `names`, None: of all."""
    t, s = tenants.c, scans.c
    newest = (
        select(func.max(s.fence).label("fence"), s.tenant_id)
        .where(s.state == said(ScanState.SUSPECT))
        .group_by(s.tenant_id)
        .subquery()
    )
    query = (
        select(t.name, s.id, s.finished_at, func.coalesce(s.doubt, ""))
        .select_from(
            newest.join(scans, and_(s.tenant_id == newest.c.tenant_id, s.fence == newest.c.fence)).join(
                tenants, t.id == s.tenant_id
            )
        )
        .where(s.fence > func.coalesce(t.watermark_fence, 0))
        .order_by(s.finished_at.desc())
        .limit(limit)
    )
    return [Suspect._make(row) for row in connection.execute(_of(query, names))]


def _of(query: Select[tuple[object, ...]], names: Collection[str] | None) -> Select[tuple[object, ...]]:
    return query if names is None else query.where(tenants.c.name.in_(names))
