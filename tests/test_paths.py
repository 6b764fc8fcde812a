"""Scans of named paths: only these are looked at, what is found is right, and nothing is concluded for the rest."""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine

from db import named, scans, tenants
from db.engine import reading, writing
from db.tables import scans as scans_table
from db.tables import shards as shards_table
from db.tree import ORDER_KEY_BYTES
from db.types import KnownDirectory, Trigger, UsageError
from orchestrator.roots import named_paths
from tasks import settings as all_settings
from tasks.app import make_app
from tasks.frontier import Frontier
from tasks.named import below
from tests.command import Command
from tests.in_process import InProcess, database
from tests.storage import add_tenant, rows
from tests.test_interleavings import Make, World
from tests.test_interleavings import world as world  # the fixture
from tests.trees import Dir, File, apply_feed, build, listing, remove, write

FOLDER = Dir({b"%d" % n: File(b"%d" % n) for n in range(10)})
TREE = Dir({name: Dir({b"1": FOLDER, b"2": FOLDER}) for name in (b"a", b"b", b"c")})

# What is asked for

PATHS = st.lists(st.lists(st.sampled_from([b"a", b"b", b"a\xff", b"-"]), max_size=3).map(b"/".join))


@given(PATHS, PATHS)
def test_what_is_stored_covers_each_path_once_and_nothing_else(some: list[bytes], more: list[bytes]) -> None:
    stored = named.widened(named.dump(some), named.dump(more))

    if b"" in some + more:
        assert stored is None, "the root is the whole tree"
        return
    kept = named.load(stored)
    assert set(kept) <= set(some + more)
    for path in some + more:
        assert len([one for one in kept if path == one or path.startswith(one + b"/")]) == 1


def test_more_paths_than_are_worth_it_are_the_whole_tree() -> None:
    many = [b"%d" % number for number in range(named.MOST + 1)]

    assert named.dump(many) is None
    assert named.load(named.dump(many[1:])) == sorted(many[1:])


@pytest.mark.parametrize("path", [b"../b", b"/elsewhere", b"a/../../b", b"a\0b"])
def test_a_path_that_is_not_below_the_root_is_refused_by_name(path: bytes) -> None:
    with pytest.raises(UsageError, match=r"is not below the tenant's root '/srv/a'"):
        named_paths(b"/srv/a", [b"fine", path])


def test_paths_are_taken_absolute_or_relative() -> None:
    assert named_paths(b"/srv/a", [b"x/y/", b"./x//y", b"/srv/a/z", b"/srv/a"]) == [b"x/y", b"x/y", b"z", b""]


def request(engine: Engine, tenant_id: int, **asked: object) -> scans.Scan:
    with writing(engine) as connection:
        return scans.request(connection, tenant_id, trigger=Trigger.REQUEST, **asked)[0]


def test_many_hints_are_one_queued_scan_and_whoever_wants_the_whole_gets_it(engine: Engine) -> None:
    tenant = add_tenant(engine, "t")
    first = request(engine, tenant.id, paths=[b"b", b"a/x"])
    second = request(engine, tenant.id, paths=[b"a", b"b/y"])
    assert (first.id, named.load(second.paths)) == (second.id, [b"a", b"b"])

    with writing(engine) as connection:
        scans.request_scheduled(connection, [tenant.id])
    [row] = rows(engine, scans_table)
    assert (row["id"], row["paths"]) == (first.id, None), "the schedule's scan is of all"
    assert request(engine, tenant.id, paths=[b"c"]).paths is None


@pytest.mark.parametrize("other", [{}, {"full": True}, {"verify": True}, {"confirms": 3}])
def test_who_asks_for_more_widens_it_to_the_whole(engine: Engine, other: dict) -> None:
    tenant = add_tenant(engine, "t")
    request(engine, tenant.id, paths=[b"a"])

    assert request(engine, tenant.id, **other).paths is None


# The frontier


def test_the_release_before_takes_named_paths_for_everything() -> None:
    stored = json.loads(Frontier(paths=[b"a\xff"]).dump())

    assert (stored["after"], stored["to"]) == (None, None)
    assert Frontier.load(json.dumps(stored)) == Frontier(paths=[b"a\xff"])


@pytest.mark.parametrize("length", [1, ORDER_KEY_BYTES - 1, ORDER_KEY_BYTES, ORDER_KEY_BYTES + 1])
def test_a_directory_with_all_below_it_is_one_range(length: int) -> None:
    path = b"d" * length
    known = KnownDirectory(7, path, path[:ORDER_KEY_BYTES], None, 1, None, 1)
    range_ = below(known)

    def holds(other: bytes, number: int) -> bool:
        key = other.replace(b"/", b"\0")[:ORDER_KEY_BYTES]
        return (range_.after.key, range_.after.id) < (key, number) <= (range_.to.key, range_.to.id)

    assert holds(path, 7) and holds(path + b"/x", 3) and holds(path + b"/x/\xff", 10**12)
    if length < ORDER_KEY_BYTES:
        assert not holds(path + b"\1", 8) and not holds(path + b"-", 8) and not holds(b"c", 8)


# Scans


def is_right(it: World) -> bool:
    return it.index == listing(it.root)


def directories_listed(it: World, scan: scans.Scan) -> int:
    return sum(row["directories"] for row in rows(it.engine, shards_table, scan_id=scan.id))


@pytest.fixture
def it(world: Make) -> Iterator[World]:
    made = world(TREE)
    made.scan()
    yield made


def test_only_what_is_named_is_looked_at(it: World) -> None:
    build(it.root + b"/a/1/new", File(b"new"))
    build(it.root + b"/b/1/unseen", File(b"unseen"))

    scan = it.scan(paths=[b"a/1/new"])

    assert (scan.strategy, scan.state, scan.added) == ("paths", "succeeded", 1)
    assert directories_listed(it, scan) == 1
    assert not is_right(it)
    assert it.scan().added == 1
    it.exact()


def test_below_a_named_directory_all_is_looked_at(it: World) -> None:
    write(it.root + b"/a/2/3", b"other")
    remove(it.root + b"/a/1/4")
    build(it.root + b"/a/deep", Dir({b"er": Dir({b"x": File(b"x")})}))

    scan = it.scan(paths=[b"a"])

    assert (scan.added, scan.modified, scan.deleted) == (1, 1, 1)
    assert directories_listed(it, scan) == 1 + 3 + 2, "the root, what was known, what is new"
    it.exact()


def test_what_is_new_is_found_from_the_nearest_known_folder_on(it: World) -> None:
    build(it.root + b"/c/1/not", Dir({b"known": Dir({b"yet": Dir({b"\xff\n": File(b"x")})}), b"y": File(b"y")}))

    scan = it.scan(paths=[b"c/1/not/known/yet/\xff\n"])

    assert scan.added == 2
    it.exact()


def test_a_named_folder_that_is_gone_goes_with_all_in_it(it: World) -> None:
    remove(it.root + b"/b/2")

    scan = it.scan(paths=[b"b/2"])

    assert (scan.state, scan.deleted) == ("succeeded", 10)
    it.exact()


def test_what_is_gone_is_held_against_the_whole_of_the_tenant(world: Make) -> None:
    it = world(Dir({b"%d" % d: Dir({b"%d" % n: File(b"%d %d" % (d, n)) for n in range(60)}) for d in range(4)}))
    it.scan()
    remove(it.root + b"/1")
    assert it.scan(paths=[b"1"]).state == "succeeded", "a quarter of the files, and all of what was named"
    it.exact()

    remove(it.root + b"/2")
    doubted = it.scan(paths=[b"2"])

    assert (doubted.state, doubted.deleted) == ("suspect", 0)
    assert it.scan(confirms=doubted.fence).deleted == 60
    it.exact()


def test_a_folder_that_cannot_be_seen_is_not_gone(it: World) -> None:
    os.rename(it.root, it.root + b".away")
    os.mkdir(it.root)

    assert it.scan(paths=[b"a"]).state in ("suspect", "failed")

    os.rmdir(it.root)
    os.rename(it.root + b".away", it.root)
    it.scan()
    it.exact()


def test_the_watermark_and_the_turn_of_verification_stay_where_they_are(it: World) -> None:
    with reading(it.engine) as connection:
        before = tenants.by_id(connection, it.tenant_id)
    write(it.root + b"/a/1/1", b"new")

    scan = it.scan(paths=[b"a/1"])

    with reading(it.engine) as connection:
        after = tenants.by_id(connection, it.tenant_id)
    assert after.watermark_fence == before.watermark_fence < scan.fence == after.fence
    assert (after.verify_at, after.verify_place) == (before.verify_at, before.verify_place)
    assert it.scan().strategy == "incremental"


def test_where_no_scan_was_ever_complete_all_is_scanned(world: Make) -> None:
    it = world(TREE)

    assert it.scan(paths=[b"a"]).strategy == "full_initial"
    it.exact()


def test_full_compares_the_rows_of_what_is_named(it: World) -> None:
    scan = it.scan(paths=[b"a"], full=True)

    assert scan.strategy == "paths"
    assert (scan.directories_unchanged, scan.hashed_files, scan.unchanged) == (0, 0, 60)


@pytest.mark.parametrize("entries", [1, 15])
def test_what_is_left_when_the_budget_is_spent_is_handed_on(world: Make, entries: int) -> None:
    it = world(TREE, shard_entries=entries)
    it.scan()
    for name in (b"a", b"b"):
        for folder in (b"1", b"2"):
            build(it.root + b"/%s/%s/new" % (name, folder), File(name + folder))
    build(it.root + b"/c/new", File(b"c"))

    scan = it.scan(paths=[b"a", b"b", b"c/new"])

    assert (scan.state, scan.added) == ("succeeded", 5)
    assert scan.shards > 3
    it.exact()


def test_a_path_whose_key_is_cut_off_is_found(world: Make) -> None:
    deep = Dir({b"f": File(b"deep")})
    for _ in range(6):
        deep = Dir({b"d" * 250: deep, b"e": Dir({b"x": File(b"x")})})
    it = world(deep)
    it.scan()
    path = b"/".join([b"d" * 250] * 6)
    write(it.root + b"/" + path + b"/f", b"changed")
    build(it.root + b"/" + path[: 251 * 5] + b"e/y", File(b"y"))

    scan = it.scan(paths=[path[: 251 * 5 - 1]])

    assert (scan.modified, scan.added) == (1, 1)
    it.exact()


SMALL = Dir({name: Dir({b"1": Dir({b"x": File(name)}), b"f": File(b"f" + name)}) for name in (b"a", b"b")})
EDITS = st.lists(
    st.tuples(
        st.sampled_from([b"a", b"b", b"a/1", b"b/f", b"new", b"new/er", b"b/1/x", b"a/1/x/y", b"a/f"]),
        st.sampled_from([File(b"1"), File(b"2"), Dir({}), Dir({b"1": Dir({b"z": File(b"z")})}), None]),
    ),
    max_size=6,
)


@settings(max_examples=int(os.environ.get("PATHS_EXAMPLES", "12")), deadline=None)
@given(edits=EDITS)
def test_who_names_what_was_touched_has_the_whole_index_right(property_engine: Engine, edits: list) -> None:
    with tempfile.TemporaryDirectory(prefix="strandline-paths-") as folder:
        os.chmod(folder, 0o755)
        root = os.fsencode(folder) + b"/root"
        build(root, SMALL)
        app = make_app(all_settings.load({}, redis_url="redis://nowhere"))
        with contextlib.closing(InProcess(app, property_engine, root, policy={})) as it:
            it.request()
            assert it.carry_on()
            touched = set(edit(root, edits))

            it.request(paths=[*touched] or [b"a"])
            assert it.carry_on()

            assert it.scan().state == "succeeded" and it.scan().strategy == "paths"
            assert it.index() == listing(root) == apply_feed(it.feed())


@pytest.fixture(scope="module")
def property_engine() -> Iterator[Engine]:
    with database() as engine:
        yield engine


def edit(root: bytes, edits: list) -> Iterator[bytes]:
    """Put other things there, or nothing; what was touched."""
    for path, spec in edits:
        above = path.rpartition(b"/")[0]
        if above and not os.path.isdir(root + b"/" + above):
            continue
        remove(root + b"/" + path)
        if spec is not None:
            build(root + b"/" + path, spec)
        yield path


def test_the_command_asks_for_paths(cli: Command, tmp_path) -> None:
    root = os.fsencode(tmp_path / "named")
    build(root, TREE)
    assert cli.run("scan", os.fsdecode(root)).returncode == 0
    for name in (b"a", b"b"):
        build(root + b"/" + name + b"/new", File(name))

    [scan] = cli.json("enqueue", "named", "--path", "a/new", "--path", os.fsdecode(root + b"/c"), "--wait")

    assert (scan["strategy"], scan["added"], scan["paths_total"]) == ("paths", 1, 2)
    assert scan["paths"] == [{"path": "a/new"}, {"path": "c"}]
    refused = cli.run("enqueue", "named", "--path", "../x")
    assert refused.returncode == 2 and "'../x' is not below the tenant's root" in refused.stderr
