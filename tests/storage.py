"""What the storage tests share: rows from a few words, and threads that begin at the same moment."""

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, Table, select, update

from db import scans, shards, tenants, tree
from db.clock import clock
from db.engine import reading, writing
from db.scans import Scan
from db.shards import Lease
from db.tables import shards as shards_table
from db.tenants import Tenant
from db.types import ScanState, Strategy, Trigger
from orchestrator import removal
from tests.servers import postgres_kinds

# For what only one sort of database can show.
ONLY_SQLITE = pytest.mark.parametrize("migrated_url", ["sqlite"], indirect=True)
# What takes long and is about no statement in particular: the oldest PostgreSQL has the tests of each statement.
SQLITE_AND_NEWEST = pytest.mark.parametrize("migrated_url", ["sqlite", postgres_kinds()[-1]], indirect=True, ids=str)
# The same, where SQLite shows nothing that other tests do not show of it.
NEWEST_SQLITE_LATER = pytest.mark.parametrize(
    "migrated_url",
    [pytest.param("sqlite", marks=pytest.mark.large), postgres_kinds()[-1]],
    indirect=True,
    ids=str,
)
NEWEST_POSTGRES = pytest.mark.parametrize("postgres_server", postgres_kinds()[-1:], indirect=True, ids=str)
ONLY_POSTGRES = pytest.mark.parametrize("migrated_url", postgres_kinds(), ids=str, indirect=True)

LEASE_S = 60
DIGEST = bytes(range(32))


def add_tenant(engine: Engine, name: str = "acme", **values: Any) -> Tenant:
    root = b"/srv/" + name.encode("utf-8", "replace")
    row = {"root": root, "tier": "standard", "interval_s": 60, "algorithm": "sha256"} | values
    with writing(engine) as connection:
        return tenants.add(connection, name=name, **row)


def remove_tenant(engine: Engine, tenant_id: int) -> None:
    """With all that it leaves."""
    with writing(engine) as connection:
        tenants.remove(connection, tenant_id)
    removal.finish(engine, tenant_id)


def start_scan(engine: Engine, tenant: Tenant, shard_count: int = 1) -> Scan:
    """A running scan with a waiting finish and so many ready shards."""
    with writing(engine) as connection:
        queued, _ = scans.request(connection, tenant.id, trigger=Trigger.REQUEST)
        return run_scan(connection, queued, ["{}"] * shard_count)


def run_scan(connection: Connection, queued: Scan, frontiers: Sequence[str]) -> Scan:
    """Queued → running, with these shards."""
    fence = tenants.next_fences(connection, [queued.tenant_id])[queued.tenant_id]
    scans.set_running(connection, [scans.Beginning(queued.id, fence, Strategy.INCREMENTAL, "a test")])
    running = scans.get(connection, queued.id)
    assert running is not None
    shards.add_first(connection, [(running, "bulk", frontiers)])
    return running


def end_scan(engine: Engine, scan: Scan, state: ScanState = ScanState.SUCCEEDED) -> Scan:
    with writing(engine) as connection:
        scans.publish(connection, scan, state)
        ended = scans.get(connection, scan.id)
    assert ended is not None
    return ended


def claim(engine: Engine, scan: Scan, number: int = 1) -> Lease | None:
    with writing(engine) as connection:
        return shards.claim(connection, scan.id, number, LEASE_S)


def claimed(engine: Engine, scan: Scan, number: int = 1) -> Lease:
    lease = claim(engine, scan, number)
    assert lease is not None, f"shard {number} could not be claimed"
    return lease


def complete(engine: Engine, lease: Lease) -> bool:
    """As a worker completes; True if this made the finish ready."""
    with writing(engine) as connection:
        scans.lock(connection, lease.scan_id)
        shards.complete(connection, lease, peak_memory_bytes=1)
        return shards.ready_finish(connection, lease.scan_id)


def set_shard(engine: Engine, scan_id: str, number: int, **values: Any) -> None:
    s = shards_table.c
    with writing(engine) as connection:
        connection.execute(
            update(shards_table).where(s.scan_id == scan_id, s.number == number).values(**values)
        )  # fmt: skip


def expire(engine: Engine, lease: Lease) -> None:
    """Let the lease run out, without waiting for it."""
    set_shard(engine, lease.scan_id, lease.number, lease_until=clock(-1))


def directory(tenant_id: int, number: int, path: bytes, parent: int | None, *, fence: int = 1, listed: int | None = 1,
              owner: int | None = None, fingerprint: bytes | None = None, files: int = 0,
              size: int = 0) -> list[Any]:  # fmt: skip
    """A row in the order of NEW_DIRECTORY."""
    name = path.rpartition(b"/")[2]
    return [tenant_id, number, parent, name, path, tree.order_key(path), number, fingerprint, files, size, 1, fence,
            owner, listed, None]  # fmt: skip


def file(tenant_id: int, directory_id: int, name: bytes, *, type: str = "file", size: int = 1, mtime_ns: int = 1,
         digest: bytes | None = DIGEST, target: bytes | None = None) -> tuple[Any, ...]:  # fmt: skip
    """A row in the order of FILE."""
    algorithm = None if digest is None else "sha256"
    return (tenant_id, directory_id, name, type, size, mtime_ns, 1, 1, None, digest, algorithm, target, 1, None,
            None, None)  # fmt: skip


def tree_rows(tenant_id: int, paths: Iterable[bytes], first_id: int = 2, **values: Any) -> list[list[Any]]:
    """Rows for the root (id 1) and for these directories and all above them; ids in the order of the paths."""
    wanted = sorted({b"/".join(parts[:i]) for parts in (path.split(b"/") for path in paths) for i in
                     range(1, len(parts) + 1)} - {b""}, key=lambda path: path.split(b"/"))  # fmt: skip
    ids = {b"": 1} | {path: first_id + i for i, path in enumerate(wanted)}
    return [directory(tenant_id, 1, b"", None, **values)] + [
        directory(tenant_id, ids[path], path, ids[path.rpartition(b"/")[0]], **values) for path in wanted
    ]


def write_tree(engine: Engine, **batch: list[Any]) -> None:
    with writing(engine) as connection:
        tree.write(connection, tree.TreeBatch(**batch))


def rows(engine: Engine, table: Table, **where: Any) -> list[dict[str, Any]]:
    """The rows of a table whose columns are as given, by primary key."""
    query = select(table).order_by(*table.primary_key)
    for name, value in where.items():
        query = query.where(table.c[name] == value)
    with reading(engine) as connection:
        return [dict(row) for row in connection.execute(query).mappings()]


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    """Call all, each in a thread, beginning together; what each returned, or the exception that it raised."""
    start = threading.Barrier(len(calls))

    def run(call: Callable[[], Any]) -> Any:
        start.wait(30)
        try:
            return call()
        except Exception as error:  # noqa: BLE001 -- the test judges it
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))


def waits_for_a_lock(engine: Engine) -> bool:
    """Does somebody wait for a lock of this PostgreSQL database?"""
    query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    with reading(engine) as connection:
        return bool(connection.exec_driver_sql(query).scalar())
