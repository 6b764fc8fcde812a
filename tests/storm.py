"""A cluster in a storm: what may befall it, how each fault is done, and how it is undone.

A fault is a generator that does it, yields, and undoes it; `rng` chooses whom it strikes.
"""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from dataclasses import field as each
from pathlib import Path

from db import scans, tenants
from db.engine import write
from db.types import Trigger
from tasks.app import QUEUES
from tests.field import Field, alive
from tests.servers import PostgresServer
from tests.waiting import wait_until
from tests.weather import Kind

WORKERS = ("worker", "worker2", "worker3", "worker4")
BEAT = "beat"
HOUR_S = 3600
SOON_S = 60
LEASE_S = 5
LOST = 4  # messages of a queue
# Whoever is to be struck in mid-work is looked for so long.
LOOK_S, LOOK_EVERY_S = 3.0, 0.003

# All that asks for the time of day asks these.
SHIFTED = """
import datetime, sys, time
off_s = {off_s}
real, clock, clock_ns = datetime.datetime, time.time, time.time_ns
time.time, time.time_ns = lambda: clock() + off_s, lambda: clock_ns() + off_s * 10**9

class Kind(type):
    def __instancecheck__(cls, it):
        return isinstance(it, real)

class Shifted(real, metaclass=Kind):
    @classmethod
    def now(cls, tz=None):
        return real.now(tz) + datetime.timedelta(seconds=off_s)

import celery.app.base, celery.utils.time, celery.worker.request
for module in (celery.app.base, celery.utils.time, celery.worker.request):
    module.datetime = Shifted
from orchestrator.cli import main
sys.argv[0] = "strandline"
main()
"""


class Mount:
    """A root that is a bind mount of a folder behind it, in which its tree can be changed at any time."""

    def __init__(self, root: Path, behind: Path) -> None:
        self.root, self.behind = root, behind
        for folder in (root, behind):
            folder.mkdir(parents=True)

    def mount(self) -> None:
        subprocess.run(["mount", "--bind", self.behind, self.root], check=True)

    def unmount(self) -> None:
        """At once, also where somebody is reading."""
        subprocess.run(["umount", "-l", self.root], check=True)


@dataclass
class Storm(Field):
    """Four workers and beat on servers of their own. A process that ends is started again, as in the field."""

    database: PostgresServer = each(kw_only=True)
    mounts: dict[str, Mount] = each(default_factory=dict)  # by tenant
    roots: dict[str, bytes] = each(default_factory=dict)  # of all tenants
    stopped: set[int] = each(default_factory=set)  # children that stay so meanwhile
    away: set[str] = each(default_factory=set)  # processes that are not started again meanwhile
    counted: Counter[str] = each(default_factory=Counter)
    logs: list[tuple[str, bytes]] = each(default_factory=list)  # of processes that are no more

    # Processes

    def begin_again(self, name: str, *, program: str | None = None) -> None:
        """Kill a process, where it still runs, and start it anew. It is not waited for: its servers may be away."""
        self.end(name)
        words = ("beat",) if name.startswith(BEAT) else ("worker", "--workers", "1")
        self.cluster.begin(name, *words, program=program)

    def end(self, name: str) -> None:
        process = self.cluster.processes.pop(name)
        process.close()
        self.logs.append((name, process.stderr.content))

    def keep_logs(self) -> None:
        """Of all processes, in the test's folder."""
        running = [(name, process.stderr.content) for name, process in self.cluster.processes.items()]
        for number, (name, log) in enumerate([*self.logs, *running]):
            (self.folder / f"log-{number:03}-{name}").write_bytes(log)

    def tend(self) -> None:
        """Start again what has ended by itself."""
        for name, process in list(self.cluster.processes.items()):
            if name not in self.away and not alive(process.pid):
                self.counted[f"{name.rstrip('234')} ended by itself"] += 1
                self.begin_again(name)

    def ready(self) -> None:
        """Wait until all are there again."""
        for name in WORKERS:
            wait_until(lambda name=name: self._takes_work(name), SOON_S, f"{name} is ready")

    def _takes_work(self, name: str) -> bool:
        self.tend()
        return b"ready" in self.process(name).stderr.content and len(self.process(name).descendants()) == 1

    def children(self) -> list[tuple[str, int]]:
        """Of each worker, those that scan."""
        return [(name, pid) for name in WORKERS for pid in sorted(self.process(name).descendants())]

    @contextlib.contextmanager
    def caught(self, rng: random.Random) -> Iterator[tuple[str, int] | None]:
        """A worker and its child, which is stopped in the midst of a scan; after a while any, or none at all."""
        children = [child for child in self.children() if child[1] not in self.stopped]
        look, until_s = threading.Event(), time.monotonic() + LOOK_S
        while (found := next(filter(self._stopped_in_work, children), None)) is None and time.monotonic() < until_s:
            look.wait(LOOK_EVERY_S)
        self.counted["caught in mid-scan"] += found is not None
        try:
            yield found or (rng.choice(children) if children else None)
        finally:
            if found is not None and found[1] not in self.stopped:
                _send(found[1], signal.SIGCONT)

    def _stopped_in_work(self, child: tuple[str, int]) -> bool:
        """Stop it if it scans, and still does so then."""
        if not self._scans(child[1]):
            return False
        _send(child[1], signal.SIGSTOP)
        if not self._scans(child[1]):
            _send(child[1], signal.SIGCONT)
            return False
        return True

    def _scans(self, pid: int) -> bool:
        """Has it a folder or file of a tenant open?"""
        with contextlib.suppress(OSError):
            for one in os.scandir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    if os.readlink(os.fsencode(one.path)).startswith(tuple(self.roots.values())):
                        return True
        return False

    @contextlib.contextmanager
    def nobody_takes(self) -> Iterator[None]:
        """While no worker takes a message."""
        pids = [self.process(name).pid for name in WORKERS]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

    # Scans

    def request(self, name: str, **how: bool) -> str:
        """A scan that somebody asks for; nothing is sent by that."""
        tenant_id = write(self.engine, lambda connection: tenants.get(connection, name).id)
        scan, _ = write(self.engine, scans.request, tenant_id, trigger=Trigger.REQUEST, **how)
        return scan.id

    def under_way(self) -> dict[str, list[bytes]]:
        """Messages that wait, after some were sent."""
        self.session.tick()
        with self.redis() as client:
            return {name: found for name in _lists() if (found := client.lrange(name, 0, -1))}


def _send(pid: int, number: signal.Signals) -> None:
    """To whom may have ended meanwhile."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _lists() -> list[str]:
    return [f"strandline:{queue}" for queue in QUEUES]


Fault = Callable[[Storm, random.Random], Iterator[None]]
FAULTS: dict[str, Fault] = {}
KINDS: dict[str, Kind] = {}


def fault(part: str, least_s: float = 0.0, most_s: float | None = None) -> Callable[[Fault], Fault]:
    def register(function: Fault) -> Fault:
        name = function.__name__.replace("_", " ")
        FAULTS[name], KINDS[name] = function, Kind(part, least_s, least_s if most_s is None else most_s)
        return function

    return register


# ---- Workers


@fault("children")
def a_child_killed(storm: Storm, rng: random.Random) -> Iterator[None]:
    with storm.caught(rng) as found:
        if found is not None:
            _send(found[1], signal.SIGKILL)
    yield


@fault("children")
def a_worker_killed(storm: Storm, rng: random.Random) -> Iterator[None]:
    with storm.caught(rng) as found:
        name = rng.choice(WORKERS) if found is None else found[0]
        storm.begin_again(name)
    yield


@fault("stopped", LEASE_S + 1, 2 * LEASE_S)
def a_child_stopped_for_longer_than_its_lease(storm: Storm, rng: random.Random) -> Iterator[None]:
    with storm.caught(rng) as found:
        pids = set() if found is None else {found[1]}
        storm.stopped |= pids
        for pid in pids:
            _send(pid, signal.SIGSTOP)
    yield
    storm.stopped -= pids
    for pid in pids:
        _send(pid, signal.SIGCONT)


@fault("clock", 8, 15)
def a_clock_an_hour_ahead(storm: Storm, rng: random.Random) -> Iterator[None]:
    yield from _off(storm, rng, HOUR_S)


@fault("clock", 8, 15)
def a_clock_an_hour_behind(storm: Storm, rng: random.Random) -> Iterator[None]:
    yield from _off(storm, rng, -HOUR_S)


def _off(storm: Storm, rng: random.Random, off_s: int) -> Iterator[None]:
    name = rng.choice(WORKERS)
    storm.begin_again(name, program=SHIFTED.format(off_s=off_s))
    yield
    storm.begin_again(name)


# ---- Redis


@fault("redis", 1, 4)
def redis_killed(storm: Storm, _: random.Random) -> Iterator[None]:
    storm.broker.kill()
    yield
    storm.broker.start()


@fault("redis", 1, 4)
def redis_killed_and_its_data_lost(storm: Storm, _: random.Random) -> Iterator[None]:
    storm.broker.kill()
    shutil.rmtree(storm.broker.folder / "appendonlydir")
    yield
    storm.broker.start()


@fault("redis")
def redis_flushed(storm: Storm, _: random.Random) -> Iterator[None]:
    with storm.redis() as client:
        client.flushall()
    yield


@fault("redis", 20)
def redis_stopped_for_20_s(storm: Storm, _: random.Random) -> Iterator[None]:
    os.kill(storm.broker.pid, signal.SIGSTOP)
    yield
    os.kill(storm.broker.pid, signal.SIGCONT)


@fault("redis", 2, 5)
def redis_read_only(storm: Storm, _: random.Random) -> Iterator[None]:
    with storm.redis() as client:
        client.replicaof("127.0.0.1", 1)
    yield
    with storm.redis() as client:
        client.replicaof("NO", "ONE")


@fault("redis", 2, 6)
def messages_doubled(storm: Storm, rng: random.Random) -> Iterator[None]:
    """At once, and once more when what they asked for is over."""
    with storm.nobody_takes():
        for name in rng.sample(sorted(storm.roots), 6):
            storm.request(name)
        messages = storm.under_way()
        _push(storm, messages)
    yield
    _push(storm, messages)


def _push(storm: Storm, messages: dict[str, list[bytes]]) -> None:
    with storm.redis() as client:
        for name, some in messages.items():
            client.lpush(name, *some)
            storm.counted["messages repeated"] += len(some)


@fault("redis")
def messages_dropped(storm: Storm, rng: random.Random) -> Iterator[None]:
    """Some of those that wait: each costs its scan a minute, and all tenants are to be scanned on and on."""
    with storm.nobody_takes(), storm.redis() as client:
        for name in rng.sample(sorted(storm.roots), 6):
            storm.request(name)
        for name, some in storm.under_way().items():
            for message in rng.sample(some, min(len(some), LOST)):
                storm.counted["messages lost"] += client.lrem(name, 1, message)
    yield


# ---- PostgreSQL, beat, mounts


@fault("database")
def postgresql_restarted(storm: Storm, _: random.Random) -> Iterator[None]:
    """At once, in the midst of all transactions."""
    storm.database.stop()
    storm.database.start()
    storm.engine.dispose()
    yield


@fault("beat", 5, 12)
def beat_doubled(storm: Storm, _: random.Random) -> Iterator[None]:
    storm.cluster.begin("beat2", "beat")
    yield
    storm.end("beat2")


@fault("beat", 5, 12)
def beat_stopped(storm: Storm, _: random.Random) -> Iterator[None]:
    pid = storm.process(BEAT).pid
    os.kill(pid, signal.SIGSTOP)
    yield
    os.kill(pid, signal.SIGCONT)


@fault("beat", 5, 12)
def beat_ended(storm: Storm, rng: random.Random) -> Iterator[None]:
    storm.away.add(BEAT)
    storm.process(BEAT).send(rng.choice((signal.SIGTERM, signal.SIGKILL)))
    yield
    storm.away.remove(BEAT)
    storm.begin_again(BEAT)


@fault("mount", 5, 12)
def a_root_unmounted(storm: Storm, rng: random.Random) -> Iterator[None]:
    """Maybe in mid-scan, and scanned meanwhile."""
    name = rng.choice(sorted(storm.mounts))
    storm.request(name)
    with storm.caught(rng):
        storm.mounts[name].unmount()
    storm.request(name, full=rng.random() < 0.5)
    storm.session.tick()  # beat may be away
    yield
    storm.mounts[name].mount()
