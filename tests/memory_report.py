"""What came of each run of `make bench-memory`, as a table, and whether it is what was promised."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path

from tests.memory_large import LARGE

# Promised in a group of 1 GiB, in MiB of anonymous and shared memory.
PDFS_PEAK_MB, PEAK_MB = 450, 600
# How much more a million files may take than a hundred thousand, and of a large thing the larger than the smaller.
FEW, MANY, GROWTH_MB = 100_000, 1_000_000, 20
AMPLE_MB = 1024


@dataclass(frozen=True)
class Outcome:
    """Of one scan (or, for sparse, of three at once) by a worker in a group of `limit_mb` MiB."""

    limit_mb: int
    data: str
    files: int  # that the trees have
    bytes: int  # that the scans hashed
    wall_s: float  # from the request to the end of the last scan
    state: str  # of the scans; "running" where they had not ended when the time was up
    shards: int
    attempts: int
    deaths: int
    idle_mb: float  # before the scans were asked for
    peak_mb: float  # most anonymous and shared memory
    charged_mb: float  # the kernel's own high-water mark, with what files left in memory
    children_at_peak: int
    children_least: int
    children_most: int
    oom_kills: int
    level: str  # the highest that the worker told
    contained: bool = False  # in a container, whose limit it is
    number: int = 0  # the size of a large thing
    scan: int = 1  # the first, or the second of the same tree
    changes: int = 0  # that the scans found

    @property
    def name(self) -> str:
        """Of its files."""
        parts = [self.limit_mb, self.data, self.number or self.files]
        again = ["again"] if self.scan > 1 else []
        return "-".join([*(["container"] if self.contained else []), *map(str, parts), *again])

    @property
    def what(self) -> str:
        """For people."""
        size = f" {self.number:,}" if self.number else ""
        return f"{self.data}{size}{', again' if self.scan > 1 else ''}"


HEADINGS = ("limit", "data", "files", "changes", "hashed", "seconds", "state", "shards / attempts / deaths", "idle",
            "peak", "charged", "children at peak (least–most)", "OOM kills", "highest level")  # fmt: skip


def table(outcomes: Sequence[Outcome]) -> str:
    """In Markdown; memory in MiB."""
    rows = [HEADINGS, ("---",) * len(HEADINGS), *(_row(one) for one in outcomes)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(one: Outcome) -> tuple[str, ...]:
    return (
        f"{one.limit_mb}{' (container)' if one.contained else ''}", one.what, f"{one.files:,}", f"{one.changes:,}",
        f"{one.bytes / 1e6:,.0f} MB", f"{one.wall_s:.0f}", one.state, f"{one.shards} / {one.attempts} / {one.deaths}",
        f"{one.idle_mb:.0f}", f"{one.peak_mb:.0f}", f"{one.charged_mb:.0f}",
        f"{one.children_at_peak} ({one.children_least}–{one.children_most})", str(one.oom_kills), one.level,
    )  # fmt: skip


def judged(outcomes: Sequence[Outcome]) -> list[tuple[bool, str]]:
    """Each promise that these runs speak of: whether it holds, and what it is."""
    found = []
    for one in outcomes:
        found.append((one.state == "succeeded", f"{one.name}: succeeded"))
        found.append((one.oom_kills == 0, f"{one.name}: nothing was killed for memory"))
        if one.limit_mb == AMPLE_MB:
            most = PDFS_PEAK_MB if one.data == "pdfs" else PEAK_MB
            found.append((one.peak_mb < most, f"{one.name}: peak {one.peak_mb:.0f} MB, less than {most} MB"))
    peaks = {(one.limit_mb, one.contained, one.files): one.peak_mb for one in outcomes if one.data == "small"}
    for limit_mb, contained in sorted({key[:2] for key in peaks}):
        few, many = (peaks.get((limit_mb, contained, files)) for files in (FEW, MANY))
        if limit_mb == AMPLE_MB and few is not None and many is not None:
            what = f"from {FEW:,} to {MANY:,} files the peak grows by {many - few:.0f} MB, less than {GROWTH_MB} MB"
            found.append((many - few < GROWTH_MB, what))
    return found + _large(outcomes)


def _large(outcomes: Sequence[Outcome]) -> list[tuple[bool, str]]:
    """Of each large thing: was all of it found, and is the larger scanned in the memory of the smaller?"""
    large = [one for one in outcomes if one.number]
    found = []
    for one in large:
        expected = LARGE[one.data].changes(one.number, one.scan)
        found.append((one.changes == expected, f"{one.name}: {one.changes:,} changes of {expected:,}"))
    for _, same in groupby(sorted(large, key=_kind), _kind):
        ordered = sorted(same, key=lambda one: one.number)
        smaller, larger = ordered[0], ordered[-1]
        if smaller is not larger:
            growth = larger.peak_mb - smaller.peak_mb
            what = f"{larger.name}: peak {growth:+.0f} MB beside {smaller.number:,}, at most {GROWTH_MB} MB more"
            found.append((growth <= GROWTH_MB, what))
    return found


def _kind(one: Outcome) -> tuple[int, bool, str, int]:
    """What outcomes of different sizes of the same large thing have in common."""
    return one.limit_mb, one.contained, one.data, one.scan


def write(folder: Path, outcome: Outcome) -> None:
    """Beside its samples."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{outcome.name}.json").write_text(json.dumps(asdict(outcome), indent=1) + "\n")


def read(folder: Path) -> list[Outcome]:
    """All that were written there, large limits first."""
    found = [Outcome(**json.loads(path.read_text())) for path in folder.glob("*.json")]
    return sorted(
        found,
        key=lambda one: (one.contained, -one.limit_mb, one.data != "pdfs", one.data, one.files, one.number, one.scan),
    )
