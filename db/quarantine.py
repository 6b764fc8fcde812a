"""Entries that are not touched any more, since whoever did so died: said by whom, why, and until when."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, delete, insert, or_, select, true

from db.clock import clock
from db.tables import quarantine, tenants


@dataclass(frozen=True, slots=True)
class Quarantined:
    """An entry in quarantine; `until` none: not before somebody releases it."""

    tenant: str
    path: bytes
    reason: str
    fence: int
    since: datetime
    until: datetime | None


def _key(path: bytes) -> bytes:
    return hashlib.blake2b(path, digest_size=16).digest()


def _is_over() -> ColumnElement[bool]:
    return quarantine.c.until <= clock()


def add(connection: Connection, tenant_id: int, path: bytes, reason: str, *, fence: int, for_s: float | None) -> None:
    """From now on nobody touches this path, for so many seconds or (None) until it is released."""
    q, key = quarantine.c, _key(path)
    old = delete(quarantine).where(q.tenant_id == tenant_id, or_(q.path_hash == key, _is_over()))
    connection.execute(old)
    until = None if for_s is None else clock(for_s)
    connection.execute(
        insert(quarantine).values(tenant_id=tenant_id, path_hash=key, path=path, reason=reason, fence=fence,
                                  since=clock(), until=until)
    )  # fmt: skip


def reasons(connection: Connection, tenant_id: int) -> Mapping[bytes, str]:
    """What is in quarantine of a tenant, each path with the reason."""
    q = quarantine.c
    query = select(q.path, q.reason).where(q.tenant_id == tenant_id, or_(q.until.is_(None), ~_is_over()))
    return {row.path: row.reason for row in connection.execute(query)}


def listed(connection: Connection, tenant_id: int) -> Sequence[Quarantined]:
    """What is in quarantine of a tenant, by path."""
    return _listed(connection, quarantine.c.tenant_id == tenant_id)


def listed_of_all(connection: Connection) -> Sequence[Quarantined]:
    """What is in quarantine of every tenant, by tenant and path."""
    return _listed(connection, true())


def _listed(connection: Connection, which: ColumnElement[bool]) -> Sequence[Quarantined]:
    q = quarantine.c
    query = (
        select(tenants.c.name.label("tenant"), q.path, q.reason, q.fence, q.since, q.until)
        .join(tenants, tenants.c.id == q.tenant_id)
        .where(which, or_(q.until.is_(None), ~_is_over()))
        .order_by(tenants.c.name, q.path)
    )
    return [Quarantined(**row) for row in connection.execute(query).mappings()]


def release(connection: Connection, tenant_id: int, path: bytes | None) -> int:
    """Let a path (None: all of the tenant's) be touched again; how many were in quarantine."""
    query = delete(quarantine).where(quarantine.c.tenant_id == tenant_id)
    if path is not None:
        query = query.where(quarantine.c.path_hash == _key(path))
    return connection.execute(query).rowcount


def acquit(connection: Connection, tenant_id: int, fence: int) -> None:
    """Release what the scan of that fence put into quarantine for a time."""
    q = quarantine.c
    connection.execute(delete(quarantine).where(q.tenant_id == tenant_id, q.fence == fence, q.until.is_not(None)))
