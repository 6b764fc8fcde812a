"""SQLite as it is in the field: somebody else holds the file, and the machine dies while it is written."""

import os
import signal
import sqlite3
import tempfile
import time
from pathlib import Path

import pytest

from db.engine import connect
from tests import aftermath, invariants
from tests.command import Command
from tests.trees import Dir, File, build, listing
from tests.waiting import wait_until

pytestmark = pytest.mark.chaos

BUSY_S = 10
OVER_S = 60
MANY = Dir({b"%03d" % number: File(b"%d" % number) for number in range(200)})
TREE = Dir({b"%02d" % number: MANY for number in range(40)})


@pytest.fixture
def command(tmp_path: Path) -> Command:
    return Command(tmp_path / "state", {"TMPDIR": tempfile.mkdtemp(dir=tmp_path)})


@pytest.fixture
def root(tmp_path: Path) -> bytes:
    path = os.fsencode(tmp_path / "root")
    build(path, TREE)
    return path


def database(command: Command) -> Path:
    return command.state / "strandline.db"


def rows(command: Command, table: str) -> int:
    """As another process sees them; none where there is no table yet."""
    try:
        with sqlite3.connect(f"file:{database(command)}?mode=ro", uri=True) as connection:
            return connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
    except sqlite3.OperationalError:
        return 0


def check(command: Command, root: bytes) -> None:
    """The invariants; another tenant is served, and what was started for a scan is given back with its end."""
    other = root + b" other"
    build(other, MANY)
    with command.start("scan", other) as scan:
        assert scan.wait(OVER_S).returncode == 0 and scan.wait_gone(OVER_S) == set()
    assert aftermath.files(Path(command.env["TMPDIR"])) == []
    engine = connect(f"sqlite:///{database(command)}")
    invariants.check(engine, {"root": root, "root-other": other})
    engine.dispose()


@pytest.mark.fault(13, "the write lock is held by another program for 10 s in the middle of a scan")
def test_a_database_that_is_busy_for_ten_seconds(command: Command, root: bytes) -> None:
    with command.start("scan", root, "--json") as scan:
        wait_until(lambda: rows(command, "files"), OVER_S, "the scan writes")
        holder = sqlite3.connect(database(command), timeout=30, isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        held_s = time.monotonic()
        before = rows(command, "files")
        assert before < 8_000, "the scan is over already"
        wait_until(lambda: time.monotonic() - held_s > BUSY_S, 2 * BUSY_S, "it was held for so long")
        assert rows(command, "files") == before
        holder.execute("ROLLBACK")
        holder.close()

        ended = scan.wait(OVER_S)

    assert ended.returncode == 0 and b'"succeeded"' in ended.stdout, ended.stderr
    assert b"locked" not in ended.stderr and b"Traceback" not in ended.stderr, ended.stderr
    check(command, root)


@pytest.mark.fault(13, "kill -9 of the worker's children, or of all, at once with what they write")
@pytest.mark.parametrize("written", [1, 4_000])
def test_who_is_killed_while_writing_leaves_a_whole_database(command: Command, root: bytes, written: int) -> None:
    with command.start("scan", root) as scan:
        wait_until(lambda: rows(command, "files") >= written, OVER_S, "it is in the middle of it")
        for pid in scan.alive():
            os.kill(pid, signal.SIGKILL)
        assert not scan.wait_gone(OVER_S)
    with sqlite3.connect(database(command)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        assert written <= connection.execute("SELECT count(*) FROM files").fetchone()[0] < len(listing(root))

    assert command.scan(root)["state"] == "succeeded"

    check(command, root)
