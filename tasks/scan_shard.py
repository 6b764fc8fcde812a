"""The task that works on one shard: claim, walk, complete or hand on the rest."""

from __future__ import annotations

import logging
import os
import resource

from celery import current_app, shared_task
from sqlalchemy import Connection

from db import scans, shards, tree
from db.engine import write
from db.scans import Scan
from db.tenants import Tenant
from db.types import LeaseLost, ScanState, StaleDirectory
from tasks.app import Runtime, nudge
from tasks.budget import Budget
from tasks.core import filesystem
from tasks.core.ignore import Rules, RuleSet
from tasks.core.rule_sources import GIT_RULE_FILE, RULE_FILE, RuleSources
from tasks.core.walk import Tree
from tasks.frontier import Frontier
from tasks.lease import Holder
from tasks.pipeline import Pipeline
from tasks.redis.progress import Progress
from tasks.trouble import claimed, database_failed, give_back

log = logging.getLogger(__name__)

# Directories left over are shared out among at most so many new shards: the work spreads by itself.
FAN_OUT = 4
# A shard that fails so often for a reason nobody foresaw ends its scan.
ATTEMPTS = 5


@shared_task(name="strandline.scan_shard")
def scan_shard(scan_id: str, number: int) -> None:
    """Work on one shard, if it is to be had."""
    runtime: Runtime = current_app.runtime
    ours = claimed(runtime, scan_id, number)
    if ours is not None:
        _settle(runtime, *ours)


def _settle(runtime: Runtime, lease: shards.Lease, scan: Scan, tenant: Tenant) -> None:
    try:
        _work(runtime, lease, scan, tenant)
    except LeaseLost as error:
        log.warning("tenant %s: %s", tenant.name, error)
        return
    except filesystem.Unreadable as error:
        fail(runtime, scan, f"{error.operation} of tenant {tenant.name!r}: {error.error}")
    except StaleDirectory as error:
        give_back(runtime, lease, str(error))
    except Exception as error:
        if database_failed(runtime, lease, error):
            pass
        elif lease.attempt < ATTEMPTS:
            log.exception("tenant %s: shard %d failed", tenant.name, lease.number)
            give_back(runtime, lease, repr(error))
        else:
            log.exception("tenant %s: shard %d failed", tenant.name, lease.number)
            fail(runtime, scan, f"shard {lease.number} failed {lease.attempt} times: {error!r}")
    nudge(current_app)


def _work(runtime: Runtime, lease: shards.Lease, scan: Scan, tenant: Tenant) -> None:
    settings = runtime.settings
    holder = Holder(runtime.engine, lease, settings.lease_s, runtime.clock_s)
    with Tree(tenant.root, cross_mounts=tenant.cross_mounts, rule_sources=rule_sources(tenant)) as root:
        pipeline = Pipeline(
            runtime.engine, holder, scan, tenant, root,
            budget=Budget.of(settings, runtime.clock_s), ids=runtime.ids,
            progress=Progress(runtime.redis, scan.id, runtime.clock_s),
            chunk_bytes=settings.hash_chunk_bytes, huge_entries=settings.huge_entries, clock_ns=runtime.clock_ns,
        )  # fmt: skip
        rest = pipeline.run(Frontier.load(lease.frontier))
        write(runtime.engine, _complete, lease, pipeline, rest, settings.lease_s)


def rule_sources(tenant: Tenant) -> RuleSources:
    """Where the ignore rules of a tenant come from. Raises RulesError where its own patterns are too many."""
    own = RuleSet.parse(os.fsencode("\n".join(tenant.patterns)), source=b"", base=b"")
    return RuleSources(Rules().below(own), (GIT_RULE_FILE, RULE_FILE) if tenant.gitignore else (RULE_FILE,))


def _complete(connection: Connection, lease: shards.Lease, pipeline: Pipeline, rest: Frontier, lease_s: float) -> None:
    """Done: the rest becomes new shards, and the finish ready if this was the last, in one transaction."""
    scan = scans.lock(connection, lease.scan_id)
    assert scan is not None
    shards.renew(connection, lease, lease_s)
    parts = [part for piece in pipeline.pieces for part in piece.shared_out(FAN_OUT)]
    shards.add(connection, scan, [Frontier(piece=part).dump() for part in parts], lease.queue)
    tree.disown(connection, lease.tenant_id, [piece.directory_id for piece in pipeline.pieces])
    left = tree.count_owned(connection, lease.tenant_id, lease.fence, lease.number)
    if left:
        pieces = [Frontier().dump()] * min(left, FAN_OUT)
        numbers = shards.add(connection, scan, pieces, lease.queue)
        tree.hand_over(connection, lease.tenant_id, lease.fence, lease.number, numbers)
    if rest.ranged:
        shards.add(connection, scan, [rest.dump()], lease.queue)
    shards.complete(
        connection, lease, peak_memory_bytes=peak_memory_bytes(), place=str(pipeline.place),
        directories_unchanged=pipeline.directories_unchanged, other=pipeline.other,
    )  # fmt: skip
    shards.ready_finish(connection, lease.scan_id)


def fail(runtime: Runtime, scan: Scan, error: str) -> None:
    """The scan cannot go on: it ends failed, without deletions, once its finish has run."""
    log.error("scan %s fails: %s", scan.id, error)
    write(runtime.engine, shards.end_early, scan.id, ScanState.FAILED, error)


def peak_memory_bytes() -> int:
    """The most memory that this process ever had resident."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
