"""Rows 2 and 22 of the catalogue of faults, and invariant 7: too little memory, too few descriptors or processes, and
that all are given back.
"""

import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.cgroups import limited
from tests.field import SMALL, SOON_S, Field, large, made
from tests.invariants import Held
from tests.trees import Dir, File, build
from tests.waiting import wait_until

fault = pytest.mark.fault
SCANS, TENANTS = 200, 8
CHUNK = 64 << 20


@pytest.fixture(scope="module")
def field(_postgres_servers, server_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Field]:
    """One worker, whose temporary files have a folder of their own, and who reads large files in large pieces."""
    own = {"TMPDIR": str(tmp_path_factory.mktemp("own")), "STRANDLINE_HASH_CHUNK_BYTES": str(CHUNK)}
    with made(_postgres_servers, server_folder, tmp_path_factory, STRANDLINE_LEASE_S="2", **own) as field:
        yield field


# What is given back


def connections(field: Field) -> tuple[int, int]:
    """To the database, and to Redis."""
    query = "SELECT count(*) AS n FROM pg_stat_activity WHERE datname = current_database()"
    with redis.Redis.from_url(field.broker.url) as client:
        return field.rows(query)[0].n, len(client.client_list())


def held(field: Field) -> Held:
    return Held.by(pid for name in ("worker", "beat") for pid in field.process(name).alive())


def scan_all(field: Field, names: list[str]) -> None:
    asked = [field.ask(name) for name in names]
    assert {field.session.wait(scan_id).state for scan_id in asked} == {"succeeded"}


def test_after_two_hundred_scans_all_that_was_held_is_given_back(field: Field) -> None:
    tenants = dict(field.tenant() for _ in range(TENANTS))
    for _ in range(3):
        scan_all(field, list(tenants))
    before, connected = held(field), connections(field)

    for number in range(SCANS // TENANTS):
        for root in tenants.values():
            build(root + b"/new %d" % number, File(b"%d" % number))
        scan_all(field, list(tenants))

    wait_until(lambda: held(field).no_more_than(before), SOON_S, f"no more is held than before, {before}")
    wait_until(
        lambda: all(now <= then for now, then in zip(connections(field), connected, strict=True)),
        SOON_S, f"no more connections than before, {connected}",
    )  # fmt: skip
    assert os.listdir(field.cluster.env["TMPDIR"]) == []
    field.quiet(tenants)


# What is not to be had


@fault(2, "a memory cgroup whose limit is a little above what the worker uses, and a child that needs 64 MiB more")
@pytest.mark.needs("root", "memory cgroup")
def test_a_child_that_the_kernel_kills_for_memory_costs_its_lease(field: Field) -> None:
    name, root = field.tenant()
    large(root, size=2 * CHUNK)
    worker = field.process("worker")
    with limited("memory", worker.alive()) as group:
        scan_all(field, [field.tenant()[0]])  # what is touched now is charged here
        group.write("memory.limit_in_bytes", int(group.read("memory.usage_in_bytes")) + CHUNK // 2)
        scan_id = field.ask(name)
        wait_until(lambda: "oom_kill 0" not in group.read("memory.oom_control"), SOON_S, "the kernel kills")
        field.others_go_on()
        group.write("memory.limit_in_bytes", -1)
        document = field.ended(scan_id)

    assert document["attempts"] > document["shards"] and document["deleted"] == 0
    assert worker.pid in worker.alive()
    field.command("quarantine", "release", name, "--all")
    field.quiet({name: root})


@fault(22, "RLIMIT_NOFILE of all children so many above what is open")
@pytest.mark.parametrize("spare", [0, 1, 2, 4])
def test_without_descriptors_nothing_is_deleted(field: Field, spare: int) -> None:
    name, root = field.tenant()
    field.quiet({name: root})
    build(root + b"/new", SMALL)
    children = field.process("worker").descendants()
    limits = {pid: resource.prlimit(pid, resource.RLIMIT_NOFILE) for pid in children}
    for pid, (_, hard) in limits.items():
        highest = max(int(fd) for fd in os.listdir(f"/proc/{pid}/fd"))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (highest + 1 + spare, hard))

    scan_id = field.ask(name)
    try:
        document = field.ended(scan_id, 10)
    except AssertionError:
        document = field.document(scan_id)
    print(spare, document, [tuple(x) for x in field.shards(scan_id)])
    print(field.process("worker").stderr.content.decode()[-3000:])
    for pid, before in limits.items():
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)

    assert field.ended(scan_id)["deleted"] == 0
    field.quiet({name: root})
    assert children == field.process("worker").descendants()


@fault(22, "a pids cgroup in which there is room for none more, and a child that is killed")
@pytest.mark.needs("root", "pids cgroup")
def test_without_processes_nothing_is_deleted(field: Field) -> None:
    name, root = field.tenant()
    field.quiet({name: root})
    build(root + b"/new", SMALL)
    worker = field.process("worker")
    with limited("pids", worker.alive()) as group:
        group.write("pids.max", group.read("pids.current"))
        scan_id = field.ask(name)
        try:
            document = field.ended(scan_id, 10)
        except AssertionError:
            document = field.document(scan_id)
        print(document, [tuple(x) for x in field.shards(scan_id)])
        print(field.process("worker").stderr.content.decode()[-3000:])
        group.write("pids.max", "max")
    assert field.ended(scan_id)["deleted"] == 0
    field.quiet({name: root})
