"""Huge directories: kept in ranges, and as exact as any other; here from 40 entries on."""

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from db.types import HASHES, name_hash, number_of
from tasks.huge import allowed, grouped, ranges_for
from tests.command import Command, each_change_once
from tests.trees import Dir, File, Symlink, apply_feed, build, listing

LIMIT = 40


@given(st.integers(0, 10**7), st.integers(1, 10_000))
def test_ranges_are_a_power_of_two_of_about_the_wanted_size(entries: int, wanted: int) -> None:
    count = ranges_for(entries, wanted)

    assert count & (count - 1) == 0 and count * wanted >= entries
    assert count == 2 or count * wanted < 2 * entries


@given(st.binary(min_size=1), st.integers(1, 12))
def test_a_name_is_in_the_range_that_its_hash_falls_into(name: bytes, power: int) -> None:
    ranges = 2**power
    number = number_of(name_hash(name), ranges)

    width = HASHES // ranges
    assert number * width <= name_hash(name) < (number + 1) * width
    assert number_of(name_hash(name), 2 * ranges) // 2 == number  # growing splits each in two


@given(st.lists(st.integers(0, 100)), st.integers(1, 150))
def test_groups_hold_all_ranges_in_order_and_no_more_entries_than_fit(entries: list[int], limit: int) -> None:
    groups = grouped(range(len(entries)), entries, limit)

    assert [number for group in groups for number in group] == list(range(len(entries)))
    assert all(len(group) == 1 or sum(entries[number] for number in group) <= limit for group in groups)


@given(st.lists(st.lists(st.integers(0, 9), min_size=1), min_size=1), st.integers(1, 60), st.just(60))
def test_where_memory_is_short_a_group_is_taken_in_parts(groups: list[list[int]], entries: int, most: int) -> None:
    first, *others = allowed(groups, entries, most)

    assert [number for group in (first, *others) for number in group] == [
        number for group in groups for number in group
    ]
    assert first and (len(first) == 1 or len(first) <= len(groups[0]) * entries / most)
    assert entries < most or first == groups[0]


@pytest.fixture(scope="module", params=["one shard", "many shards"])
def cli(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    shards = {"STRANDLINE_SHARD_ENTRIES": "30"} if request.param == "many shards" else {}
    command = Command(tmp_path_factory.mktemp("state"), {"STRANDLINE_HUGE_ENTRIES": str(LIMIT), **shards})
    with command.up():
        yield command


def content(count: int, salt: bytes = b"") -> Dir:
    """Files, symlinks and folders, the latter with a file each."""
    entries: dict[bytes, File | Symlink | Dir] = {}
    for number in range(count):
        kind = number % 10
        name = b"%04d" % number
        if kind == 3:
            entries[name] = Symlink(b"target %d" % number)
        elif kind == 7:
            entries[name] = Dir({b"in": File(b"in %d " % number + salt)})
        else:
            entries[name] = File(b"content %d " % number + salt)
    return Dir(entries)


def exact(cli: Command, name: str, root: bytes) -> None:
    """Index and feed are what is there."""
    assert cli.index(name) == listing(root)
    feed = cli.feed(name)
    assert apply_feed(feed) == listing(root) and each_change_once(feed)


def tenant(tmp_path: Path) -> str:
    return "t" + tmp_path.name.replace("_", "-")[-60:]


@pytest.mark.row(23, "in ranges of which a few are in memory at a time: exact through all that may happen to it")
def test_it_is_exact_when_it_appears_changes_and_is_removed(cli: Command, tmp_path: Path) -> None:
    root, name = os.fsencode(tmp_path / "root"), tenant(tmp_path)
    build(root, Dir({b"huge": content(300), b"beside": content(20)}))
    first = cli.scan(root, "--tenant", name)
    exact(cli, name, root)
    assert first["added"] == first["files"] == len(listing(root))

    rng = random.Random(1)
    for _ in range(3):
        change(root + b"/huge", rng)
        assert cli.scan(root)["state"] == "succeeded"
        exact(cli, name, root)
    assert cli.scan(root)["errors_total"] == 0
    shutil.rmtree(root + b"/huge")
    suspect = cli.scan(root, status=1)
    cli.json("confirm", suspect["scan"])
    exact(cli, name, root)


def change(folder: bytes, rng: random.Random) -> None:
    names = sorted(os.listdir(folder))
    for name in rng.sample(names, 20):
        path = folder + b"/" + name
        if os.path.islink(path):
            os.unlink(path)
            os.symlink(b"elsewhere", path)
        elif os.path.isdir(path):
            shutil.rmtree(path)
            (Path(os.fsdecode(path))).write_text("a file now")
        elif rng.random() < 0.5:
            os.unlink(path)
        else:
            os.rename(path, path + b"-renamed")
    build(folder + b"/new%d" % rng.randrange(10**6), content(5, b"new"))


def test_nothing_changed_writes_and_hashes_nothing(cli: Command, tmp_path: Path) -> None:
    root, name = os.fsencode(tmp_path / "root"), tenant(tmp_path)
    build(root, content(150))
    first = cli.scan(root, "--tenant", name)
    while first["hashed_files"]:
        first = cli.scan(root)

    again = cli.scan(root)

    assert (again["directories_unchanged"], again["hashed_files"]) == (again["directories"], 0)
    assert cli.feed(name, since=first["cursor"]) == []


def test_it_grows_over_the_threshold_grows_further_and_shrinks_again(cli: Command, tmp_path: Path) -> None:
    root, name = os.fsencode(tmp_path / "root"), tenant(tmp_path)
    build(root, content(30))
    cli.scan(root, "--tenant", name)
    for count in (LIMIT + 1, 100, 900):
        build_more(root, count)
        grown = cli.scan(root)
        assert grown["state"] == "succeeded" and grown["modified"] == 0
        exact(cli, name, root)
    for entry in sorted(os.listdir(root))[5:]:
        path = os.path.join(root, entry)
        shutil.rmtree(path) if os.path.isdir(path) and not os.path.islink(path) else os.unlink(path)
    suspect = cli.scan(root, status=1)
    cli.json("confirm", suspect["scan"])
    exact(cli, name, root)
    build_more(root, 20)
    assert cli.scan(root)["state"] == "succeeded"
    exact(cli, name, root)


def build_more(root: bytes, count: int) -> None:
    spec = content(count)
    build(root, Dir({name: one for name, one in spec.entries.items() if not os.path.lexists(root + b"/" + name)}))


def test_renamed_it_is_moved_without_hashing(cli: Command, tmp_path: Path) -> None:
    root, name = os.fsencode(tmp_path / "root"), tenant(tmp_path)
    build(root, Dir({b"huge": content(300), b"beside": content(20)}))
    first = cli.scan(root, "--tenant", name)
    while first["hashed_files"]:
        first = cli.scan(root)
    os.rename(root + b"/huge", root + b"/renamed")

    second = cli.scan(root)

    assert (second["state"], second["hashed_files"]) == ("succeeded", 0)
    assert (second["moved"], second["added"], second["deleted"]) == (300, 0, 0)
    exact(cli, name, root)
