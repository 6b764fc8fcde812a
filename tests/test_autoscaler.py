"""A worker's pool in a real control group: it shrinks with the limit, loses nothing, and grows again."""

import os
from pathlib import Path

import pytest

from tests import processes, trees
from tests.cgroups import limited
from tests.field import Field
from tests.field import running as field_running
from tests.trees import Dir
from tests.waiting import wait_until

MB = 1 << 20
pytestmark = [pytest.mark.needs("root", "memory cgroup")]


def told(field: Field) -> dict:
    [document] = field.cluster.json("status", "--memory")
    return document["memory"][0]


def test_a_pool_shrinks_with_the_limit_within_ten_seconds_and_nothing_is_lost(
    tmp_path: Path, newest_postgres_url: str, own_redis
) -> None:
    settings = {"children": 4, "STRANDLINE_SHARD_ENTRIES": "200"}
    with own_redis() as broker, field_running(tmp_path, newest_postgres_url, broker, **settings) as field:
        worker = field.cluster.processes["worker"].pid
        name, root = field.tenant(Dir())
        trees.make_many(root, 400, 50)
        with limited("memory", [worker, *processes.descendants(worker)]) as group:
            group.write("memory.limit_in_bytes", 2048 * MB)
            scan_id = field.ask(name)
            wait_until(lambda: len(processes.descendants(worker)) == 4, 30, "all children work")
            used = told(field)["used_bytes"]
            group.write("memory.limit_in_bytes", round(used / 0.7))
            wait_until(lambda: len(processes.descendants(worker)) < 4, 10, "the pool has shrunk")
            document = field.ended(scan_id)
        assert document["state"] == "succeeded" and document["attempts"] == document["shards"]
        assert sum(shard.deaths for shard in field.shards(scan_id)) == 0
        field.quiet({name: os.fsencode(root)})
