"""The task that ends a scan, its shard 0: judge the deletions, apply the verdict in batches, publish."""

from __future__ import annotations

import logging
from typing import Any

import redis
from celery import current_app, shared_task
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from db import losses, scan_notes, scans, shards, tallies, tenants
from db.engine import patient, reading, write
from db.scans import Scan
from db.tenants import Tenant
from db.types import HASHES, Exhausted, LeaseLost, ScanState, Strategy
from tasks import traces
from tasks.app import Runtime, nudge
from tasks.careful import when_stalled
from tasks.core import filesystem
from tasks.core.guard import Place, doubt_mount, doubt_root, mixed_root
from tasks.core.profile import place_of
from tasks.core.walk import Tree
from tasks.deletions import Deletions
from tasks.drain import Draining
from tasks.keeper import Keeper
from tasks.lease import Holder
from tasks.redis import watermark
from tasks.scan_shard import peak_memory_bytes
from tasks.structured import structlog
from tasks.trouble import carried, claimed, database_failed, give_back

log = logging.getLogger(__name__)
events: Any = structlog.stdlib.get_logger(__name__)

# A finish that died so often before its verdict is done without deletions, and the scan has failed; …
DEATHS_AT_MOST = 5
# … after it, the rest of them is left to the next scan.
DEATHS_ALTOGETHER = 10
# What the line of a scan tells.
TOLD = (
    "strategy", "reason", "directories", "directories_unchanged", "files", "bytes", "added", "modified", "deleted",
    "moved", "hashed_files", "hashed_bytes", "skipped_total", "errors_total", "shards", "attempts", "error",
)  # fmt: skip


@shared_task(name="strandline.finish")
def finish(scan_id: str) -> None:
    """End a scan whose other shards are all settled."""
    runtime: Runtime = current_app.runtime
    ours = claimed(runtime, scan_id, shards.FINISH)
    if ours is not None:
        with ours.told("finish", carried()):
            _end(runtime, *ours)


def _end(runtime: Runtime, lease: shards.Lease, scan: Scan, tenant: Tenant) -> None:
    holder = Holder(runtime.engine, lease, runtime.settings.lease_s, runtime.drain)
    try:
        with Keeper(holder, runtime.settings.stall_s, when_stalled(runtime, holder)):
            place = _settle(holder, scan, tenant)
            _publish(holder, tenant, place)
        _tell_watermark(runtime, tenant.id)
    except LeaseLost as error:
        log.warning("tenant %s: %s", tenant.name, error)
        return
    except Draining:
        write(runtime.engine, shards.release, lease)
    except Exhausted as error:
        log.warning("tenant %s: the end of scan %s is given back: %s", tenant.name, scan.id, error)
        give_back(runtime, lease, str(error))
    except DBAPIError as error:
        if not database_failed(runtime, lease, error):
            raise
    nudge(current_app)


def _look_again(holder: Holder, tenant: Tenant) -> tuple[Place | None, bool]:
    """Which folder the root is now that all is listed, and whether a volume is mounted on it; no place: it cannot be
    opened.
    """
    holder.at = b""
    try:
        with Tree(tenant.root) as root:
            return place_of(root), root.is_mount
    except filesystem.Unreadable:
        return None, False
    finally:
        holder.at = None


def _settle(holder: Holder, scan: Scan, tenant: Tenant) -> Place | None:
    """Judge what is gone, once, and do as the stored verdict says. Which folder the root is, if that was looked at."""
    deletions = Deletions(holder, scan)
    verdict, place = scan.verdict, None
    deaths = holder.lease.deaths
    if deaths >= (DEATHS_AT_MOST if verdict is None else DEATHS_ALTOGETHER):
        went = "nothing was deleted" if verdict is None else "what was not deleted yet is left to the next scan"
        verdict = "keep"
        sentence = f"its end was begun {deaths} times and never came; {went}"
        holder.flush(scans.give_up, scan.id, sentence)
    elif verdict is None:
        place, is_mount = _look_again(holder, tenant)
        verdict, doubt = _judge(holder, scan, tenant, place, is_mount, deletions)
        holder.flush(scans.store_verdict, scan.id, verdict, doubt)
    if verdict == "delete":
        deletions.carry_out()
    else:
        deletions.forget()
    return place


def _judge(holder: Holder, scan: Scan, tenant: Tenant, place: Place | None, is_mount: bool,
           deletions: Deletions) -> tuple[str, str | None]:  # fmt: skip
    """The verdict on what is gone (delete | keep), and the doubt that made it so."""
    deletions.note()
    if scan.confirms is not None:  # a person has looked
        return "delete", None
    with reading(holder.engine) as connection:
        seen = shards.places(connection, scan.id)
        mount = scan_notes.mount_of(connection, scan.id)
        familiar = not is_mount or losses.any_familiar(connection, scan)
    doubt = mixed_root(seen | {str(place or "a folder that cannot be opened")})
    if doubt is None and deletions.count > 0 and place is not None:
        doubt = doubt_root(tenant.place and Place(*tenant.place), place, familiar)
    if doubt is None and deletions.count > 0 and mount is not None:
        doubt = doubt_mount(mount)
    doubt = doubt or deletions.doubt(tenant.deletion_limit)
    return ("delete" if doubt is None else "keep"), doubt


def _publish(holder: Holder, tenant: Tenant, place: Place | None) -> None:
    """The last transaction. Its sums grow with the tenant; it says itself that the shard is ours."""
    ended = write(patient(holder.engine), _published, holder.lease, tenant, place)
    assert ended.started_at is not None and ended.finished_at is not None
    events.info(
        f"scan {ended.state}", **{name: getattr(ended, name) for name in TOLD},
        duration_s=round((ended.finished_at - ended.started_at).total_seconds(), 3),
    )  # fmt: skip
    traces.scan_ended(
        ended.id, ended.requested_at, ended.finished_at, failed=ended.state == ScanState.FAILED, tenant=tenant.name,
        state=ended.state, strategy=ended.strategy or "", files=ended.files, shards=ended.shards,
    )  # fmt: skip


def _published(connection: Connection, lease: shards.Lease, tenant: Tenant, place: Place | None) -> Scan:
    """The scan's final state, which makes its changes visible, and the watermark."""
    tenants.lock(connection, tenant.id)
    scan = scans.lock(connection, lease.scan_id)
    if scan is None:
        raise LeaseLost(f"scan {lease.scan_id} is no more")
    assert scan.fence is not None and scan.started_at is not None
    shards.complete(connection, lease, peak_memory_bytes=peak_memory_bytes())
    state = _state(connection, scan)
    scans.publish(connection, scan, state)
    ended = scans.get(connection, scan.id)
    assert ended is not None
    ended_well = state in (ScanState.SUCCEEDED, ScanState.PARTIAL) and not shards.any_not_done(connection, scan.id)
    if ended_well and scan.strategy != Strategy.PATHS:  # of a part of the tree nothing follows for the whole
        tenants.move_watermark(
            connection, tenant.id, fence=scan.fence, started_at=scan.started_at, files=ended.files
        )  # fmt: skip
        turned = tenant.verify_at is None or scan.verify_to != scan.verify_from
        tenants.note_verified(
            connection, tenant.id, until=scan.started_at if turned else tenant.verify_at,
            place=scan.verify_to % HASHES, silent_changes=ended.silent_changes,
        )  # fmt: skip
        if place is not None:
            tenants.note_root(connection, tenant.id, filesystem=place.filesystem, inode=place.inode)
    tallies.add(connection, ended, tenant.tier)
    return ended


def _tell_watermark(runtime: Runtime, tenant_id: int) -> None:
    """Let every node see it. Where Redis is away, the next complete scan tells, or whoever fills Redis again."""
    with reading(runtime.engine) as connection:
        found = tenants.by_id(connection, tenant_id)
    if found is None or found.watermark_fence is None or found.watermark_started_at is None:
        return
    known = (tenant_id, found.watermark_fence, found.watermark_started_at, found.watermark_files or 0)
    try:
        watermark.move(runtime.redis, runtime.keys, [known])
    except redis.RedisError as error:
        runtime.outage.failed("a watermark is not told", error)


def _state(connection: Connection, scan: Scan) -> ScanState:
    if scan.ending is not None:
        return ScanState(scan.ending)
    if scan.doubt is not None:
        return ScanState.SUSPECT
    is_partial = (
        shards.any_errors(connection, scan.id)
        or shards.any_not_done(connection, scan.id)
        or scan_notes.any_refused(connection, scan.id)
    )
    return ScanState.PARTIAL if is_partial else ScanState.SUCCEEDED
