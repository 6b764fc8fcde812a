"""Rows 2 and 22 of the catalogue of faults, and invariant 7: too little memory, too few descriptors or processes, and
that all are given back.
"""

import contextlib
import itertools
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import aftermath
from tests.cgroups import limited
from tests.field import SMALL, SOON_S, Field, large, made
from tests.trees import File, build
from tests.waiting import wait_until

pytestmark = pytest.mark.chaos

fault = pytest.mark.fault
SCANS, TENANTS = 200, 8
CHUNK = 64 << 20


@pytest.fixture(scope="module")
def field(_postgres_servers, server_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Field]:
    """One worker, who reads large files in large pieces, however little memory there is, with one child: another that
    comes later is not limited.
    """
    settings = {
        "STRANDLINE_LEASE_S": "2",
        "STRANDLINE_HASH_CHUNK_BYTES": str(CHUNK),
        "STRANDLINE_MEMORY_GOVERNOR": "off",
    }
    kept = {"buffers_bytes": 3 * CHUNK}
    with made(_postgres_servers, server_folder, tmp_path_factory, of_field=kept, children=1, **settings) as field:
        yield field


def scan_all(field: Field, names: list[str]) -> None:
    asked = [field.ask(name) for name in names]
    assert {field.session.wait(scan_id).state for scan_id in asked} == {"succeeded"}


@pytest.mark.long
def test_after_two_hundred_scans_all_that_was_held_is_given_back(field: Field) -> None:
    tenants = dict(field.tenant() for _ in range(TENANTS))
    for number in range(SCANS // TENANTS):
        for root in tenants.values():
            build(root + b"/new %d" % number, File(b"%d" % number))
        scan_all(field, list(tenants))

    field.quiet(tenants)
    aftermath.check(field)


# What is not to be had


def killed_sooner(pid: int, score: int | None = None) -> int:
    """Where the kernel has to choose, the higher goes first; set, or as it is."""
    path = Path(f"/proc/{pid}/oom_score_adj")
    if score is not None:
        path.write_text(str(score))
    return int(path.read_text())


@fault(2, "a memory cgroup whose limit is a little above what the worker uses, and a child that needs 64 MiB more")
@pytest.mark.needs("root", "memory cgroup")
def test_a_child_that_the_kernel_kills_for_memory_costs_its_lease(field: Field) -> None:
    name, root = field.tenant()
    large(root, size=2 * CHUNK)
    worker = field.process("worker")
    for pid in worker.descendants():
        assert killed_sooner(pid) > killed_sooner(worker.pid)
        # It is in parts of a group's memory, and this group will count next to nothing of what they have by now.
        killed_sooner(pid, 1000)
    with limited("memory", worker.alive()) as group:
        scan_all(field, [field.tenant()[0]])  # what is touched now is charged here
        group.write("memory.limit_in_bytes", int(group.read("memory.usage_in_bytes")) + CHUNK // 2)
        scan_id = field.ask(name)
        wait_until(lambda: "oom_kill 0" not in group.read("memory.oom_control"), SOON_S, "the kernel kills")
        group.write("memory.limit_in_bytes", -1)
        field.others_go_on()
        document = field.ended(scan_id)

    assert document["attempts"] >= document["shards"] and document["deleted"] == 0  # idle or not, a child was killed
    assert worker.stderr.wait_for(b"SIGKILL", SOON_S) and worker.pid in worker.alive()
    field.command("quarantine", "release", name, "--all")
    field.quiet({name: root})


@contextlib.contextmanager
def with_descriptors(pids: set[int], spare: int) -> Iterator[None]:
    """So many more than these processes have open."""
    before = {pid: resource.prlimit(pid, resource.RLIMIT_NOFILE) for pid in pids}
    try:
        for pid, (_, hard) in before.items():
            taken = {int(fd) for fd in os.listdir(f"/proc/{pid}/fd")}
            free = (number for number in itertools.count() if number not in taken)
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (next(itertools.islice(free, spare, None)), hard))
        yield
    finally:
        for pid, limits in before.items():
            resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)


def waits(field: Field, scan_id: str, word: bytes, times: int = 1) -> None:
    """The scan is tried so often, by a worker that says why, and nobody and nothing is blamed for it."""
    said = field.process("worker").stderr
    before = said.content.count(word)
    wait_until(lambda: said.content.count(word) >= before + times, SOON_S, f"the worker says {word!r}")
    assert field.document(scan_id)["state"] == "running"
    assert {(shard.deaths, shard.errors_total) for shard in field.shards(scan_id)} == {(0, 0)}


@fault(22, "RLIMIT_NOFILE of the pool's children so many above what is open, until the scan was tried")
@pytest.mark.parametrize("spare", [0, 1, 2])
def test_without_descriptors_a_scan_waits(field: Field, spare: int) -> None:
    name, root = field.tenant()
    field.quiet({name: root})
    build(root + b"/new", SMALL)
    os.unlink(root + b"/1/1")
    children = field.process("worker").descendants()
    with with_descriptors(children, spare):
        scan_id = field.ask(name)
        waits(field, scan_id, b"at its limits: too many open files")

    assert field.ended(scan_id)["state"] == "succeeded"
    field.quiet({name: root}, {b"1/1"})
    assert field.cluster.read("breaker", "list", name) == [] and field.process("worker").descendants() == children


@fault(22, "a pids cgroup in which there is room for none more, until the scan was tried twice")
@pytest.mark.needs("root", "pids cgroup")
def test_without_processes_and_threads_a_scan_waits(field: Field) -> None:
    name, root = field.tenant()
    field.quiet({name: root})
    build(root + b"/new", SMALL)
    os.unlink(root + b"/1/1")
    worker = field.process("worker")
    with limited("pids", worker.alive()) as group:
        group.write("pids.max", group.read("pids.current"))
        scan_id = field.ask(name)
        waits(field, scan_id, b"at its limits: can't start new thread", 2)

    assert field.ended(scan_id)["state"] == "succeeded"
    field.quiet({name: root}, {b"1/1"})


@pytest.mark.long
@fault(22, "the same, and SIGKILL of a pool's child, in whose place there can be no other")
@pytest.mark.needs("root", "pids cgroup")
def test_a_worker_that_can_start_no_child_ends_whole_and_another_goes_on(field: Field) -> None:
    name, root = field.tenant()
    worker = field.process("worker")
    with limited("pids", worker.alive()) as group:
        group.write("pids.max", int(group.read("pids.current")) - 1)
        os.kill(min(worker.descendants()), signal.SIGKILL)
        scan_id = field.ask(name)
        assert worker.wait(SOON_S).returncode != 0 and worker.wait_gone(SOON_S) == set()
    worker.close()
    field.begin_worker("worker", 2)  # as whoever watches over processes does

    assert field.ended(scan_id)["state"] == "succeeded"
    field.quiet({name: root})
