"""`make bench-memory`: how much memory a worker with four children takes, in a control group with a limit.

A real worker and beat on PostgreSQL, with the settings as shipped; only the worker is in the group, from its first page
on, and it begins anew for each set of data. What is judged is anonymous and shared memory, which cannot be taken back.
It ends with 1 where a promise does not hold. Needs root and control groups of version 1.
"""

import argparse
import contextlib
import itertools
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import redis

from db.tables import shards as shards_table
from db.types import ENDED
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
from tests.memory_report import Outcome
from tests.memory_samples import MB, Sampler
from tests.waiting import wait_until

LOOKED_EVERY_S = 0.5
# As many samples of a run are kept.
KEPT = 400
CHILDREN = 4
# Before and after the scans.
IDLE_S = 5.0


@dataclass(frozen=True)
class Run:
    """One set of data, in a worker of its own: a tenant for each kind of tree."""

    data: str
    kinds: tuple[str, ...]

    @property
    def files(self) -> int:
        return sum(memory_trees.files_of(kind) for kind in self.kinds)


def runs_of(data: Sequence[str], numbers: Sequence[int]) -> list[Run]:
    """The sparse file lies beside the PDFs and the most small files; all are scanned at once."""
    many = f"small:{max(numbers)}"
    found = {
        "pdfs": [Run("pdfs", ("pdfs",))],
        "small": [Run("small", (f"small:{number}",)) for number in sorted(numbers)],
        "sparse": [Run("sparse", ("pdfs", many, "sparse"))],
    }
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
def field_without_worker() -> Iterator[Field]:
    tick_s = {"STRANDLINE_TICK_S": str(Settings.model_fields["tick_s"].default)}
    with (
        servers.for_a_benchmark() as (url, broker),
        tempfile.TemporaryDirectory() as place,
        fields.running(Path(place), url, broker, workers=0, **tick_s) as field,
    ):
        yield field


@contextlib.contextmanager
def in_a_group(limit_mb: int, executable: str) -> Iterator[tuple[Group, str]]:
    """As tests.memory_container has it, without a container."""
    with memory_group.limited_to(limit_mb) as group:
        yield group, memory_group.program(group, executable)


def measure(run: Run, limit_mb: int, folder: Path, said: argparse.Namespace, podman: bool) -> tuple[Outcome, Sampler]:
    """One run: what came of it, and its samples."""
    place = contained if podman else in_a_group
    with field_without_worker() as field, place(limit_mb, STRANDLINE) as (group, program):
        worker = field.begin_worker("worker", CHILDREN, program)
        names = [field.tenant(root=Path(os.fsdecode(memory_trees.path_of(folder, kind))))[0] for kind in run.kinds]
        with Sampler(group, told_by(field), said.every) as sampler:
            time.sleep(IDLE_S)  # it has begun, and told of itself
            idle = memory_group.used(group)
            began = time.monotonic()
            asked = [field.ask(name) for name in names]
            wait_for(lambda: not fields.alive(worker.pid) or all_ended(field, asked), said.deadline)
            wall_s = time.monotonic() - began
            time.sleep(IDLE_S)  # what it keeps
        if not fields.alive(worker.pid):
            print(worker.stderr.content[-2000:].decode(errors="replace"), file=sys.stderr)
        found = outcome(run, limit_mb, field, group, sampler, asked, idle, wall_s)
        return replace(found, contained=podman), sampler


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


def outcome(run: Run, limit_mb: int, field: Field, group: Group, sampler: Sampler, asked: Sequence[str], idle: int,
            wall_s: float) -> Outcome:  # fmt: skip
    """What the database, the samples and the kernel say."""
    documents = [field.document(scan_id) for scan_id in asked]
    query = f"SELECT count(*) AS shards, sum(attempt) AS attempts, sum(deaths) AS deaths FROM {shards_table.name}"
    [counts] = field.rows(query)
    peak = max(sampler.samples, key=lambda sample: sample.used)
    children = [sample.children for sample in sampler.samples]
    states = {document["state"] for document in documents}
    return Outcome(
        limit_mb, run.data, run.files, sum(document["hashed_bytes"] or 0 for document in documents), round(wall_s, 1),
        ", ".join(sorted(states)), counts.shards, int(counts.attempts), int(counts.deaths), round(idle / MB, 1),
        round(peak.used, 1), round(int(group.read("memory.max_usage_in_bytes")) / MB, 1), peak.children,
        min(children), max(children), memory_group.oom_kills(group),
        max((sample.level for sample in sampler.samples if sample.level), key=lambda name: Level[name], default=""),
    )  # fmt: skip


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
    parser.add_argument("--limits", type=int, nargs="+", default=[1024, 256], help="MiB of the group")
    parser.add_argument("--data", nargs="+", choices=["pdfs", "small", "sparse"], default=["pdfs", "small", "sparse"])
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
        for limit_mb, run in itertools.product(said.limits, runs):
            found, sampler = measure(run, limit_mb, folder, said, contains)
            memory_report.write(said.into, found)
            memory_samples.write(said.into / f"{found.name}.csv", memory_samples.thinned(sampler.samples, KEPT))
            print(memory_report.table([found]).splitlines()[-1], flush=True)
            yield found


def all_hold(outcomes: Sequence[Outcome]) -> bool:
    """Tell all of them, and what was promised."""
    print(f"\n`make bench-memory ARGS={shlex.quote(shlex.join(sys.argv[1:]))}`\n\n{memory_report.table(outcomes)}\n")
    verdicts = memory_report.judged(outcomes)
    for holds, what in verdicts:
        print(f"{'holds' if holds else 'BROKEN'}: {what}", flush=True)
    return all(holds for holds, _ in verdicts)


def main() -> None:
    said = given()
    held, runs = True, runs_of(said.data, said.files)
    if not said.draw:
        with made(runs) as folder:
            held = all_hold(list(measured(said, runs, folder)))
    draw(said.into)
    sys.exit(not held)


if __name__ == "__main__":
    main()
