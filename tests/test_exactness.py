"""The index and the feed are exact: the 29 scenarios of the catalogue, through real scans."""

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from db import scans, schema, tenants
from db.engine import connect, reading, writing
from db.types import Trigger
from orchestrator.start import start_queued
from tasks import settings as all_settings
from tasks.app import make_app
from tasks.careful import DEATHS_AT_MOST
from tasks.finish import finish
from tasks.scan_shard import scan_shard
from tests import needs, scenarios, scenarios_report, trees
from tests.command import Command, each_change_once, tmpfs_folder
from tests.trees import Dir, File, apply_feed, build, listing
from tests.volumes import Volumes
from tests.waiting import wait_until

# Longer than the racy window: then no stamp is near to a listing any more.
AGED_S = 2.5
AGED_ON_FUSE_S = 10.5


def let_age(root: bytes, seconds: float) -> None:
    """Return once everything in the tree, and the clock, are past the racy window."""
    found = [os.lstat(os.path.join(path, name)) for path, _, names in os.walk(root) for name in names]
    newest = max(one.st_ctime_ns for one in found if one.st_ctime_ns <= time.time_ns())
    wait_until(lambda: time.time_ns() > newest + seconds * 1e9, seconds + 10, "the tree ages")


# ---- The scenarios, on every file system

LOOP = ("root", "mount")
NEEDS = {
    "disk": (), "tmpfs": (), **{kind: (*LOOP, kind) for kind in ("ext4", "xfs", "btrfs", "overlay")},
    "ext4-1s": (*LOOP, "ext4"), "fuse": (*LOOP, "fuse"), "fuse-exfat": (*LOOP, "fuse"),
}  # fmt: skip
WHENS = ("aged", "settled", "no-delay")
# Of what takes long `make test` has what others do not show as well: a FUSE in Python is slow, and how young a tree is
# matters alike on all that stamp by the kernel's clock.
ONLY_LARGE = [
    (kind, when) for kind in NEEDS for when in WHENS
    if kind == "fuse" or (when != "settled" and kind not in ("disk", "tmpfs", "ext4-1s"))
]  # fmt: skip
CASES = [
    pytest.param(
        kind, when, id=f"{kind}-{when}",
        marks=[pytest.mark.needs(*needed), *([pytest.mark.large] if (kind, when) in ONLY_LARGE else [])],
    )
    for kind, needed in NEEDS.items() for when in WHENS
]  # fmt: skip
Places = dict[str, bytes | Exception]


@pytest.fixture(scope="module")
def places(
    request: pytest.FixtureRequest, volumes: Volumes, tmp_path_factory
) -> Iterator[dict[str, bytes | Exception]]:
    """A folder on each file system that a test here is for, with trees in it that age together. By kind."""
    wanted = dict.fromkeys(
        item.callspec.params["kind"] for item in request.session.items
        if item.module is request.module and "kind" in getattr(getattr(item, "callspec", None), "params", {})
        and not any(needs.missing(what) for marker in item.iter_markers("needs") for what in marker.args)
    )  # fmt: skip
    with contextlib.ExitStack() as mounts:
        made: Places = {}
        for kind in wanted:
            try:
                made[kind] = os.fsencode(folder_on(kind, mounts, volumes, tmp_path_factory))
                for when in ("aged", "settled"):
                    set_up(made[kind], when)
            except Exception as error:  # noqa: BLE001 - raised by the tests on this file system, not by all
                made[kind] = error
        yield made


def folder_on(kind: str, mounts: contextlib.ExitStack, volumes: Volumes, factory: pytest.TempPathFactory) -> Path:
    if kind == "disk":
        return factory.mktemp("disk")
    if kind != "tmpfs":
        return mounts.enter_context(volumes.mounted(kind)).path
    memory = tmpfs_folder()
    if memory is None:
        pytest.skip("no tmpfs that can be written to")
    return Path(mounts.enter_context(tempfile.TemporaryDirectory(dir=memory)))


def set_up(folder: bytes, when: str) -> tuple[bytes, bytes]:
    place = os.path.join(folder, when.encode())
    os.makedirs(place + b"/outside")
    scenarios.setup_all(place + b"/root", place + b"/outside")
    return place + b"/root", place + b"/outside"


@pytest.mark.row(1, "one deleted, one added")
@pytest.mark.row(2, "brought in by cp -p, rsync, tar: added")
@pytest.mark.row(3, "an old file and an old tree moved in: added")
@pytest.mark.row(5, "swapped by three renames, exchanged, of equal size and mtime, two directories: right at each path")
@pytest.mark.row(6, "rewritten with size and mtime as before: modified")
@pytest.mark.row(7, "cp -p over it, an older file renamed over it: modified")
@pytest.mark.row(8, "rewritten in the tick of the scan: modified")
@pytest.mark.row(13, "file to directory and back")
@pytest.mark.row(15, "a symlink added and retargeted")
@pytest.mark.row(17, "a hard link added: a row of its own")
@pytest.mark.row(19, "a case-only rename")
@pytest.mark.row(20, "an NFD twin")
@pytest.mark.row(21, "names with a newline, and not UTF-8")
@pytest.mark.row(39, "whole seconds, no ctime, other inodes, frozen folders: what cannot be seen is named")
@pytest.mark.parametrize(("kind", "when"), CASES)
def test_all_29_scenarios_give_the_right_index_after_one_scan(
    cli: Command,
    places: dict[str, bytes | Exception],
    kind: str,
    when: str,
    record_property: Callable[[str, object], None],
) -> None:
    folder, name = places[kind], f"{kind}-{when}"
    if isinstance(folder, Exception):
        raise folder
    if when == "no-delay":
        root, outside = set_up(folder, when)
    else:
        root, outside = (os.path.join(folder, when.encode(), part) for part in (b"root", b"outside"))
        let_age(root, AGED_ON_FUSE_S if kind.startswith("fuse") else AGED_S)
    with cli.asking() as asking:
        first = asking.scan(root, name)
        while when == "settled" and first["hashed_files"]:
            # Files this young are flushed first, so many a scan: only in the end does every row hold a stat.
            first = asking.scan(root, name)
        before = listing(root)
        assert cli.index(name) == before

        scenarios.do_all(root, outside)
        second = asking.scan(root, name)

    after, feed, news = listing(root), cli.feed(name), cli.feed(name, since=first["cursor"])
    wrong = scenarios.wrong(before, after, cli.index(name), news)
    record_property(scenarios_report.PROPERTY, [kind, when, sorted(wrong)])
    hidden = scenarios.HIDDEN.get(kind, {})
    assert wrong <= hidden.keys()
    if when == "settled":
        assert wrong == hidden.keys(), "what is seen after all is no exception any more"
    assert second["files"] == len(after)
    assert each_change_once(feed)
    assert apply_feed(feed) == cli.index(name) == apply_feed(news, before)
    assert {change["fence"] for change in news} == {second["fence"]}
    if wrong:
        verified = cli.scan(root, "--tenant", name, "--verify")
        assert verified["silent_changes"] > 0
        assert cli.index(name) == after == apply_feed(cli.feed(name)), "what stat hides verification finds"


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
    let_age(root, AGED_S)
    first = cli.scan(root, "--tenant", "algorithm")
    assert cli.run("tenant", "set", "algorithm", "--algorithm", "blake3").returncode == 0

    second = cli.scan(root, "--tenant", "algorithm")

    assert (second["hashed_files"], second["modified"]) == (1, 1)
    [change] = cli.feed("algorithm", since=first["cursor"])
    assert change["algorithm"] == "blake3"
    from blake3 import blake3

    assert change["digest"] == blake3(b"content").hexdigest()


@pytest.mark.row(36, "missing: the scan fails, the index stays")
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

    for _ in range(DEATHS_AT_MOST + 1):
        scan_shard(scan.id, 1)
    finish(scan.id)

    with reading(engine) as connection:
        ended = scans.get(connection, scan.id)
    assert ended is not None and ended.state == "failed" and "the root: ZeroDivisionError" in (ended.error or "")


def test_a_full_scan_compares_every_row_and_finds_nothing_new(cli: Command, tmp_path: Path) -> None:
    root = os.fsencode(tmp_path / "root")
    build(root, Dir({b"a": Dir({b"f": File(b"1")}), b"g": File(b"2")}))
    let_age(root, AGED_S)
    first = cli.scan(root, "--tenant", "full")

    second = cli.scan(root, "--full")

    assert (second["strategy"], second["reason"]) == ("full_forced", "asked for")
    assert (second["directories_unchanged"], second["hashed_files"]) == (0, 0)
    assert cli.feed("full", since=first["cursor"]) == []
    assert cli.scan(root)["directories_unchanged"] == 2
