"""The task that works on one shard: claim, walk, complete or hand on the rest."""

from __future__ import annotations

import logging
import os
import resource
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from typing import Any

from celery import current_app, current_task, shared_task
from sqlalchemy import Connection

from db import quarantine, scans, shards, tree
from db.engine import reading, write
from db.scans import Scan
from db.tenants import Tenant
from db.types import Exhausted, LeaseLost, StaleDirectory
from tasks.app import Runtime, nudge
from tasks.budget import Budget
from tasks.careful import convict, is_careful, when_stalled
from tasks.core import filesystem
from tasks.core.breaker import ROOT, Failed, Limits
from tasks.core.ignore import Rules, RuleSet
from tasks.core.rule_sources import GIT_RULE_FILE, RULE_FILE, RuleSources
from tasks.core.walk import Tree
from tasks.drain import Draining
from tasks.frontier import Frontier
from tasks.gate import Gate
from tasks.keeper import Keeper
from tasks.lease import Holder
from tasks.pipeline import Pipeline
from tasks.redis.breaker import Breaker
from tasks.redis.progress import Progress
from tasks.settings import Settings
from tasks.structured import structlog
from tasks.trouble import abandon, carried, claimed, database_failed, give_back
from tasks.write_back import WriteBack

log = logging.getLogger(__name__)
events: Any = structlog.stdlib.get_logger(__name__)

# Directories left over are shared out among at most so many new shards: the work spreads by itself.
FAN_OUT = 4
# Failures count for so many scans of a tenant, if that is longer than the breaker's window.
SCANS_COUNTED = 4


@shared_task(name="strandline.scan_shard")
def scan_shard(scan_id: str, number: int) -> None:
    """Work on one shard, if it is to be had."""
    runtime: Runtime = current_app.runtime
    ours = claimed(runtime, scan_id, number)
    if ours is not None:
        with ours.told("shard", carried()):
            _settle(runtime, *ours)


def _settle(runtime: Runtime, lease: shards.Lease, scan: Scan, tenant: Tenant) -> None:
    holder = Holder(runtime.engine, lease, runtime.settings.lease_s, runtime.drain)
    try:
        with Keeper(holder, runtime.settings.stall_s, when_stalled(runtime, holder)):
            if not convict(runtime, lease, scan):
                _work(runtime, holder, scan, tenant)
    except LeaseLost as error:
        log.warning("tenant %s: %s", tenant.name, error)
        return
    except filesystem.Unreadable as error:
        _fail(runtime, lease, tenant, error)
    except Draining:
        write(runtime.engine, shards.release, lease)
        events.info("shard put back", reason="this worker ends")
    except (StaleDirectory, Exhausted) as error:
        log.warning("tenant %s: shard %d is given back: %s", tenant.name, lease.number, error)
        give_back(runtime, lease, str(error))
    except Exception as error:
        if not database_failed(runtime, lease, error):
            # A mistake of ours. It counts as a death, so that the entry it is met at is left alone in the end.
            log.exception("tenant %s: shard %d failed", tenant.name, lease.number)
            at = holder.at if is_careful(lease) else None  # else much waits to be written: it may be anything
            abandon(runtime, lease, at, repr(error))
    nudge(current_app)


def _work(runtime: Runtime, holder: Holder, scan: Scan, tenant: Tenant) -> None:
    settings, lease, began_s = runtime.settings, holder.lease, runtime.clock_s()
    runtime.governor.begin()
    with reading(runtime.engine) as connection:
        quarantined = quarantine.reasons(connection, tenant.id)
    write_back = WriteBack(holder, scan, runtime.ids, runtime.governor)
    breaker = breaker_of(runtime, tenant, lease.fence)
    gate = Gate(holder, write_back, breaker, quarantined, careful=is_careful(lease))
    holder.at = b""
    with (
        Progress(runtime.redis, runtime.keys, lease, runtime.clock_s, runtime.outage, _announcer()) as progress,
        Tree(tenant.root, cross_mounts=tenant.cross_mounts, rule_sources=rule_sources(tenant),
             touching=holder.look_at) as root,
        closing(Pipeline(
            holder, gate, write_back, scan, tenant, root,
            budget=Budget.of(settings, runtime.clock_s, runtime.hands_on), governor=runtime.governor, progress=progress,
            chunk_bytes=settings.hash_chunk_bytes, huge_entries=settings.huge_entries, clock_ns=runtime.clock_ns,
        )) as pipeline,
    ):  # fmt: skip
        try:
            rest = pipeline.run(Frontier.load(lease.frontier))
        except Draining:
            write_back.flush()  # what is done is not done again
            raise
        holder.at = None
        more = write(runtime.engine, _complete, lease, pipeline, rest, settings.lease_s)
        events.info(
            "shard done", **progress.counted, directories_unchanged=pipeline.directories_unchanged, more_shards=more,
            duration_s=round(runtime.clock_s() - began_s, 3),
        )  # fmt: skip


def _announcer() -> Callable[..., None] | None:
    """What sends events of this task's progress, where events are on: Flower then shows it as its state."""
    if not current_task or not current_app.conf.worker_send_task_events:
        return None
    return partial(current_task.send_event, "task-progress", retry=False)


def limits_of(settings: Settings, tenant: Tenant) -> Limits:
    """When the breaker of a tenant opens and for how long: a failure counts for some of its scans at least."""
    window_s = max(settings.breaker_window_s, SCANS_COUNTED * tenant.interval_s)
    return Limits(settings.breaker_failures, window_s, settings.breaker_open_s, settings.breaker_tracked)


def breaker_of(runtime: Runtime, tenant: Tenant, fence: int) -> Breaker:
    """The breaker of a tenant as it is now."""
    limits = limits_of(runtime.settings, tenant)
    return Breaker(runtime.redis, runtime.keys, runtime.outage, tenant.id, fence, limits, runtime.clock_s)


def rule_sources(tenant: Tenant) -> RuleSources:
    """Where the ignore rules of a tenant come from. Raises RulesError where its own patterns are too many."""
    own = RuleSet.parse(os.fsencode("\n".join(tenant.patterns)), source=b"", base=b"")
    return RuleSources(Rules().below(own), (GIT_RULE_FILE, RULE_FILE) if tenant.gitignore else (RULE_FILE,))


def _complete(
    connection: Connection, lease: shards.Lease, pipeline: Pipeline, rest: Sequence[Frontier], lease_s: float
) -> int:
    """Done: the rest becomes new shards (so many), and the finish ready if this was the last, in one transaction."""
    scan = scans.lock(connection, lease.scan_id)
    if scan is None:
        raise LeaseLost(f"scan {lease.scan_id} is no more")
    shards.renew(connection, lease, lease_s)
    parts = [part for piece in pipeline.pieces for part in piece.shared_out(FAN_OUT)]
    added = len(shards.add(connection, scan, [Frontier(piece=part).dump() for part in parts], lease.queue))
    tree.disown(connection, lease.tenant_id, [piece.directory_id for piece in pipeline.pieces])
    left = tree.count_owned(connection, lease.tenant_id, lease.fence, lease.number)
    if left:
        pieces = [Frontier().dump()] * min(left, FAN_OUT)
        numbers = shards.add(connection, scan, pieces, lease.queue)
        tree.hand_over(connection, lease.tenant_id, lease.fence, lease.number, numbers)
        added += len(numbers)
    added += len(shards.add(connection, scan, [frontier.dump() for frontier in rest], lease.queue))
    shards.complete(
        connection, lease, peak_memory_bytes=peak_memory_bytes(), place=str(pipeline.place),
        directories_unchanged=pipeline.directories_unchanged, other=pipeline.other, **pipeline.walked,
    )  # fmt: skip
    shards.ready_finish(connection, lease.scan_id)
    return added


def _fail(runtime: Runtime, lease: shards.Lease, tenant: Tenant, error: filesystem.Unreadable) -> None:
    """Without its root the scan cannot go on: it ends failed, without deletions, once its finish has run."""
    sentence = f"{error.operation} of tenant {tenant.name!r}: {error.error}"
    log.error("scan %s fails: %s", lease.scan_id, sentence)
    try:
        write(runtime.engine, shards.fail, lease, sentence)
    except LeaseLost as lost:
        log.warning("tenant %s: %s", tenant.name, lost)
        return
    breaker = breaker_of(runtime, tenant, lease.fence)
    breaker.failed(Failed(ROOT, error.error))
    breaker.tell()


def peak_memory_bytes() -> int:
    """The most memory that this process ever had resident."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
