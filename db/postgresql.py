"""A connection to PostgreSQL on which nothing waits without end, directly or through a pooler.

No session state is relied upon, since a pooler such as PgBouncer in transaction mode may give each transaction another
session: the bounds are set with each BEGIN, in the same round trip, and nothing is prepared there.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any, TypeVar

import psycopg
from psycopg.errors import ReadOnlySqlTransaction
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import InvalidatePoolError
from sqlalchemy.pool import QueuePool

T = TypeVar("T")

# Both below the default lease, so that a stopped writer is thrown out before its shard is given to another.
LOCK_TIMEOUT_S = 5
IDLE_IN_TRANSACTION_TIMEOUT_S = 6
# Statements are batched to some 200 ms; this is what a loaded server may make of it. (The lease is renewed meanwhile.)
STATEMENT_TIMEOUT_S = 30
# The server keeps the bounds above. Where nothing answers, though the other end's kernel does, we must ourselves.
ANSWER_TIMEOUT_S = STATEMENT_TIMEOUT_S + 10
CONNECT_TIMEOUT_S = 5
POOL_TIMEOUT_S = 30
# Where somebody waits for the answer and has two seconds: a connection that was idle is tried and, where it does not
# answer, another opened, within 1.2 s; or one that was well hangs, or waits for a lock, for so long.
HURRIED_TRY_S = 0.6
HURRIED_STATEMENT_S = 1.2
HURRIED_IDLE_S = 1.0
# A peer that vanished is given up after 5 + 3 × 2 s of silence, and 10 s after something was sent: by us, and by the
# server, which would else hold our locks for two hours (its bound on idling is off after many rows at once, since the
# driver ends those by a request to flush).
_KEEPALIVES = {"keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 3}
_TCP_USER_TIMEOUT_MS = 10_000


def _begin(statement_timeout_s: float, lock_timeout_s: float = LOCK_TIMEOUT_S) -> str:
    bounds = {
        "lock_timeout": f"{lock_timeout_s * 1000:.0f}ms",
        "statement_timeout": f"{statement_timeout_s * 1000:.0f}ms",
        "idle_in_transaction_session_timeout": f"{IDLE_IN_TRANSACTION_TIMEOUT_S}s",
        "tcp_user_timeout": f"{_TCP_USER_TIMEOUT_MS}ms",
        **{f"tcp_{name}": str(value) for name, value in _KEEPALIVES.items()},
    }
    # Locks are held against each other in read committed, whatever the server's default: what others committed while
    # we waited for a lock must be seen after it.
    return "; ".join(
        ["BEGIN ISOLATION LEVEL READ COMMITTED", *(f"SET LOCAL {name} = '{value}'" for name, value in bounds.items())]
    )


# By what they are called among the execution options: the statement, and how long an answer may take.
_BOUNDS: dict[str, tuple[str, float | None]] = {
    "": (_begin(STATEMENT_TIMEOUT_S), ANSWER_TIMEOUT_S),
    "patient": (_begin(0), None),
    "hurried": (_begin(HURRIED_STATEMENT_S, HURRIED_STATEMENT_S / 2), HURRIED_STATEMENT_S),
}


class Bounded(psycopg.Connection[Any]):
    """A connection that is closed where the server does not answer within `answer_timeout_s` (None: without end)."""

    answer_timeout_s: float | None = ANSWER_TIMEOUT_S

    def wait(self, gen: Generator[Any, Any, T], interval: float = 0.1, timeout: float | None = None) -> T:
        """Until the server has answered."""
        try:
            return super().wait(gen, interval, self.answer_timeout_s if timeout is None else timeout)
        except psycopg.errors._WaitTimeout as error:
            self.close()
            raise psycopg.OperationalError(f"no answer within {self.answer_timeout_s} s") from error


class Hurried(Bounded):
    """One that is also opened within HURRIED_TRY_S, where the driver would take two seconds at least."""

    @classmethod
    def _connect_gen(cls, *args: Any, **options: Any) -> Generator[Any, Any, Any]:
        deadline_s = time.monotonic() + HURRIED_TRY_S
        opening = super()._connect_gen(*args, **options)
        try:
            wanted = next(opening)
            while True:
                ready = yield wanted
                if time.monotonic() > deadline_s:
                    raise psycopg.OperationalError(f"no connection within {HURRIED_TRY_S} s")
                wanted = opening.send(ready)
        except StopIteration as opened:
            return opened.value


def engine(url: str, pool_size: int, hurried: bool = False) -> Engine:
    """An engine with at most `pool_size` connections. The driver's own BEGIN is off: ours says more, and what the
    execution option `as_well` adds.
    """
    kind = Hurried if hurried else Bounded
    made = create_engine(
        url, poolclass=QueuePool, pool_size=pool_size, max_overflow=0, pool_pre_ping=not hurried, pool_use_lifo=True,
        pool_timeout=HURRIED_STATEMENT_S if hurried else POOL_TIMEOUT_S, execution_options={"hurried": hurried},
        connect_args={
            "application_name": "strandline", "connect_timeout": CONNECT_TIMEOUT_S, "autocommit": True,
            "keepalives": 1, "tcp_user_timeout": _TCP_USER_TIMEOUT_MS, **_KEEPALIVES,
        },
    )  # fmt: skip

    @event.listens_for(made, "do_connect")
    def open_bounded(_dialect: Any, _record: Any, args: list[Any], options: dict[str, Any]) -> Bounded:
        return kind.connect(*args, **options)

    @event.listens_for(made, "connect")
    def prepare_nothing_behind_a_pooler(connection: Bounded, _record: Any) -> None:
        # (Where statements can be prepared, many rows take half the time.)
        if is_pooled(connection):
            connection.prepare_threshold = None

    @event.listens_for(made, "begin")
    def begin(connection: Connection) -> None:
        options = connection.get_execution_options()
        statement, answer_timeout_s = _BOUNDS[next((name for name in ("patient", "hurried") if options.get(name)), "")]
        driver: Any = connection.connection.driver_connection
        driver.answer_timeout_s = answer_timeout_s
        connection.exec_driver_sql(statement + options.get("as_well", ""))

    if hurried:
        _ask_idle_ones(made)

    @event.listens_for(made, "handle_error")
    def leave_who_cannot_be_written_to(context: ExceptionContext) -> None:
        # It is a standby since a failover, as all connections of this pool are: open new ones.
        if isinstance(context.original_exception, ReadOnlySqlTransaction):
            context.is_disconnect = True

    return made


def _ask_idle_ones(made: Engine) -> None:
    """Whether a connection is still well is asked of it only where it was idle: it takes a round trip."""

    @event.listens_for(made, "checkin")
    def note(_driver: Any, record: Any) -> None:
        record.info["used_s"] = time.monotonic()

    @event.listens_for(made, "checkout")
    def ask(driver: Any, record: Any, _proxy: Any) -> None:
        if time.monotonic() - record.info.get("used_s", 0.0) < HURRIED_IDLE_S:
            return
        driver.answer_timeout_s = HURRIED_TRY_S
        try:
            driver.execute("", prepare=False)
        except psycopg.Error as error:
            raise InvalidatePoolError from error


def is_pooled(connection: psycopg.Connection[Any]) -> bool:
    """Does another process answer than the one that we are connected to? A pooler makes up the id that it shows."""
    row = connection.execute("SELECT pg_backend_pid()", prepare=False).fetchone()
    return row is None or row[0] != connection.info.backend_pid
