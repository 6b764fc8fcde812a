"""What a storm did and found, for people."""

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from db import changes, indexed, scans, tenants
from db.engine import reading
from db.scans import Scan
from orchestrator.documents import change_document, file_document
from tests import trees
from tests.invariants import EVERYTHING
from tests.journal import Change, Span, doubled, invented, missed
from tests.storm import KINDS, Storm
from tests.trees import State
from tests.writer import Writer, operations


@dataclass
class Seen:
    """What the database says of a tenant."""

    scans: list[Scan]
    index: State
    feed: list[Change]

    @property
    def spans(self) -> dict[int, Span]:
        """When the scan of each fence ran."""
        return {one.fence: Span(_ns(one.started_at), _ns(one.finished_at)) for one in self.scans if one.fence}


def seen(storm: Storm, name: str) -> Seen:
    with reading(storm.engine) as connection:
        tenant_id = tenants.get(connection, name).id
        return Seen(
            list(scans.of_tenant(connection, tenant_id, EVERYTHING)),
            trees.index(file_document(one) for one in indexed.page(connection, tenant_id, limit=EVERYTHING)),
            [change_document(one) for one in changes.after(connection, tenant_id, None, EVERYTHING)],
        )


def _ns(moment) -> int:
    return round(moment.timestamp() * 10**6) * 1000


@dataclass
class Report:
    """Written as the storm goes on."""

    seed: int
    minutes: float
    lines: list[str] = field(default_factory=list)
    _times_s: list[float] = field(default_factory=lambda: [time.monotonic()])

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def begins(self) -> None:
        self._times_s.append(time.monotonic())

    def ends(self) -> None:
        self._times_s.append(time.monotonic())

    def compared(self, storm: Storm, writers: Mapping[str, Writer]) -> list[str]:
        """All that is wrong, after what there was to compare is noted."""
        wrong: dict[str, list[str]] = {"missed": [], "invented": [], "doubled": []}
        all_seen = {name: seen(storm, name) for name in writers}
        for name, writer in writers.items():
            assert writer.journal.last() == trees.listing(storm.roots[name]), "the journal is not what is there"
            one = all_seen[name]
            found = {
                "missed": missed(writer.journal, one.index),
                "invented": invented(writer.journal, one.feed, one.spans),
                "doubled": doubled(writer.journal, one.feed, one.spans),
            }
            for what, some in found.items():
                wrong[what] += [f"{what} of {name}: {this}" for this in some]
        self._note(storm, writers, all_seen.values())
        self.lines.append(f"  {_counts({what: len(some) for what, some in wrong.items()})}")
        return [one for some in wrong.values() for one in some]

    def _note(self, storm: Storm, writers: Mapping[str, Writer], all_seen: Iterable[Seen]) -> None:
        every_scan = [scan for one in all_seen for scan in one.scans]
        kinds = Counter(change["kind"] for one in all_seen for change in one.feed)
        done = operations(list(writers.values()))
        faults = {name: storm.counted[name] for name in KINDS}
        begun_s, began_s, ended_s, now_s = *self._times_s, time.monotonic()
        self.lines += [
            f"  storm of seed {self.seed}, {self.minutes:g} minutes: {began_s - begun_s:.0f} s to begin, "
            f"{ended_s - began_s:.0f} s of faults, {now_s - ended_s:.0f} s until all was quiet and scanned",
            f"  {done.total()} operations: {_counts(done)}",
            f"  {sum(faults.values())} faults: {_counts(faults)}",
            f"  besides: {_counts({name: n for name, n in storm.counted.items() if name not in KINDS})}",
            f"  {len(every_scan)} scans: {_counts(Counter(scan.state for scan in every_scan))}; "
            f"{_counts(Counter(scan.strategy for scan in every_scan if scan.strategy))}",
            f"  {sum(scan.shards for scan in every_scan)} shards in "
            f"{sum(scan.attempts for scan in every_scan)} attempts",
            f"  {kinds.total()} changes: {_counts(kinds)}",
        ]


def _counts(counted: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in sorted(counted.items(), key=lambda one: -one[1]))
