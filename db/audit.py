"""The log of what was changed and asked for, by whom: written in the transaction of the change itself."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, Select, delete, func, insert, select

from db.clock import clock
from db.tables import audit

# Whatever the time that they are kept for: at most so many rows.
ROWS = 1_000_000
BATCH = 5_000
# Who changes something by a command.
CLI = "cli"
_NOTE = insert(audit).values(at=clock()).inline()  # nobody asks for its id


class Entry(NamedTuple):
    """A row of the log."""

    id: int
    at: datetime
    caller: str
    action: str
    tenant: str | None
    details: dict[str, Any]


def note(connection: Connection, caller: str, action: str, tenant: str | None, **details: Any) -> None:
    """Write down what is being done. `details` must hold no secret."""
    note_all(connection, caller, action, [(tenant, details)])


def note_all(
    connection: Connection, caller: str, action: str, some: Sequence[tuple[str | None, Mapping[str, Any]]]
) -> None:
    """The same of several: of which tenant, and with which details."""
    connection.execute(
        _NOTE,
        [{"caller": caller, "action": action, "tenant": tenant, "details": json.dumps(details, default=_text)}
         for tenant, details in some],
    )  # fmt: skip


def _text(value: object) -> str:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)


def newest(connection: Connection, limit: int) -> Sequence[Entry]:
    """The newest rows first, of all tenants."""
    return _entries(connection, _newest(limit))


def newest_of(connection: Connection, tenant: str, limit: int) -> Sequence[Entry]:
    """The newest rows first, of one tenant."""
    return _entries(connection, _newest(limit).where(audit.c.tenant == tenant))


def _newest(limit: int) -> Select[Any]:
    return select(*(audit.c[name] for name in Entry._fields)).order_by(audit.c.id.desc()).limit(limit)


def _entries(connection: Connection, query: Select[Any]) -> Sequence[Entry]:
    return [Entry._make((*row[:5], json.loads(row[5]))) for row in connection.execute(query)]


def prune(connection: Connection, days: float) -> int:
    """Delete some of those that are older, or more than ROWS behind the newest; how many."""
    a = audit.c
    newest_id = connection.execute(select(func.max(a.id))).scalar()
    if newest_id is None:
        return 0
    query = select(func.max(a.id)).where(a.at <= clock(-days * 86400))
    last = max(connection.execute(query).scalar() or 0, newest_id - ROWS)
    first = connection.execute(select(func.min(a.id))).scalar_one()
    return connection.execute(delete(audit).where(a.id <= min(last, first + BATCH - 1))).rowcount
