"""Holding a shard: every flush goes through its lease, and whoever has lost it stops."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine

from db import shards
from db.engine import writing
from db.types import LeaseLost


class Holder:
    """A leased shard in the process that works on it. `at` is the path that is being looked at, empty for the root."""

    def __init__(self, engine: Engine, lease: shards.Lease, lease_s: float) -> None:
        self.lease = lease
        self.engine = engine
        self.lease_s = lease_s
        self.at: bytes | None = None
        self._lost: LeaseLost | None = None

    def check(self) -> None:
        """Call now and then. Raises LeaseLost where it is known that the shard is somebody else's by now."""
        if self._lost is not None:
            raise self._lost

    def renew(self) -> None:
        """Extend the lease. Raises LeaseLost, and then `check` does so too."""
        try:
            with writing(self.engine) as connection:
                shards.renew(connection, self.lease, self.lease_s)
        except LeaseLost as error:
            self._lost = error
            raise

    def name(self, entry: bytes) -> None:
        """Commit which path is about to be touched. Raises LeaseLost."""
        with self.flush() as (connection, _):
            shards.name(connection, self.lease, entry)

    @contextmanager
    def flush(self, reserve: int = 0, *, settles: bool = False, **counted: int) -> Iterator[tuple[Connection, int]]:
        """A transaction that writes only while the shard is ours: gives the connection and the first change number.

        Raises LeaseLost, and then nothing was written.
        """
        with writing(self.engine) as connection:
            yield connection, shards.flush(connection, self.lease, self.lease_s, reserve, settles=settles, **counted)
