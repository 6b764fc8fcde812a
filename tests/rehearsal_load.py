"""What is scanned while pods come and go: small trees that change all the time, and long shards that end when told."""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from dataclasses import field as each
from pathlib import Path

from sqlalchemy import Connection

from db import scans, tenants
from db.clock import clock
from db.engine import write
from db.types import ENDED, Trigger
from tests.cluster import YEAR_S
from tests.field import Field, cut, large
from tests.pods import Pod, children
from tests.trees import Dir, File, build, next_tick
from tests.writer import Writer, Writers

RESTLESS, CHANGES_A_SECOND, INTERVAL_S = 3, 20, 8
ASKED_EVERY_S = 4.0
# Two scans that want six pods of four. A folder is a shard (it counts as four entries itself). The first ones are soon
# done, so that the scan may have more in flight at once, the others come to a file without end.
LONG, SOON_DONE, WITHOUT_END = 2, 12, 11
SHARD_ENTRIES = 60
FOLDER = Dir({b"%d" % n: File(b"%d" % n) for n in range(SHARD_ENTRIES - 4)} | {b"large": File(b"not yet")})


@dataclass
class Load:
    """Tenants of two sorts."""

    field: Field
    folder: Path  # of their trees
    seed: int
    writers: dict[str, Writer] = each(default_factory=dict)
    roots: dict[str, bytes] = each(default_factory=dict)  # of all
    long: dict[bytes, str] = each(default_factory=dict)  # files that are read without end, and whose they are
    _is_changing: bool = False
    _asked_s: float = 0.0
    _number: int = 0

    def join(self) -> None:
        """All tenants; none is scanned by itself yet."""
        for number in range(RESTLESS):
            root = self.folder / f"restless{number}"
            writer = Writer(os.fsencode(root), random.Random(f"{self.seed} {number}"))
            name, seen_at = self.field.tenant(root=root, deletion_limit=100)  # what is deleted here is so for real
            self.writers[name], self.roots[name] = writer, seen_at
        for number in range(LONG):
            root = self.folder / f"long{number}"
            build(os.fsencode(root), Dir({b"%02d" % n: FOLDER for n in range(SOON_DONE + WITHOUT_END)}))
            name, seen_at = self.field.tenant(root=root)
            self.roots[name] = seen_at

    def request(self, name: str, trigger: Trigger = Trigger.REQUEST) -> str:
        """A scan that somebody asks for, or the schedule; beat sees to it."""
        tenant_id = write(self.field.engine, lambda connection: tenants.get(connection, name).id)
        scan, _ = write(self.field.engine, scans.request, tenant_id, trigger=trigger)
        return scan.id

    def all_scanned(self) -> Iterable[str]:
        """Ask for a scan of each; the ids."""
        return [self.request(name) for name in self.roots]

    def is_quiet(self) -> bool:
        """Is there no scan that has not ended?"""
        return not self.field.rows("SELECT id FROM scans WHERE finished_at IS NULL")

    def have_ended(self, scan_ids: Iterable[str]) -> bool:
        return all(self.field.state(scan_id) in ENDED for scan_id in scan_ids)

    # What changes all the time

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """Trees change, and are scanned by the schedule every few seconds, until the end of the block."""
        for name in self.writers:
            self._change(name, interval_s=INTERVAL_S, next_scan_at=clock())
        with Writers(list(self.writers.values()), f"{self.seed} writers", CHANGES_A_SECOND):
            self._is_changing = True
            try:
                yield
            finally:
                self._is_changing = False

    def ask(self) -> None:
        """Now and then somebody asks for a scan, who waits."""
        if self._is_changing and time.monotonic() - self._asked_s > ASKED_EVERY_S:
            self._asked_s, self._number = time.monotonic(), self._number + 1
            self.request(list(self.writers)[self._number % len(self.writers)])

    def nothing_is_due(self) -> None:
        """Nothing more comes by the schedule."""
        for name in self.roots:
            self._change(name, interval_s=YEAR_S, next_scan_at=clock(YEAR_S))

    def _change(self, name: str, **values: object) -> None:
        def work(connection: Connection) -> None:
            tenants.change(connection, tenants.get(connection, name).id, **values)

        write(self.field.engine, work)

    # What takes long

    def grow(self) -> None:
        """One file of each folder has no end any more, and scans of them are due."""
        names = [name for name in self.roots if name not in self.writers]
        for name in names:
            next_tick(self.roots[name])
            for number in range(SOON_DONE, SOON_DONE + WITHOUT_END):
                self.long[large(self.roots[name] + b"/%02d" % number)] = name
        for name in names:
            self.request(name, Trigger.SCHEDULE)

    def cut(self, but: Iterable[bytes] = ()) -> None:
        """The ends of these files come."""
        for path in set(self.long) - set(but):
            cut(path)
            del self.long[path]

    def read_by(self, pods: Iterable[Pod]) -> dict[bytes, Pod]:
        """Which of the long files is read in which pod?"""
        return {path: pod for pid, pod in children(pods).items() for path in _open(pid) if path in self.long}

    def let_others_go_first(self, pods: Iterable[Pod]) -> None:
        """Who reads without end takes what all others leave: here all pods share the processors of one machine. Not so
        a pod that ends, whose last steps would not be waited for on a machine of its own.
        """
        for pid, pod in children(pods).items():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                idle = not pod.ending and any(path in self.long for path in _open(pid))
                os.sched_setscheduler(pid, os.SCHED_IDLE if idle else os.SCHED_OTHER, os.sched_param(0))


def _open(pid: int) -> list[bytes]:
    found = []
    folder = b"/proc/%d/fd/" % pid
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            with contextlib.suppress(OSError):
                found.append(os.readlink(folder + name))
    return found
