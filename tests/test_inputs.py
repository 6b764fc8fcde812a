"""The catalogue of inputs, row by row, through a running stack and on real file systems. See tests/catalogue.py."""

import contextlib
import errno
import hashlib
import itertools
import mmap
import os
import shutil
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from db import indexed, schema, tenants
from db.engine import connect, reading, writing
from tasks import settings as all_settings
from tasks.app import make_app
from tests import trees
from tests.command import Asking, Command, Followed
from tests.fuse_control import Control, Rule
from tests.in_process import scan_once
from tests.trees import SECOND_NS, Dir, File, Symlink, build, listing, make_chain
from tests.volumes import Volume
from tests.waiting import wait_until

row = pytest.mark.row
on_loops = pytest.mark.needs("root", "mount")
on_fuse = pytest.mark.needs("root", "mount", "fuse")
DISKS = ("ext4", "xfs", "btrfs", "overlay")
YEAR_9999_NS = 253_402_300_799 * SECOND_NS

Mounted = Callable[..., Volume]
Follow = Callable[[bytes | Path], Followed]


@pytest.fixture(scope="module")
def asking(cli: Command) -> Iterator[Asking]:
    with cli.asking() as asking:
        yield asking


@pytest.fixture(scope="module")
def numbers() -> Iterator[int]:
    return itertools.count(1)


@pytest.fixture
def follow(cli: Command, asking: Asking, numbers: Iterator[int]) -> Follow:
    return lambda root: Followed(cli, asking, os.fsencode(root), f"t{next(numbers)}")


@pytest.fixture
def root(tmp_path: Path) -> bytes:
    return os.fsencode(tmp_path / "root")


@pytest.fixture
def shown(mounted: Mounted) -> Volume:
    """A FUSE with folder `root`, whose files are long enough to be struck while they are read."""
    volume = mounted("fuse")
    (volume.path / "root").mkdir()
    return volume


def files(count: int, prefix: str = "f", **given: object) -> dict[bytes, File]:
    return {b"%s%02d" % (prefix.encode(), n): File(b"%s %d" % (prefix.encode(), n), **given) for n in range(count)}


# ---- What is brought in, moved about and saved


@row(2, "cp -p, rsync -t, tar x, unzip: all added, with their old times")
@pytest.mark.needs("rsync", "unzip")
def test_old_files_brought_in_by_any_tool_are_added(follow: Follow, root: bytes, tmp_path: Path) -> None:
    # given
    build(root, Dir(files(3)))
    outside = tmp_path / "outside"
    build(os.fsencode(outside), Dir({b"old": Dir(files(3, "old"), age_s=10**8)}, age_s=10**8), age_s=10**8)
    for form in ("tar", "zip"):
        shutil.make_archive(str(outside / "old"), form, outside, "old")
    tenant = follow(root)
    tenant.exact()

    # when
    for name, command in {
        "cp": ["cp", "-rp", outside / "old", "."],
        "rsync": ["rsync", "-rt", f"{outside}/old/", "."],
        "tar": ["tar", "-xf", outside / "old.tar"],
        "unzip": ["unzip", "-q", outside / "old.zip"],
    }.items():
        (Path(os.fsdecode(root)) / name).mkdir()
        subprocess.run(command, cwd=Path(os.fsdecode(root)) / name, check=True)

    # then
    news = tenant.exact()["news"]
    assert len(news) == 4 * 3 and {kind for kind, _ in news} == {"added"}


@row(34, "write beside and rename over; keep the old one as doc~")
def test_an_editors_ways_to_save_are_a_modified_document(follow: Follow, root: bytes) -> None:
    build(root, Dir({b"a": File(b"1"), b"b": File(b"1"), b"c": File(b"1")}))
    tenant = follow(root)
    tenant.exact()

    trees.write(root + b"/.a.swp", b"2")
    os.rename(root + b"/.a.swp", root + b"/a")
    os.rename(root + b"/b", root + b"/b~")
    trees.write(root + b"/b", b"2")
    trees.write(root + b"/c~", b"1")
    os.rename(root + b"/c~", root + b"/.c.aside")
    trees.write(root + b"/c", b"2")
    os.rename(root + b"/.c.aside", root + b"/c~")

    news = tenant.exact()["news"]
    assert [one for one in news if not one[1].endswith(b"~")] == [("modified", name) for name in (b"a", b"b", b"c")]
    assert {name for _, name in news if name.endswith(b"~")} == {b"b~", b"c~"}


@row(25, "the paths that changed, and no other")
def test_of_a_hundred_copies_one_leaves_and_one_comes(follow: Follow, root: bytes) -> None:
    build(root, Dir({b"%02d" % n: File(b"the same") for n in range(100)}))
    tenant = follow(root)
    tenant.exact()

    os.unlink(root + b"/50")
    trees.write(root + b"/new", b"the same")

    assert tenant.exact()["touched"] <= {b"50", b"new"}


@row(35, "deleted and added, never a move")
@on_loops
@pytest.mark.needs("ext4")
def test_an_inode_that_is_used_again_at_once_is_no_move(follow: Follow, mounted: Mounted) -> None:
    # given
    root = os.fsencode(mounted("ext4").path / "root")
    build(root, Dir({**files(20), b"kept": File(b"kept")}))
    tenant = follow(root)
    tenant.exact()
    inodes = {os.lstat(root + b"/" + name).st_ino for name in files(20)}

    # when
    for n, name in enumerate(files(20)):
        os.unlink(root + b"/" + name)
        trees.write(root + b"/new%02d" % n, b"new %d" % n)

    # then
    reused = {os.lstat(root + b"/new%02d" % n).st_ino for n in range(20)} & inodes
    assert len(reused) >= 10, "ext4 gives an inode again at once"
    assert {kind for kind, _ in tenant.exact()["news"]} == {"added", "deleted"}


@row(17, "added, removed, across folders: a row a path, and no move")
def test_hard_links_are_rows_of_their_own(follow: Follow, root: bytes) -> None:
    build(root, Dir({b"a": Dir({b"f": File(b"1")}), b"b": Dir({})}))
    tenant = follow(root)
    tenant.exact()

    os.link(root + b"/a/f", root + b"/b/g")
    os.link(root + b"/a/f", root + b"/a/h")
    assert tenant.exact()["news"] == [("added", b"a/h"), ("added", b"b/g")]
    os.unlink(root + b"/a/f")
    assert tenant.exact()["news"] == [("deleted", b"a/f")]
    trees.write(root + b"/b/g", b"2")
    assert tenant.exact()["news"] == [("modified", b"a/h"), ("modified", b"b/g")]


@row(13, "each of file, folder and symlink becomes each other: one scan tells it whole")
def test_whatever_becomes_whatever_under_the_same_name(follow: Follow, root: bytes) -> None:
    kinds = {b"file": File(b"1"), b"folder": Dir({b"in": File(b"2")}), b"symlink": Symlink(b"nowhere")}
    pairs = [(one, other) for one in kinds for other in kinds if one != other]
    build(root, Dir({one + b"-" + other: kinds[one] for one, other in pairs}))
    tenant = follow(root)
    tenant.exact()

    for one, other in pairs:
        trees.remove(root + b"/" + one + b"-" + other)
    build(root, Dir({one + b"-" + other: kinds[other] for one, other in pairs}))

    assert tenant.exact()["touched"] == {
        path + below for one, other in pairs for path in (one + b"-" + other,)
        for below in ({b"folder": b"/in"}.get(one, b""), {b"folder": b"/in"}.get(other, b""))
    }  # fmt: skip


# ---- Names


@row(19, "A beside a; renamed by case alone")
@row(20, "NFC beside NFD")
@row(21, "exact in index and feed; on a terminal a line each, all printable")
def test_names_are_kept_exactly_and_shown_safely(cli: Command, follow: Follow, root: bytes) -> None:
    # given
    names = [b"A", b"a", "café".encode(), b"cafe\xcc\x81", b"\xff\xfe", b"new\nline", b"\r", b"tab\t", b"\x1b[31m",
             b"'", b'"', b"-rf", b"--state", b"$(x)", b"`x`", b"%s%n", b"\\", b"*", b" ", b"n" * 255,
             b"\xc2\x9b31m"]  # fmt: skip
    build(root, Dir({name: File(name) for name in names} | {b"d" + name[:250]: Dir({name: File()}) for name in names}))
    tenant = follow(root)

    # when
    news = tenant.exact()["news"]
    os.rename(root + b"/a", root + b"/aside")
    os.rename(root + b"/A", root + b"/a")

    # then
    assert len(news) == 2 * len(names)
    assert tenant.exact()["touched"] == {b"a", b"A", b"aside"}
    for words in (["files", tenant.name], ["changes", tenant.name]):
        shown = cli.run(*words)
        lines = shown.stdout.split("\n")[:-1]
        assert shown.returncode == 0 and all(line.isprintable() for line in lines), words
        assert len(lines) >= 2 * len(names)


@row(22, "paths of more than 4,096 bytes, thousands of levels")
def test_a_deep_tree_is_indexed_to_its_bottom(follow: Follow, root: bytes) -> None:
    bottom = make_chain(root, 4_000)
    try:
        tenant = follow(root)
        assert tenant.exact()["news"] == [("added", bottom)]
    finally:
        trees.remove(root)


# ---- What is no file


@row(14, "pipes, sockets and devices are counted and not read")
@pytest.mark.needs("root")
@pytest.mark.timeout(60)
def test_what_is_no_file_is_counted_and_nobody_waits_for_it(
    follow: Follow, root: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(root, Dir({b"f": File(b"1"), b"was-file": File(b"2")}))
    tenant = follow(root)
    tenant.exact()

    os.mkfifo(root + b"/pipe")
    os.mknod(root + b"/zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    os.unlink(root + b"/was-file")
    os.mkfifo(root + b"/was-file")
    monkeypatch.chdir(root)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")

    document = tenant.exact()
    assert (document["other"], document["news"]) == (4, [("deleted", b"was-file")])


@contextlib.contextmanager
def again_and_again(action: Callable[[], None]) -> Iterator[list[int]]:
    """`action` is done by another thread all the while; how often so far."""
    stop, done = threading.Event(), [0]

    def run() -> None:
        while not stop.is_set():
            action()
            done[0] += 1

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield done
    finally:
        stop.set()
        thread.join()


@row(14, "a FIFO that comes in a file's place between list and open")
@pytest.mark.timeout(60)
def test_a_pipe_that_takes_a_files_place_all_the_time_holds_nobody_up(
    follow: Follow, root: bytes, tmp_path: Path
) -> None:
    build(root, Dir(files(40)))
    tenant = follow(root)
    pipe = os.fsencode(tmp_path / "pipe")

    def swap() -> None:
        for name in files(40):
            path = root + b"/" + name
            os.mkfifo(pipe)
            os.rename(pipe, path)
            trees.write(pipe, b"file again")
            os.rename(pipe, path)

    with again_and_again(swap) as done:
        for _ in range(5):
            tenant.asking.scan(root, tenant.name)
    assert done[0]
    tenant.exact()


# ---- Symlinks


@row(15, "each as itself, whatever it points to; retargeted is modified")
def test_symlinks_are_indexed_as_themselves(follow: Follow, root: bytes, tmp_path: Path) -> None:
    # given
    other, outside = os.fsencode(tmp_path / "other"), os.fsencode(tmp_path / "outside")
    build(outside, Dir({b"secret": File(b"s")}))
    build(other, Dir({b"theirs": File(b"t")}))
    follow(other).exact()
    targets = {b"file": b"f", b"folder": b"d", b"out": outside, b"tenant": other, b"up": b"../outside",
               b"dangling": b"nowhere", b"loop": b"loop", b"bytes": b"\xff\n"}  # fmt: skip
    build(root, Dir({name: Symlink(to) for name, to in targets.items()} | {b"f": File(b"1"), b"d": Dir(files(2))}))
    tenant = follow(root)

    # when, then
    assert [path for _, path in tenant.exact()["news"]] == sorted([*targets, b"f", b"d/f00", b"d/f01"])
    for name in targets:
        os.unlink(root + b"/" + name)
        os.symlink(b"elsewhere", root + b"/" + name)
    assert tenant.exact()["news"] == [("modified", name) for name in sorted(targets)]


@row(16, "swapped once it was listed: nothing from outside")
@on_fuse
def test_a_folder_swapped_for_a_symlink_after_its_listing_never_leads_outside(follow: Follow, shown: Volume) -> None:
    # given: a listing that cannot tell that it was overtaken
    root = os.fsencode(shown.path / "root")
    build(root, Dir({b"a": Dir({b"mine": File(b"m")}), b"b": Dir(), b"z": File(b"2")}))
    build(os.fsencode(shown.path / "outside"), Dir({b"secret": File(b"secret"), b"a": Dir({b"secret": File()})}))
    swap = [["rename", "root/a", "a"], ["symlink", "root/a", "../outside"]]
    rule = Rule("root", "readdir", after=2, times=1, do=swap)
    shown.control(Control(rules=[rule], directory_times="frozen"))
    tenant = follow(root)

    # when
    tenant.scan()

    # then
    assert os.readlink(root + b"/a") == b"../outside", "it was swapped after it was listed"
    assert tenant.state.keys() == {b"z"}
    assert tenant.exact()["news"] == [("added", b"a")]


# ---- While somebody writes


@row(9, "a store after the hash, through a map that was written before: modified at the next scan")
@on_loops
@pytest.mark.needs(*DISKS)
def test_a_store_through_a_map_after_the_hash_is_found(follow: Follow, mounted: Mounted) -> None:
    with contextlib.ExitStack() as stack:
        # given: mapped pages that stay dirty, long after any stamp is near to a scan
        found = []
        for kind in DISKS:
            root = os.fsencode(mounted(kind).path / "root")
            build(root, Dir({b"f": File(b"." * 9000)}))
            file = stack.enter_context(open(root + b"/f", "r+b"))
            mapped = stack.enter_context(mmap.mmap(file.fileno(), 0))
            mapped[0:1] = b"1"
            found.append((follow(root), mapped))
        for tenant, _ in found:
            tenant.settle()

        for tenant, mapped in found:
            # when
            mapped[0:1] = b"2"

            # then
            assert tenant.exact()["news"] == [("modified", b"f")], tenant.root


SIZE = 3 << 20
WRITERS = {
    "append": ["append", "root/f", "more"],
    "truncate": ["truncate", "root/f", "5"],
    "replace": ["rename", "outside", "root/f"],
    "remove": ["unlink", "root/f"],
}


@row(10, "append, truncate, replace, remove in the middle of a hash: the old, the new or none, never a mixture")
@on_fuse
@pytest.mark.parametrize("writer", WRITERS)
def test_a_writer_in_the_middle_of_a_hash_leaves_no_torn_digest(follow: Follow, shown: Volume, writer: str) -> None:
    # given
    root = os.fsencode(shown.path / "root")
    build(root, Dir({b"f": File(b"o" * SIZE), b"other": File(b"1")}))
    trees.write(os.fsencode(shown.path / "outside"), b"n" * SIZE)
    old = listing(root)
    shown.control(Control(rules=[Rule("root/f", "read", after=SIZE // 2, times=1, do=[WRITERS[writer]])]))
    tenant = follow(root)

    # when
    tenant.scan()

    # then
    new = listing(root)
    assert new != old, "somebody wrote"
    assert tenant.state.get(b"f") in (None, old[b"f"], new.get(b"f"))
    assert tenant.state[b"other"] == old[b"other"]
    tenant.exact()


@row(11, "tried once a scan, everything else goes on; seen whole when it rests")
@on_fuse
def test_a_log_that_grows_for_ever_holds_nothing_up(follow: Follow, shown: Volume) -> None:
    # given
    root = os.fsencode(shown.path / "root")
    build(root, Dir({b"log": File(b"o" * SIZE), **files(5), b"z": Dir(files(5))}))
    old = listing(root)
    grow = Rule("root/log", "read", do=[["append", "root/log", "x"]])
    tenant = follow(root)

    # when
    shown.control(Control(rules=[grow]))
    for _ in range(2):
        before = os.stat(root + b"/log").st_size
        tenant.scan()
        # then
        assert tenant.state == {path: entry for path, entry in old.items() if path != b"log"}
        assert 0 < os.stat(root + b"/log").st_size - before < 500
    shown.control(Control())
    assert tenant.exact()["news"] == [("added", b"log")]


@row(12, "between list and open, between open and read: gone, and no crash; back: back")
@on_fuse
@pytest.mark.parametrize(("operation", "error"), [("open", "ENOENT"), ("open", "ESTALE"), ("read", "ESTALE")])
def test_a_file_that_vanishes_meanwhile_is_gone_and_no_error(
    follow: Follow, shown: Volume, operation: str, error: str
) -> None:
    root = os.fsencode(shown.path / "root")
    build(root, Dir(files(3)))
    tenant = follow(root)
    tenant.exact()
    trees.write(root + b"/f01", b"rewritten, and so hashed again")
    shown.control(Control(rules=[Rule("root/f01", operation, error, do=[["unlink", "root/f01"]])]))

    tenant.scan()
    shown.control(Control())

    assert tenant.exact()["files"] == 2 and b"f01" not in tenant.state
    trees.write(root + b"/f01", b"back")
    assert tenant.exact()["news"] == [("added", b"f01")]


# ---- Errors of the file system


@row(30, "EACCES on a file and on a folder, then given back: UNKNOWN, nothing deleted, then as before")
@row(31, "on a file, a folder, half-way through a listing, a stat: UNKNOWN below, the scan partial")
@on_fuse
@pytest.mark.parametrize("error", ["EIO", "ESTALE", "ENOTCONN", "ETIMEDOUT", "EACCES"])
def test_what_the_file_system_refuses_is_unknown_and_nothing_is_deleted(
    follow: Follow, shown: Volume, error: str
) -> None:
    # given
    root = os.fsencode(shown.path / "root")
    folders = (b"opened", b"listed", b"half", b"stat", b"read", b"fine")
    build(root, Dir({name: Dir({**files(30, "x"), b"below": Dir(files(3))}) for name in folders}))
    tenant = follow(root)
    tenant.exact()
    before = dict(tenant.state)

    # when
    trees.write(root + b"/read/x07", b"new content")
    for name in folders:
        os.unlink(root + b"/" + name + b"/x11")
    shown.control(
        Control(
            rules=[
                Rule("root/opened", "opendir", error),
                Rule("root/listed", "readdir", error),
                Rule("root/half", "readdir", error, after=20),
                Rule("root/stat/x05", "stat", error),
                Rule("root/read/x07", "open", error),
            ]
        )
    )
    for _ in range(2):
        document = tenant.scan("partial")

        # then
        kept = {path: entry for path, entry in before.items() if path not in (b"read/x11", b"fine/x11")}
        assert tenant.state == kept
        told = {trees.exact(one, "path") for one in document["errors"]}
        assert told >= {b"opened", b"listed", b"half", b"stat", b"read/x07"}
    shown.control(Control())
    news = tenant.exact()["news"]
    assert [one for one in news if one[0] == "added"] == []
    assert len(news) == 4 + 1


@row(31, "ENOTCONN of everything, since the file system's process is dead: failed, the index kept")
@on_fuse
def test_a_file_system_whose_process_died_deletes_nothing(follow: Follow, shown: Volume) -> None:
    root = os.fsencode(shown.path / "root")
    build(root, Dir({**files(5), b"d": Dir(files(5))}))
    tenant = follow(root)
    tenant.exact()
    assert shown.server is not None
    shown.server.kill()
    shown.server.wait()

    document = tenant.scan("failed")

    assert os.strerror(errno.ENOTCONN).lower() in document["error"] and len(tenant.state) == 10
    shown.abandon()
    shown.mount()
    assert tenant.exact()["news"] == []


@row(32, "a rename from what is still to come to what has passed: listed again")
@on_fuse
def test_a_listing_torn_by_a_rename_is_taken_again(follow: Follow, shown: Volume) -> None:
    root = os.fsencode(shown.path / "root")
    build(root, Dir({b"d": Dir(files(60))}))
    tenant = follow(root)
    tenant.exact()
    tear = Rule("root/d", "readdir", after=30, times=1, do=[["rename", "root/d/f50", "root/d/e50"]])
    shown.control(Control(rules=[tear]))

    told = tenant.scan()

    assert tenant.state == listing(root)
    assert told["touched"] == {b"d/e50", b"d/f50"}


@row(32, "renames all the while: what stays is never deleted")
def test_in_a_folder_that_never_rests_nothing_that_stays_is_deleted(follow: Follow, root: bytes) -> None:
    build(root, Dir({b"d": Dir(files(90, "stays") | files(3, "moves"))}))
    tenant = follow(root)
    tenant.exact()

    def move() -> None:
        for name in files(3, "moves"):
            os.rename(root + b"/d/" + name, root + b"/d/a-" + name)
            os.rename(root + b"/d/a-" + name, root + b"/d/" + name)

    with again_and_again(move):
        for _ in range(5):
            tenant.asking.scan(root, tenant.name)
    news = tenant.exact()["news"]
    assert [path for _, path in news if b"stays" in path] == []


# ---- Times


@row(27, "-1, 0, 1960, year 9999, the future: kept signed and saturated, and hashed no more once settled")
@on_loops
@pytest.mark.needs(*DISKS)
def test_strange_times_are_kept_and_nothing_is_hashed_for_ever(cli: Command, follow: Follow, mounted: Mounted) -> None:
    stamps = [-1, 0, 1, -315_619_200 * SECOND_NS, 4_000_000_000 * SECOND_NS + 1, YEAR_9999_NS]
    followed = []
    for kind in (*DISKS, "tmpfs", "ext4-1s"):
        root = os.fsencode(mounted(kind).path / "root")
        build(root, Dir({b"%d" % n: File(b"%d" % n, mtime_ns=ns) for n, ns in enumerate(stamps)}))
        followed.append(follow(root))

    for tenant in followed:
        assert tenant.settle()["news"] == []

        for document in cli.read("files", tenant.name):
            ns = os.lstat(tenant.root + b"/" + trees.exact(document, "path")).st_mtime_ns
            assert document["mtime_ns"] == max(-(2**63), min(2**63 - 1, ns)), tenant.root
        os.utime(tenant.root + b"/5", ns=(0, YEAR_9999_NS - 10 * SECOND_NS))
        assert tenant.exact()["news"] == []


@row(27, "nanoseconds cut by a remount: hashed at most once more, no change in the feed")
@row(39, "stamps that become coarse, and inodes that change with the mount")
@on_fuse
@pytest.mark.parametrize("inodes", ["true", "mount"])
def test_a_remount_that_cuts_nanoseconds_hashes_once_and_tells_nothing(
    follow: Follow, shown: Volume, inodes: str
) -> None:
    root = os.fsencode(shown.path / "root")
    build(root, Dir({**files(5, mtime_ns=10**18 + 123_456_789), b"d": Dir(files(5, mtime_ns=10**18 + 987_654_321))}))
    tenant = follow(root)
    tenant.settle()

    shown.control(Control(granularity_s=1, inodes=inodes))
    shown.remount()

    once = tenant.exact()
    assert once["hashed_files"] <= 10 and once["news"] == []
    again = tenant.exact()
    assert (again["hashed_files"], again["news"]) == (0, [])


@row(27, "whole seconds only: a remount changes nothing at all")
@on_loops
@pytest.mark.needs("ext4")
def test_on_inodes_of_whole_seconds_a_remount_changes_nothing(follow: Follow, mounted: Mounted) -> None:
    volume = mounted("ext4-1s")
    root = os.fsencode(volume.path / "root")
    build(root, Dir(files(5, mtime_ns=10**18 + 123_456_789)))
    assert os.lstat(root + b"/f00").st_mtime_ns == 10**18, "stamps are whole seconds here"
    tenant = follow(root)
    tenant.settle()

    volume.remount()

    again = tenant.exact()
    assert (again["hashed_files"], again["directories_unchanged"]) == (0, 1)


@row(28, "cp -a to new inodes, the roots swapped: hashed again, no change in the feed")
def test_a_restored_tree_is_hashed_again_and_tells_nothing(follow: Follow, root: bytes) -> None:
    build(root, Dir({**files(20), b"d": Dir({**files(20), b"l": Symlink(b"f00")})}))
    tenant = follow(root)
    tenant.exact()

    subprocess.run([b"cp", b"-a", root, root + b"-restored"], check=True)
    os.rename(root, root + b"-old")
    os.rename(root + b"-restored", root)

    again = tenant.exact()
    assert (again["hashed_files"], again["news"]) == (40, [])


@row(29, "chmod -R, chown -R, one link more: hashed at most once, no change in the feed")
def test_modes_owners_and_link_counts_are_no_change(follow: Follow, root: bytes, tmp_path: Path) -> None:
    build(root, Dir({**files(20), b"d": Dir(files(20))}))
    tenant = follow(root)
    tenant.settle()

    subprocess.run([b"chmod", b"-R", b"go-rwx", root], check=True)
    if os.geteuid() == 0:
        subprocess.run([b"chown", b"-R", b"65534:65534", root], check=True)
    os.link(root + b"/f00", tmp_path / "outside")

    hashed = tenant.exact()
    assert hashed["hashed_files"] <= 40 and hashed["news"] == []
    assert tenant.settle()["news"] == []


@row(40, "an hour back, a tick or a second ahead of the file system's: a rewrite in the same tick is found")
@on_loops
@pytest.mark.needs("ext4")
@pytest.mark.parametrize("offset_s", [-3600.0, 0.005, 1.0])
def test_a_clock_that_differs_from_the_file_systems_hides_no_rewrite(
    mounted: Mounted, tmp_path: Path, redis_url: str, offset_s: float
) -> None:
    # given: stamps of whole seconds, so that a rewrite surely leaves the same ones
    root = os.fsencode(mounted("ext4-1s").path / "root")
    build(root, Dir({b"old": File(b"1")}))
    url = f"sqlite:///{tmp_path}/test.db"
    engine = connect(url)
    schema.migrate(engine)
    app = make_app(all_settings.load({}, database_url=url, redis_url=redis_url))
    app.runtime.engine, app.runtime.clock_ns = engine, lambda: time.time_ns() + round(offset_s * SECOND_NS)
    with writing(engine) as connection:
        tenant = tenants.add(connection, name="t", root=root, tier="standard", interval_s=60, algorithm="sha256")

    def rewritten_in_one_tick() -> bool:
        trees.next_tick(root)
        trees.write(root + b"/f", b"one")
        before = os.lstat(root + b"/f")
        scan_once(engine, tenant.id)
        trees.write(root + b"/f", b"two")
        return (before.st_mtime_ns, before.st_ctime_ns) == stamps_of(root + b"/f")

    # when
    wait_until(rewritten_in_one_tick, 20, "a scan between two writes in one second")
    scan_once(engine, tenant.id)

    # then
    with reading(engine) as connection:
        [file] = indexed.page(connection, tenant.id, prefix=b"f", after=None, limit=9)
    assert file.digest == hashlib.sha256(b"two").digest()
    engine.dispose()


def stamps_of(path: bytes) -> tuple[int, int]:
    found = os.lstat(path)
    return found.st_mtime_ns, found.st_ctime_ns


# ---- File systems that hide something


@row(39, "2 s, no ctime, other inodes at each mount, frozen folders: what stat shows is found, a remount is none")
@on_fuse
def test_where_stamps_are_coarse_and_inodes_change_what_stat_shows_is_found(
    cli: Command, follow: Follow, mounted: Mounted
) -> None:
    # given
    volume = mounted("fuse-exfat")
    root = os.fsencode(volume.path / "root")
    build(root, Dir({**files(10), b"d": Dir(files(10))}))
    tenant = follow(root)
    tenant.settle()

    # when, then
    volume.remount()
    again = tenant.exact()
    assert (again["hashed_files"], again["directories_unchanged"], again["news"]) == (0, 2, [])

    os.rename(root + b"/d/f00", root + b"/d/renamed")
    os.unlink(root + b"/d/f01")
    trees.write(root + b"/d/f02", b"of another size")
    assert tenant.exact()["touched"] == {b"d/f00", b"d/renamed", b"d/f01", b"d/f02"}
    [shown] = cli.read("tenant", "show", tenant.name)
    assert shown["cannot_see"]


@row(39, "another inode at each look: indexed and settled all the same")
@on_fuse
def test_inodes_that_change_at_each_look_keep_nothing_from_being_indexed(follow: Follow, shown: Volume) -> None:
    root = os.fsencode(shown.path / "root")
    build(root, Dir({**files(5), b"d": Dir(files(5))}))
    shown.control(Control(inodes="lookup"))
    tenant = follow(root)

    assert len(tenant.exact()["news"]) == 10
    assert (again := tenant.exact())["hashed_files"] == 0 and again["directories_unchanged"] == 2
    trees.write(root + b"/d/f00", b"of another size")
    assert tenant.exact()["news"] == [("modified", b"d/f00")]


@row(39, "a real vfat or exfat")
@on_loops
@pytest.mark.parametrize("kind", [pytest.param(kind, marks=pytest.mark.needs(kind)) for kind in ("vfat", "exfat")])
def test_on_a_real_file_system_of_two_second_stamps(follow: Follow, mounted: Mounted, kind: str) -> None:
    root = os.fsencode(mounted(kind).path / "root")
    build(root, Dir({**files(10), b"d": Dir(files(10))}))
    tenant = follow(root)
    tenant.settle()

    os.rename(root + b"/d/f00", root + b"/d/renamed")
    trees.write(root + b"/d/f02", b"of another size")

    assert tenant.exact()["touched"] == {b"d/f00", b"d/renamed", b"d/f02"}


# ---- Roots and state folders


@row(41, "nothing, folders only, one file")
def test_small_trees_are_as_expected(follow: Follow, tmp_path: Path) -> None:
    for name, spec in {
        "empty": Dir(), "folders": Dir({b"a": Dir({b"b": Dir()}), b"c": Dir()}), "one": Dir({b"f": File()}),
    }.items():  # fmt: skip
        root = os.fsencode(tmp_path / name)
        build(root, spec)
        tenant = follow(root)
        document = tenant.exact()
        assert document["directories"] == {"empty": 1, "folders": 4, "one": 1}[name]
        trees.write(root + b"/new", b"new")
        assert tenant.exact()["news"] == [("added", b"new")]


@row(41, "a root with a slash at its end, with .., relative: one and the same tenant")
def test_a_root_is_one_tenant_however_it_is_written(cli: Command, root: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    build(root, Dir({b"in": Dir(), b"f": File(b"1")}))
    monkeypatch.chdir(root)
    named = cli.scan(root)
    for written in (root + b"/", b".", root + b"/in/.."):
        again = cli.scan(written)
        assert (again["tenant"], again["files"], again["fence"] > named["fence"]) == (named["tenant"], 1, True)


@row(36, "missing, a file, a symlink in its place: refused, and the index kept")
@pytest.mark.parametrize("now", ["missing", "a file", "a symlink"])
def test_a_root_that_is_no_folder_any_more_keeps_its_index(follow: Follow, root: bytes, now: str) -> None:
    build(root, Dir({b"d": Dir(files(3)), **files(2)}))
    tenant = follow(root)
    tenant.exact()
    os.rename(root, root + b"-away")
    match now:
        case "a file":
            trees.write(root, b"")
        case "a symlink":
            os.symlink(root + b"-away", root)

    document = tenant.scan("failed")

    assert os.fsdecode(root) in document["error"] and len(tenant.state) == 5
    if now != "missing":
        os.unlink(root)
    os.rename(root + b"-away", root)
    assert tenant.exact()["news"] == []


@row(42, "read-only: said in a sentence; the next scan completes")
@on_loops
def test_a_state_folder_that_became_read_only_is_said(mounted: Mounted, root: bytes) -> None:
    build(root, Dir(files(3)))
    volume = mounted("tmpfs", size_mib=64)
    cli = Command(volume.path / "state")
    cli.scan(root, "--tenant", "t")
    subprocess.run(["mount", "-o", "remount,ro", volume.path], check=True)

    refused = cli.run("scan", root, "--tenant", "t")

    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    assert str(cli.state) in refused.stderr and len(refused.stderr.splitlines()) == 1, refused.stderr
    subprocess.run(["mount", "-o", "remount,rw", volume.path], check=True)
    trees.write(root + b"/new", b"new")
    assert cli.scan(root, "--tenant", "t")["added"] == 1 and cli.index("t") == listing(root)
