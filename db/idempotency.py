"""What a caller was answered under an `Idempotency-Key`: the same key gives the same scan for a day."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import Connection, delete, select
from sqlalchemy.dialects import postgresql, sqlite

from db.clock import clock
from db.tables import idempotency

KEPT_S = 24 * 3600.0
# Deleted at once at most.
BATCH = 5_000


class Answered(NamedTuple):
    """What was asked under a key, and which scan that gave; `is_new`: it was made for it, not joined."""

    tenant_id: int
    scan_id: str
    fingerprint: bytes
    is_new: bool


def find(connection: Connection, caller: str, key: str) -> Answered | None:
    """What was answered; None: nothing, or too long ago."""
    i = idempotency.c
    query = select(i.tenant_id, i.scan_id, i.fingerprint, i.is_new)
    row = connection.execute(query.where(i.caller == caller, i.key == key, i.at > clock(-KEPT_S))).first()
    return None if row is None else Answered(*row)


def keep(connection: Connection, caller: str, key: str, answered: Answered) -> bool:
    """Remember it; False where somebody else did so at this moment, and all that was done for it must be undone."""
    i = idempotency.c
    insert_into = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    new = insert_into(idempotency).values(caller=caller, key=key, at=clock(), **answered._asdict())
    said = {name: new.excluded[name] for name in ("at", *Answered._fields)}
    kept = new.on_conflict_do_update(index_elements=[i.caller, i.key], set_=said, where=i.at <= clock(-KEPT_S))
    return connection.execute(kept.returning(i.key)).first() is not None


def prune(connection: Connection) -> int:
    """Forget some of those that are too old; how many."""
    i = idempotency.c
    is_old = i.at <= clock(-KEPT_S)
    some = delete(idempotency).where(is_old)
    last = connection.execute(select(i.at).where(is_old).order_by(i.at).offset(BATCH).limit(1)).scalar()
    if last is not None:
        some = some.where(i.at < last)
    return connection.execute(some).rowcount
