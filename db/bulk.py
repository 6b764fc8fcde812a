"""Many rows at once: one merge a table, by binary COPY through a staging table on PostgreSQL where there are many."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, Table, Uuid

# Below this many rows, making and dropping a staging table costs more than it saves.
COPY_FROM_ROWS = 500


def merge(connection: Connection, table: Table, columns: Sequence[str], rows: Sequence[Iterable[Any]],
          on_conflict: str) -> None:  # fmt: skip
    """Insert `rows` (values in the order of `columns`) into `table`; what happens to those that are there already
    is said by `on_conflict`, the text of an ON CONFLICT clause. No two rows of one call may have the same key. What
    a row makes of itself as it is read is not kept.
    """
    if not rows:
        return
    names = ", ".join(columns)
    rows = _with_ids_as_stored(connection, table, columns, rows)
    if connection.dialect.name == "postgresql" and len(rows) >= COPY_FROM_ROWS:
        _merge_by_copy(connection, table, names, columns, rows, on_conflict)
        return
    marks = ", ".join(["?" if connection.dialect.name == "sqlite" else "%s"] * len(columns))
    statement = f"INSERT INTO {table.name} ({names}) VALUES ({marks}) {on_conflict}"
    for first in range(0, len(rows), COPY_FROM_ROWS):
        connection.exec_driver_sql(statement, [tuple(row) for row in rows[first : first + COPY_FROM_ROWS]])


def _merge_by_copy(connection: Connection, table: Table, names: str, columns: Sequence[str],
                   rows: Sequence[Iterable[Any]], on_conflict: str) -> None:  # fmt: skip
    stage = f"stage_{table.name}"
    connection.exec_driver_sql(
        f"CREATE TEMPORARY TABLE {stage} ON COMMIT DROP AS SELECT {names} FROM {table.name} WITH NO DATA"
    )
    driver = connection.connection.driver_connection
    assert driver is not None
    with (
        driver.cursor() as cursor,
        cursor.copy(f"COPY {stage} ({names}) FROM STDIN (FORMAT BINARY)") as copy,
    ):
        copy.set_types([_type_name(connection, table, column) for column in columns])
        for row in rows:
            copy.write_row(tuple(row))
    connection.exec_driver_sql(f"INSERT INTO {table.name} ({names}) SELECT {names} FROM {stage} {on_conflict}")
    connection.exec_driver_sql(f"DROP TABLE {stage}")


def _with_ids_as_stored(connection: Connection, table: Table, columns: Sequence[str],
                        rows: Sequence[Iterable[Any]]) -> Sequence[Iterable[Any]]:  # fmt: skip
    """Rows go to the driver as they are: only the ids of scans, which are text with us, differ from what is stored."""
    places = {i for i, column in enumerate(columns) if isinstance(table.c[column].type, Uuid)}
    if not places:
        return rows
    return [
        tuple(id_as_stored(connection, value) if i in places else value for i, value in enumerate(row)) for row in rows
    ]


def id_as_stored(connection: Connection, value: str) -> uuid.UUID | str:
    """A scan's id as the driver wants it."""
    return value.replace("-", "") if connection.dialect.name == "sqlite" else uuid.UUID(value)


def _type_name(connection: Connection, table: Table, column: str) -> str:
    """As PostgreSQL calls it, without its size."""
    return str(table.c[column].type.compile(dialect=connection.dialect)).lower().split("(")[0]


def run_many(connection: Connection, sql: str, rows: Sequence[tuple[Any, ...]]) -> int:
    """Run one statement (marks written as ?) for each row; the number of rows that it matched in all."""
    if not rows:
        return 0
    if connection.dialect.name != "sqlite":
        sql = sql.replace("?", "%s")
    return connection.exec_driver_sql(sql, list(rows)).rowcount
