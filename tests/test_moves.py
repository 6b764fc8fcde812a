"""Moves: the pure pairing, and what the feed says of renames through real scans."""

import os
import subprocess
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.core import moves
from tasks.core.moves import Candidate, pair
from tests import scenarios
from tests.command import Command, each_change_once
from tests.trees import Dir, File, State, Symlink, apply_feed, build, listing, make_many, remove

# The pure pairing

CANDIDATES = st.lists(
    st.builds(
        Candidate,
        key=st.sampled_from([b"fa", b"fb", b"s1"]),
        inode=st.integers(1, 4),
        gone=st.booleans(),
        directory_id=st.integers(1, 3),
        name=st.sampled_from([b"x", b"y", b"z"]),
        n=st.just(1),
    ),
    unique=True,
    max_size=40,
).map(sorted)


@given(CANDIDATES)
def test_a_pair_is_one_gone_and_one_added_of_equal_content_and_nothing_is_in_two(found: list[Candidate]) -> None:
    pairs = list(pair(found))

    for gone, added in pairs:
        assert gone.gone and not added.gone and gone.key == added.key
        assert gone.inode == added.inode or not gone.key.startswith(moves.STAT_KEY)
    used = Counter(one for both in pairs for one in both)
    assert not used or max(used.values()) == 1
    assert set(used) <= set(found)


@given(CANDIDATES)
def test_of_equal_content_as_many_are_paired_as_can_be(found: list[Candidate]) -> None:
    pairs = list(pair(found))

    for key in (b"fa", b"fb"):
        sides = Counter(one.gone for one in found if one.key == key)
        assert sum(gone.key == key for gone, _ in pairs) == min(sides[True], sides[False])


@given(CANDIDATES)
def test_what_agrees_in_inode_too_and_is_alone_in_that_is_paired_first(found: list[Candidate]) -> None:
    pairs = set(pair(found))

    alike = Counter((one.key, one.inode, one.gone) for one in found)
    for gone in found:
        for added in found:
            same = (gone.key, gone.inode) == (added.key, added.inode) and gone.gone and not added.gone
            if same and alike[gone[:3]] == alike[added[:3]] == 1:
                assert (gone, added) in pairs


def test_more_equal_files_than_are_kept_waiting_are_paired_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moves, "WAITING", 10)
    found = sorted(
        Candidate(b"f", inode, bool(inode % 2), 1, b"%d" % inode, inode) for inode in range(100)
    )  # no inode on both sides

    assert len(list(pair(found))) == 50


def test_of_a_file_with_very_many_names_only_some_are_in_memory() -> None:
    links = (Candidate(b"f", 1, gone, 1, b"%08d" % name, name) for gone in (False, True) for name in range(60_000))
    tracemalloc.start()
    try:
        pairs = sum(1 for _ in pair(links))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert pairs == moves.WAITING
    assert peak < 1_000 * moves.WAITING


# Through real scans


def numbered(count: int, salt: bytes = b"") -> Dir:
    return Dir({b"%03d" % number: File(salt + b" %d" % number) for number in range(count)})


TREE = Dir(
    {
        b"a": Dir({b"one": File(b"one"), b"deep": Dir({b"two": File(b"two"), b"link": Symlink(b"../one")})}),
        b"b": Dir({b"one": File(b"another one"), b"three": File(b"three")}),
        b"c": Dir({b"x": File(b"c")}),
        b"empty1": File(b""),
        b"empty2": File(b""),
        b"many": numbered(40, b"many"),
        **{b"equal%d" % number: File(b"equal") for number in range(6)},
        b"file": File(b"file"),
    }
)


def rename(root: bytes, *pairs: tuple[bytes, bytes]) -> None:
    for old, new in pairs:
        os.rename(root + b"/" + old, root + b"/" + new)


Change = Callable[[bytes], None]
# What is done, and which paths must be reported as moved, from where.
MOVES: dict[str, tuple[Change, dict[bytes, bytes] | None]] = {
    "a file in its folder": (lambda root: rename(root, (b"file", b"elif")), {b"elif": b"file"}),
    "a file to another folder": (lambda root: rename(root, (b"file", b"b/file")), {b"b/file": b"file"}),
    "a folder with all below it": (
        lambda root: rename(root, (b"a", b"z")),
        {b"z/one": b"a/one", b"z/deep/two": b"a/deep/two", b"z/deep/link": b"a/deep/link"},
    ),
    "a folder into another": (
        lambda root: rename(root, (b"a/deep", b"c/deep")),
        {b"c/deep/two": b"a/deep/two", b"c/deep/link": b"a/deep/link"},
    ),
    "two folders exchanged": (
        lambda root: scenarios.exchange(root + b"/a/deep", root + b"/c"),
        {b"a/deep/x": b"c/x", b"c/two": b"a/deep/two", b"c/link": b"a/deep/link"},
    ),
    "a chain of three": (lambda root: rename(root, (b"b/three", b"tail"), (b"file", b"b/three")), None),
    "a cycle of three": (
        lambda root: rename(
            root, (b"file", b"t"), (b"a/one", b"file"), (b"b/three", b"a/one"), (b"t", b"b/three")
        ),
        {},
    ),
    "one of many equal ones": (lambda root: rename(root, (b"equal3", b"c/equal3")), {b"c/equal3": b"equal3"}),
    "a folder copied anew, the old one removed": (
        lambda root: (
            subprocess.run([b"cp", b"-a", root + b"/many", root + b"/copied"], check=True),
            remove(root + b"/many"),
        ),
        {b"copied/%03d" % number: b"many/%03d" % number for number in range(40)},
    ),
    "an empty file": (lambda root: rename(root, (b"empty1", b"c/empty")), {}),
    "a hard link in place of a file": (
        lambda root: (os.link(root + b"/file", root + b"/c/linked"), os.unlink(root + b"/file")),
        {b"c/linked": b"file"},
    ),
    "a file onto another": (lambda root: rename(root, (b"file", b"b/three")), {}),
    "a folder in place of a file": (
        lambda root: rename(root, (b"file", b"t"), (b"c", b"file"), (b"t", b"c")),
        {b"file/x": b"c/x", b"c": b"file"},
    ),
}  # fmt: skip


@pytest.mark.row(4, "in a folder, between folders, a folder with all below it: `moved` for each")
@pytest.mark.row(5, "exchanged files and folders, cycles: applied in order the feed gives the index")
@pytest.mark.parametrize("what", MOVES)
def test_moved(cli: Command, tmp_path: Path, what: str) -> None:
    root, name = os.fsencode(tmp_path / "root"), "moves-" + what.replace(" ", "-").replace(",", "")
    build(root, TREE)
    first = cli.scan(root, "--tenant", name)
    before = listing(root)
    change, expected = MOVES[what]

    change(root)
    second = cli.scan(root)

    news = cli.feed(name, since=first["cursor"])
    check(news, before, listing(root))
    moved = {change["path"].encode(): change["old_path"].encode() for change in news if change["kind"] == "moved"}
    assert expected is None or moved == expected
    assert second["moved"] == len(moved) and second["state"] == "succeeded"
    assert cli.index(name) == listing(root) == apply_feed(cli.feed(name))


def check(news: list[dict], before: State, after: State) -> None:
    assert each_change_once(news)
    assert apply_feed(news, before) == after
    assert apply_feed([*news, *news], before) == after  # applying it twice does no harm
    order = {"deleted": 0, "moved": 1}
    places = [order.get(change["kind"], 2) for change in news]
    assert places == sorted(places), "deletions come first, then moves"


@pytest.mark.row(24, "as many empty files as one likes: no move")
def test_empty_files_are_never_paired(cli: Command, tmp_path: Path) -> None:
    root = os.fsencode(tmp_path / "root")
    build(root, Dir({b"in": Dir({b"%03d" % number: File(b"") for number in range(300)}), **numbered(1000).entries}))
    cli.scan(root, "--tenant", "empty")
    os.rename(root + b"/in", root + b"/out")

    second = cli.scan(root)

    assert (second["moved"], second["added"], second["deleted"]) == (0, 300, 300)
    assert cli.index("empty") == listing(root) == apply_feed(cli.feed("empty"))


@pytest.mark.row(4, "a folder of thousands: `moved` for each, nothing hashed")
def test_a_renamed_folder_of_many_is_moved_without_hashing(cli: Command, tmp_path: Path) -> None:
    root = os.fsencode(tmp_path / "root")
    make_many(root + b"/in", 30, 50)
    build(root + b"/beside", numbered(5))
    first = cli.scan(root, "--tenant", "many")
    while first["hashed_files"]:  # files this young are flushed first, so many a scan
        first = cli.scan(root)
    os.rename(root + b"/in", root + b"/out")

    second = cli.scan(root)

    assert (second["moved"], second["added"], second["deleted"], second["hashed_files"]) == (1_500, 0, 0, 0)
    assert cli.index("many") == listing(root) == apply_feed(cli.feed("many"))
