"""Starting a scan: queued → running, with its fence, its strategy and its first shards, in one transaction."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, Engine

from db import clock, scans, shards, tenants, tree
from db.engine import reading, write
from db.scans import Scan
from db.tenants import Tenant
from db.types import Strategy, Trigger
from orchestrator.verification import share
from tasks.app import BULK, INTERACTIVE
from tasks.frontier import Frontier, ranges
from tasks.settings import Settings

STARTED_AT_ONCE = 100


def choose(scan: Scan, tenant: Tenant, has_directories: bool) -> tuple[Strategy, str]:
    """The strategy of a scan, and why."""
    if not has_directories:
        return Strategy.FULL_INITIAL, "no directory is known yet"
    if scan.confirms is not None:
        return Strategy.FULL_DELETIONS, f"confirmed: what was gone by scan number {scan.confirms}"
    if scan.verify:
        return Strategy.VERIFY, "asked for"
    if scan.full:
        return Strategy.FULL_FORCED, "asked for"
    if tenant.watermark_fence is None:
        return Strategy.FULL_FALLBACK, "no scan was ever complete"
    return Strategy.INCREMENTAL, "watermark valid"


def start_queued(engine: Engine, settings: Settings) -> int:
    """Start queued scans of tenants that have none running; how many."""
    with reading(engine) as connection:
        waiting = scans.startable(connection, STARTED_AT_ONCE)
    return sum(start(engine, scan_id, tenant_id, settings) for scan_id, tenant_id in waiting)


def start(engine: Engine, scan_id: str, tenant_id: int, settings: Settings) -> bool:
    """Start one scan. False where somebody else was first, or the tenant has one running: that is no error."""
    return write(engine, _start, scan_id, tenant_id, settings)


def _start(connection: Connection, scan_id: str, tenant_id: int, settings: Settings) -> bool:
    tenants.lock(connection, tenant_id)
    # Locked, not only read: a request that widens it meanwhile must find it started, and queue another.
    scan, tenant = scans.lock(connection, scan_id), tenants.by_id(connection, tenant_id)
    if scan is None or tenant is None or scans.any_running(connection, tenant_id):
        return False
    root = tree.root_of(connection, tenant_id)
    strategy, reason = choose(scan, tenant, root is not None)
    fence = tenants.next_fence(connection, tenant_id)
    verified = share(tenant, clock.now(connection), tree.size_of(connection, tenant_id), settings)
    if not scans.set_running(connection, scan_id, fence=fence, strategy=strategy, reason=reason, verified=verified):
        connection.rollback()
        return False
    running = scans.get(connection, scan_id)
    assert running is not None
    queue = INTERACTIVE if scan.trigger == Trigger.REQUEST else BULK
    shards.add_finish(connection, running, queue)
    if root is None:
        tree.add_root(connection, tenant_id, fence)
    shards.add(connection, running, _frontiers(connection, tenant_id, root, settings.shard_entries), queue)
    return True


def _frontiers(connection: Connection, tenant_id: int, root: int | None, shard_entries: int) -> Sequence[str]:
    if root is None:
        return [Frontier().dump()]  # shard 1 owns the root
    return [frontier.dump() for frontier in ranges(tree.cuts(connection, tenant_id, shard_entries))]
