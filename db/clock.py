"""Time as the database tells it: the type of a column that holds an instant, and the clock that leases live by.

The clock is the wall clock of the database server, also inside a transaction (`clock_timestamp()`, where `now()`
would stand still); on SQLite it is the host's, by a function that each connection registers.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import BigInteger, Connection, DateTime, Dialect, select
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.expression import ColumnElement
from sqlalchemy.sql.visitors import InternalTraversal
from sqlalchemy.types import TypeDecorator, TypeEngine

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Instant(TypeDecorator[datetime]):
    """A point in time with microseconds, UTC: timestamptz on PostgreSQL, microseconds since the epoch on SQLite."""

    impl = DateTime
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name == "sqlite":
            return dialect.type_descriptor(BigInteger())
        return dialect.type_descriptor(DateTime(timezone=True))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        if value is None or dialect.name != "sqlite":
            return value
        return (value - EPOCH) // timedelta(microseconds=1)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if dialect.name == "sqlite":
            return EPOCH + timedelta(microseconds=value)
        return value.astimezone(UTC)  # type: ignore[no-any-return]


class clock(ColumnElement[datetime]):
    """The database's wall clock, plus a whole number of milliseconds (rounded from seconds)."""

    type = Instant()
    # What is said of it in the key under which a compiled statement is kept: without, each is compiled anew.
    _traverse_internals = [("plus_ms", InternalTraversal.dp_plain_obj)]  # noqa: RUF012

    def __init__(self, plus_s: float = 0.0) -> None:
        self.plus_ms = round(plus_s * 1000)


@compiles(clock, "sqlite")
def _on_sqlite(element: clock, compiler: Any, **kw: Any) -> str:
    return f"(strandline_clock() + {element.plus_ms * 1000})"


@compiles(clock, "postgresql")
def _on_postgresql(element: clock, compiler: Any, **kw: Any) -> str:
    return f"(clock_timestamp() + interval '{element.plus_ms} milliseconds')"


def now(connection: Connection) -> datetime:
    """The time by that clock."""
    found = connection.execute(select(clock())).scalar_one()
    assert isinstance(found, datetime)
    return found


def sqlite_clock() -> int:
    """Microseconds since the epoch; what `strandline_clock()` answers on SQLite."""
    return time.time_ns() // 1000
