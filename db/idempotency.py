"""What a caller was answered under an `Idempotency-Key`: the same key gives the same scan for a day."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from sqlalchemy import Connection, bindparam, delete, select
from sqlalchemy.sql.dml import ReturningInsert

from db.bulk import inserting
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


_FIND = select(*(idempotency.c[name] for name in Answered._fields)).where(
    idempotency.c.caller == bindparam("of"), idempotency.c.key == bindparam("under"), idempotency.c.at > clock(-KEPT_S)
)


def find(connection: Connection, caller: str, key: str) -> Answered | None:
    """What was answered; None: nothing, or too long ago."""
    row = connection.execute(_FIND, {"of": caller, "under": key}).first()
    return None if row is None else Answered(*row)


def keep(connection: Connection, caller: str, key: str, answered: Answered) -> bool:
    """Remember it; False where somebody else did so at this moment, and all that was done for it must be undone."""
    row = {"caller": caller, "key": key} | answered._asdict()
    return connection.execute(_keeping(connection.dialect.name), row).first() is not None


@functools.cache
def _keeping(dialect: str) -> ReturningInsert[Any]:
    """In the place of one that is too old, but of no other."""
    i, new = idempotency.c, inserting(dialect, idempotency).values(at=clock())
    said = {name: new.excluded[name] for name in ("at", *Answered._fields)}
    kept = new.on_conflict_do_update(index_elements=[i.caller, i.key], set_=said, where=i.at <= clock(-KEPT_S))
    return kept.returning(i.key)


def prune(connection: Connection) -> int:
    """Forget some of those that are too old; how many."""
    i = idempotency.c
    is_old = i.at <= clock(-KEPT_S)
    some = delete(idempotency).where(is_old)
    last = connection.execute(select(i.at).where(is_old).order_by(i.at).offset(BATCH).limit(1)).scalar()
    if last is not None:
        some = some.where(i.at < last)
    return connection.execute(some).rowcount
