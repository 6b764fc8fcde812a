"""Starting scans: queued → running, each with its fence, its strategy and its first shards, many in one transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from sqlalchemy import Connection, Engine

from db import clock, named, scans, sending, shards, tenants, tree
from db.engine import reading, write
from db.scans import Beginning, Scan
from db.tenants import Tenant
from db.types import Strategy, Trigger
from orchestrator.verification import share
from tasks.app import BULK, INTERACTIVE
from tasks.frontier import Frontier, ranges
from tasks.settings import Settings

STARTED_AT_ONCE = 200
# Shard 1 of a first scan owns the root.
_FIRST = (Frontier().dump(),)


@dataclass(frozen=True, slots=True)
class Known:
    """What the index holds of a tenant: bytes of its files, and frontiers that share its directories out."""

    bytes: int
    frontiers: Sequence[str]


def choose(scan: Scan, tenant: Tenant, has_directories: bool) -> tuple[Strategy, str]:
    """The strategy of a scan, and why."""
    if not has_directories:
        return Strategy.FULL_INITIAL, "no directory is known yet"
    if scan.confirms is not None:
        return Strategy.FULL_DELETIONS, f"confirmed: what was gone by scan number {scan.confirms}"
    if scan.verify:
        return Strategy.VERIFY, "asked for"
    if scan.full and scan.paths is None:
        return Strategy.FULL_FORCED, "asked for"
    if tenant.watermark_fence is None:
        return Strategy.FULL_FALLBACK, "no scan was ever complete"
    if scan.paths is not None:
        return Strategy.PATHS, f"paths asked for: {len(named.load(scan.paths))}"
    return Strategy.INCREMENTAL, "watermark valid"


def start_queued(engine: Engine, settings: Settings, most: int = STARTED_AT_ONCE) -> int:
    """Start queued scans of tenants that have none running, those that wait longest, and of each trigger and tier only
    so many that `most` wait to be served; how many.
    """
    with reading(engine) as connection:
        waiting = sending.startable(connection, STARTED_AT_ONCE, most)
    return start(engine, [tenant_id for _, tenant_id in waiting], settings)


def start(engine: Engine, tenant_ids: Sequence[int], settings: Settings) -> int:
    """Start the queued scans of these tenants; how many. Somebody else may be first, or a tenant have one running: that
    is no error.
    """
    if not tenant_ids:
        return 0
    with reading(engine) as connection:
        known = _known(connection, tenant_ids, settings.shard_entries)
    return write(engine, _start, tenant_ids, known, settings)


def _known(connection: Connection, tenant_ids: Sequence[int], shard_entries: int) -> Mapping[int, Known]:
    """By tenant; those are left out of whom nothing is known yet."""
    if not tenant_ids:
        return {}
    found = {}
    for tenant_id, size in tree.sizes(connection, tenant_ids).items():
        cuts = tree.cuts(connection, tenant_id, shard_entries) if size.entries > shard_entries else []
        found[tenant_id] = Known(size.bytes, [frontier.dump() for frontier in ranges(cuts)])
    return found


def _start(connection: Connection, tenant_ids: Sequence[int], known: Mapping[int, Known], settings: Settings) -> int:
    free = {tenant.id: tenant for tenant in tenants.lock_free(connection, tenant_ids)}
    # Locked, not only read: a request that widens one meanwhile must find it started, and queue another.
    startable = scans.lock_startable(connection, list(free))
    if not startable:
        return 0
    now, fences = clock.now(connection), tenants.next_fences(connection, [scan.tenant_id for scan in startable])
    # That there is nothing yet is only certain now: a tenant has one root.
    unknown = [scan.tenant_id for scan in startable if scan.tenant_id not in known]
    known = {**known, **_known(connection, unknown, settings.shard_entries)}
    begun = [replace(scan, fence=fences[scan.tenant_id]) for scan in startable]
    beginnings = [_beginning(scan, free[scan.tenant_id], known.get(scan.tenant_id), now, settings) for scan in begun]
    scans.set_running(connection, beginnings)
    tree.add_roots(connection, {id_: fence for id_, fence in fences.items() if id_ not in known})
    shards.add_first(
        connection,
        [(scan, _queue(scan), _frontiers(scan, beginning.strategy, known.get(scan.tenant_id)))
         for scan, beginning in zip(begun, beginnings, strict=True)],
    )  # fmt: skip
    return len(begun)


def _beginning(scan: Scan, tenant: Tenant, known: Known | None, now: datetime, settings: Settings) -> Beginning:
    strategy, reason = choose(scan, tenant, known is not None)
    assert scan.fence is not None
    if strategy == Strategy.PATHS:
        return Beginning(scan.id, scan.fence, strategy, reason)
    verified = share(tenant, now, known.bytes if known is not None else 0, settings)
    return Beginning(scan.id, scan.fence, strategy, reason, verified)


def _queue(scan: Scan) -> str:
    return INTERACTIVE if scan.trigger == Trigger.REQUEST else BULK


def _frontiers(scan: Scan, strategy: Strategy, known: Known | None) -> Sequence[str]:
    if strategy == Strategy.PATHS:
        return [Frontier(paths=named.load(scan.paths)).dump()]
    return _FIRST if known is None else known.frontiers
