"""The walk: descriptors by path, never outside of the root, never more open than promised."""

import errno
import os
import random
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator

import pytest

from tasks.core import filesystem
from tasks.core.filesystem import Missing, OtherMount, Shadowed, Unreadable
from tasks.core.listing import Seed, list_directory
from tasks.core.policy import Policy
from tasks.core.profile import Profile
from tasks.core.walk import OPEN_DIRECTORIES, Tree
from tests import trees
from tests.children import as_nobody, with_tmpfs_on
from tests.processes import open_descriptors
from tests.trees import Dir, File, Symlink, build, make_chain

# The root, and the one that is opened before the oldest is closed.
FEW = 2
SEED = Seed.of(1, Policy("sha256"), Profile("test"))


@pytest.fixture
def place() -> Iterator[bytes]:
    """Not in tmp_path, which nobody but its owner may enter."""
    folder = tempfile.mkdtemp(prefix=b"strandline-")
    os.chmod(folder, 0o755)
    yield folder
    # What a test closed, its owner cannot remove unless he is root.
    subprocess.run([b"chmod", b"-R", b"u+rwX", b"--", folder], check=True)
    trees.remove(folder)


@pytest.fixture
def root(place: bytes) -> bytes:
    return os.path.join(place, b"root")


def inodes(root: bytes) -> dict[bytes, int]:
    return {path: os.fstat(fd).st_ino for path, fd, _ in trees.folders(root)}


def chain(depth: int, name: bytes = b"d") -> bytes:
    return b"/".join([name] * depth)


BUSHY = Dir(
    {
        name: Dir({inner: Dir({b"x": Dir(), b"y": Dir({b"z": Dir()})}) for inner in (b"a", b"b", b"\xff\n")})
        for name in (b"a", b"b", b"a b", b"\xc3\xa4")
    }
)


# ---- The right directory


def test_asked_depth_first_each_path_gives_its_own_directory(root: bytes) -> None:
    build(root, BUSHY)
    expected = inodes(root)

    with Tree(root) as tree:
        found = {path: os.fstat(tree.directory(path)).st_ino for path in sorted(expected)}

    assert found == expected
    assert len(found) == 1 + 4 + 12 + 24 + 12


@pytest.mark.parametrize("seed", range(10))
def test_asked_in_any_order_and_repeatedly_each_path_gives_its_own_directory(root: bytes, seed: int) -> None:
    build(root, BUSHY)
    expected = inodes(root)
    paths = random.Random(seed).choices(sorted(expected), k=500)

    with Tree(root) as tree:
        for path in paths:
            assert os.fstat(tree.directory(path)).st_ino == expected[path]


@pytest.mark.parametrize("path", [b"dd", b"d/dd", b"d/d "])
def test_a_name_that_begins_like_another_is_another(root: bytes, path: bytes) -> None:
    build(root, Dir({b"d": Dir({b"d": Dir(), b"dd": Dir(), b"d ": Dir()}), b"dd": Dir()}))

    with Tree(root) as tree:
        tree.directory(b"d/d")
        assert os.fstat(tree.directory(path)).st_ino == os.stat(os.path.join(root, path)).st_ino


def test_the_root_is_known_by_device_and_inode(root: bytes) -> None:
    build(root, Dir())

    with Tree(root) as tree:
        found = os.stat(root)
        assert (tree.device, tree.inode) == (found.st_dev, found.st_ino)
        assert tree.directory(b"") == tree.fd


# ---- Deep


@pytest.mark.row(22, "3,000 levels, with few descriptors")
def test_three_thousand_levels_are_walked_with_few_descriptors(root: bytes) -> None:
    # given: a path of 5,999 bytes too, which no call takes in one piece
    make_chain(root, 3000)
    before = open_descriptors()

    # when
    with Tree(root) as tree:
        most = max(len(os.listdir("/proc/self/fd")) for path, _, _ in trees.folders(root) if tree.directory(path) >= 0)
        bottom = list_directory(tree.directory(chain(3000)), b"", SEED)

    # then: the oracle holds one or two of its own
    assert [entry.name for entry in bottom.files] == [b"file"]
    assert most - before <= OPEN_DIRECTORIES + FEW + 2
    assert open_descriptors() <= before


@pytest.mark.row(22, "a path of more than 4,096 bytes")
def test_a_path_longer_than_4096_bytes_is_entered(root: bytes) -> None:
    # given
    name = b"n" * 250
    make_chain(root, 20, name=name)
    path = chain(20, name)
    assert len(root) + len(path) > 4096

    # when
    with Tree(root) as tree:
        fd = tree.directory(path)

        # then
        assert os.listdir(fd) == ["file"]


@pytest.mark.parametrize("seed", range(5))
def test_a_deep_tree_in_any_order_stays_within_the_descriptors_that_it_may_hold(root: bytes, seed: int) -> None:
    # given
    make_chain(root, 3 * OPEN_DIRECTORIES)
    expected = inodes(root)
    paths = random.Random(seed).choices(sorted(expected), k=60)
    before = open_descriptors()

    # when
    with Tree(root) as tree:
        for path in paths:
            # then
            assert os.fstat(tree.directory(path)).st_ino == expected[path]
            assert len(os.listdir("/proc/self/fd")) - before <= OPEN_DIRECTORIES + FEW
    assert open_descriptors() <= before


# ---- What cannot be entered


def test_what_is_not_a_directory_or_not_there_is_missing_at_every_level(root: bytes) -> None:
    build(root, Dir({b"file": File(b"x"), b"link": Symlink(b"folder"), b"folder": Dir(), b"loop": Symlink(b"loop")}))
    os.mkfifo(os.path.join(root, b"pipe"))
    before = open_descriptors()

    with Tree(root) as tree:
        for path in (b"file", b"link", b"loop", b"pipe", b"nothing", b"file/x", b"link/x", b"loop/x", b"nothing/x"):
            with pytest.raises(Missing):
                tree.directory(path)
        assert tree.directory(b"folder") >= 0

    assert open_descriptors() <= before


def test_a_root_that_is_missing_a_file_or_a_symlink_is_unreadable_and_says_so(root: bytes, place: bytes) -> None:
    trees.write(os.path.join(place, b"file"), b"")
    os.symlink(place, os.path.join(place, b"link"))
    before = open_descriptors()

    for name, reason in ((b"none", "no such file"), (b"file", "not a directory"), (b"link", "")):
        with pytest.raises(Unreadable) as refused:
            Tree(os.path.join(place, name))
        assert refused.value.operation == "open root"
        assert reason in refused.value.error
        assert name.decode() in refused.value.error

    assert open_descriptors() <= before


@pytest.mark.row(30, "closed to an ordinary user: unreadable, what is below is left alone")
def test_a_closed_folder_is_unreadable_and_what_is_below_it_shadowed(root: bytes) -> None:
    build(root, Dir({b"closed": Dir({b"in": Dir({b"deep": Dir()})}), b"open": Dir()}))
    os.chmod(os.path.join(root, b"closed"), 0)

    def walk() -> None:
        before = open_descriptors()
        with Tree(root) as tree:
            with pytest.raises(Unreadable) as refused:
                tree.directory(b"closed")
            assert (refused.value.path, refused.value.operation) == (b"closed", "list")
            assert refused.value.error == "permission denied"
            for path in (b"closed/in", b"closed/in/deep"):
                with pytest.raises(Shadowed):
                    tree.directory(path)
            assert tree.directory(b"open") >= 0
        assert open_descriptors() <= before

    as_nobody(walk)


@pytest.mark.row(30, "may be listed but not entered: unreadable")
def test_a_folder_that_may_be_listed_but_not_entered_is_unreadable(root: bytes) -> None:
    build(root, Dir({b"closed": Dir({b"file": File(), b"in": Dir()})}))
    os.chmod(os.path.join(root, b"closed"), 0o444)

    def walk() -> None:
        with Tree(root) as tree:
            with pytest.raises(Unreadable, match="permission denied") as refused:
                tree.directory(b"closed")
            assert (refused.value.path, refused.value.operation) == (b"closed", "list")
            with pytest.raises(Shadowed):
                tree.directory(b"closed/in")

    as_nobody(walk)


@pytest.mark.row(18, "another file system inside: not entered")
@pytest.mark.needs("root", "mount")
def test_another_file_system_inside_is_not_entered(root: bytes) -> None:
    build(root, Dir({b"mounted": Dir({b"hidden": Dir()}), b"beside": Dir()}))

    def walk() -> None:
        before = open_descriptors()
        with Tree(root) as tree:
            with pytest.raises(OtherMount):
                tree.directory(b"mounted")
            with pytest.raises(Shadowed):
                tree.directory(b"mounted/inner")
            assert tree.directory(b"beside") >= 0
        assert open_descriptors() <= before

    with_tmpfs_on(os.path.join(root, b"mounted"), walk)


# ---- Swapped while walking


@pytest.fixture
def outside(place: bytes) -> bytes:
    """Where no walk may come; everything in it is named `secret`."""
    folder = os.path.join(place, b"outside")
    build(folder, Dir({b"secret": File(b"s"), b"in": Dir({b"secret": File(b"s"), b"in": Dir({b"secret": File()})})}))
    return folder


@pytest.mark.row(16, "swapped at each step: never walked through")
@pytest.mark.parametrize("swapped", [b"a", b"a/in", b"a/in/in"])
@pytest.mark.parametrize("entered", [b"", b"a", b"a/in"])
def test_a_folder_swapped_for_a_symlink_is_never_walked_through(
    root: bytes, outside: bytes, swapped: bytes, entered: bytes
) -> None:
    # given: a walk that has come to `entered`
    build(root, Dir({b"a": Dir({b"in": Dir({b"in": Dir({b"mine": File()})})})}))
    own = set(inodes(root).values())
    with Tree(root) as tree:
        tree.directory(entered)

        # when
        os.rename(os.path.join(root, swapped), os.path.join(root, b"aside"))
        os.symlink(outside, os.path.join(root, swapped))

        # then: it is missing, or what was entered before
        for path in (b"a", b"a/in", b"a/in/in"):
            try:
                fd = tree.directory(path)
            except Missing:
                continue
            assert os.fstat(fd).st_ino in own
            assert "secret" not in os.listdir(fd)


def test_a_symlink_where_a_folder_was_is_missing_for_one_who_comes_anew(root: bytes, outside: bytes) -> None:
    build(root, Dir({b"a": Symlink(outside)}))

    with Tree(root) as tree:
        for path in (b"a", b"a/in", b"a/in/in"):
            with pytest.raises(Missing):
                tree.directory(path)


@pytest.mark.row(16, "swapped all the time: never outside")
def test_a_thread_that_swaps_a_folder_for_a_symlink_all_the_time_never_leads_outside(
    root: bytes, outside: bytes
) -> None:
    # given
    build(root, Dir({b"a": Dir({b"in": Dir({b"in": Dir({b"mine": File()})})})}))
    path, aside = os.path.join(root, b"a"), os.path.join(root, b"aside")
    stop = threading.Event()
    swaps = 0

    def swap() -> None:
        nonlocal swaps
        while not stop.is_set():
            os.rename(path, aside)
            os.symlink(outside, path)
            os.unlink(path)
            os.rename(aside, path)
            swaps += 1

    swapper = threading.Thread(target=swap)
    swapper.start()
    seen: set[bytes] = set()
    walks = missing = 0

    # when: until both happened often, at most 50,000 walks
    try:
        while walks < 3000 or (walks < 50_000 and (not missing or b"mine" not in seen)):
            walks += 1
            with Tree(root) as tree:
                for folder in (b"a", b"a/in", b"a/in/in"):
                    try:
                        listing = list_directory(tree.directory(folder), folder, SEED)
                    except Missing:
                        missing += 1
                        continue
                    seen |= {entry.name for entry in listing.files} | {name for name, _ in listing.children}
    finally:
        stop.set()
        swapper.join()

    # then
    assert b"mine" in seen and missing and swaps
    assert seen == {b"in", b"mine"}


# ---- When the kernel refuses


def refusing(call: Callable[..., object], code: int, times: int = 1) -> Callable[..., object]:
    left = times

    def refuse(*args: object, **kwargs: object) -> object:
        nonlocal left
        if left:
            left -= 1
            raise OSError(code, os.strerror(code))
        return call(*args, **kwargs)

    return refuse


@pytest.mark.row(31, "a folder that cannot be opened: told with its path")
@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT])
def test_an_error_while_opening_is_told_with_its_path(root: bytes, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    build(root, Dir({b"a": Dir({b"b": Dir()})}))
    before = open_descriptors()

    with Tree(root) as tree:
        tree.directory(b"a")
        monkeypatch.setattr(filesystem.os, "open", refusing(os.open, code))
        with pytest.raises(Unreadable) as refused:
            tree.directory(b"a/b")
        assert (refused.value.path, refused.value.error) == (b"a/b", os.strerror(code).lower())
        assert tree.directory(b"a/b") >= 0

    assert open_descriptors() <= before


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE])
def test_a_directory_that_opens_but_cannot_be_told_of_is_unreadable(
    root: bytes, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(root, Dir({b"a": Dir({b"b": Dir()})}))
    before = open_descriptors()

    with Tree(root) as tree:
        monkeypatch.setattr(filesystem.os, "fstat", refusing(os.fstat, code))
        with pytest.raises(Unreadable) as refused:
            tree.directory(b"a")
        assert (refused.value.path, refused.value.error) == (b"a", os.strerror(code).lower())
        assert os.listdir(tree.directory(b"a/b")) == []

    assert open_descriptors() <= before


def test_a_root_that_opens_but_cannot_be_told_of_is_unreadable(root: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    build(root, Dir())
    before = open_descriptors()
    monkeypatch.setattr(filesystem.os, "fstat", refusing(os.fstat, errno.EIO))

    with pytest.raises(Unreadable, match="input/output error"):
        Tree(root)

    assert open_descriptors() <= before
