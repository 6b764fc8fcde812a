"""What a worker sees of its memory, and tells."""

import os
import re
from pathlib import Path

import pytest
import redis

from tasks.memory.gauge import Reading, share
from tasks.memory.level import PROFILES, STALLED, Level
from tasks.memory.watch import AT_ONCE, Seen, Watch
from tasks.redis import presence
from tasks.redis.keys import Keys
from tasks.settings import Settings, load
from tests import cluster, processes
from tests.cgroups import limited
from tests.waiting import wait_until

MB = 1 << 20


def seen(**settings: object) -> Seen:
    return Watch(load({f"STRANDLINE_{name.upper()}": str(value) for name, value in settings.items()})).look([])


def test_a_budget_is_held_against_what_the_worker_uses() -> None:
    ample = seen(memory_limit_mb=1 << 20)
    tight = seen(memory_limit_mb=share(os.getpid()) // MB)

    assert ample.level == Level.LOW and ample.reading.limit != tight.reading.limit
    assert tight.level == Level.CRITICAL and tight.reading.limited_by == "STRANDLINE_MEMORY_LIMIT_MB"


@pytest.mark.parametrize(
    ("profile", "level"), [("conservative", "HIGH"), ("aggressive", "MODERATE"), ("development", "MODERATE")]
)
def test_the_profile_says_how_full_is_how_full(profile: str, level: str) -> None:
    budget = round(share(os.getpid()) / 0.65) // MB

    assert seen(memory_limit_mb=budget, memory_profile=profile).level.name == level


def test_of_many_children_a_few_are_looked_at_each_time_and_all_in_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    monkeypatch.setattr("tasks.memory.watch.share", lambda pid: looked.append(pid) or pid)
    watch, many = Watch(load({})), list(range(1, 2 * AT_ONCE + 1))

    for _ in range(2):
        watch.look(many)
    assert sorted(pid for pid in looked if pid != os.getpid()) == many
    assert watch.look(many[1:]).children == [(pid, pid) for pid in many[1:]], "who is gone uses nothing"


@pytest.mark.parametrize(
    ("level", "used", "stalled", "why"),
    [
        (Level.LOW, 10, 0, "10% of the limit is used"),
        (Level.HIGH, 65, 0, "65% of the limit is used, HIGH begins at 60%"),
        (Level.HIGH, 57, 0, "57% of the limit is used, MODERATE begins at 50%, it was more a moment ago"),
        (
            Level.MODERATE,
            20,
            STALLED,
            "20% of the limit is used, all waited for memory in 10 % of the last ten seconds",
        ),
    ],
)
def test_it_says_why(level: Level, used: int, stalled: float, why: str) -> None:
    reading = Reading("control group /", 100, used, None, stalled, 0)

    assert Seen(level, reading, PROFILES["conservative"], []).why == why


@pytest.mark.needs("root", "memory cgroup")
def test_status_tells_of_each_worker_and_of_a_limit_that_changes(
    tmp_path: Path, newest_postgres_url: str, redis_url: str, redis_client: redis.Redis
) -> None:
    keys = Keys(Settings.model_fields["redis_prefix"].default)
    with cluster.running(tmp_path, newest_postgres_url, redis_url, children=2, beats=0) as running:
        worker = running.processes["worker"].pid

        def limit() -> int:
            told = presence.memory(redis_client, keys).values()
            return next((one["limit_bytes"] for one in told), 0)

        with limited("memory", [worker, *processes.descendants(worker)]) as group:
            for limit_bytes in (2048 * MB, 512 * MB):
                group.write("memory.limit_in_bytes", limit_bytes)
                wait_until(lambda wanted=limit_bytes: limit() == wanted, 10, "the limit is seen")
            [document] = running.json("status", "--memory")
            text = running.run("status", "--memory").stdout
    [told] = document["memory"]
    assert told["worker"].startswith(f"worker-{worker}@") and told["limited_by"].endswith(group.path.name)
    assert told["level"] == "LOW" and len(told["children"]) == 1, "it has as many as there is work for"
    assert all(MB < one["bytes"] < 200 * MB for one in told["children"])
    assert re.search(rf"worker-{worker}@\S+: memory is LOW: \d+% of the limit is used", text), text
    assert re.search(r"of 512.0 MiB, by control group \S+, a kubelet counts .*, 0 killed by the kernel, child", text)
