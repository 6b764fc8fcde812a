"""Tenants that were removed, and of whom rows are left: nobody finds these, and they are deleted in batches.

In one transaction, a large tenant's removal would hold its locks, and on SQLite keep every writer waiting, for minutes.
"""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import ColumnElement, Connection, Table, delete, insert, select, tuple_

from db.clock import clock
from db.tables import changes, directories, directory_ranges, files, removals

# Some 200 ms each.
ROWS_AT_ONCE = {"sqlite": 5_000, "postgresql": 20_000}
_TABLES = (changes, files, directory_ranges, directories)


class Deleted(NamedTuple):
    """What was deleted: so many rows of a tenant; `over`: that was the last of it."""

    tenant_id: int
    rows: int
    over: bool


def add(connection: Connection, tenant_id: int) -> None:
    """A tenant is no more, and what it left is to be deleted."""
    connection.execute(insert(removals).values(tenant_id=tenant_id, since=clock()))


def is_under_way(connection: Connection, tenant_id: int) -> bool:
    """Is anything of it left?"""
    return connection.execute(select(removals).where(removals.c.tenant_id == tenant_id)).first() is not None


def delete_some(connection: Connection) -> Deleted | None:
    """One batch, of whoever was removed first and is not seen to by somebody else; None: there is nothing to do."""
    next_one = select(removals.c.tenant_id).order_by(removals.c.since).limit(1).with_for_update(skip_locked=True)
    tenant_id = connection.execute(next_one).scalar()
    if tenant_id is None:
        return None
    for table in _TABLES:
        rows = delete_first(connection, table, ROWS_AT_ONCE[connection.dialect.name], table.c.tenant_id == tenant_id)
        if rows:
            return Deleted(tenant_id, rows, False)
    connection.execute(delete(removals).where(removals.c.tenant_id == tenant_id))
    return Deleted(tenant_id, 0, True)


def delete_first(connection: Connection, table: Table, limit: int, *which: ColumnElement[bool]) -> int:
    """Delete the first rows that are meant, by primary key, at most so many; how many."""
    key = tuple_(*table.primary_key)
    last = connection.execute(
        select(*key.clauses).where(*which).order_by(*key.clauses).offset(limit - 1).limit(1)
    ).first()
    some = delete(table).where(*which)
    if last is not None:
        some = some.where(key <= tuple_(*last))
    return connection.execute(some).rowcount
