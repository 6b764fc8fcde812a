"""What a database's error means for whoever asked: to be tried at once, or later, or not at all."""

from __future__ import annotations

import sqlite3
from enum import StrEnum

from sqlalchemy.exc import DBAPIError, OperationalError


class Failure(StrEnum):
    """What is to be done about it."""

    REPEAT = "repeat"  # undone for the sake of another transaction: the whole of it may succeed at once
    LATER = "later"  # trouble of the field: away, restarting, read-only, at its limits, too slow
    FULL = "full"  # no room, or a failing disk: trying again soon does not help
    OURS = "ours"  # the statement or its values are wrong, and so they will be the next time


# deadlock_detected, serialization_failure, lock_not_available. All three are said before anything was committed.
_REPEAT = frozenset({"40P01", "40001", "55P03"})
_FULL = frozenset({"53100"})
# By class: connection (a pooler speaks in it, too), rollback, insufficient resources, operator intervention
# (restarts, timeouts, poolers' pauses), system error.
_LATER_CLASSES = frozenset({"08", "40", "53", "57", "58"})
# read_only_sql_transaction, and sessions ended for being idle in a transaction or too long in one; a password or a
# database that is missing is set right by an operator, without which no other statement succeeds either.
_LATER = frozenset({"25006", "25P03", "25P04", "28000", "28P01", "3D000"})

_SQLITE_FULL = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR})
_SQLITE_LATER = frozenset({
    sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_INTERRUPT, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PROTOCOL,
})  # fmt: skip


def failure_of(error: DBAPIError) -> Failure:
    """What an error of the driver means, by the code that the database gave."""
    if isinstance(error.orig, sqlite3.Error):
        return _of_sqlite(getattr(error.orig, "sqlite_errorcode", None))
    state = getattr(error.orig, "sqlstate", None)
    if state is not None:
        return _of_postgresql(state)
    # The driver itself: no connection, or none any more.
    return Failure.LATER if error.connection_invalidated or isinstance(error, OperationalError) else Failure.OURS


def _of_postgresql(state: str) -> Failure:
    if state in _REPEAT:
        return Failure.REPEAT
    if state in _FULL:
        return Failure.FULL
    return Failure.LATER if state in _LATER or state[:2] in _LATER_CLASSES else Failure.OURS


def _of_sqlite(code: int | None) -> Failure:
    primary = None if code is None else code & 0xFF  # the rest tells more about the same
    if primary in _SQLITE_FULL:
        return Failure.FULL
    return Failure.LATER if primary in _SQLITE_LATER else Failure.OURS
