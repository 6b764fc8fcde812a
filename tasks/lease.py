"""Holding a shard: its lease is renewed while progress moves, and every flush goes through it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Concatenate, NamedTuple, ParamSpec, TypeVar

from sqlalchemy import Connection, Engine

from db import scans, shards, tenants
from db.engine import write
from db.scans import Scan
from db.tenants import Tenant

P = ParamSpec("P")
T = TypeVar("T")


class Claimed(NamedTuple):
    """A shard that is now ours, its scan and its tenant."""

    lease: shards.Lease
    scan: Scan
    tenant: Tenant


def claim(connection: Connection, scan_id: str, number: int, lease_s: float) -> Claimed | None:
    """Take a shard with all that is known of its scan. None: somebody else has it, or it is over."""
    lease = shards.claim(connection, scan_id, number, lease_s)
    scan = scans.get(connection, scan_id)
    tenant = tenants.by_id(connection, scan.tenant_id) if scan is not None else None
    return None if lease is None or scan is None or tenant is None else Claimed(lease, scan, tenant)


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
            write(self.engine, shards.renew, self.lease, self._lease_s)
            self._renewed_s = self._clock_s()

    def flush(self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **more: P.kwargs) -> T:
        """`work(connection, …)` in a transaction that writes only while the shard is ours, done again as `write` in
        db/engine.py says. Raises LeaseLost, and then nothing was written.
        """
        return self.flush_changes(lambda connection, _: work(connection, *args, **more), 0)

    def flush_changes(self, work: Callable[[Connection, int], T], reserve: int, **counted: int) -> T:
        """The same with `work(connection, first)`, where `reserve` numbers for changes from `first` on are its own;
        what was `counted` is added to the shard's counters.
        """

        def held(connection: Connection) -> T:
            return work(connection, shards.flush(connection, self.lease, self._lease_s, reserve, **counted))

        done = write(self.engine, held)
        self._renewed_s = self._clock_s()
        return done
