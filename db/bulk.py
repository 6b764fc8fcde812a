"""Many rows at once, by one statement each on PostgreSQL: a merge of very many by binary COPY through a staging table,
all else by an array for each column. (To send row after row takes five times as long for fifty.)
"""

from __future__ import annotations

import functools
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Table, Uuid

from db.clock import Instant, clock

if TYPE_CHECKING:
    from sqlalchemy.dialects import postgresql, sqlite

# Below this many rows, making and dropping a staging table costs more than it saves.
COPY_FROM_ROWS = 500


def merge(connection: Connection, table: Table, columns: Sequence[str], rows: Sequence[Iterable[Any]],
          on_conflict: str, alike: Mapping[str, clock] | None = None) -> None:  # fmt: skip
    """Insert `rows` (values in the order of `columns`) into `table`; what happens to those that are there already
    is said by `on_conflict`, the text of an ON CONFLICT clause. No two rows of one call may have the same key. What
    a row makes of itself as it is read is not kept. `alike`: what each row gets besides.
    """
    if not rows:
        return
    rows, texts = _as_stored(connection, table, columns, rows), _texts(connection, alike)
    names, values = ", ".join([*columns, *texts]), ", ".join([*columns, *texts.values()])
    if connection.dialect.name == "sqlite":
        marks = ", ".join([*["?"] * len(columns), *texts.values()])
        statement = f"INSERT INTO {table.name} ({names}) VALUES ({marks}) {on_conflict}"
        for first in range(0, len(rows), COPY_FROM_ROWS):  # what the rows make of themselves is large
            connection.exec_driver_sql(statement, [tuple(row) for row in rows[first : first + COPY_FROM_ROWS]])
    elif len(rows) >= COPY_FROM_ROWS:
        stage = f"stage_{table.name}"
        _copy(connection, table, stage, columns, rows)
        connection.exec_driver_sql(f"INSERT INTO {table.name} ({names}) SELECT {values} FROM {stage} {on_conflict}")
        connection.exec_driver_sql(f"DROP TABLE {stage}")
    else:
        source, arrays = _arrays(table, columns, rows)
        connection.exec_driver_sql(
            f"INSERT INTO {table.name} ({names}) SELECT {values} FROM {source} {on_conflict}", arrays
        )


def set_values(connection: Connection, table: Table, columns: Sequence[str], keys: Sequence[str],
               rows: Sequence[Iterable[Any]], alike: Mapping[str, clock | None] | None = None,
               where: str = "") -> None:  # fmt: skip
    """Set `columns` of the rows of `table` with these `keys`, where they are also as the text `where` says. `rows`:
    values in the order of `columns`, then `keys`; `alike`: what each row gets besides.
    """
    if not rows:
        return
    rows, texts = _as_stored(connection, table, [*columns, *keys], rows), _texts(connection, alike)
    values: Any
    if connection.dialect.name == "sqlite":
        marks, source, values = dict.fromkeys([*columns, *keys], "?"), "", [tuple(row) for row in rows]
    else:
        table_of_them, values = _arrays(table, [*columns, *keys], rows)
        marks, source = {name: f"given.{name}" for name in [*columns, *keys]}, f"FROM {table_of_them}"
    given = ", ".join(f"{name} = {text}" for name, text in [*((one, marks[one]) for one in columns), *texts.items()])
    which = " AND ".join([*(f"{table.name}.{name} = {marks[name]}" for name in keys), *([where] if where else [])])
    connection.exec_driver_sql(f"UPDATE {table.name} SET {given} {source} WHERE {which}", values)


def _arrays(table: Table, columns: Sequence[str], rows: Sequence[Iterable[Any]]) -> tuple[str, tuple[list[Any], ...]]:
    """The rows as a table `given`, and what to fill into its text: a list for each column."""
    types = [_type_name(table, column) for column in columns]
    source = f"unnest({', '.join(f'%s::{name}[]' for name in types)}) AS given ({', '.join(columns)})"
    return source, tuple(map(list, zip(*rows, strict=True)))


def _copy(connection: Connection, table: Table, stage: str, columns: Sequence[str],
          rows: Sequence[Iterable[Any]]) -> None:  # fmt: skip
    connection.exec_driver_sql(
        f"CREATE TEMPORARY TABLE {stage} ON COMMIT DROP AS SELECT {', '.join(columns)} FROM {table.name} WITH NO DATA"
    )
    driver = connection.connection.driver_connection
    assert driver is not None
    with (
        driver.cursor() as cursor,
        cursor.copy(f"COPY {stage} ({', '.join(columns)}) FROM STDIN (FORMAT BINARY)") as copy,
    ):
        copy.set_types([_type_name(table, column) for column in columns])
        for row in rows:
            copy.write_row(tuple(row))


def _texts(connection: Connection, alike: Mapping[str, clock | None] | None) -> dict[str, str]:
    return {
        name: "NULL" if value is None else str(value.compile(dialect=connection.dialect))
        for name, value in (alike or {}).items()
    }


def _as_stored(connection: Connection, table: Table, columns: Sequence[str],
               rows: Sequence[Iterable[Any]]) -> Sequence[Iterable[Any]]:  # fmt: skip
    """Rows go to the driver as they are: only the ids of scans, which are text with us, and on SQLite times differ from
    what is stored.
    """
    changed = {
        i: made for i, name in enumerate(columns) if (made := _stored(connection, table.c[name].type)) is not None
    }
    if not changed:
        return rows
    return [tuple(changed[i](value) if i in changed else value for i, value in enumerate(row)) for row in rows]


def _stored(connection: Connection, type_: Any) -> Any:
    if isinstance(type_, Uuid):
        return functools.partial(id_as_stored, connection)
    if isinstance(type_, Instant) and connection.dialect.name == "sqlite":
        return lambda value: type_.process_bind_param(value, connection.dialect)
    return None


def id_as_stored(connection: Connection, value: str) -> uuid.UUID | str:
    """A scan's id as the driver wants it."""
    return value.replace("-", "") if connection.dialect.name == "sqlite" else uuid.UUID(value)


@functools.cache
def _type_name(table: Table, column: str) -> str:
    """As PostgreSQL calls it, without its size."""
    from sqlalchemy.dialects import postgresql

    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    return str(table.c[column].type.compile(dialect=dialect)).lower().split("(")[0]


def inserting(dialect: str, table: Table) -> sqlite.Insert | postgresql.Insert:
    """An INSERT that may say what becomes of a conflict. (PostgreSQL's dialect brings all its drivers, which takes
    longer to import than a small scan: SQLite does without.)
    """
    if dialect == "sqlite":
        from sqlalchemy.dialects import sqlite

        return sqlite.insert(table)
    from sqlalchemy.dialects import postgresql

    return postgresql.insert(table)


def run_many(connection: Connection, sql: str, rows: Sequence[tuple[Any, ...]]) -> int:
    """Run one statement (marks written as ?) for each row; the number of rows that it matched in all."""
    if not rows:
        return 0
    if connection.dialect.name != "sqlite":
        sql = sql.replace("?", "%s")
    return connection.exec_driver_sql(sql, list(rows)).rowcount
