"""What ended scans came to, added up: the counters of the metrics, which must never go back.

A row of `scans` may be removed with its tenant or pruned, and to add all of them up at each look would take longer the
longer a cluster has run. So each scan is added to a tally in the transaction that ends it.
"""

from __future__ import annotations

import logging
import random
from bisect import bisect_left
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Row, func, select
from sqlalchemy.exc import DBAPIError

from db.bulk import inserting
from db.failures import Failure, failure_of
from db.tables import TALLIED, shards, tallies

if TYPE_CHECKING:
    from db.scans import Scan

log = logging.getLogger(__name__)

# Seconds: bin n holds what took no longer than the n-th of these, and more than the one before; the last one the rest.
BOUNDS_S = (0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0)
# Scans that end at once on PostgreSQL take different rows, mostly.
SLOTS = 8
WALKED = ("directories", "files", "bytes")
_KEY = ("strategy", "state", "tier", "took", "waited", "slot")
_KIND = _KEY[:-1]
SUMMED = ("scans", "took_ms", "waited_ms", *WALKED, *TALLIED)


def bin_of(seconds: float) -> int:
    """The number of the bin that so many seconds are in."""
    return bisect_left(BOUNDS_S, seconds)


def add(connection: Connection, scan: Scan, tier: str) -> None:
    """Count a scan that has just ended. Last in its transaction: others that end wait for this row. A full disk, which
    is what the scan may have ended of, costs the count and not the end.
    """
    assert scan.finished_at is not None
    took_s = _seconds(scan.started_at, scan.finished_at)
    waited_s = _seconds(scan.requested_at, scan.started_at or scan.finished_at)
    slot = 0 if connection.dialect.name == "sqlite" else random.randrange(SLOTS)
    row: dict[str, Any] = {
        "strategy": scan.strategy or "", "state": scan.state, "tier": tier, "took": bin_of(took_s),
        "waited": bin_of(waited_s), "slot": slot, "scans": 1, "took_ms": round(took_s * 1000),
        "waited_ms": round(waited_s * 1000), **_walked(connection, scan.id),
        **{name: getattr(scan, name) for name in TALLIED},
    }  # fmt: skip
    query = inserting(connection.dialect.name, tallies).values(row)
    more = {name: tallies.c[name] + query.excluded[name] for name in SUMMED}
    try:
        with connection.begin_nested():
            connection.execute(query.on_conflict_do_update(index_elements=_KEY, set_=more))
    except DBAPIError as error:
        if failure_of(error) is not Failure.FULL:
            raise
        log.error("a scan that ended is not counted, the database has no room: %s", error.orig)


def _seconds(since: datetime | None, until: datetime) -> float:
    """Not below nought, which a clock that was set back would give; a counter must not fall."""
    return max(timedelta(), until - since).total_seconds() if since is not None else 0.0


def _walked(connection: Connection, scan_id: str) -> dict[str, int]:
    summed = (func.coalesce(func.sum(shards.c[name]), 0) for name in WALKED)
    row = connection.execute(select(*summed).where(shards.c.scan_id == scan_id)).one()
    return {name: int(value) for name, value in zip(WALKED, row, strict=True)}


def totals(connection: Connection) -> Sequence[Row[Any]]:
    """A row of each kind: strategy, state, tier, took, waited, and the sums by the names in SUMMED."""
    t = tallies.c
    query = select(*(t[name] for name in _KIND), *(func.sum(t[name]).label(name) for name in SUMMED))
    return connection.execute(query.group_by(*(t[name] for name in _KIND)).order_by(*(t[name] for name in _KIND))).all()
