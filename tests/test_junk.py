"""Whatever lies in a queue: a worker drops what is no message of ours, says so in a line, and goes on."""

import base64
import json
import uuid

import pytest

from tests.field import SOON_S, Field
from tests.field import field as field  # the fixture
from tests.waiting import wait_until

pytestmark = pytest.mark.chaos

CONTROL = "strandline:control"
FIELD = {"children": 1}


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
def test_whatever_lies_in_a_queue_ends_no_worker(field: Field) -> None:
    name, root = field.tenant()
    worker = field.process("worker")
    with field.redis() as client:
        for one in JUNK:
            client.lpush(CONTROL, one if isinstance(one, bytes) else json.dumps(one).encode())
        field.others_go_on()
        wait_until(lambda: not client.llen(CONTROL), SOON_S, "all that is gone")

    field.quiet({name: root})
    assert worker.pid in worker.alive() and b"Unrecoverable" not in worker.stderr.content
