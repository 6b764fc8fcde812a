"""Holding a shard: every flush goes through its lease, and whoever has lost it stops."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

from sqlalchemy import Connection, Engine

from db import scans, shards, tenants
from db.engine import write
from db.scans import Scan
from db.tenants import Tenant
from db.types import LeaseLost
from tasks import logs, traces
from tasks.drain import Drain, Draining

P = ParamSpec("P")
T = TypeVar("T")


class Claimed(NamedTuple):
    """A shard that is now ours, its scan and its tenant."""

    lease: shards.Lease
    scan: Scan
    tenant: Tenant

    @contextmanager
    def told(self, what: str, carried: Mapping[str, Any]) -> Iterator[None]:
        """In this block each line of the log tells which shard it is of, and what is done is a span of the scan's
        trace. `carried`: the headers of the message that named the shard.
        """
        lease, scan_id = self.lease, self.scan.id
        which = {"shard": lease.number, "fence": lease.fence, "attempt": lease.attempt}
        with (
            logs.bound(tenant=self.tenant.name, scan=scan_id, **which, **traces.named(scan_id)),
            traces.span(what, scan_id, carried, tenant=self.tenant.name, **which),
        ):
            yield


def claim(connection: Connection, scan_id: str, number: int, lease_s: float) -> Claimed | None:
    """Take a shard with all that is known of its scan. None: somebody else has it, or it is over."""
    lease = shards.claim(connection, scan_id, number, lease_s)
    scan = scans.get(connection, scan_id)
    tenant = tenants.by_id(connection, scan.tenant_id) if scan is not None else None
    return None if lease is None or scan is None or tenant is None else Claimed(lease, scan, tenant)


class Holder:
    """A leased shard in the process that works on it. `at` is the path that is being looked at, empty for the root."""

    def __init__(self, engine: Engine, lease: shards.Lease, lease_s: float, drain: Drain | None = None) -> None:
        self.lease = lease
        self.engine = engine
        self.lease_s = lease_s
        self.at: bytes | None = None
        self._lost: LeaseLost | None = None
        self._drain = drain

    def look_at(self, path: bytes) -> None:
        """Note which path is about to be looked at, in case that never returns."""
        self.at = path

    def check(self) -> None:
        """Call now and then. Raises LeaseLost where it is known that the shard is somebody else's by now, and Draining,
        once, where this process is to end.
        """
        if self._lost is not None:
            raise self._lost
        if self._drain is not None and self._drain.has_begun:
            self._drain = None  # from here on only what puts the shard back is done
            raise Draining

    def renew(self) -> None:
        """Extend the lease. Raises LeaseLost, and then `check` does so too."""
        try:
            write(self.engine, shards.renew, self.lease, self.lease_s)
        except LeaseLost as error:
            self._lost = error
            raise

    def flush(self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **more: P.kwargs) -> T:
        """`work(connection, …)` in a transaction that writes only while the shard is ours, done again as `write` in
        db/engine.py says. Raises LeaseLost, Draining, and then nothing was written.
        """
        return self.flush_changes(lambda connection, _: work(connection, *args, **more), 0)

    def flush_changes(self, work: Callable[[Connection, int], T], reserve: int, *, settles: bool = False,
                      **counted: int) -> T:  # fmt: skip
        """The same with `work(connection, first)`, where `reserve` numbers for changes from `first` on are its own;
        what was `counted` is added to the shard's counters. `settles`: it brings the work on, see shards.flush.
        """

        self.check()

        def held(connection: Connection) -> T:
            first = shards.flush(connection, self.lease, self.lease_s, reserve, settles=settles, **counted)
            return work(connection, first)

        with traces.span("flush", **counted):
            return write(self.engine, held)
