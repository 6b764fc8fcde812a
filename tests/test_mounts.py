"""Mounts below a root and on it: not crossed unless told, never mistaken for deletions, the same volume anywhere."""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.command import Command
from tests.trees import Dir, File, apply_feed, build, listing, write
from tests.volumes import Volume

row = pytest.mark.row
Mounted = Callable[..., Volume]
pytestmark = pytest.mark.needs("mount")


@contextmanager
def on(point: bytes, *what: bytes) -> Iterator[None]:
    subprocess.run([b"mount", *what, point], check=True)
    try:
        yield
    finally:
        subprocess.run([b"umount", point], check=True)


TMPFS = (b"-t", b"tmpfs", b"none")
TREE = Dir({b"a": File(b"a"), b"point": Dir({b"below": Dir({b"f": File(b"f")}), b"g": File(b"g")})})


def tenant(cli: Command, tmp_path: Path, *options: str) -> tuple[bytes, str]:
    root, name = os.fsencode(tmp_path / "root"), "t" + tmp_path.name.replace("_", "-")[-60:]
    build(root, TREE)
    cli.json("tenant", "add", name, os.fsdecode(root), *options)
    return root, name


@row(18, "tmpfs and bind mount: reported, not entered; what was there before stays, and is all there after unmounting")
@pytest.mark.parametrize("what", ["tmpfs", "bind"])
def test_what_is_mounted_over_known_files_makes_them_unknown(cli: Command, tmp_path: Path, what: str) -> None:
    root, name = tenant(cli, tmp_path)
    cli.scan(root)
    before = cli.index(name)
    mounting = TMPFS
    if what == "bind":
        build(root + b"/other", Dir({b"h": File(b"h")}))
        cli.scan(root)
        before = cli.index(name)
        mounting = (b"--bind", root + b"/other")

    with on(root + b"/point", *mounting):
        write(root + b"/point/new", b"new")
        for _ in range(2):
            partial = cli.scan(root, status=1)
            assert (partial["state"], partial["deleted"], partial["errors_total"]) == ("partial", 0, 1)
            assert partial["errors"][0]["path"] == "point" and "mounted here now" in partial["errors"][0]["error"]
            assert before.items() <= cli.index(name).items()
            assert not [path for path in cli.index(name) if path == b"point/new"]

    assert cli.scan(root)["deleted"] == 0
    assert cli.index(name) == listing(root) == apply_feed(cli.feed(name))


@row(18, "mounted where nothing was known: skipped, said so, no error")
def test_what_was_always_mounted_is_skipped(cli: Command, tmp_path: Path) -> None:
    root, name = tenant(cli, tmp_path)
    os.mkdir(root + b"/mounted")
    cli.scan(root)  # the mount point is known, and empty
    with on(root + b"/mounted", *TMPFS):
        write(root + b"/mounted/f", b"f")

        first = cli.scan(root)

        assert (first["state"], first["skipped_total"], first["errors_total"]) == ("succeeded", 1, 0)
        assert first["skipped"] == [
            {"path": "mounted", "reason": "something is mounted here, and mounts are not crossed"}
        ]
        assert b"mounted/f" not in cli.index(name)


@row(18, "crossed where the tenant says so; an empty mount point afterwards makes what was below unknown")
def test_a_mount_that_is_crossed_is_indexed_and_survives_being_unmounted(cli: Command, tmp_path: Path) -> None:
    root, name = tenant(cli, tmp_path, "--cross-mounts")
    os.mkdir(root + b"/mounted")
    with on(root + b"/mounted", *TMPFS):
        build(root + b"/mounted", Dir({b"f": File(b"f"), b"d": Dir({b"g": File(b"g")})}))
        assert cli.scan(root)["state"] == "succeeded"
        whole = listing(root)
        assert cli.index(name) == whole

    for _ in range(2):
        unmounted = cli.scan(root, status=1)
        assert (unmounted["state"], unmounted["deleted"]) == ("partial", 0)
        assert "what was mounted here is not" in unmounted["errors"][0]["error"]
        assert cli.index(name) == whole
    write(root + b"/mounted/used", b"as an ordinary folder")
    for _ in range(2):
        suspect = cli.scan(root, status=1)
        assert (suspect["state"], suspect["deleted"]) == ("suspect", 0)
        assert "'mounted' is on another file system than before" in suspect["error"]
        assert whole.items() <= cli.index(name).items()

    assert cli.json("confirm", suspect["scan"])[0]["deleted"] == 2
    assert cli.index(name) == listing(root) == apply_feed(cli.feed(name))
    assert cli.scan(root)["state"] == "succeeded"


@row(
    18,
    "crossed, and another comes over files that are known, or over such a mount: suspect; gone again, nothing is lost",
)
@pytest.mark.parametrize("huge", [False, True])
def test_a_crossed_mount_that_comes_over_known_files_deletes_nothing(cli: Command, tmp_path: Path, huge: bool) -> None:
    if not huge:
        nothing_is_deleted(cli, tmp_path)
        return
    other = Command(tmp_path / "state", {"STRANDLINE_HUGE_ENTRIES": "50"})
    with other.up():
        nothing_is_deleted(other, tmp_path)


def nothing_is_deleted(cli: Command, tmp_path: Path) -> None:
    root, name = tenant(cli, tmp_path, "--cross-mounts")
    build(root + b"/point", Dir({b"%d" % number: File(b"%d" % number) for number in range(60)}))
    cli.scan(root)
    whole = cli.index(name)
    for mounting in (TMPFS, (b"--bind", root + b"/point/below")):
        with on(root + b"/point", *mounting):
            write(root + b"/point/new", b"new")
            for _ in range(2):
                suspect = cli.scan(root, status=1)
                assert (suspect["state"], suspect["deleted"]) == ("suspect", 0)
                assert whole.items() <= cli.index(name).items()

        cli.scan(root)
        assert cli.index(name) == listing(root) == apply_feed(cli.feed(name))


@row(37, "the same volume with another device number: nothing happens")
@pytest.mark.needs("ext4")
def test_the_same_volume_under_another_device_number_is_the_same(
    cli: Command, mounted: Mounted, tmp_path: Path
) -> None:
    volume = mounted("ext4")
    root = os.fsencode(volume.path)
    build(root, TREE)
    first = cli.scan(root, "--tenant", "device")
    device = os.stat(root).st_dev
    while first["hashed_files"]:
        first = cli.scan(root)
    blocker = tmp_path / "blocker.img"
    with blocker.open("wb") as file:
        file.truncate(16 << 20)
    volume.unmount()
    taken = subprocess.run(
        ["losetup", "--find", "--show", blocker], check=True, capture_output=True, text=True
    ).stdout.strip()
    try:
        volume.mount()
        os.unlink(root + b"/a")

        again = cli.scan(root)

        assert os.stat(root).st_dev != device, "the loop device of before is taken"
        assert (again["state"], again["hashed_files"], again["deleted"]) == ("succeeded", 0, 1)
    finally:
        subprocess.run(["losetup", "-d", taken], check=True)


@row(37, "another volume of the same kind mounted on the root: suspect, though its root has the same inode")
@pytest.mark.needs("ext4")
def test_another_volume_of_the_same_kind_is_suspect(cli: Command, mounted: Mounted) -> None:
    volume, other = mounted("ext4"), mounted("ext4")
    root = os.fsencode(volume.path)
    build(root, Dir({b"a": File(b"a"), b"b": File(b"b")}))  # so few files that their number alone tells nothing
    write(os.fsencode(other.path) + b"/else", b"of another customer")
    cli.scan(root, "--tenant", "another")
    before = listing(root)
    with on(root, b"--bind", os.fsencode(other.path)):
        assert os.stat(root).st_ino == 2

        suspect = cli.scan(root, status=1)

        assert (suspect["state"], suspect["deleted"]) == ("suspect", 0)
        assert "another volume seems to be mounted" in suspect["error"] and "strandline confirm" in suspect["error"]
    assert cli.scan(root)["state"] == "succeeded"
    assert cli.index("another") == before


@row(39, "what a file system without change times hides is found by verification")
@pytest.mark.needs("fuse")
def test_what_no_stat_shows_on_a_fuse_is_found_by_verification(cli: Command, mounted: Mounted) -> None:
    volume = mounted("fuse-exfat")
    root = os.fsencode(volume.path / "root")
    build(root, Dir({b"f": File(b"1234", mtime_ns=10**18), b"g": File(b"g")}))
    first = cli.scan(root, "--tenant", "hidden")
    while first["hashed_files"]:
        first = cli.scan(root)
    write(root + b"/f", b"4321")
    os.utime(root + b"/f", ns=(10**18, 10**18))
    assert cli.scan(root)["modified"] == 0

    verified = cli.scan(root, "--verify")

    assert (verified["modified"], verified["silent_changes"]) == (1, 1)
    assert cli.index("hidden") == listing(root)
