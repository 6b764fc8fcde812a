"""What the breaker and the quarantine hold, as people see it and let it go; beside a stack that runs."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from db import quarantine, tenants
from db.engine import connect, writing
from orchestrator.stack.state import StateFolder
from tests.command import Command
from tests.trees import Dir, File, build, listing

FAILURES = 3


def in_database(cli: Command, work: Callable) -> None:
    running = StateFolder(str(cli.state)).running()
    assert running is not None
    engine = connect(running.database_url)
    with writing(engine) as connection:
        work(connection)
    engine.dispose()


def test_an_entry_in_quarantine_is_listed_explained_skipped_and_released(cli: Command, tmp_path: Path) -> None:
    root = os.fsencode(tmp_path / "root")
    build(root, Dir({b"bad": File(b"1"), b"good": File(b"2")}))
    assert cli.run("tenant", "add", "q", os.fsdecode(root)).returncode == 0
    in_database(
        cli,
        lambda connection: quarantine.add(
            connection,
            tenants.get(connection, "q").id,
            b"bad",
            "whoever looked at it died, 2 times",
            fence=1,
            for_s=None,
        ),
    )

    document = cli.scan(root, "--tenant", "q", status=1)

    assert document["state"] == "partial" and [one["path"] for one in document["skipped"]] == ["bad"]
    [listed] = cli.read("quarantine", "list", "q")
    assert (listed["tenant"], listed["path"], listed["until"]) == ("q", "bad", None)
    [explained] = cli.read("explain", "q", "bad")
    assert explained["status"] == "quarantined" and "strandline quarantine release q" in explained["explanation"]
    assert cli.read("status")[0]["quarantined"] == 1

    done = cli.run("quarantine", "release", "q", os.fsdecode(root + b"/bad"))
    assert done.returncode == 0 and done.stdout == "1 of q released\n"
    assert cli.scan(root)["state"] == "succeeded" and cli.index("q") == listing(root)
    assert cli.run("quarantine", "release", "q", "bad").returncode == 2
    assert cli.run("quarantine", "release", "q").returncode == 2


def test_an_open_breaker_is_listed_counted_explained_and_reset(cli: Command, tmp_path: Path) -> None:
    missing = tmp_path / "nowhere"
    missing.mkdir()
    build(os.fsencode(missing / "d"), Dir({b"f": File(b"1")}))
    with cli.asking() as asking:
        asking.scan(os.fsencode(missing), "b")
        (missing / "d").rename(tmp_path / "kept")
        missing.rmdir()
        for _ in range(FAILURES + 1):
            assert asking.scan(os.fsencode(missing), "b")["state"] == "failed"

    [entry] = cli.read("breaker", "list", "b")
    assert (entry["path"], entry["covers"], entry["state"], entry["failures"]) == ("", "directory", "open", 4)
    told = cli.read("status")[0]["redis"]
    assert told["breaker"]["open"] == 1 and told["watermarks"] >= 1 and told["filled_at"].startswith("20")
    [explained] = cli.read("explain", "b", "d/f")
    assert "the breaker is open for the directory '' until 20" in explained["explanation"]
    shown = cli.run("breaker", "list")
    assert shown.stdout.startswith("b  open until 20") and "directory ''" in shown.stdout

    missing.mkdir()
    (tmp_path / "kept").rename(missing / "d")
    assert cli.run("breaker", "reset", "b", "no such").returncode == 2
    done = cli.run("breaker", "reset", "b")
    assert done.stdout == "1 entries of b are forgotten\n" and cli.read("breaker", "list") == []
    assert cli.scan(missing)["state"] == "succeeded"


def test_without_a_stack_the_breaker_says_so(tmp_path: Path) -> None:
    alone = Command(tmp_path / "state")
    root = tmp_path / "root"
    root.mkdir()
    alone.scan(root)

    done = alone.run("breaker", "list")

    assert done.returncode == 2 and "no stack runs" in done.stderr


@pytest.mark.parametrize("words", [("--root", "elsewhere"), ("--algorithm", "blake3")], ids=str)
def test_a_tenant_that_is_changed_is_scanned_by_what_it_is_then(
    cli: Command, tmp_path: Path, words: tuple[str, str]
) -> None:
    root, elsewhere = os.fsencode(tmp_path / "root"), os.fsencode(tmp_path / "elsewhere")
    build(root, Dir({b"f": File(b"1")}))
    build(elsewhere, Dir({b"f": File(b"1"), b"g": File(b"2")}))
    name = f"changed-{words[0].strip('-')}"
    cli.scan(root, "--tenant", name)

    option, value = words
    value = os.fsdecode(elsewhere) if option == "--root" else value
    done = cli.run("tenant", "set", name, option, value)

    assert done.returncode == 0, done.stderr
    [document] = cli.json("enqueue", name, "--wait")
    assert document["state"] == "succeeded"
    if option == "--root":
        assert cli.index(name) == listing(elsewhere)
    else:
        assert [one["algorithm"] for one in cli.read("files", name)] == ["blake3"]


def test_a_tenant_that_is_removed_leaves_nothing_in_redis(cli: Command, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    cli.scan(root, "--tenant", "passing")
    with cli.asking() as asking:
        (tmp_path / "root").rmdir()
        asking.scan(os.fsencode(root), "passing")
        client = asking.session._redis
        before = {key for key in client.scan_iter("*") if b"breaker:" in key or b"watermark:" in key}
        assert cli.run("tenant", "remove", "passing").returncode == 0
        after = {key for key in client.scan_iter("*") if b"breaker:" in key or b"watermark:" in key}

    assert len(before - after) == 2
