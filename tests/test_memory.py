"""A worker in a real control group of memory: what leaks is recycled away, what takes too much is killed alone."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import hungry, trees
from tests.cgroups import Group
from tests.field import Field
from tests.field import running as field_running
from tests.hungry import MB
from tests.memory_group import limited_to, oom_kills, used
from tests.trees import Dir, File
from tests.waiting import wait_until

LONG_S = 300

# Longer than it waits for things by.
pytestmark = [pytest.mark.chaos, pytest.mark.needs("root", "memory cgroup"), pytest.mark.timeout(2 * LONG_S)]


@pytest.fixture
def group() -> Iterator[Group]:
    with limited_to(1024) as group:
        yield group


@pytest.fixture
def field(tmp_path: Path, newest_postgres_url: str, own_redis) -> Iterator[Field]:
    """A cluster without workers, in which work soon spreads."""
    settings = {"STRANDLINE_LEASE_S": "2", "STRANDLINE_SHARD_ENTRIES": "5000"}
    with own_redis() as broker, field_running(tmp_path, newest_postgres_url, broker, workers=0, **settings) as field:
        yield field


@pytest.mark.long
def test_a_leak_of_five_megabytes_a_folder_is_recycled_away_and_nothing_is_lost(group: Group, field: Field) -> None:
    worker = field.begin_worker("worker", 4, hungry.program(group, "Leaking"))
    name, root = field.tenant(Dir())
    trees.make_many(root, 400, 10)
    document = field.ended(field.ask(name), LONG_S)

    assert document["state"] == "succeeded" and oom_kills(group) == 0
    assert document["attempts"] == document["shards"], "nothing was done twice"
    assert worker.stderr.content.count(b"this process ends") >= 400 * hungry.LEAK // (1024 * MB)
    field.quiet({name: root})


@pytest.mark.long
def test_a_limit_that_is_lowered_while_scanning_shrinks_the_pool_and_nothing_is_lost(
    group: Group, field: Field
) -> None:
    worker = field.begin_worker("worker", 4, hungry.program(group, "Heavy"))
    name, root = field.tenant(Dir())
    trees.make_many(root, 1_000, 50)
    scan_id = field.ask(name)
    wait_until(lambda: len(worker.descendants()) == 4 and used(group) > 300 * MB, LONG_S, "all work, and are heavy")
    group.write("memory.limit_in_bytes", 400 * MB)
    wait_until(lambda: len(worker.descendants()) <= 2, 10, "the pool has shrunk")
    assert field.state(scan_id) == "running", "it shrank while there was work"
    document = field.ended(scan_id, LONG_S)

    assert document["state"] == "succeeded" and oom_kills(group) == 0
    assert document["attempts"] == document["shards"], "nothing was done twice"
    field.quiet({name: root})


def test_who_takes_two_gigabytes_at_once_is_killed_alone_and_the_scan_completes(group: Group, field: Field) -> None:
    worker = field.begin_worker("worker", 4, hungry.program(group, "GreedyOnce"))
    name, root = field.tenant(Dir({b"greedy": Dir({b"f": File(b"f")})}))
    trees.make_many(root + b"/more", 400, 10)
    document = field.ended(field.ask(name), LONG_S)

    assert document["state"] == "succeeded" and oom_kills(group) == 1 and worker.pid in worker.alive()
    field.quiet({name: root})


def test_a_folder_that_takes_two_gigabytes_each_time_is_left_alone_and_the_scan_completes(
    group: Group, field: Field
) -> None:
    worker = field.begin_worker("worker", 4, hungry.program(group, "Greedy"))
    name, _ = field.tenant(Dir({b"greedy": Dir({b"f": File(b"f")}), b"other": File(b"other")}))
    document = field.ended(field.ask(name), LONG_S)

    assert document["state"] == "partial" and oom_kills(group) >= 2 and worker.pid in worker.alive()
    assert os.fsdecode(next(iter(field.quarantined(name)))) == "greedy"
