"""A worker that is told to end: it is gone within seconds, and what it held goes on elsewhere."""

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.field import SMALL, Field, cut, large
from tests.field import field as field  # the fixture
from tests.processes import Running

pytestmark = pytest.mark.chaos

GONE_WITHIN_S = 20
HALF_WAY = 64 << 20
FIELD = {"workers": 0}
fault = pytest.mark.fault


@dataclass
class Half:
    """A worker one of whose children has half hashed a large file, and others that take its place."""

    field: Field
    name: str
    root: bytes
    scan_id: str

    @property
    def worker(self) -> Running:
        return self.field.process("worker")

    def term(self, times: int = 1) -> bytes:
        """Tell the worker to end; what it said, when it is gone, to the last child."""
        began = time.monotonic()
        for _ in range(times):
            self.worker.send(signal.SIGTERM)
        ended = self.worker.wait(GONE_WITHIN_S)
        print(f"TERM to the end of the worker: {time.monotonic() - began:.2f} s")
        assert self.worker.wait_gone(5) == set()
        return ended.stderr

    def ends_elsewhere(self) -> None:
        self.field.begin_worker("second", 2)
        self.field.others_go_on()
        cut(self.root + b"/large")
        assert self.field.ended(self.scan_id)["state"] == "succeeded"
        self.field.quiet({self.name: self.root})


@pytest.fixture
def half(field: Field) -> Iterator[Half]:
    field.begin_worker("worker", 2)
    if field.usual is None:
        field.settle()
    name, root = field.tenant(SMALL)
    path = large(root)
    scan_id = field.ask(name)
    field.holder(path, past=HALF_WAY)
    yield Half(field, name, root, scan_id)
    for process in [name for name in field.cluster.processes if name != "beat"]:
        field.cluster.processes.pop(process).close()


@fault(3, "TERM, and TERM again, while a file of 100 GB is half hashed; then another worker")
@pytest.mark.parametrize("times", [1, 3], ids=["once", "thrice"])
def test_a_worker_is_gone_in_seconds_with_a_large_file_half_hashed(half: Half, times: int) -> None:
    assert b"Traceback" not in half.term(times)

    states = {(shard.state, shard.deaths) for shard in half.field.shards(half.scan_id)}
    assert states <= {("waiting", 0), ("ready", 0), ("done", 0)}
    half.ends_elsewhere()


@fault(3, "KILL of a worker that was told to end")
def test_a_worker_that_is_killed_while_it_ends_loses_nothing(half: Half) -> None:
    half.worker.send(signal.SIGTERM)
    half.worker.send(signal.SIGKILL)
    half.worker.wait(10)

    half.ends_elsewhere()


@fault(3, "TERM while Redis hangs")
@fault(7, "SIGSTOP while a worker is told to end")
def test_a_worker_is_gone_in_seconds_also_while_redis_hangs(half: Half) -> None:
    os.kill(half.field.broker.pid, signal.SIGSTOP)
    try:
        half.term()
    finally:
        os.kill(half.field.broker.pid, signal.SIGCONT)

    half.ends_elsewhere()
