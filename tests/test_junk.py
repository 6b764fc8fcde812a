"""Whatever lies in a queue: a worker drops what is no message of ours, says so in a line, and goes on."""

import base64
import json
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.cluster import Cluster, running
from tests.servers import RedisServer
from tests.trees import Dir, File, build, listing
from tests.waiting import wait_until

pytestmark = pytest.mark.chaos

CONTROL = "strandline:control"


@pytest.fixture
def broker(own_redis) -> Iterator[RedisServer]:
    with own_redis() as broker:
        yield broker


@pytest.fixture
def cluster(newest_postgres_url: str, broker: RedisServer, tmp_path: Path) -> Iterator[Cluster]:
    with running(tmp_path, newest_postgres_url, broker.url, children=1) as cluster:
        yield cluster


def envelope(body: object, task: object = "strandline.finish", **headers: object) -> dict:
    """As kombu writes a message of Celery's, around any body."""
    tag = str(uuid.uuid4())
    given = {"lang": "py", "task": task, "id": tag, "root_id": tag, "argsrepr": "", "kwargsrepr": "", **headers}
    info = {"exchange": "", "routing_key": "control"}
    return {
        "body": base64.b64encode(json.dumps(body).encode()).decode(), "content-encoding": "utf-8",
        "content-type": "application/json", "headers": given,
        "properties": {"correlation_id": tag, "reply_to": "", "delivery_mode": 2, "delivery_info": info,
                       "priority": 0, "body_encoding": "base64", "delivery_tag": tag},
    }  # fmt: skip


JUNK: list[bytes | dict | list | str | int | None] = [
    b"junk", b"[]", b"null", b"42", b'"text"', b'{"body":' + b"[" * 5000, b"\xff\xfe", b"", b"{}", b'{"properties": 7}',
    envelope("no list"), envelope([]), envelope([1, 2, 3]), envelope({"args": 1}),
    envelope([[], {}, {}], task="no such"),
    envelope([[], {}, {}], task=None), envelope([[], {}, {}], task=["x"]), envelope([[1, 2, 3, 4], {}, {}]),
    envelope([["x", "y"], {"z": 1}, {}], task="strandline.scan_shard"), envelope([[], {}, {}], eta="never"),
    envelope([[], {}, {}], expires="never"), envelope([[], {}, {}], timelimit="x"),
    envelope([[], {}, {}]) | {"content-type": "application/x-python-serialize"},
    envelope([[], {}, {}]) | {"headers": None}, envelope([[], {}, {}]) | {"properties": {}},
]  # fmt: skip


@pytest.mark.fault(8, "junk, and envelopes of all sorts of contents, pushed into a queue")
def test_whatever_lies_in_a_queue_ends_no_worker(cluster: Cluster, broker: RedisServer, tmp_path: Path) -> None:
    root = tmp_path / "root"
    build(bytes(root), Dir({b"f": File(b"1"), b"d": Dir({b"g": File(b"2")})}))
    assert cluster.run("tenant", "add", "t", str(root)).returncode == 0
    worker = cluster.processes["worker"]
    with redis.Redis.from_url(broker.url) as client:
        for one in JUNK:
            client.lpush(CONTROL, one if isinstance(one, bytes) else json.dumps(one).encode())
        wait_until(lambda: not client.llen(CONTROL), 60, "all that is gone")

    assert cluster.run("enqueue", "t").returncode == 0
    wait_until(lambda: cluster.index("t") == listing(bytes(root)), 30, "the worker goes on")
    assert worker.pid in worker.alive() and b"Unrecoverable" not in worker.stderr.content
    worker.send(signal.SIGTERM)
    assert worker.wait(20).returncode == 0
