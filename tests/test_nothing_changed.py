"""A scan with nothing changed reads no file row, writes nothing but scan and shards, and opens no file."""

import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, event

from db import scans, schema, tenants
from db.engine import connect, reading, writing
from tasks import settings as all_settings
from tasks.app import make_app
from tests import trees
from tests.command import Command
from tests.in_process import scan_once
from tests.waiting import wait_until

AGED_S = 2.5
WRITES = re.compile(r"^\s*(?:INSERT INTO|UPDATE|DELETE FROM|COPY|CREATE|DROP)\s+(?:TEMPORARY TABLE )?(\w+)", re.I)


@pytest.fixture
def root(tmp_path: Path) -> bytes:
    root = os.fsencode(tmp_path / "root")
    trees.make_many(root, 20, 10)
    os.symlink(b"000", root + b"/link")
    newest = time.time_ns()
    wait_until(lambda: time.time_ns() > newest + AGED_S * 1e9, AGED_S + 5, "the tree ages")
    return root


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = connect(database_url)
    schema.migrate(engine)
    yield engine
    engine.dispose()


def test_it_touches_no_file_row_and_writes_only_scan_shards_and_tenant(
    engine: Engine, database_url: str, redis_url: str, root: bytes
) -> None:
    app = make_app(all_settings.load({}, database_url=database_url, redis_url=redis_url))
    app.runtime.engine = engine
    with writing(engine) as connection:
        tenant = tenants.add(connection, name="t", root=root, tier="standard", interval_s=60, algorithm="sha256")
    scan_once(engine, tenant.id)

    statements: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    scan_id = scan_once(engine, tenant.id)

    with reading(engine) as connection:
        scan = scans.get(connection, scan_id)
    assert scan is not None and (scan.files, scan.directories_unchanged) == (201, scan.directories)
    written = {match[1].lower() for statement in statements if (match := WRITES.match(statement))}
    # (To deliveries a row is added for who has a webhook, and to tallies one more scan.)
    assert written == {"scans", "shards", "tenants", "deliveries", "tallies"}
    assert not [one for one in statements if re.search(r"\bFROM files\b", one) and "gone" not in one]


@pytest.mark.needs("strace")
def test_it_opens_no_file_below_the_root(tmp_path: Path, root: bytes) -> None:
    cli = Command(tmp_path / "state")
    assert cli.scan(root)["hashed_files"] == 200
    trace = tmp_path / "trace"

    done = subprocess.run(
        ["strace", "-f", "-y", "-s", "200", "-e", "trace=open,openat,openat2,read,readv,pread64,mmap", "-o", trace,
         *cli.argv("scan", root, "--json")],
        capture_output=True, timeout=100,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    below = [line for line in trace.read_text(errors="replace").splitlines() if os.fsdecode(root) in line]
    opened = [line for line in below if re.search(r"\bopen(at2?)?\(", line)]
    assert len(opened) >= 20, "the trace shows the folders being opened"
    # Whether a folder has a rule file is asked by opening it.
    opened = [line for line in opened if not ("/.strandlineignore" in line or '".strandlineignore"' in line)]
    assert [line for line in opened if "O_DIRECTORY" not in line] == []
    assert [line for line in below if re.search(r"\b(read|readv|pread64|mmap)\(", line)] == []
