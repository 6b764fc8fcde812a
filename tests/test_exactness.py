"""The index and the feed are exact: the 29 scenarios of the catalogue, through real scans."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from db import scans, schema, tenants
from db.engine import connect, reading, writing
from db.types import Trigger
from orchestrator.start import start_queued
from tasks import settings as all_settings
from tasks.app import make_app
from tasks.finish import finish
from tasks.scan_shard import ATTEMPTS, scan_shard
from tests import scenarios, trees
from tests.command import Command, each_change_once, tmpfs_folder
from tests.trees import Dir, File, apply_feed, build, listing
from tests.waiting import wait_until

# Longer than the racy window: then no stamp is near to a listing any more.
AGED_S = 2.5


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    """One stack for all tests here: each scan joins it."""
    command = Command(tmp_path_factory.mktemp("state"))
    with command.start("up") as stack:
        assert stack.stdout.wait_for(b"Press Ctrl-C", 30), stack.stderr.content
        yield command


@pytest.fixture(params=["disk", "tmpfs"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[bytes]:
    if request.param == "disk":
        yield os.fsencode(tmp_path)
        return
    memory = tmpfs_folder()
    if memory is None:
        pytest.skip("no tmpfs that can be written to")
    made = tempfile.mkdtemp(dir=memory)
    yield os.fsencode(made)
    shutil.rmtree(made)


def let_age(root: bytes) -> None:
    """Return once everything in the tree, and the clock, are past the racy window."""
    newest = max(
        max(found.stat(follow_symlinks=False).st_ctime_ns for found in os.scandir(path)) if os.listdir(path) else 0
        for path, _, _ in os.walk(root)
    )
    wait_until(lambda: time.time_ns() > newest + AGED_S * 1e9, AGED_S + 10, "the tree ages")


def tenant_of(root: bytes) -> str:
    return "t" + os.path.basename(os.path.dirname(root)).decode().replace("_", "-")[-60:]


@pytest.mark.parametrize("when", ["aged", "no-delay", "settled"])
def test_all_29_scenarios_give_the_right_index_after_one_scan(cli: Command, folder: bytes, when: str) -> None:
    root, outside = folder + b"/root", folder + b"/outside"
    os.mkdir(outside)
    scenarios.setup_all(root, outside)
    if when != "no-delay":
        let_age(root)
    name = f"{tenant_of(root)}-{when}"
    first = cli.scan(root, "--tenant", name)
    while when == "settled" and first["hashed_files"]:
        # Files this young are flushed first, so many a scan: only in the end does every row hold a stat.
        first = cli.scan(root, "--tenant", name)
    before = listing(root)
    assert cli.index(name) == before

    scenarios.do_all(root, outside)
    second = cli.scan(root, "--tenant", name)

    after = listing(root)
    assert cli.index(name) == after
    assert second["files"] == len(after)
    feed = cli.feed(name)
    assert each_change_once(feed)
    assert apply_feed(feed) == after
    news = cli.feed(name, since=first["cursor"])
    assert apply_feed(news, before) == after
    assert {change["fence"] for change in news} == {second["fence"]}


def test_the_feed_follows_the_index_through_many_scans(cli: Command, tmp_path: Path) -> None:
    root = os.fsencode(tmp_path / "root")
    build(root, Dir({b"a": Dir({b"%d" % i: File(b"%d" % i) for i in range(30)}), b"b": Dir({})}))
    cursors: list[tuple[str, trees.State]] = []
    for turn in range(5):
        if turn:
            os.unlink(root + b"/a/%d" % turn)
            trees.write(root + b"/b/new%d" % turn, b"new" * turn)
            trees.write(root + b"/a/20", b"again %d" % turn)
            os.rename(root + b"/b", root + b"/c%d" % turn)
            os.rename(root + b"/c%d" % turn, root + b"/b") if turn % 2 else os.mkdir(root + b"/b")
        document = cli.scan(root, "--tenant", "follow")
        assert cli.index("follow") == listing(root)
        cursors.append((document["cursor"], listing(root)))
    last = cursors[-1][1]
    assert apply_feed(cli.feed("follow")) == last
    for cursor, state in cursors:
        assert apply_feed(cli.feed("follow", since=cursor), state) == last


def test_another_algorithm_hashes_everything_again_and_says_so_in_the_feed(cli: Command, tmp_path: Path) -> None:
    root = os.fsencode(tmp_path / "root")
    build(root, Dir({b"f": File(b"content")}))
    let_age(root)
    first = cli.scan(root, "--tenant", "algorithm")
    assert cli.run("tenant", "set", "algorithm", "--algorithm", "blake3").returncode == 0

    second = cli.scan(root, "--tenant", "algorithm")

    assert (second["hashed_files"], second["modified"]) == (1, 1)
    [change] = cli.feed("algorithm", since=first["cursor"])
    assert change["algorithm"] == "blake3"
    from blake3 import blake3

    assert change["digest"] == blake3(b"content").hexdigest()


def test_a_root_that_is_away_fails_the_scan_and_keeps_the_index(cli: Command, tmp_path: Path) -> None:
    root = os.fsencode(tmp_path / "root")
    build(root, Dir({b"f": File(b"1"), b"d": Dir({b"g": File(b"2")})}))
    cli.scan(root, "--tenant", "away")
    before = listing(root)
    os.rename(root, root + b"-away")

    [document] = cli.json("enqueue", "away", "--wait", status=1)

    assert document["state"] == "failed" and os.fsdecode(root) in document["error"]
    assert document["deleted"] == 0 and cli.index("away") == before
    os.rename(root + b"-away", root)
    assert cli.scan(root)["state"] == "succeeded" and cli.index("away") == before


def test_a_mistake_of_ours_in_a_shard_is_tried_again_and_then_ends_the_scan(
    tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = os.fsencode(tmp_path / "root")
    build(root, Dir({b"f": File(b"1")}))
    url = f"sqlite:///{tmp_path}/test.db"
    engine = connect(url)
    schema.migrate(engine)
    app = make_app(all_settings.load({}, database_url=url, redis_url=redis_url))
    monkeypatch.setattr("tasks.trouble.RETRY_DELAY_S", 0.0)
    monkeypatch.setattr("tasks.pipeline.Pipeline.run", lambda *_: 1 / 0)
    with writing(engine) as connection:
        tenant = tenants.add(connection, name="t", root=root, tier="standard", interval_s=60, algorithm="sha256")
        scan, _ = scans.request(connection, tenant.id, trigger=Trigger.REQUEST)
    start_queued(engine, app.runtime.settings)

    for _ in range(ATTEMPTS):
        scan_shard(scan.id, 1)
    finish(scan.id)

    with reading(engine) as connection:
        ended = scans.get(connection, scan.id)
    assert ended is not None and ended.state == "failed" and "ZeroDivisionError" in (ended.error or "")


def test_a_full_scan_compares_every_row_and_finds_nothing_new(cli: Command, tmp_path: Path) -> None:
    root = os.fsencode(tmp_path / "root")
    build(root, Dir({b"a": Dir({b"f": File(b"1")}), b"g": File(b"2")}))
    let_age(root)
    first = cli.scan(root, "--tenant", "full")

    second = cli.scan(root, "--full")

    assert (second["strategy"], second["reason"]) == ("full_forced", "asked for")
    assert (second["directories_unchanged"], second["hashed_files"]) == (0, 0)
    assert cli.feed("full", since=first["cursor"]) == []
    assert cli.scan(root)["directories_unchanged"] == 2
