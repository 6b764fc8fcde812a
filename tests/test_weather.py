"""Twenty tenants, four workers, and for some minutes every fault there is, again and again, while all trees change.

Then it is quiet, each tenant is scanned once, and all is compared: nothing missed, nothing invented, nothing doubled,
nothing left open, nothing held. `make storm MINUTES=10 SEED=1`.
"""

import contextlib
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from db import tenants
from db.clock import clock
from db.engine import write
from db.types import ENDED, ScanState
from tests import field as fields
from tests import invariants
from tests.cluster import running
from tests.storm import FAULTS, KINDS, LEASE_S, WORKERS, Mount, Storm
from tests.storm_report import Report
from tests.volumes import Volume
from tests.waiting import wait_until
from tests.weather import Spell, forecast
from tests.writer import Writer, Writers

MINUTES = float(os.environ.get("MINUTES") or 10)
SEED = int(os.environ.get("SEED") or random.randrange(10**6))
TENANTS, CHANGES_A_SECOND = 20, 40
INTERVALS_S = (5, 15)
ASKED_EVERY_S = 2.0
# A message that was dropped is sent again after a minute; so may be the one after it.
QUIET_S = 240
SETTINGS = {"STRANDLINE_LEASE_S": str(LEASE_S), "STRANDLINE_SHARD_ENTRIES": "60", "STRANDLINE_STAGGER_WINDOW_S": "0"}

fault = pytest.mark.fault


class Weather:
    """What comes when, done to a cluster."""

    def __init__(self, storm: Storm, seed: int) -> None:
        self._storm, self._seed = storm, seed
        self._rng = random.Random(f"{seed} asking")
        self._began_s = time.monotonic()
        self._undoing: dict[int, contextlib.ExitStack] = {}

    def lasts(self, spells: list[Spell]) -> None:
        """Until the last spell is over; whatever is raised meanwhile, all are undone."""
        beginnings = [(spell.at_s, spell.number, self._begin, spell) for spell in spells]
        endings = [(spell.until_s, spell.number, self._end, spell) for spell in spells]
        with contextlib.ExitStack() as left:
            left.callback(lambda: [stack.close() for stack in self._undoing.values()])
            for at_s, _, turn, spell in sorted([*beginnings, *endings], key=lambda one: one[:2]):
                self._until(at_s)
                turn(spell)

    def _begin(self, spell: Spell) -> None:
        self._storm.counted[spell.fault] += 1
        rng = random.Random(f"{self._seed} {spell.number}")
        strike = contextlib.contextmanager(FAULTS[spell.fault])
        stack = self._undoing[spell.number] = contextlib.ExitStack()
        stack.enter_context(strike(self._storm, rng))

    def _end(self, spell: Spell) -> None:
        self._undoing.pop(spell.number).close()

    def _until(self, at_s: float) -> None:
        """Meanwhile what ended is started again, and somebody asks for scans."""
        never = threading.Event()
        while (left_s := self._began_s + at_s - time.monotonic()) > 0:
            never.wait(min(left_s, ASKED_EVERY_S))
            self._storm.tend()
            how = self._rng.choice(({}, {}, {"full": True}, {"verify": True}))
            self._storm.request(self._rng.choice(sorted(self._storm.roots)), **how)


@pytest.fixture
def storm(own_redis, own_postgres, tmp_path: Path) -> Iterator[Storm]:
    with contextlib.ExitStack() as stack:
        broker = stack.enter_context(own_redis("--appendonly", "yes"))
        server = stack.enter_context(own_postgres())
        server.execute("CREATE DATABASE storm")
        cluster = stack.enter_context(
            running(tmp_path, server.url("storm"), broker.url, workers=len(WORKERS), children=1, **SETTINGS)
        )
        storm = stack.enter_context(fields.on(cluster, broker, tmp_path, Storm, database=server))
        stack.callback(storm.keep_logs)
        yield storm


@pytest.fixture
def mounts(mounted: Callable[..., Volume], tmp_path: Path) -> Iterator[list[Mount]]:
    """Of a folder in memory, and of one beside the other tenants'."""
    volume = mounted("tmpfs")
    with contextlib.ExitStack() as stack:
        found = [
            Mount(volume.parts / f"root{number}", behind)
            for number, behind in enumerate((volume.path / "behind", tmp_path / "behind"))
        ]
        for mount in found:
            mount.mount()
            stack.callback(mount.unmount)
        yield found


def begun(storm: Storm, mounts: list[Mount]) -> dict[str, Writer]:
    """Who changes the tree of which tenant. Each is scanned once, and from then on as the schedule says."""
    writers: dict[str, Writer] = {}
    for mount in mounts:
        name = joined(storm, writers, mount.behind, mount.root)
        storm.mounts[name] = mount
    for number in range(len(mounts), TENANTS):
        joined(storm, writers, storm.folder / f"tree{number}")
    all_scanned(storm)
    storm.settle()
    rng = random.Random(SEED)
    for name in writers:
        # What is deleted here is so for real, and nobody is there to confirm it; a root is guarded all the same.
        change(storm, name, interval_s=rng.randint(*INTERVALS_S), next_scan_at=clock(), deletion_limit=100)
    return writers


def joined(storm: Storm, writers: dict[str, Writer], tree: Path, root: Path | None = None) -> str:
    """A tenant whose tree can be changed there, and is seen at its root."""
    writer = Writer(os.fsencode(tree), random.Random(f"{SEED} {len(writers)}"))
    name, seen_at = storm.tenant(root=root or tree)
    writers[name], storm.roots[name] = writer, seen_at
    return name


def change(storm: Storm, name: str, **values: object) -> None:
    write(storm.engine, lambda connection: tenants.change(connection, tenants.get(connection, name).id, **values))


def all_scanned(storm: Storm) -> None:
    """Each tenant once, to its end."""
    asked = {name: storm.ask(name) for name in storm.roots}
    for name, scan_id in asked.items():
        wait_until(lambda scan_id=scan_id: storm.state(scan_id) in ENDED, QUIET_S, f"the last scan of {name} ends")
    documents = [storm.document(scan_id) for scan_id in asked.values()]
    assert [one for one in documents if one["state"] != ScanState.SUCCEEDED] == []


def calmed(storm: Storm) -> None:
    """Until nobody has anything to do any more."""
    storm.ready()
    for name in storm.roots:
        change(storm, name, enabled=False)
    open_scans = "SELECT id, state FROM scans WHERE finished_at IS NULL"
    wait_until(lambda: not storm.rows(open_scans), QUIET_S, "all scans end")


@pytest.mark.weather
@pytest.mark.needs("mount")
@pytest.mark.timeout(60 * MINUTES + 900)
@fault(1, "kill -9 of children and workers in mid-scan, again and again")
@fault(4, "SIGSTOP of children in mid-scan for more than their lease, again and again")
@fault(5, "Redis killed, with its data and without, and flushed, again and again")
@fault(6, "REPLICAOF a server that is not there, again and again")
@fault(7, "SIGSTOP of Redis for 20 s, again and again")
@fault(8, "all messages under way doubled, at once and later, and dropped, again and again")
@fault(10, "PostgreSQL restarted (immediate), again and again")
@fault(14, "beat stopped, ended and doubled, again and again")
@fault(15, "a worker each of whose clocks is an hour ahead or behind, for a while")
@fault(16, "a root unmounted while it is scanned, again and again")
def test_a_storm_costs_no_change(storm: Storm, mounts: list[Mount]) -> None:
    print(f"\nstorm: make storm MINUTES={MINUTES:g} SEED={SEED}", flush=True)
    report = Report(SEED, MINUTES)
    try:
        writers = begun(storm, mounts)
        report.begins()
        with Writers(list(writers.values()), f"{SEED} writers", CHANGES_A_SECOND):
            Weather(storm, SEED).lasts(forecast(SEED, 60 * MINUTES, KINDS))
        report.ends()
        calmed(storm)
        all_scanned(storm)
        found = report.compared(storm, writers)
        print(report.text, flush=True)
        (storm.folder / "wrong").write_text("\n".join(found))
        assert found == [], f"{len(found)} are wrong, the first: {found[:5]}"
        removed = {path for writer in writers.values() for path in writer.journal.removed()}
        invariants.check(storm.engine, storm.roots, removed, restless=True)
    except BaseException as error:
        error.add_note(f"again: make storm MINUTES={MINUTES:g} SEED={SEED}; logs and all that is wrong: {storm.folder}")
        raise
