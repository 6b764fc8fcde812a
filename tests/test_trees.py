"""The test support is tested first: an oracle that is wrong would make every other test agree with it."""

import base64
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import scenarios, trees
from tests.processes import open_descriptors
from tests.scenarios import SCENARIOS
from tests.trees import Dir, File, State, Symlink, apply_feed, build, listing

SHARED_MEMORY = Path("/dev/shm")

# Who compares size and mtime alone sees nothing of these.
BLIND_TO_SIZE_AND_MTIME = {
    "swap-two-of-equal-size-and-mtime",
    "rewrite-same-size-utime-back",
    "cp-p-over-same-size-and-mtime",
    "rename-over-by-old-file-of-same-size",
}

# These bring in or put back an old mtime, so that nothing under the changed names is newer than the set-up.
KEEPS_OLD_MTIME = BLIND_TO_SIZE_AND_MTIME | {
    "delete-2-add-2-old",
    "rename-file",
    "rename-directory",
    "exchange-two-files",
    "swap-by-three-renames",
    "exchange-two-directories",
    "rsync-a-new-old-file",
    "tar-x-old-tree",
    "mv-old-file-in",
    "mv-old-tree-in",
    "add-hard-link",
    "case-rename",
    "same-size-other-old-mtime",
}


@pytest.fixture(params=["tmp_path", "tmpfs"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[bytes]:
    """An empty folder, on the file system of the temporary folder and in memory."""
    if request.param == "tmpfs" and not os.access(SHARED_MEMORY, os.W_OK):
        pytest.skip("needs a writable tmpfs")
    parent = tmp_path if request.param == "tmp_path" else SHARED_MEMORY
    folder = tempfile.mkdtemp(dir=os.fsencode(parent))
    yield folder
    trees.remove(folder)


@pytest.fixture
def root(place: bytes) -> bytes:
    return os.path.join(place, b"root")


@pytest.fixture
def outside(place: bytes) -> bytes:
    return os.path.join(place, b"outside")


def stats(root: bytes) -> dict[bytes, os.stat_result]:
    """Every entry's stat but those of folders, whose content no digest covers."""
    return {path: os.lstat(os.path.join(root, path)) for path in listing(root)}


# ---- The scenarios


def test_the_catalogue_has_29_scenarios() -> None:
    assert len(SCENARIOS) == 29


def test_the_setup_is_that_of_the_catalogue(root: bytes) -> None:
    scenarios.setup(root)
    found, stat = listing(root), stats(root)
    assert len(found) == 27
    assert sum(path.startswith(b"c/") for path in found) == 20
    assert found[b"a/f1"][2] != found[b"b/f2"][2]
    assert found[b"equal1"][1] == found[b"equal2"][1]
    assert found[b"equal1"][2] != found[b"equal2"][2]
    assert stat[b"equal1"].st_mtime_ns == stat[b"equal2"].st_mtime_ns == 10**18
    assert found[b"link"] == ("symlink", 4, None, b"a/f1")
    assert "café.txt".encode() in found
    assert stat[b"future"].st_mtime > 3_900_000_000
    aged = {path: s for path, s in stat.items() if path not in (b"equal1", b"equal2", b"future")}
    now = trees.fs_now_ns(root)
    for age_s in ((now - s.st_mtime_ns) / trees.SECOND_NS for s in aged.values()):
        assert 3590 < age_s < 3700
    assert now - os.lstat(root).st_mtime_ns > 3590 * trees.SECOND_NS


@pytest.mark.parametrize("name", SCENARIOS)
def test_each_scenario_changes_what_it_says(name: str, root: bytes, outside: bytes) -> None:
    scenario = SCENARIOS[name]
    scenarios.setup(root)
    scenario.prepare(outside)
    before, stat_before = listing(root), stats(root)
    made = trees.next_tick(os.path.dirname(root))
    scenario.do(root, outside)
    after, stat_after = listing(root), stats(root)

    assert scenarios.plain(before, after) == scenario.plain != set()
    assert scenario.plain <= scenario.expect(before, after)
    assert shows(stat_before, stat_after, "st_size", "st_mtime_ns") == (name not in BLIND_TO_SIZE_AND_MTIME)
    assert shows(stat_before, stat_after, "st_size", "st_mtime_ns", "st_ctime_ns")
    arrived = [stat_after[path] for kind, path in scenario.plain if kind != "deleted"]
    if arrived:
        assert all(s.st_mtime_ns < made for s in arrived) == (name in KEEPS_OLD_MTIME)


def shows(before: dict[bytes, os.stat_result], after: dict[bytes, os.stat_result], *fields: str) -> bool:
    """Whether a comparison of the paths and of these fields notices anything."""

    def seen(stat: dict[bytes, os.stat_result]) -> dict[bytes, list[int]]:
        return {path: [getattr(s, name) for name in fields] for path, s in stat.items()}

    return seen(before) != seen(after)


@pytest.mark.parametrize(
    ("name", "path", "same_inode"),
    [
        ("rewrite-same-size-utime-back", b"a/f1", True),
        ("cp-p-over-same-size-and-mtime", b"equal1", True),
        ("rename-over-by-old-file-of-same-size", b"equal1", False),
        ("swap-two-of-equal-size-and-mtime", b"equal1", False),
        ("swap-two-of-equal-size-and-mtime", b"equal2", False),
    ],
)
def test_the_quiet_scenarios_move_only_ctime_and_sometimes_the_inode(
    name: str, path: bytes, same_inode: bool, root: bytes, outside: bytes
) -> None:
    scenarios.setup(root)
    SCENARIOS[name].prepare(outside)
    before = os.lstat(os.path.join(root, path))
    trees.next_tick(root)
    SCENARIOS[name].do(root, outside)
    after = os.lstat(os.path.join(root, path))
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert after.st_ctime_ns > before.st_ctime_ns
    assert (after.st_ino == before.st_ino) == same_inode


def test_an_old_tree_moved_in_shows_in_its_parent_only(root: bytes, outside: bytes) -> None:
    scenarios.setup(root)
    SCENARIOS["mv-old-tree-in"].prepare(outside)
    moved = trees.next_tick(root)
    SCENARIOS["mv-old-tree-in"].do(root, outside)
    below = os.lstat(os.path.join(root, b"b/tree/sub"))
    assert max(below.st_mtime_ns, below.st_ctime_ns) < moved
    assert os.lstat(os.path.join(root, b"b")).st_mtime_ns >= moved
    assert os.lstat(os.path.join(root, b"b/tree")).st_mtime_ns < moved


def test_an_extracted_tree_keeps_old_times_on_its_folders_too(root: bytes, outside: bytes) -> None:
    scenarios.setup(root)
    SCENARIOS["tar-x-old-tree"].prepare(outside)
    made = trees.fs_now_ns(root)
    SCENARIOS["tar-x-old-tree"].do(root, outside)
    for folder in (b"tree", b"tree/sub"):
        assert os.lstat(os.path.join(root, folder)).st_mtime_ns < made - 3590 * trees.SECOND_NS


def test_a_hard_link_is_one_inode_and_never_a_move(root: bytes, outside: bytes) -> None:
    scenarios.setup(root)
    before = listing(root)
    SCENARIOS["add-hard-link"].do(root, outside)
    assert os.path.samefile(os.path.join(root, b"a/f1"), os.path.join(root, b"b/hard"))
    assert SCENARIOS["add-hard-link"].expect(before, listing(root)) == {("added", b"b/hard")}


def test_a_retargeted_symlink_is_modified_and_nothing_else(root: bytes, outside: bytes) -> None:
    scenarios.setup(root)
    before = listing(root)
    SCENARIOS["retarget-symlink"].do(root, outside)
    assert SCENARIOS["retarget-symlink"].expect(before, listing(root)) == {("modified", b"link")}


def test_a_rename_may_be_told_as_a_move_or_as_two_changes(root: bytes, outside: bytes) -> None:
    scenarios.setup(root)
    before = listing(root)
    SCENARIOS["rename-file"].do(root, outside)
    changes = {("moved", b"a/renamed"), ("added", b"a/renamed"), ("deleted", b"a/f1")}
    assert SCENARIOS["rename-file"].expect(before, listing(root)) == changes


def test_all_scenarios_run_together_on_one_tree(root: bytes, outside: bytes) -> None:
    scenarios.setup_all(root, outside)
    before = listing(root)
    assert len({digest for kind, _, digest, _ in before.values() if kind == "file"}) == 29 * 26
    scenarios.do_all(root, outside)
    after = listing(root)
    together = {(kind, name.encode() + b"/" + path) for name, one in SCENARIOS.items() for kind, path in one.plain}
    assert scenarios.plain(before, after) == together
    assert together <= scenarios.allowed(before, after)


# ---- The oracle


def test_a_literal_is_built_with_its_times_to_the_nanosecond(root: bytes) -> None:
    build(
        root,
        Dir(
            {
                b"a": File(b"content", mtime_ns=123_456_789_012_345_678),
                b"sub": Dir({b"l": Symlink(b"../a", mtime_ns=5), b"f": File()}, mtime_ns=7),
            },
            mtime_ns=9,
        ),
    )
    times = {path: os.lstat(os.path.join(root, path)).st_mtime_ns for path in (b"", b"a", b"sub", b"sub/l")}
    assert times == {b"": 9, b"a": 123_456_789_012_345_678, b"sub": 7, b"sub/l": 5}
    assert listing(root).keys() == {b"a", b"sub/l", b"sub/f"}


def test_the_listing_knows_content_size_and_target_and_follows_nothing(root: bytes, outside: bytes) -> None:
    build(outside, Dir({b"secret": File(b"secret")}))
    build(
        root,
        Dir({b"empty": File(), b"abc": File(b"abc"), b"out": Symlink(outside), b"gone": Symlink(b"gone"), b"d": Dir()}),
    )
    os.mkfifo(os.path.join(root, b"fifo"))
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert listing(root) == {
        b"empty": ("file", 0, empty, None),
        b"abc": ("file", 3, abc, None),
        b"out": ("symlink", len(outside), None, outside),
        b"gone": ("symlink", 4, None, b"gone"),
    }


@pytest.mark.parametrize(
    "name",
    [b"\n", b"a\nb\r\t", b"\xff\xfe", b"\xed\xa0\x80", b"x" * 255, b"-rf", b"$(x) `x`", b"%s\x1b[31m", b"'\"\\"],
)
def test_any_name_is_listed_as_its_exact_bytes(name: bytes, root: bytes) -> None:
    build(root, Dir({name: File(b"1"), b"d": Dir({name: Dir({name: Symlink(name)})})}))
    assert listing(root).keys() == {name, b"d/" + name + b"/" + name}
    assert listing(root)[b"d/" + name + b"/" + name] == ("symlink", len(name), None, name)


def test_a_chain_of_3000_folders_is_listed_to_the_bottom(root: bytes) -> None:
    path = trees.make_chain(root, 3000)
    assert path.count(b"/") == 3000
    assert len(path) > os.pathconf(os.path.dirname(root), "PC_PATH_MAX")
    assert listing(root).keys() == {path}


def test_the_listing_leaves_no_descriptor_open(root: bytes) -> None:
    scenarios.setup(root)
    before = open_descriptors()
    listing(root)
    assert open_descriptors() <= before


def test_many_files_are_distinct_old_and_two_levels_deep(root: bytes) -> None:
    trees.make_many(root, 150, 3, size=10)
    found = listing(root)
    assert list(found) != [] and set(found) == set(trees.many_paths(150, 3))
    assert {path.count(b"/") for path in found} == {2}
    assert len(os.listdir(root)) == 2
    assert len({digest for _, _, digest, _ in found.values()}) == 450
    assert {size for _, size, _, _ in found.values()} == {10}
    oldest_allowed = trees.fs_now_ns(root) - 3590 * trees.SECOND_NS
    assert all(s.st_mtime_ns < oldest_allowed for s in stats(root).values())
    with pytest.raises(ValueError, match="do not fit"):
        trees.make_many(root, 100, 100, size=2)


def test_asking_the_file_system_for_its_time_moves_no_time_of_the_folder(root: bytes) -> None:
    build(root, Dir(mtime_ns=1))
    first = trees.fs_now_ns(root)
    assert trees.next_tick(root) > first
    assert os.lstat(root).st_mtime_ns == 1
    assert os.listdir(root) == []


# ---- The feed

NAMED = [b"a", b"b", b"a/b", b"two\nlines", b"\xff", "café".encode()]
NAMES = st.sampled_from(NAMED) | st.binary(min_size=1, max_size=4)
ENTRIES = st.one_of(
    st.builds(lambda size, digest: ("file", size, digest, None), st.integers(0, 3), st.sampled_from(["00", "ff"])),
    st.builds(lambda target: ("symlink", len(target), None, target), NAMES),
)
STATES = st.dictionaries(NAMES, ENTRIES, max_size=8)


@given(STATES, STATES)
def test_a_feed_made_from_a_difference_leads_from_one_state_to_the_other(before: State, after: State) -> None:
    feed = json.loads(json.dumps(difference(before, after)))
    assert apply_feed(feed, before) == after
    assert apply_feed([change for change in feed for _ in range(2)], before) == after


@given(STATES)
def test_a_feed_from_nothing_and_the_file_documents_give_the_same_index(state: State) -> None:
    assert apply_feed(difference({}, state)) == state
    assert trees.index(document(path, entry) for path, entry in state.items()) == state


@given(STATES, STATES)
def test_each_change_of_a_difference_is_one_of_the_allowed(before: State, after: State) -> None:
    carried = {(change["kind"], trees.exact(change, "path")) for change in difference(before, after)}
    assert carried <= scenarios.allowed(before, after)


def test_the_start_is_left_as_it_was_and_unknown_kinds_are_refused() -> None:
    start: State = {b"a": ("file", 1, "00", None)}
    assert apply_feed([{"kind": "deleted", "path": "a"}], start) == {}
    assert start == {b"a": ("file", 1, "00", None)}
    with pytest.raises(ValueError, match="renamed"):
        apply_feed([{"kind": "renamed", "path": "a"}])


def test_a_path_listed_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        trees.index([document(b"a", ("file", 1, "00", None))] * 2)


def difference(before: State, after: State) -> list[dict]:
    """A feed from one state to the other; what vanished and came up elsewhere unchanged is told as moved."""
    gone = {path: entry for path, entry in before.items() if path not in after}
    feed = []
    for path, entry in after.items():
        if before.get(path) == entry:
            continue
        old = next((old for old, was in gone.items() if was == entry), None) if path not in before else None
        if old is None:
            feed.append({"kind": "modified" if path in before else "added"} | document(path, entry))
        else:
            del gone[old]
            feed.append({"kind": "moved"} | document(path, entry) | name_of("old_path", old))
    return feed + [{"kind": "deleted"} | name_of("path", path) for path in gone]


def document(path: bytes, entry: trees.Entry) -> dict:
    kind, size, digest, target = entry
    state = {"type": kind, "size": size}
    return name_of("path", path) | state | ({"digest": digest} if target is None else name_of("target", target))


def name_of(field: str, value: bytes) -> dict:
    try:
        return {field: value.decode()}
    except UnicodeDecodeError:
        return {field: value.decode(errors="replace"), f"{field}_b64": base64.b64encode(value).decode()}
