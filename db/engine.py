"""Connecting: one engine a process, made from a URL, and transactions on it."""

from __future__ import annotations

import logging
import random
import sqlite3
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.pool import QueuePool

from db import row_security
from db.clock import sqlite_clock
from db.failures import Failure, failure_of
from db.types import UsageError

log = logging.getLogger(__name__)

BUSY_TIMEOUT_S = 30
# The same for whoever has somebody waiting at the other end.
HURRIED_BUSY_TIMEOUT_S = 1.2
# Before each repetition of a transaction, at most; half of it is chance, so that two do not meet again.
PAUSES_S = (0.05, 0.1, 0.2, 0.4, 0.8)
# None begins later, so that waiting for locks again and again does not outlast a lease.
REPEATED_FOR_S = 20.0
HURRIED_REPEATED_FOR_S = 0.8

P = ParamSpec("P")
T = TypeVar("T")


# The driver asks each value but numbers and text how it wants to be stored, and each "no" is an exception raised and
# dropped: a tenth of a first scan. Where a type says at once that it stays as it is, there is none.
sqlite3.register_adapter(bytes, bytes)
sqlite3.register_adapter(type(None), lambda none: none)


def connect(url: str, pool_size: int = 2, *, hurried: bool = False) -> Engine:
    """An engine for `sqlite:///…` or `postgresql+psycopg://…`.

    Connections are opened when first used, so an engine may be made before a fork, but not used. `hurried`: somebody
    waits for each answer, and would rather have none than a late one: all bounds are within two seconds.
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
        return _sqlite(url, pool_size, hurried)
    if parsed.drivername == "postgresql+psycopg":
        from db import postgresql  # its driver is not cheap to import, and SQLite needs none of it

        return postgresql.engine(url, pool_size, hurried)
    raise UsageError(
        f"STRANDLINE_DATABASE_URL begins with {parsed.drivername!r}; "
        "use sqlite:///FILE or postgresql+psycopg://USER@HOST/DATABASE"
    )


def _sqlite(url: str, pool_size: int, hurried: bool) -> Engine:
    # autocommit mode of the driver: SQLAlchemy's BEGIN is ours to say (below), not guessed from the statement.
    busy_s = HURRIED_BUSY_TIMEOUT_S if hurried else BUSY_TIMEOUT_S
    pool = {"pool_size": pool_size, "max_overflow": 0, "pool_timeout": busy_s} if hurried else {
        "pool_size": 1, "max_overflow": 4}  # fmt: skip
    engine = create_engine(
        url, poolclass=QueuePool, **pool, execution_options={"hurried": hurried},
        connect_args={"timeout": busy_s, "isolation_level": None, "check_same_thread": False},
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


def patient(engine: Engine) -> Engine:
    """The same engine without a bound on each statement: for what grows with a tenant and cannot be cut (migrating,
    removing, publishing).
    """
    return engine.execution_options(patient=True, hurried=False)


def narrowed(engine: Engine, names: Collection[str] | None) -> Engine:
    """The same engine, whose transactions see and write these tenants alone (None: all); PostgreSQL with the role of
    db.row_security.
    """
    return engine.execution_options(as_well=f"; {row_security.narrowing(names)}")


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A short read transaction (on SQLite it takes no write lock)."""
    with engine.connect().execution_options(reading=True) as connection, connection.begin():
        yield connection


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """One write transaction, committed at the end (on SQLite it takes the write lock first); tried once.

    The program says `write`, which repeats; this is for what cannot be, and for tests.
    """
    with engine.begin() as connection:
        yield connection


def write(engine: Engine, work: Callable[Concatenate[Connection, P], T], *args: P.args, **more: P.kwargs) -> T:
    """`work(connection, …)` in a write transaction, and its answer once that is committed.

    Where the database undoes it for the sake of another transaction, all of it is done again, a few times: so `work`
    changes nothing but the database. An error after which nobody knows whether it was committed is never repeated.
    """
    hurried = engine.get_execution_options().get("hurried", False)
    last_s = time.monotonic() + (HURRIED_REPEATED_FOR_S if hurried else REPEATED_FOR_S)
    for pause_s in PAUSES_S:
        try:
            with writing(engine) as connection:
                return work(connection, *args, **more)
        except DBAPIError as error:
            if failure_of(error) is not Failure.REPEAT or time.monotonic() > last_s:
                raise
            log.info("a transaction is done again: %s", error.orig)
        time.sleep(random.uniform(pause_s / 2, pause_s))
    with writing(engine) as connection:
        return work(connection, *args, **more)
