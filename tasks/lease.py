"""Holding a shard: its lease is renewed while progress moves, and every flush goes through it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine

from db import shards
from db.engine import writing


class Holder:
    """A leased shard in the process that works on it. `clock_s` is a monotonic clock."""

    def __init__(self, engine: Engine, lease: shards.Lease, lease_s: float, clock_s: Callable[[], float]) -> None:
        self.lease = lease
        self.engine = engine
        self._lease_s = lease_s
        self._clock_s = clock_s
        self._renewed_s = clock_s()

    def progress(self, _bytes: int = 0) -> None:
        """Call when something was done: renews the lease once a third of it has passed. Raises LeaseLost."""
        if self._clock_s() - self._renewed_s > self._lease_s / 3:
            with writing(self.engine) as connection:
                shards.renew(connection, self.lease, self._lease_s)
            self._renewed_s = self._clock_s()

    @contextmanager
    def flush(self, reserve: int = 0, **counted: int) -> Iterator[tuple[Connection, int]]:
        """A transaction that writes only while the shard is ours: gives the connection and the first change number.

        Raises LeaseLost, and then nothing was written.
        """
        with writing(self.engine) as connection:
            yield connection, shards.flush(connection, self.lease, self._lease_s, reserve, **counted)
        self._renewed_s = self._clock_s()
