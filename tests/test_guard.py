"""The guard: too much gone, or another root, ends a scan suspect and deletes nothing until a person confirms."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.core.guard import Place, doubt, doubt_root, mixed_root
from tests.command import Command, each_change_once
from tests.trees import Dir, File, apply_feed, build, listing

# The pure decision


@pytest.mark.parametrize(
    ("deleted", "known", "doubted"),
    [
        (0, 0, False),
        (9, 9, False),  # a small folder emptied
        (10, 10, True),
        (10, 11, False),
        (49, 60, False),
        (50, 60, True),
        (50, 167, False),  # 29.9 %
        (51, 170, False),  # 30 % is not past 30 %
        (52, 170, True),
        (300, 1_000, False),
        (301, 1_000, True),
        (1, 1_000_000, False),
    ],
)
def test_what_is_doubted(deleted: int, known: int, doubted: bool) -> None:
    assert (doubt(deleted, known, 30) is not None) == doubted


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(1, 100))
def test_more_deletions_are_never_less_doubtful(deleted: int, known: int, limit: int) -> None:
    if doubt(deleted, known, limit) is not None:
        assert doubt(deleted + 1, known, limit) is not None
        assert deleted >= 10


def test_the_root_is_the_same_place_by_file_system_and_inode() -> None:
    here = Place("ext4", 2)
    assert doubt_root(here, Place("ext4", 2), True) is None
    assert doubt_root(None, here, True) is None
    assert "ext4 inode 131073" in str(doubt_root(here, Place("ext4", 131073), True))
    assert "tmpfs" in str(doubt_root(here, Place("tmpfs", 2), True))
    assert doubt_root(Place("fuse", None), Place("fuse", None), True) is None
    assert "another volume" in str(doubt_root(here, here, False))
    assert mixed_root({"ext4 inode 2"}) is None
    assert "ext4 inode 2 and tmpfs inode 1" in str(mixed_root({"tmpfs inode 1", "ext4 inode 2"}))


# Through real scans


def folder(count: int, salt: bytes = b"") -> Dir:
    return Dir({b"%03d" % number: File(b"content %d " % number + salt) for number in range(count)})


@pytest.fixture
def root(tmp_path: Path) -> bytes:
    """100 files: 60 in `most`, 40 in `some`."""
    path = os.fsencode(tmp_path / "root")
    build(path, Dir({b"most": folder(60), b"some": folder(40, b"some")}))
    return path


@pytest.mark.row(38, "suspect until confirmed; then deleted")
def test_most_files_gone_is_suspect_and_confirming_deletes_them(cli: Command, root: bytes) -> None:
    first = cli.scan(root, "--tenant", "most")
    before = listing(root)
    shutil.rmtree(root + b"/most")
    os.unlink(root + b"/some/000")
    (Path(os.fsdecode(root)) / "new").write_text("new")

    suspect = cli.scan(root, status=1)

    assert (suspect["state"], suspect["deleted"], suspect["added"]) == ("suspect", 0, 1)
    assert "61 of 100 files are gone (61 %, the limit is 30 %)" in suspect["error"]
    assert f"strandline confirm {suspect['scan']}" in suspect["error"]
    assert f"\n    {suspect['error']} --state {cli.state}\n" in cli.run("scans", suspect["tenant"]).stdout
    assert cli.index("most") == before | listing(root)
    assert cli.scan(root, status=1)["state"] == "suspect"  # and it stays so

    [confirmed] = cli.json("confirm", suspect["scan"])

    assert (confirmed["strategy"], confirmed["state"], confirmed["deleted"]) == ("full_deletions", "succeeded", 61)
    assert cli.index("most") == listing(root)
    feed = cli.feed("most")
    assert apply_feed(feed) == listing(root) and each_change_once(feed)
    assert apply_feed(cli.feed("most", since=first["cursor"]), before) == listing(root)
    assert cli.scan(root)["state"] == "succeeded"


def test_status_top_and_the_list_tell_of_a_suspect_scan_until_it_is_confirmed(cli: Command, root: bytes) -> None:
    cli.scan(root, "--tenant", "doubted")
    shutil.rmtree(root + b"/most")
    suspect = cli.scan(root, status=1)["scan"]

    [told] = [one for one in cli.read("status")[0]["suspect"] if one["tenant"] == "doubted"]
    assert told["scan"] == suspect and told["doubt"].startswith("60 of 100 files are gone")
    text = cli.run("status").stdout
    hint = f"strandline confirm {suspect} --state {cli.state}"
    assert f"doubted: {told['doubt']}. If that is right: {hint}\n" in text
    counted = cli.read("top", "--once")[0]["suspect"]
    assert counted >= 1 and f" {counted} suspect" in cli.run("top", "--once").stdout
    assert listed(cli, "doubted").endswith("  suspect")

    cli.json("confirm", suspect)

    assert "doubted" not in [one["tenant"] for one in cli.read("status")[0]["suspect"]]
    assert cli.read("top", "--once")[0]["suspect"] == counted - 1
    assert not listed(cli, "doubted").endswith("  suspect")


def listed(cli: Command, name: str) -> str:
    """The tenant's line."""
    [line] = [one for one in cli.run("tenant", "list").stdout.splitlines() if one.startswith(f"{name}  ")]
    return line


def test_a_command_that_is_spoken_of_can_be_typed_as_it_stands(cli: Command, root: bytes) -> None:
    cli.scan(root, "--tenant", "typed")
    shutil.rmtree(root + b"/most")

    done = cli.run("scan", os.fsdecode(root))

    assert done.returncode == 1
    [command] = re.findall(r"If that is right: strandline (.*)", done.stdout)
    assert cli.run(*command.split()[:-2]).returncode == 0 and command.endswith(f" --state {cli.state}")
    unknown = cli.run("tenant", "show", "typo")
    assert unknown.returncode == 2 and f"`strandline tenant list --state {cli.state}`" in unknown.stderr


def test_confirming_lets_nothing_go_that_went_missing_later(cli: Command, root: bytes) -> None:
    cli.scan(root, "--tenant", "later")
    shutil.rmtree(root + b"/most")
    suspect = cli.scan(root, status=1)
    os.unlink(root + b"/some/001")
    assert cli.scan(root, status=1)["state"] == "suspect"
    os.unlink(root + b"/some/002")
    assert cli.scan(root, status=1)["state"] == "suspect"

    [confirmed] = cli.json("confirm", suspect["scan"])

    assert (confirmed["state"], confirmed["deleted"]) == ("succeeded", 60)
    index = cli.index("later")
    assert index.keys() - listing(root).keys() == {b"some/001", b"some/002"}
    assert cli.scan(root)["deleted"] == 2
    assert cli.index("later") == listing(root) == apply_feed(cli.feed("later"))


def test_what_is_back_when_the_deletions_are_confirmed_stays(cli: Command, root: bytes) -> None:
    cli.scan(root, "--tenant", "back")
    os.rename(root + b"/most", root + b"-most")
    suspect = cli.scan(root, status=1)
    os.rename(root + b"-most", root + b"/most")

    [confirmed] = cli.json("confirm", suspect["scan"])

    assert (confirmed["state"], confirmed["deleted"]) == ("succeeded", 0)
    assert cli.index("back") == listing(root) == apply_feed(cli.feed("back"))


def test_only_a_suspect_scan_can_be_confirmed(cli: Command, root: bytes) -> None:
    done = cli.scan(root, "--tenant", "only")
    for scan, sentence in ((done["scan"], "this one is succeeded"), ("x" + done["scan"], "is no scan's id")):
        refused = cli.run("confirm", scan)
        assert refused.returncode == 2 and sentence in refused.stderr
    unknown = cli.run("confirm", "00000000-0000-7000-8000-000000000000")
    assert unknown.returncode == 2 and "there is none of that id" in unknown.stderr


@pytest.mark.row(37, "unmounted, another volume: suspect, nothing deleted, the message says how to confirm")
@pytest.mark.needs("mount")
def test_an_unmounted_root_deletes_nothing_and_all_is_well_when_it_is_back(cli: Command, tmp_path: Path) -> None:
    point = tmp_path / "root"
    point.mkdir()
    with mounted(point):
        build(os.fsencode(point), Dir({b"a": folder(3), b"b": File(b"b")}))
        first = cli.scan(point, "--tenant", "unmounted")
        before = listing(os.fsencode(point))
        subprocess.run(["umount", point], check=True)

        gone = cli.scan(point, status=1)  # so few files that their number alone tells nothing

        assert (gone["state"], gone["deleted"]) == ("suspect", 0)
        assert "the root is another folder than before" in gone["error"] and "confirm" in gone["error"]
        assert cli.index("unmounted") == before
        subprocess.run(["mount", "-t", "tmpfs", "none", point], check=True)
        (point / "other").write_text("another volume")
        assert cli.scan(point, status=1)["state"] == "suspect"
        assert before.items() <= cli.index("unmounted").items()
        subprocess.run(["umount", point], check=True)
        assert first["state"] == "succeeded"


class mounted:
    """A tmpfs on a folder, unmounted at the end if it still is mounted."""

    def __init__(self, point: Path) -> None:
        self._point = point

    def __enter__(self) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "none", self._point], check=True)

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", "-l", self._point], stderr=subprocess.DEVNULL, check=False)


QUIET: dict[str, Callable[[bytes], None]] = {
    "the only large folder renamed": lambda root: os.rename(root + b"/most", root + b"/other"),
    "all moved one level down": lambda root: (
        os.mkdir(root + b"/down"),
        os.rename(root + b"/most", root + b"/down/most"),
        os.rename(root + b"/some", root + b"/down/some"),
    ),
    "a file replaced by a folder": lambda root: (
        os.unlink(root + b"/some/000"),
        build(root + b"/some/000", Dir({b"x": File(b"x")})),
    ),
}


@pytest.mark.row(38, "a renamed folder: no alarm")
@pytest.mark.parametrize("change", QUIET)
def test_no_alarm(cli: Command, root: bytes, change: str) -> None:
    name = "quiet-" + change.replace(" ", "-")
    cli.scan(root, "--tenant", name)

    QUIET[change](root)

    assert cli.scan(root)["state"] == "succeeded"
    assert cli.index(name) == listing(root) == apply_feed(cli.feed(name))


def test_the_same_tree_copied_to_a_new_folder_is_no_alarm(cli: Command, root: bytes) -> None:
    first = cli.scan(root, "--tenant", "copied")
    os.rename(root, root + b"-old")
    subprocess.run(["cp", "-a", root + b"-old", root], check=True)

    copied = cli.scan(root)

    assert copied["state"] == "succeeded" and cli.feed("copied", since=first["cursor"]) == []
    os.unlink(root + b"/some/000")
    assert cli.scan(root)["deleted"] == 1  # the new folder is known by now
