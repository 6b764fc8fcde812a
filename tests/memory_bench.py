"""`make bench-memory`: how much memory a worker with four children takes, in a control group with a limit.

A real worker and beat on PostgreSQL, with the settings as shipped; only the worker is in the group, from its first page
on, and it begins anew for each set of data. What is judged is anonymous and shared memory, which cannot be taken back.
It ends with 1 where a promise does not hold. Needs root and control groups of version 1.

`--data large` stands for all large things (tests.memory_large), each of which can be named, too. They are scanned by
one child, so that what grows does not grow with the children, and in 256 MiB. TMPDIR=/dev/shm spares the disk, whose
inodes hardly fit into that: 2,000,000 names take 2 GB there, and are not charged to the worker.
"""

import argparse
import contextlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import redis

from db.tables import shards as shards_table
from db.types import ENDED, Kind
from tasks.memory.level import Level
from tasks.redis import presence
from tasks.redis.keys import Keys
from tasks.settings import Settings
from tests import field as fields
from tests import memory_group, memory_report, memory_samples, memory_trees, servers, trees
from tests.bench import AGED_S
from tests.cgroups import Group
from tests.command import STRANDLINE
from tests.field import Field
from tests.memory_container import contained
from tests.memory_large import LARGE
from tests.memory_report import Outcome
from tests.memory_samples import MB, Sample, Sampler
from tests.processes import Running
from tests.waiting import wait_until

LOOKED_EVERY_S = 0.5
# As many samples of a run are kept.
KEPT = 400
CHILDREN, CHILDREN_FOR_LARGE = 4, 1
LIMITS_MB, LIMITS_FOR_LARGE_MB = (1024, 256), (256,)
USUAL = ("pdfs", "small", "sparse")
# Before and after the scans.
IDLE_S = 5.0


@dataclass(frozen=True)
class Run:
    """One set of data, in a worker of its own: a tenant for each kind of tree."""

    data: str
    kinds: tuple[str, ...]
    number: int = 0  # of a large thing, its size

    @property
    def settings(self) -> Mapping[str, str]:
        return LARGE[self.data].settings if self.number else {}

    @property
    def scans(self) -> int:
        return 2 if self.number and LARGE[self.data].change is not None else 1

    @property
    def files(self) -> int:
        return sum(memory_trees.files_of(kind) for kind in self.kinds)


def runs_of(data: Sequence[str], numbers: Sequence[int], scale: float = 1.0) -> list[Run]:
    """The sparse file lies beside the PDFs and the most small files; all are scanned at once. `scale`: of the sizes of
    large things.
    """
    many = f"small:{max(numbers)}"
    found = {
        "pdfs": [Run("pdfs", ("pdfs",))],
        "small": [Run("small", (f"small:{number}",)) for number in sorted(numbers)],
        "sparse": [Run("sparse", ("pdfs", many, "sparse"))],
    }
    for name, one in LARGE.items():
        sizes = [max(1, round(size * scale)) for size in one.sizes]
        found[name] = [Run(name, (f"{name}:{size}",), size) for size in sizes]
    found["large"] = [run for name in LARGE for run in found[name]]
    return [run for name in data for run in found[name]]


@contextlib.contextmanager
def made(runs: Sequence[Run]) -> Iterator[Path]:
    """A folder with the trees of all runs, old enough to be scanned without being flushed to the disk."""
    kinds = sorted({kind for run in runs for kind in run.kinds})
    with tempfile.TemporaryDirectory(prefix="strandline-memory-") as name:
        print(f"making {', '.join(kinds)}; letting them age", flush=True)
        with memory_group.limited_to(0) as group:
            making = memory_group.program(group, sys.executable)
            subprocess.run([sys.executable, "-c", making, "-m", "tests.memory_trees", name, *kinds], check=True)
        time.sleep(AGED_S)
        try:
            yield Path(name)
        finally:
            print("removing what was made", flush=True)
            for kind in kinds:
                trees.remove(memory_trees.path_of(Path(name), kind))


@contextlib.contextmanager
def field_without_worker(settings: Mapping[str, str]) -> Iterator[Field]:
    tick_s = {"STRANDLINE_TICK_S": str(Settings.model_fields["tick_s"].default)}
    with (
        servers.for_a_benchmark() as (url, broker),
        tempfile.TemporaryDirectory() as place,
        fields.running(Path(place), url, broker, workers=0, **tick_s, **settings) as field,
    ):
        yield field


@contextlib.contextmanager
def in_a_group(limit_mb: int, executable: str) -> Iterator[tuple[Group, str]]:
    """As tests.memory_container has it, without a container."""
    with memory_group.limited_to(limit_mb) as group:
        yield group, memory_group.program(group, executable)


def measure(run: Run, limit_mb: int, folder: Path, said: argparse.Namespace,
            podman: bool) -> Iterator[tuple[Outcome, Sequence[Sample]]]:  # fmt: skip
    """One run: of each of its scans, what came of it, and its samples."""
    place = contained if podman else in_a_group
    with field_without_worker(run.settings) as field, place(limit_mb, STRANDLINE) as (group, program):
        worker = field.begin_worker("worker", said.children or children_for(run), program)
        roots = [memory_trees.path_of(folder, kind) for kind in run.kinds]
        # What a large thing deletes shall not be doubted.
        values = {"deletion_limit": 100} if run.number else {}
        names = [field.tenant(root=Path(os.fsdecode(root)), **values)[0] for root in roots]
        for scan in range(1, run.scans + 1):
            if scan > 1:
                change(run, roots)
            found, samples = scanned(run, field, group, worker, names, said)
            if not fields.alive(worker.pid):
                print(worker.stderr.content[-2000:].decode(errors="replace"), file=sys.stderr)
            yield replace(found, limit_mb=limit_mb, contained=podman, scan=scan), samples


def children_for(run: Run) -> int:
    return CHILDREN_FOR_LARGE if run.number else CHILDREN


def change(run: Run, roots: Sequence[bytes]) -> None:
    """As the large thing says; then it ages."""
    changing = LARGE[run.data].change
    assert changing is not None
    print(f"changing {run.kinds[0]}; letting it age", flush=True)
    for root in roots:
        changing(root, run.number)
    time.sleep(AGED_S)


def scanned(run: Run, field: Field, group: Group, worker: Running, names: Sequence[str],
            said: argparse.Namespace) -> tuple[Outcome, Sequence[Sample]]:  # fmt: skip
    """Scan all these tenants at once."""
    group.write("memory.max_usage_in_bytes", 0)
    with Sampler(group, told_by(field), said.every) as sampler:
        time.sleep(IDLE_S)  # it has begun, and told of itself
        idle = memory_group.used(group)
        began = time.monotonic()
        asked = [field.ask(name) for name in names]
        wait_for(lambda: not fields.alive(worker.pid) or all_ended(field, asked), said.deadline)
        wall_s = time.monotonic() - began
        time.sleep(IDLE_S)  # what it keeps
    return outcome(run, field, group, sampler.samples, asked, idle, wall_s), sampler.samples


def told_by(field: Field) -> Callable[[], str]:
    """The level that the worker told last; empty where it has not."""
    client, keys = redis.Redis.from_url(field.broker.url), Keys(Settings.model_fields["redis_prefix"].default)

    def look() -> str:
        return next((str(one["level"]) for one in presence.memory(client, keys).values()), "")

    return look


def all_ended(field: Field, asked: Sequence[str]) -> bool:
    return all(field.state(scan_id) in ENDED for scan_id in asked)


def wait_for(condition: Callable[[], bool], deadline_s: float) -> None:
    """Or until the time is up: then what came of it tells."""
    with contextlib.suppress(AssertionError):
        wait_until(condition, deadline_s, "the scans end")


def outcome(run: Run, field: Field, group: Group, samples: Sequence[Sample], asked: Sequence[str], idle: int,
            wall_s: float) -> Outcome:  # fmt: skip
    """What the database, the samples and the kernel say."""
    documents = [field.document(scan_id) for scan_id in asked]
    peak = max(samples, key=lambda sample: sample.used)
    children = [sample.children for sample in samples]
    states = {document["state"] for document in documents}
    return Outcome(
        0, run.data, run.files, sum(document["hashed_bytes"] or 0 for document in documents), round(wall_s, 1),
        ", ".join(sorted(states)), *shards_of(field), round(idle / MB, 1),
        round(peak.used, 1), round(int(group.read("memory.max_usage_in_bytes")) / MB, 1), peak.children,
        min(children), max(children), memory_group.oom_kills(group),
        max((sample.level for sample in samples if sample.level), key=lambda name: Level[name], default=""),
        number=run.number,
        changes=sum(document[kind] or 0 for document in documents for kind in Kind),
    )  # fmt: skip


def shards_of(field: Field) -> tuple[int, int, int]:
    """Of the last scans: how many shards they had, how often those were begun, and how often whoever did so died."""
    query = (
        f"SELECT count(*) AS shards, sum(attempt) AS attempts, sum(deaths) AS deaths FROM {shards_table.name} "
        f"WHERE fence = (SELECT max(fence) FROM {shards_table.name})"
    )
    [counts] = field.rows(query)
    return counts.shards, int(counts.attempts), int(counts.deaths)


def draw(folder: Path) -> None:
    """Pictures of all that lies in the folder, where there is what draws them."""
    try:
        from tests import memory_plot
    except ImportError:
        print("no pictures: there is no matplotlib (.venv/bin/pip install matplotlib)")
        return
    for path in memory_plot.draw(folder):
        print(f"drawn: {path}")


def given() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limits", type=int, nargs="+", help="MiB of the group (1024 and 256; large things: 256)")
    parser.add_argument("--data", nargs="+", choices=[*USUAL, "large", *LARGE], default=list(USUAL))
    parser.add_argument("--scale", type=float, default=1.0, help="part of the size of large things, for a try")
    parser.add_argument("--children", type=int, help="of the worker (4; for large things 1)")
    parser.add_argument("--files", type=int, nargs="+", default=[memory_report.FEW, memory_report.MANY])
    parser.add_argument("--podman", action="store_true", help="then again in containers, where podman is there")
    parser.add_argument("--deadline", type=float, default=3600, help="seconds for one run")
    parser.add_argument("--every", type=float, default=LOOKED_EVERY_S, help="seconds between two samples")
    parser.add_argument("--into", type=Path, default=Path("docs/memory"), help="folder for samples and pictures")
    parser.add_argument("--draw", action="store_true", help="draw what lies in that folder, and measure nothing")
    return parser.parse_args()


def measured(said: argparse.Namespace, runs: Sequence[Run], folder: Path) -> Iterator[Outcome]:
    """Each run that was asked for; its samples are kept."""
    podman = shutil.which("podman") is not None
    if said.podman and not podman:
        print("no containers: there is no podman (apt install podman runc)")
    for contains in [False, True] if said.podman and podman else [False]:
        for limit_mb, run in in_order(runs, said.limits):
            for found, samples in measure(run, limit_mb, folder, said, contains):
                memory_report.write(said.into, found)
                memory_samples.write(said.into / f"{found.name}.csv", memory_samples.thinned(samples, KEPT))
                print(memory_report.table([found]).splitlines()[-1], flush=True)
                yield found


def in_order(runs: Sequence[Run], limits_mb: Sequence[int] | None) -> list[tuple[int, Run]]:
    """What to measure: limit by limit, each with all runs."""
    wanted = {run: limits_mb or (LIMITS_FOR_LARGE_MB if run.number else LIMITS_MB) for run in runs}
    each = dict.fromkeys(limit_mb for limits in wanted.values() for limit_mb in limits)
    return [(limit_mb, run) for limit_mb in each for run in runs if limit_mb in wanted[run]]


def all_hold(outcomes: Sequence[Outcome]) -> bool:
    """Tell all of them, and what was promised."""
    print(f"\n`make bench-memory ARGS={shlex.quote(shlex.join(sys.argv[1:]))}`\n\n{memory_report.table(outcomes)}\n")
    verdicts = memory_report.judged(outcomes)
    for holds, what in verdicts:
        print(f"{'holds' if holds else 'BROKEN'}: {what}", flush=True)
    return all(holds for holds, _ in verdicts)


def main() -> None:
    said = given()
    held, runs = True, runs_of(said.data, said.files, said.scale)
    if not said.draw:
        with made(runs) as folder:
            held = all_hold(list(measured(said, runs, folder)))
    draw(said.into)
    sys.exit(not held)


if __name__ == "__main__":
    main()
