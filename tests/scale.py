"""`make bench-scale`: what database and Redis take, and how fast that is, with a million files and with ten million.

Tenants of 100,000 files in 5,000 directories are written as first scans write them: by the program's own statements, in
flushes of 2,000 files with their changes, by two connections at once, each of which is a child of a worker. At each
size it is measured what a scan with nothing changed, the feed and the index ask of one tenant. PostgreSQL syncs and
logs as it would anywhere; with `--partitions N` the large tables are hash-partitioned.
"""

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import redis
from sqlalchemy import Engine, text

from db import changes, indexed, schema, tree
from db.engine import connect, reading, write
from db.sending import Sendable
from db.types import Place
from orchestrator import dispatch
from tasks.app import make_app
from tasks.redis import watermark
from tasks.redis.keys import Keys
from tasks.settings import load
from tests.servers import PostgresServer, RedisServer, postgres_kinds, server_folder
from tests.storage import DIGEST, add_tenant, directory, end_scan, file, start_scan

FOLDERS, SUBFOLDERS, FILES = 50, 100, 20  # of a tenant, of each of these, and of each of those
A_TENANT = FOLDERS * SUBFOLDERS * FILES
FLUSHED = 2_000  # files
WRITERS = 2
PAGE = 1_000
TENANTS, WINDOW = 10_000, 1_000  # of which Redis is to hold watermarks, and messages
LATER = 1 << 40  # a fence of some scan to come
LARGE = ("files", "directories", "changes")
# Undone: what tests do without.
SETTINGS = ("fsync=on", "full_page_writes=on", "max_wal_size=4GB", "shared_buffers=1GB")


def fill(url: str, names: list[str]) -> None:
    """First scans of these tenants, one after the other."""
    engine = connect(url)
    for name in names:
        first_scan(engine, name)
    engine.dispose()


def first_scan(engine: Engine, name: str) -> None:
    tenant = add_tenant(engine, name)
    scan = start_scan(engine, tenant)
    ids, numbers = tree.Ids(engine), iter(range(1, 1 << 40))
    root = ids.next()
    write(engine, lambda connection: tree.write(
        connection, tree.TreeBatch(new_directories=[directory(tenant.id, root, b"", None, fence=scan.fence or 1)])
    ))  # fmt: skip
    for folder in range(FOLDERS):
        path, parent = b"folder %03d of %s" % (folder, name.encode()), ids.next()
        batch = tree.TreeBatch(new_directories=[directory(tenant.id, parent, path, root, fingerprint=DIGEST[:16])])
        added: list[tuple[Any, ...]] = []
        for subfolder in range(SUBFOLDERS):
            below, child = path + b"/notes of week %03d" % subfolder, ids.next()
            batch.new_directories.append(
                directory(tenant.id, child, below, parent, fingerprint=DIGEST[:16], files=FILES, size=FILES * 4_000)
            )
            for number in range(FILES):
                entry, digest = b"page %02d.md" % number, os.urandom(32)
                batch.files.append(file(tenant.id, child, entry, size=4_000, digest=digest))
                added.append((tenant.id, scan.fence, next(numbers), child, entry, "added", below + b"/" + entry, "file",
                              4_000, digest, "sha256", None, None))  # fmt: skip

        def flush(connection: Any, batch: tree.TreeBatch = batch, added: list[tuple[Any, ...]] = added) -> None:
            tree.write(connection, batch)
            changes.write(connection, added)

        write(engine, flush)
    end_scan(engine, scan)


def plainly(url: str) -> psycopg.Connection:
    """Past the program's own transactions and their limits."""
    return psycopg.connect(url.replace("+psycopg", ""), autocommit=True)


def partition(url: str, number: int) -> None:
    """The large tables anew, each in so many parts by a hash of the tenant, as docs/scale.md says."""
    script = (Path(__file__).parent.parent / "docs" / "partition.sql").read_text()
    assert "parts constant integer := 64" in script
    with plainly(url) as connection:
        connection.execute(script.replace("integer := 64", f"integer := {number}").encode())


@dataclass
class Measured:
    """At one size: milliseconds of statements at the median, and what is taken."""

    files: int
    rows_a_s: float
    wal_a_row: float
    milliseconds: dict[str, float]
    bytes_a_row: dict[str, tuple[float, float]]  # by table: itself, and its indexes


def grow(url: str, engine: Engine, done: int, files: int) -> tuple[float, float]:
    """Add tenants until there are so many files: rows a second (files, with their changes and directories), bytes of
    the log for each.
    """
    names = [f"tenant-{number}" for number in range(done // A_TENANT, files // A_TENANT)]
    before, began = _log(engine), time.monotonic()
    writers = [multiprocessing.get_context("spawn").Process(target=fill, args=(url, names[n::WRITERS]))
               for n in range(WRITERS)]  # fmt: skip
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    rows = (files - done) or 1
    return rows / (time.monotonic() - began), (_log(engine) - before) / rows


def _log(engine: Engine) -> int:
    with reading(engine) as connection:
        return int(connection.execute(text("SELECT pg_current_wal_lsn() - '0/0'")).scalar_one())


def statements(engine: Engine, name: str) -> Iterator[tuple[str, Callable[[Any], object]]]:
    """What is asked of one tenant in the midst, by what it is for."""
    with reading(engine) as connection:
        tenant = connection.execute(text(f"SELECT id FROM tenants WHERE name = '{name}'")).scalar_one()
        one = connection.execute(
            text(f"SELECT id, order_key FROM directories WHERE tenant_id = {tenant} AND files > 0 LIMIT 1 OFFSET 2500")
        ).one()
    yield "cut 100,000 files into shards", lambda c: tree.cuts(c, tenant, 50_000)
    yield (
        f"read {PAGE:,} directories, nothing changed",
        lambda c: tree.range_page(c, tenant, LATER, Place(one.order_key, one.id), None, PAGE),
    )
    yield "read a directory that differs (20 files)", lambda c: tree.files_of(c, tenant, one.id, None)
    yield f"{PAGE:,} changes of the feed", lambda c: changes.after(c, tenant, None, PAGE)
    yield (
        f"{PAGE:,} files of the index",
        lambda c: indexed.page(c, tenant, after=(one.order_key, one.id, b""), limit=PAGE),
    )


def measure(url: str, engine: Engine, done: int, files: int) -> Measured:
    rows_a_s, wal = grow(url, engine, done, files)
    with plainly(url) as connection:
        connection.execute("VACUUM ANALYZE")
    asked: dict[str, list[float]] = {}
    count = files // A_TENANT
    for number in range(0, count, max(1, count // 25)):  # others' pages, not twenty times the same
        for what, ask in statements(engine, f"tenant-{number}"):
            with reading(engine) as connection:
                began = time.perf_counter()
                ask(connection)
                asked.setdefault(what, []).append((time.perf_counter() - began) * 1000)
    return Measured(
        files, rows_a_s, wal, {what: statistics.median(all_) for what, all_ in asked.items()}, _sizes(engine)
    )


def _sizes(engine: Engine) -> dict[str, tuple[float, float]]:
    query = text(
        "SELECT sum(pg_table_size(oid)), sum(pg_indexes_size(oid)) FROM pg_class WHERE relkind = 'r' "
        "AND relname ~ ('^' || :name || '(_\\d+)?$')"
    )
    found = {}
    with reading(engine) as connection:
        for name in LARGE:
            rows = connection.execute(text(f"SELECT count(*) FROM {name}")).scalar_one()
            heap, index = connection.execute(query, {"name": name}).one()
            found[name] = (float(heap) / rows, float(index) / rows)
    return found


def report(found: list[Measured]) -> Iterator[str]:
    """A table with a column for each size."""
    yield "| | " + " | ".join(f"{one.files:,} files" for one in found) + " |"
    yield "|---" * (len(found) + 1) + "|"
    yield "| files written a second, with change and directory | " + _cells(found, lambda m: f"{m.rows_a_s:,.0f}")
    yield "| bytes of PostgreSQL's log for each | " + _cells(found, lambda m: f"{m.wal_a_row:,.0f}")
    for what in found[0].milliseconds:
        yield f"| {what}, ms | " + _cells(found, lambda m, what=what: f"{m.milliseconds[what]:.1f}")
    for name in LARGE:
        yield f"| bytes of a row of {name} + its indexes | " + _cells(
            found, lambda m, name=name: " + ".join(f"{one:.0f}" for one in m.bytes_a_row[name])
        )


def _cells(found: list[Measured], shown: Callable[..., str]) -> str:
    return " | ".join(shown(one) for one in found) + " |"


def of_redis(folder: Path) -> Iterator[str]:
    """Bytes of what Redis holds: for each tenant, and for each message in the window."""
    with RedisServer(folder) as broker, redis.Redis.from_url(broker.url) as client:
        app, keys = make_app(load({"STRANDLINE_REDIS_URL": broker.url})), Keys("strandline:")
        used = [client.info("memory")["used_memory"]]
        now = datetime.now(UTC)
        watermark.move(client, keys, ((tenant, 7, now, A_TENANT) for tenant in range(TENANTS)))
        used.append(client.info("memory")["used_memory"])
        shards = [Sendable(str(uuid.uuid4()), 1, tenant, "bulk") for tenant in range(WINDOW)]
        dispatch._send(app, shards, {one.scan_id: f"tenant-{one.tenant_id}" for one in shards})
        used.append(client.info("memory")["used_memory"])
        assert client.llen(keys.queue("bulk")) == WINDOW
    yield f"Redis: {(used[1] - used[0]) / TENANTS:,.0f} bytes a tenant, {(used[2] - used[1]) / WINDOW:,.0f} a message"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--partitions", type=int, default=0)
    said = parser.parse_args()
    with server_folder() as folder:
        home, other = (Path(tempfile.mkdtemp(dir=folder)) for _ in range(2))
        home.chmod(0o755)
        print("\n".join(of_redis(other)), flush=True)
        with PostgresServer(postgres_kinds()[-1], home, *SETTINGS) as server, server.database() as url:
            engine = connect(url)
            schema.migrate(engine)
            if said.partitions:
                partition(url, said.partitions)
            found: list[Measured] = []
            for files in said.files:
                found.append(measure(url, engine, found[-1].files if found else 0, files))
                print("\n".join(report(found)), flush=True)
            engine.dispose()


if __name__ == "__main__":
    main()
