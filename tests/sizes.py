"""`make bench-sizes`: what a cluster is sized by: files a second, memory of a child, rows and bytes in PostgreSQL.

A real worker and beat on PostgreSQL, with the settings as shipped. What is scanned lies where TMPDIR is: with
TMPDIR=/dev/shm no disk is measured. Rows and bytes are told for a million files, indexes counted with their tables.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, text

from tests import cluster, servers, trees
from tests.bench import AGED_S

MILLION = 1_000_000
LONG_S = 1800
# Estimates of a table that was just analyzed.
SIZES = """
    SELECT relname AS name, reltuples AS rows, pg_total_relation_size(oid) AS bytes
    FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace AND reltuples > 0 ORDER BY bytes DESC
"""


def told(what: str, scan: dict[str, Any]) -> None:
    assert scan["state"] == "succeeded", scan
    rate = scan["files"] / scan["duration_s"]
    print(
        f"{what}: {scan['files']:,} files in {scan['duration_s']:.1f} s, {rate:,.0f} a second; "
        f"{scan['shards']} shards; a child took {scan['peak_memory_bytes'] >> 20} MB at most",
        flush=True,
    )


def print_sizes(engine: Engine, files: int) -> None:
    """Without what an update has left behind, which the next ones use."""
    with engine.connect() as connection:
        connection.execute(text("VACUUM ANALYZE"))
        found = connection.execute(text(SIZES)).all()
    for row in (row for row in found if row.rows >= files / 1_000):
        print(f"  {row.name}: {row.rows * MILLION / files:,.0f} rows, {row.bytes * MILLION / files / 1e6:,.0f} MB")
    print(f"  all: {sum(row.bytes for row in found) * MILLION / files / 1e6:,.0f} MB for a million files", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=200_000, help="a hundred in each folder, 64 bytes each")
    parser.add_argument("--children", type=int, default=2)
    given = parser.parse_args()
    with (
        servers.for_a_benchmark() as (url, broker),
        tempfile.TemporaryDirectory(prefix="strandline-sizes-") as made,
        cluster.running(Path(made), url, broker.url, children=given.children) as processes,
    ):
        root = os.path.join(made, "tree")
        trees.make_many(os.fsencode(root), given.files // 100, 100)
        print(f"{given.children} children, {os.cpu_count()} CPUs; letting the files age", flush=True)
        time.sleep(AGED_S)
        processes.json("tenant", "add", "many", root)
        for what, options in (
            ("first scan", ()),
            ("nothing changed", ()),
            ("every file read again", ("--full", "--verify")),
        ):
            done = processes.run("enqueue", "many", *options, "--wait", "--json", timeout_s=LONG_S)
            told(what, json.loads(done.stdout))
        engine = create_engine(url, isolation_level="AUTOCOMMIT")
        print_sizes(engine, given.files)
        engine.dispose()


if __name__ == "__main__":
    main()
