"""What a worker sees of its memory, and tells."""

import os
import re
from pathlib import Path

import pytest

from tasks.memory.gauge import Reading, share
from tasks.memory.level import PROFILES, STALLED, Level
from tasks.memory.watch import Seen, Watch
from tasks.settings import load
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
    tmp_path: Path, newest_postgres_url: str, redis_url: str
) -> None:
    with cluster.running(tmp_path, newest_postgres_url, redis_url, children=2, beats=0) as running:
        worker = running.processes["worker"].pid

        def told() -> dict:
            [document] = running.json("status", "--memory")
            return document["memory"][0] if document["memory"] else {}

        with limited("memory", [worker, *processes.descendants(worker)]) as group:
            group.write("memory.limit_in_bytes", 2048 * MB)
            wait_until(lambda: told().get("limit_bytes") == 2048 * MB, 10, "the group is seen")
            assert told()["limited_by"].endswith(group.path.name) and told()["level"] == "LOW"
            assert told()["worker"].startswith(f"worker-{worker}@")
            assert {one["pid"] for one in told()["children"]} == set(processes.descendants(worker))
            assert all(MB < one["bytes"] < 200 * MB for one in told()["children"])
            group.write("memory.limit_in_bytes", 512 * MB)
            wait_until(lambda: told()["limit_bytes"] == 512 * MB, 5, "the new limit is seen")

            text = running.run("status", "--memory").stdout
            assert re.search(rf"worker-{worker}@\S+: memory is [A-Z]+: \d+% of the limit is used", text), text
            assert re.search(
                r"of 512.0 MiB, by control group \S+, a kubelet counts .*, 0 killed by the kernel, child", text
            )
