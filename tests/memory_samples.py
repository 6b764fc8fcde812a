"""How the memory of a worker in a group goes up and down: looked at from outside, kept as a table."""

import csv
import itertools
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from tasks.memory.gauge import share
from tests import memory_group
from tests.cgroups import Group
from tests.processes import read_stat

MB = 1 << 20
# The group's own figure is cheap to read: peaks between two samples are seen, too.
PEEK_S = 0.1


@dataclass(frozen=True)
class Sample:
    """One moment, in MiB. `used` is the most that the group's anonymous and shared memory was since the sample before,
    `shares` that of each process at this moment: of what several have in common, to each its part.
    """

    second: float
    used: float
    usage: float  # all that is charged to the group, what files left in memory included
    kernel: float  # of that, the kernel's own: mostly of inodes that were looked at
    level: str  # as the worker told it last; empty where it has not
    shares: dict[str, float] = field(default_factory=dict)  # main, child 1, …

    @property
    def children(self) -> int:
        return sum(name.startswith("child") for name in self.shares)


class Sampler:
    """Looks every `every_s` seconds, from a thread, as long as the `with` lasts. `told`: the level that the worker told
    last.
    """

    def __init__(self, group: Group, told: Callable[[], str], every_s: float) -> None:
        self.samples: list[Sample] = []
        self._group, self._told, self._every_s = group, told, every_s
        self._numbers: dict[int, int] = {}  # of the children that live, by process id
        self._began_s, self._ended = time.monotonic(), threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._ended.set()
        self._thread.join()

    def _follow(self) -> None:
        over = False
        while not over:
            until_s, most = time.monotonic() + self._every_s, 0
            while not over and time.monotonic() < until_s:
                most = max(most, memory_group.used(self._group))
                over = self._ended.wait(PEEK_S)
            self.samples.append(self._look(most))

    def _look(self, most: int) -> Sample:
        usage, kernel = (int(self._group.read(f"memory.{name}_in_bytes")) for name in ("usage", "kmem.usage"))
        shares = {name: share(pid) / MB for name, pid in self._named(memory_group.pids(self._group))}
        used = max(most, memory_group.used(self._group))
        second = time.monotonic() - self._began_s
        return Sample(second, used / MB, usage / MB, kernel / MB, self._told(), shares)

    def _named(self, pids: Sequence[int]) -> Iterable[tuple[str, int]]:
        """A child that takes a dead one's place takes its number as well."""
        self._numbers = {pid: number for pid, number in self._numbers.items() if pid in pids}
        for pid in sorted(pids):
            stat = read_stat(pid)
            if stat is None or stat.ended:
                continue
            if stat.parent not in pids:
                yield "main", pid
                continue
            if pid not in self._numbers:
                taken = set(self._numbers.values())
                self._numbers[pid] = next(n for n in range(1, len(taken) + 2) if n not in taken)
            yield f"child {self._numbers[pid]}", pid


def thinned(samples: Sequence[Sample], most: int) -> list[Sample]:
    """At most so many, evenly over time; of each stretch the one with the most memory, so that no peak is lost."""
    if len(samples) <= most:
        return list(samples)
    cuts = [number * len(samples) // most for number in range(most + 1)]
    return [max(samples[a:b], key=lambda sample: sample.used) for a, b in itertools.pairwise(cuts)]


FIXED = ("second", "used_mb", "usage_mb", "kernel_mb", "level")


def write(path: Path, samples: Sequence[Sample]) -> None:
    """A line for each; a process that was not there has an empty field."""
    names = sorted({name for sample in samples for name in sample.shares}, key=lambda name: (name != "main", name))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow([*FIXED, *names])
        for one in samples:
            sizes = [one.shares.get(name, "") for name in names]
            cells = [one.second, one.used, one.usage, one.kernel, one.level, *sizes]
            rows.writerow([f"{cell:.1f}" if isinstance(cell, float) else cell for cell in cells])


def read(path: Path) -> list[Sample]:
    """As they were written."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [
        Sample(
            *(float(row[name]) for name in FIXED[:-1]),
            level=row["level"],
            shares={name: float(size) for name, size in row.items() if name not in FIXED and size},
        )
        for row in rows
    ]
