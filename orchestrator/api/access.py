"""The one way to the database: each transaction is opened for somebody, in time or not at all.

A database that does not answer is not asked by every request anew: while it is away one at a time tries it.
"""

from __future__ import annotations

import functools
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from db import row_security
from db.engine import connect, narrowed, patient, reading, write
from db.failures import Failure, failure_of
from orchestrator.api.problems import Away
from orchestrator.api.tokens import Caller
from orchestrator.api.work import is_too_late

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

CONNECTIONS = 16
# What is said at the begin of a transaction is kept of so many callers; each tenant whose feed is read is one.
KEPT_ENGINES = 256
# After a failure nobody tries for so long, …
PAUSE_S = 0.5
# … and then one, who has so long until another may.
TRIES_FOR_S = 2.0


class Late(Away):
    """It took too long, and was undone."""


class Access:
    """The database of one API process."""

    def __init__(self, url: str) -> None:
        self._engine: Engine = connect(url, CONNECTIONS, hurried=True)
        self._lock = threading.Lock()
        self._away = False
        self._next_s = 0.0
        self._has_role = self._warned = False
        self._engine_of = functools.lru_cache(KEPT_ENGINES)(functools.partial(narrowed, self._engine))

    @contextmanager
    def read(self, caller: Caller) -> Iterator[Connection]:
        """A short read transaction in which only what the caller may see is looked for. Raises Away, DBAPIError."""
        with self._noted(), reading(self._narrowed(caller)) as connection:
            yield connection

    def write(
        self, caller: Caller, work: Callable[Concatenate[Connection, P], T], *args: P.args, **more: P.kwargs
    ) -> T:
        """`work(connection, …)` in a write transaction for the caller, as db.engine.write: it may be done again."""

        def in_time(connection: Connection) -> T:
            answer = work(connection, *args, **more)
            if is_too_late():
                raise Late("the database is too slow: nothing was done")
            return answer

        with self._noted():
            return write(self._narrowed(caller), in_time)

    def write_patiently(
        self, caller: Caller, work: Callable[Concatenate[Connection, P], T], *args: P.args, **more: P.kwargs
    ) -> T:
        """The same for what grows with a tenant: it is not undone for taking long."""
        with self._noted():
            return write(patient(self._narrowed(caller)), work, *args, **more)

    def _narrowed(self, caller: Caller) -> Engine:
        """An engine with which the database itself keeps tenants apart, where it can."""
        if self._engine.dialect.name != "postgresql":
            return self._engine
        if not self._has_role:
            with reading(self._engine) as connection:
                self._has_role = row_security.is_usable(connection)
        if self._has_role:
            return self._engine_of(caller.tenants)
        if not self._warned:
            self._warned = True
            log.warning(
                "row-level security is off: the role %s cannot be used; let an administrator of the database say "
                "CREATE ROLE %s NOLOGIN, grant it to this user, and run `strandline migrate` again",
                row_security.ROLE, row_security.ROLE,
            )  # fmt: skip
        return self._engine

    @contextmanager
    def _noted(self) -> Iterator[None]:
        self._require_hope()
        try:
            yield
        except (DBAPIError, PoolTimeout) as error:
            if _is_away(error):
                with self._lock:
                    self._away, self._next_s = True, time.monotonic() + PAUSE_S
            raise
        if self._away:
            with self._lock:
                self._away = False

    def _require_hope(self) -> None:
        if not self._away:
            return
        with self._lock:
            now_s = time.monotonic()
            if self._away and now_s < self._next_s:
                raise Away("the database does not do as asked")
            self._next_s = now_s + TRIES_FOR_S  # this one tries

    def close(self) -> None:
        """Close what is idle."""
        self._engine.dispose()


def _is_away(error: DBAPIError | PoolTimeout) -> bool:
    """Would others fail in the same way? Not where one statement took too long, a lock is held, or many ask at once."""
    if not isinstance(error, DBAPIError) or isinstance(error.orig, sqlite3.Error):
        return False
    state = getattr(error.orig, "sqlstate", None)
    if state is None:
        return failure_of(error) is not Failure.OURS
    return str(state).startswith(("08", "57P", "53", "28", "3D"))
