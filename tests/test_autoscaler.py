"""A worker's pool: it grows as there is work, shrinks as memory does, and no child that works is killed for it."""

import contextlib
import errno
import itertools
import os
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tasks.app import make_app
from tasks.memory.cap import LEAST_BYTES, STEADY_S
from tasks.memory.level import PROFILES
from tasks.redis import presence
from tasks.redis.keys import Keys
from tasks.settings import load
from tests import hungry, trees
from tests.cgroups import Group, limited
from tests.field import SOON_S, Field, cut, large
from tests.field import running as field_running
from tests.hungry import MB
from tests.trees import Dir
from tests.waiting import wait_until

pytestmark = pytest.mark.chaos

AMPLE = 1024 * MB
KEYS = Keys("strandline:")
FOLDERS = 24
UNENDING = {"STRANDLINE_SHARD_BYTES": str(1 << 40), "STRANDLINE_SHARD_SECONDS": "1000"}
# So long pressure flaps, and a cap that changes once a second.
SECONDS = 60 * float(os.environ.get("MINUTES") or 0.25)
CAP_FLAPS_S = min(SECONDS, 45)
# A worker whose cap is another number of children each second.
FLAPPING = """
from tasks.app import make_app
from tasks.memory.cap import Cap
def step(self, *seen):
    self.value = self.most if self.value == 1 else 1
    return self.value
Cap.step = step
from orchestrator.cli import main
main()
"""

# And one whose memory is HIGH.
SHORT = """
from tasks.memory.level import Ladder, Level
Ladder.step = lambda *seen: Level.HIGH
from orchestrator.cli import main
main()
"""


@contextlib.contextmanager
def with_a_worker(program: str | None, folder: Path, url: str, own_redis, **settings: str) -> Iterator[Field]:
    """One of four children at most."""
    with own_redis() as broker, field_running(folder, url, broker, workers=0, **settings) as field:
        field.begin_worker("worker", 4, program)
        yield field


def slots(field: Field) -> int:
    with field.redis() as client:
        return presence.slots(client, KEYS)


def told(field: Field) -> dict:
    with field.redis() as client:
        return next(iter(presence.memory(client, KEYS).values()))


def children(field: Field) -> int:
    return len(field.process("worker").descendants())


def at_work(field: Field, scans: list[str]) -> int:
    return sum(shard.state == "leased" for scan_id in scans for shard in field.shards(scan_id))


def count_ticks(field: Field) -> int:
    return field.process("worker").stderr.content.count(b"strandline.tick[")


def slow(field: Field) -> tuple[str, bytes]:
    """A tenant each of whose directories takes a part of a second."""
    name, root = field.tenant(Dir({b"%d" % d: Dir() for d in range(FOLDERS)}))
    for d in range(FOLDERS):
        large(root + b"/%d" % d, size=256 * MB)
    return name, root


def cut_all(roots: Iterable[bytes]) -> None:
    for root in roots:
        for d in range(FOLDERS):
            cut(root + b"/%d/large" % d)


def limit_for(field: Field, count: int) -> int:
    """A limit under which so many children fit."""
    seen = told(field)
    sizes = [child["bytes"] for child in seen["children"]]
    others = seen["used_bytes"] - sum(sizes)
    return round((others + (count + 0.5) * max([LEAST_BYTES, *sizes])) / PROFILES["conservative"].high)


def cap_seen(field: Field, group: Group) -> int:
    """How many there may be, in status, and in the statistics of which Flower makes its page of a worker. (It may go on
    to fall meanwhile, and one tells it a moment before the other.)
    """
    app = make_app(load(field.cluster.env))

    def told_by_all() -> int:
        [status] = field.cluster.json("status")
        [stats] = app.control.inspect(timeout=2).stats().values()
        assert stats["autoscaler"]["most"] == 4 and stats["autoscaler"]["memory_limited_by"].endswith(group.path.name)
        told = {worker["processes"] for worker in status["workers"]}
        told |= {stats["pool"]["max-concurrency"], stats["autoscaler"]["max"]}
        return told.pop() if len(told) == 1 else 0

    return wait_until(told_by_all, 30, "all tell the same")


def nothing_was_lost(field: Field, scan_id: str) -> None:
    document = field.ended(scan_id)
    assert document["state"] == "succeeded" and document["attempts"] == document["shards"], document
    assert sum(shard.deaths for shard in field.shards(scan_id)) == 0


@pytest.mark.long
@pytest.mark.needs("root", "memory cgroup")
def test_a_pool_shrinks_with_the_limit_while_all_children_work_and_grows_again(
    tmp_path: Path, newest_postgres_url: str, own_redis
) -> None:
    with limited("memory") as group:
        group.write("memory.limit_in_bytes", AMPLE)
        with with_a_worker(hungry.program(group), tmp_path, newest_postgres_url, own_redis, **UNENDING) as field:
            assert children(field) == 1 and slots(field) == 4
            roots = dict(slow(field) for _ in range(4))
            scans = [field.ask(name) for name in roots]
            wait_until(lambda: at_work(field, scans) == 4, 60, "four shards are worked on")
            assert children(field) == 4
            wait_until(lambda: len(told(field)["children"]) == 4, 5, "all are measured")

            group.write("memory.limit_in_bytes", limit_for(field, 2))
            wait_until(lambda: children(field) <= 2, 10, "the pool has shrunk")
            wait_until(lambda: slots(field) <= 2, 5, "the dispatcher is told")
            cap = cap_seen(field, group)
            assert cap <= 2

            group.write("memory.limit_in_bytes", AMPLE)
            wait_until(lambda: slots(field) > cap, 4 * STEADY_S, "the pool may grow again")
            cut_all(roots.values())  # enough was seen
            for scan_id in scans:
                nothing_was_lost(field, scan_id)


@pytest.mark.parametrize(("governor", "expected"), [("on", 1), ("off", 4)])
def test_the_settings_say_how_much_memory_a_worker_has_and_whether_that_matters(
    governor: str, expected: int, tmp_path: Path, newest_postgres_url: str, own_redis
) -> None:
    settings = {"STRANDLINE_MEMORY_LIMIT_MB": "64", "STRANDLINE_MEMORY_GOVERNOR": governor}
    with with_a_worker(None, tmp_path, newest_postgres_url, own_redis, **settings) as field:
        assert slots(field) == expected
        assert told(field)["level"] == "CRITICAL"


def test_after_a_lost_connection_as_many_run_at_once_as_before(
    tmp_path: Path, newest_postgres_url: str, own_redis
) -> None:
    with with_a_worker(None, tmp_path, newest_postgres_url, own_redis) as field:
        with field.redis() as client:
            # (A connection that waits for nothing is made anew without a word.)
            pops = lambda: [one for one in client.client_list() if one["cmd"] == "brpop" and "b" in one["flags"]]  # noqa: E731
            wait_until(pops, 30, "it waits for messages")
            client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        said = field.process("worker").stderr
        wait_until(lambda: said.content.count(b"Connected to") == 2, 30, "it has connected again")
        roots = dict(slow(field) for _ in range(4))
        scans = [field.ask(name) for name in roots]
        wait_until(lambda: at_work(field, scans) == 4, 60, "four shards are worked on")
        cut_all(roots.values())
        for scan_id in scans:
            field.ended(scan_id)


def test_where_memory_is_high_no_more_is_begun_until_all_is_done_and_whoever_has_memory_takes_it(
    tmp_path: Path, newest_postgres_url: str, own_redis
) -> None:
    with with_a_worker(SHORT, tmp_path, newest_postgres_url, own_redis, **UNENDING) as field:
        roots = dict(slow(field) for _ in range(4))
        first, *others = roots
        scans = [field.ask(first)]
        wait_until(lambda: at_work(field, scans) == 1, 10, "it goes on where it has nothing else to do")
        scans += [field.ask(name) for name in others]
        ticks = count_ticks(field)
        wait_until(lambda: count_ticks(field) > ticks + 4, 10, "what keeps things moving is done")
        assert at_work(field, scans) == 1

        field.begin_worker("worker2", 4)
        wait_until(lambda: at_work(field, scans) >= 4, 10, "another worker has memory")
        cut_all(roots.values())
        for scan_id in scans:
            nothing_was_lost(field, scan_id)


@pytest.mark.long
def test_a_cap_that_flaps_while_short_shards_run_kills_no_child_that_works(
    tmp_path: Path, newest_postgres_url: str, own_redis
) -> None:
    with with_a_worker(FLAPPING, tmp_path, newest_postgres_url, own_redis, STRANDLINE_SHARD_ENTRIES="20") as field:
        name, root = field.tenant(Dir())
        trees.make_many(root, 60, 10)
        until_s = time.monotonic() + CAP_FLAPS_S
        while time.monotonic() < until_s:
            nothing_was_lost(field, field.ask(name))
        said = field.process("worker").stderr.content
        assert said.count(b"Scaling down") > CAP_FLAPS_S / 4 and said.count(b"Scaling up") > CAP_FLAPS_S / 4
        assert b"WorkerLost" not in said and b"Traceback" not in said, said
        field.quiet({name: root})


@pytest.mark.long
@pytest.mark.needs("root", "memory cgroup")
def test_pressure_that_flaps_changes_the_cap_once_in_ten_seconds_at_most(
    tmp_path: Path, newest_postgres_url: str, own_redis
) -> None:
    with limited("memory") as group:
        group.write("memory.limit_in_bytes", AMPLE)
        with with_a_worker(hungry.program(group), tmp_path, newest_postgres_url, own_redis) as field:
            name, root = field.tenant(Dir())
            trees.make_many(root, 60, 10)
            nothing_was_lost(field, field.ask(name))
            limits = limit_for(field, 1), AMPLE
            wait_until(lambda: lowered(group, limits[0]), SOON_S, "the kernel takes the limit")
            wait_until(lambda: b"children instead of" in field.process("worker").stderr.content, SOON_S, "it is heeded")
            for scan_id in flapping(field, name, group, limits):
                nothing_was_lost(field, scan_id)
            said = field.process("worker").stderr.content.decode()
    changes = [clock_s(line) for line in re.findall(r"(\d+:\d+:\d+\.\d+).*children instead of", said)]
    assert all((later - before) % 86400 >= STEADY_S - 0.1 for before, later in itertools.pairwise(changes))


def flapping(field: Field, name: str, group: Group, limits: tuple[int, int]) -> Iterator[str]:
    """Scans, while the limit is another each second."""
    until_s = time.monotonic() + SECONDS
    while time.monotonic() < until_s:
        scan_id = field.ask(name)
        lowered(group, limits[int(time.monotonic()) % 2])
        yield scan_id


def lowered(group: Group, limit: int) -> bool:
    """The kernel refuses a limit below what is used, where it cannot take enough back at once: then it stays."""
    try:
        group.write("memory.limit_in_bytes", limit)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True


def clock_s(text: str) -> float:
    hours, minutes, seconds = text.split(":")
    return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
