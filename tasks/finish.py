"""The task that ends a scan, its shard 0: judge the deletions, apply the verdict in batches, publish."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from celery import current_app, shared_task
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from db import changes, scans, shards, tenants, tree, vanished
from db.engine import writing
from db.scans import Scan
from db.tenants import Tenant
from db.types import Kind, LeaseLost, ScanState
from db.vanished import GoneFile
from tasks.app import Runtime, nudge
from tasks.lease import Holder
from tasks.scan_shard import peak_memory_bytes
from tasks.trouble import database_failed

log = logging.getLogger(__name__)

BATCH = 1_000
# A finish that died so often is done without deletions.
ATTEMPTS = 5


@shared_task(name="strandline.finish")
def finish(scan_id: str) -> None:
    """End a scan whose other shards are all settled."""
    runtime: Runtime = current_app.runtime
    with writing(runtime.engine) as connection:
        lease = shards.claim(connection, scan_id, shards.FINISH, runtime.settings.lease_s)
        scan = scans.get(connection, scan_id)
        tenant = tenants.by_id(connection, scan.tenant_id) if scan is not None else None
    if lease is None or scan is None or tenant is None:
        return
    holder = Holder(runtime.engine, lease, runtime.settings.lease_s, runtime.clock_s)
    try:
        if _judge(holder, scan) == "delete":
            _delete(holder, scan)
        _publish(runtime, holder, tenant)
    except LeaseLost as error:
        log.warning("tenant %s: %s", tenant.name, error)
        return
    except DBAPIError as error:
        database_failed(runtime, lease, error)
    nudge(current_app)


def _judge(holder: Holder, scan: Scan) -> str:
    """The verdict on what is gone (delete | keep): stored before it is applied, and obeyed by every retry."""
    if scan.verdict is not None:
        return scan.verdict
    verdict = "keep" if scan.ending is not None or holder.lease.attempt > ATTEMPTS else "delete"
    with holder.flush() as (connection, _):
        scans.store_verdict(connection, scan.id, verdict)
    return verdict


def _delete(holder: Holder, scan: Scan) -> None:
    with holder.flush() as (connection, _):
        vanished.collect(connection, scan)
    while True:
        with holder.flush() as (connection, _):
            if not vanished.expand(connection, scan, BATCH):
                break
    for find in (vanished.gone_files, vanished.files_below):
        while True:
            with holder.flush(reserve=BATCH) as (connection, first):
                gone = find(connection, scan, BATCH)
                if gone:
                    _delete_files(connection, scan, gone, first)
            if not gone:
                break
    while True:
        with holder.flush() as (connection, _):
            if not vanished.delete_noted(connection, scan, BATCH):
                break


def _delete_files(connection: Connection, scan: Scan, gone: Sequence[GoneFile], first: int) -> None:
    rows = [
        (scan.tenant_id, scan.fence, first + i, file.directory_id, file.name, Kind.DELETED.value, file.path, file.type,
         file.size, file.digest, file.algorithm, file.target, "ignored" if file.reason == "ignored" else None)
        for i, file in enumerate(gone)
        if file.visible
    ]  # fmt: skip
    changes.write(connection, rows)
    tree.delete_files(connection, scan.tenant_id, [(file.directory_id, file.name) for file in gone])


def _publish(runtime: Runtime, holder: Holder, tenant: Tenant) -> None:
    """The last transaction: the scan's final state, which makes its changes visible, and the watermark."""
    with writing(runtime.engine) as connection:
        tenants.lock(connection, tenant.id)
        scan = scans.lock(connection, holder.lease.scan_id)
        assert scan is not None and scan.fence is not None and scan.started_at is not None
        shards.complete(connection, holder.lease, peak_memory_bytes=peak_memory_bytes())
        state = _state(connection, scan)
        scans.publish(connection, scan, state)
        ended = scans.get(connection, scan.id)
        assert ended is not None
        if state in (ScanState.SUCCEEDED, ScanState.PARTIAL) and not shards.any_not_done(connection, scan.id):
            tenants.move_watermark(
                connection, tenant.id, fence=scan.fence, started_at=scan.started_at, files=ended.files
            )
    log.info(
        "tenant %s: scan %s %s, %d files, %d added, %d modified, %d deleted",
        tenant.name, scan.id, state, ended.files, ended.added, ended.modified, ended.deleted,
    )  # fmt: skip


def _state(connection: Connection, scan: Scan) -> ScanState:
    if scan.ending is not None:
        return ScanState(scan.ending)
    with_errors = shards.any_errors(connection, scan.id) or shards.any_not_done(connection, scan.id)
    return ScanState.PARTIAL if with_errors else ScanState.SUCCEEDED
