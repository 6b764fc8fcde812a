"""From what is known of a cluster to families of metrics, with their names, units and labels. Pure.

Labels are bounded: tiers, strategies, states, queues and the workers that live. Tenants are named only where asked for.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import version
from typing import Any

from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from sqlalchemy import Row

from db.figures import Figures, OfTier
from db.tallies import BOUNDS_S
from db.types import Kind, ScanState
from tasks.core.breaker import Covers, State
from tasks.memory.level import Level
from tasks.redis.breaker import States
from tasks.redis.traffic import Traffic

# Of a tally: (metric, help, column).
COUNTED = (
    ("directories_scanned", "Directories listed by scans that have ended", "directories"),
    ("directories_unchanged", "Directories of these whose fingerprint was equal", "directories_unchanged"),
    ("files_scanned", "Files whose stat was compared by scans that have ended", "files"),
    ("files_hashed", "Files that were read", "hashed_files"),
    ("hashed_bytes", "Bytes of these files", "hashed_bytes"),
    ("files_verified", "Files that were read although their stat was equal", "verified_files"),
    ("silent_changes", "Files of these found to be other than recorded", "silent_changes"),
    ("entries_skipped", "Places left out on purpose: mounts, breaker, quarantine", "skipped_total"),
    ("entries_failed", "Places that could not be looked at", "errors_total"),
    ("shards_ended", "Shards of scans that have ended", "shards"),
    ("shard_attempts", "How often these shards were begun", "attempts"),
)  # fmt: skip
OF_TIER: tuple[tuple[str, str, Callable[[OfTier], float]], ...] = (
    ("tenants_late", "Tenants whose index is older than their interval allows", lambda one: one.late),
    ("scan_lag_seconds", "By how much the index of the latest of these is too old", lambda one: one.lag_s),
    ("watermark_age_seconds", "Since the start of the last complete scan, of whom it is longest",
     lambda one: one.watermark_age_s),
    ("schedule_lag_seconds", "How long the tick has left unclaimed what is due", lambda one: one.overdue_s),
)  # fmt: skip
MEMORY = (
    ("used_bytes", "Anonymous, shared and kernel memory that counts against the nearest limit", "used_bytes"),
    ("limit_bytes", "The limit that is nearest", "limit_bytes"),
    ("working_set_bytes", "As a kubelet counts it", "working_set_bytes"),
    ("stalled_percent", "Part of the last ten seconds in which all waited for memory", "stalled_percent"),
)
NEVER_STARTED = "none"


def _gauge(name: str, help_: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"strandline_{name}", help_, labels=labels)


def _counter(name: str, help_: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(f"strandline_{name}", help_, labels=labels)


def of_database(found: Figures) -> Iterator[Metric]:
    """What the database tells."""
    build = _gauge("build_info", "Always 1: what answers, and the schema of its database", "version", "schema")
    build.add_metric([version("strandline"), found.schema], 1)
    yield build
    yield from _of_tiers(found)
    yield from _of_open(found)
    ended = _counter("scans_ended", "Scans that have ended", "strategy", "state", "tier")
    for key, count in _summed(found.ended, ("strategy", "state", "tier"), "scans").items():
        ended.add_metric(key, count)
    yield ended
    yield from _of_work(found.ended)
    yield _histogram(found.ended, "scan_duration_seconds", "From start to end of scans that were started", "took",
                     "strategy")  # fmt: skip
    yield _histogram(found.ended, "scan_wait_seconds", "From being asked for to start (or cancelling) of scans",
                     "waited", "tier")  # fmt: skip


def _of_tiers(found: Figures) -> Iterator[Metric]:
    tenants = _gauge("tenants", "Tenants", "tier", "state")
    suspect = _gauge("tenants_suspect", "Tenants whose deletions wait for `strandline confirm`", "tier")
    for tier in found.tiers:
        tenants.add_metric([tier.tier, "enabled"], tier.enabled)
        tenants.add_metric([tier.tier, "paused"], tier.paused)
        suspect.add_metric([tier.tier], found.suspect.get(tier.tier, 0))
    yield from (tenants, suspect)
    for name, help_, value in OF_TIER:
        family = _gauge(name, help_, "tier")
        for tier in found.tiers:
            family.add_metric([tier.tier], value(tier))
        yield family
    behind = _gauge(
        "tenant_lag_seconds", "By how much a tenant's index is too old; those behind most", "tenant", "tier"
    )
    for one in found.late:
        behind.add_metric([one.tenant, one.tier], one.late_s)
    yield behind


def _of_open(found: Figures) -> Iterator[Metric]:
    scans = _gauge("scans_open", "Scans that are queued or running", "tier", "state")
    oldest = _gauge("scan_oldest_seconds", "For how long the oldest of these has waited or run", "tier", "state")
    known = {(one.tier, one.state): one for one in found.open}
    for tier in found.tiers:
        for state in (ScanState.QUEUED, ScanState.RUNNING):
            one = known.get((tier.tier, state))
            scans.add_metric([tier.tier, state], one.scans if one else 0)
            oldest.add_metric([tier.tier, state], one.oldest_s if one else 0)
    shards = _gauge("shards_open", "The backlog: shards that are ready, or that somebody holds", "queue", "state")
    for queue in ("interactive", "bulk"):
        for shard_state in ("ready", "leased"):
            shards.add_metric([queue, shard_state], found.backlog.get((queue, shard_state), 0))
    quarantined = _gauge("quarantined_entries", "Entries that are not touched, since whoever did so died")
    quarantined.add_metric([], found.quarantined)
    yield from (scans, oldest, shards, quarantined)


def _summed(rows: Iterable[Row[Any]], by: tuple[str, ...], column: str) -> dict[tuple[str, ...], int]:
    sums: dict[tuple[str, ...], int] = defaultdict(int)
    for row in rows:
        key = tuple(getattr(row, name) or NEVER_STARTED for name in by)
        sums[key] += int(getattr(row, column))
    return sums


def _of_work(rows: Iterable[Row[Any]]) -> Iterator[Metric]:
    started = [row for row in rows if row.strategy]
    for name, help_, column in COUNTED:
        family = _counter(name, help_, "strategy")
        for key, value in _summed(started, ("strategy",), column).items():
            family.add_metric(key, value)
        yield family
    changed = _counter("files_changed", "Changes that were published", "strategy", "kind")
    for kind in Kind:
        for (strategy,), value in _summed(started, ("strategy",), kind).items():
            changed.add_metric([strategy, kind], value)
    yield changed


def _histogram(rows: Iterable[Row[Any]], name: str, help_: str, column: str, label: str) -> Metric:
    family = HistogramMetricFamily(f"strandline_{name}", help_, labels=[label])
    bins: dict[str, Counter[int]] = defaultdict(Counter)
    sums_s: Counter[str] = Counter()
    for row in rows:
        value = getattr(row, label)
        if value:
            bins[value][getattr(row, column)] += int(row.scans)
            sums_s[value] += getattr(row, f"{column}_ms")
    for value, counted in sorted(bins.items()):
        below, buckets = 0, []
        for number, bound in enumerate([*map(str, BOUNDS_S), "+Inf"]):
            below += counted[number]
            buckets.append((bound, below))
        family.add_metric([value], buckets, sum_value=sums_s[value] / 1000)
    return family


def of_workers(workers: Mapping[str, tuple[int, Mapping[str, Any] | None]]) -> Iterator[Metric]:
    """What the main processes of the workers told within the last seconds."""
    count = _gauge("workers", "Workers that live")
    count.add_metric([], len(workers))
    slots = _gauge("worker_slots", "Shards that a worker can work on at once: the cap of its pool", "worker")
    for name, (number, _) in workers.items():
        slots.add_metric([name], number)
    yield from (count, slots)
    yield from _of_memory({name: told for name, (_, told) in workers.items() if told is not None})


def _of_memory(memory: Mapping[str, Mapping[str, Any]]) -> Iterator[Metric]:
    for name, help_, field in MEMORY:
        family = _gauge(f"worker_memory_{name}", help_, "worker")
        for worker, told in memory.items():
            if told.get(field) is not None:
                family.add_metric([worker], told[field])
        yield family
    level = _gauge("worker_memory_level", "0 LOW, 1 MODERATE, 2 HIGH, 3 CRITICAL", "worker")
    kills = _counter("worker_oom_kills", "Processes that the kernel killed in its control group", "worker")
    children = _gauge("worker_children", "Processes of its pool", "worker")
    largest = _gauge("worker_largest_child_bytes", "Memory of the largest of these", "worker")
    for worker, told in memory.items():
        level.add_metric([worker], Level[told["level"]])
        kills.add_metric([worker], told["oom_kills"])
        children.add_metric([worker], len(told["children"]))
        largest.add_metric([worker], max((child["bytes"] for child in told["children"]), default=0))
    yield from (level, kills, children, largest)


def of_breakers(found: States) -> Iterator[Metric]:
    """What fails and is left alone."""
    entries = _gauge("breaker_entries", "Places that failed lately", "covers", "state")
    roots = _gauge("breaker_roots", "Roots of tenants that failed lately; while open they are not scanned", "state")
    for state in State:
        for covers in Covers:
            entries.add_metric([covers, state], found.entries[covers, state])
        roots.add_metric([state], found.roots[state])
    tenants = _gauge("breaker_tenants", "Tenants of which something failed lately")
    tenants.add_metric([], found.tenants)
    more = _gauge("breaker_truncated", "1 where more tenants than these have breakers, which were not counted")
    more.add_metric([], found.more)
    yield from (entries, roots, tenants, more)


def of_traffic(found: Traffic) -> Iterator[Metric]:
    """What goes through the broker."""
    unread = _gauge("queue_messages", "Messages that nobody has taken", "queue")
    for queue, length in found.unread.items():
        unread.add_metric([queue], length)
    sent = _counter("shards_sent", "Shards that were handed to the broker")
    sent.add_metric([], found.shards)
    took = SummaryMetricFamily("strandline_enqueue_seconds", "What handing a batch of shards to the broker took")
    took.add_metric([], found.batches, found.seconds)
    yield from (unread, sent, took)
