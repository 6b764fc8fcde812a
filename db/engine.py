"""Connecting: one engine a process, made from a URL, set up so that no statement and no lock waits without end."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.pool import QueuePool

from db.clock import sqlite_clock
from db.types import UsageError

BUSY_TIMEOUT_S = 30
# Below the shortest lease, so that a stuck writer is thrown out before its shard is given to another.
LOCK_TIMEOUT_S = 10
IDLE_IN_TRANSACTION_TIMEOUT_S = 15


# The driver asks each value but numbers and text how it wants to be stored, and each "no" is an exception raised and
# dropped: a tenth of a first scan. Where a type says at once that it stays as it is, there is none.
sqlite3.register_adapter(bytes, bytes)
sqlite3.register_adapter(type(None), lambda none: none)


def connect(url: str, pool_size: int = 2) -> Engine:
    """An engine for `sqlite:///…` or `postgresql+psycopg://…`.

    Connections are opened when first used, so an engine may be made before a fork, but not used.
    Raises UsageError where the URL is neither.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:  # what they say may quote the password, taken for a port
        raise UsageError(
            "STRANDLINE_DATABASE_URL is no database address; "
            "use sqlite:///FILE or postgresql+psycopg://USER@HOST/DATABASE"
        ) from error
    if parsed.get_backend_name() == "sqlite":
        return _sqlite(url)
    if parsed.drivername == "postgresql+psycopg":
        return _postgresql(url, pool_size)
    raise UsageError(
        f"STRANDLINE_DATABASE_URL begins with {parsed.drivername!r}; "
        "use sqlite:///FILE or postgresql+psycopg://USER@HOST/DATABASE"
    )


def _sqlite(url: str) -> Engine:
    # autocommit mode of the driver: SQLAlchemy's BEGIN is ours to say (below), not guessed from the statement.
    engine = create_engine(
        url, poolclass=QueuePool, pool_size=1, max_overflow=4,
        connect_args={"timeout": BUSY_TIMEOUT_S, "isolation_level": None, "check_same_thread": False},
    )  # fmt: skip

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: Any) -> None:
        connection.create_function("strandline_clock", 0, sqlite_clock)
        _use_wal(connection)
        for pragma in ("synchronous=NORMAL", "foreign_keys=ON", "temp_store=MEMORY"):
            connection.execute(f"PRAGMA {pragma}").close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # A deferred transaction that reads and then writes fails at once where another wrote in between.
        reading = connection.get_execution_options().get("reading", False)
        connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")

    return engine


def _use_wal(connection: sqlite3.Connection) -> None:
    """Write-ahead log; the file remembers it. SQLite does not wait for a lock here, so that we must."""
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL").close()
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _postgresql(url: str, pool_size: int) -> Engine:
    options = {
        "lock_timeout": f"{LOCK_TIMEOUT_S}s",
        "idle_in_transaction_session_timeout": f"{IDLE_IN_TRANSACTION_TIMEOUT_S}s",
        "timezone": "UTC",
    }
    return create_engine(
        url, poolclass=QueuePool, pool_size=pool_size, max_overflow=4, pool_pre_ping=True, pool_timeout=30,
        connect_args={
            "options": " ".join(f"-c {name}={value}" for name, value in options.items()),
            "application_name": "strandline", "connect_timeout": 10,
            "keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3,
        },
    )  # fmt: skip


def disk_full(error: DBAPIError) -> bool:
    """Did a statement fail for want of room, so that trying again soon does not help?"""
    if getattr(error.orig, "sqlstate", None) == "53100":  # PostgreSQL's disk_full
        return True
    return getattr(error.orig, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A short read transaction (on SQLite it takes no write lock)."""
    with engine.connect().execution_options(reading=True) as connection, connection.begin():
        yield connection


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """A write transaction, committed at the end (on SQLite it takes the write lock first)."""
    with engine.begin() as connection:
        yield connection
