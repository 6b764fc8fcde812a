"""Entries that end whoever looks at them: found by naming, left alone, and tried again once somebody says so."""

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from db import quarantine, shards
from db.engine import reading, writing
from tasks import settings as all_settings
from tasks.app import Runtime, make_app
from tasks.careful import CAREFUL_FROM, CONVICTED_FROM, DEATHS_AT_MOST, when_stalled
from tasks.lease import Holder
from tests import in_process, trees
from tests.in_process import Died, InProcess
from tests.trees import Dir, File, apply_feed, build, listing

MANY = Dir({b"%d" % number: File(b"%d" % number) for number in range(20)})
TREE = Dir({b"a": Dir({b"bad": File(b"bad"), **MANY.entries}), b"b": Dir({b"c": MANY}), b"good": File(b"good")})
DEATHS = CAREFUL_FROM + CONVICTED_FROM


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with in_process.database() as engine:
        yield engine


@pytest.fixture
def place(engine: Engine) -> Iterator[InProcess]:
    """A tree that no scan has seen."""
    with tempfile.TemporaryDirectory(prefix="strandline-careful-") as folder:
        os.chmod(folder, 0o755)
        root = os.fsencode(Path(folder, "root"))
        build(root, TREE)
        made = InProcess(make_app(all_settings.load({}, redis_url="redis://nowhere")), engine, root, policy={})
        yield made
        made.close()


def deaths_of(place: InProcess, at_most: int = 50) -> int:
    """Carry the scan on until it has ended; how often it died on the way."""
    for deaths in range(at_most):
        if place.carry_on():
            return deaths
    raise AssertionError("it dies without end")


def quarantined(place: InProcess) -> list[bytes]:
    with reading(place.engine) as connection:
        return [one.path for one in quarantine.listed(connection, place.tenant.id)]


@pytest.mark.parametrize("path", [b"a/bad", b"b/c"], ids=["a file", "a folder"])
def test_an_entry_that_kills_is_left_alone_and_all_else_is_indexed(place: InProcess, path: bytes) -> None:
    inode = os.stat(place.root + b"/" + path).st_ino
    place.eyes.deadly = {inode}
    place.request()

    assert deaths_of(place) == DEATHS

    document = place.document()
    assert document["state"] == "partial" and quarantined(place) == [path]
    assert [(one["path"], "in quarantine" in one["reason"]) for one in document["skipped"]] == [(path.decode(), True)]
    expected = {name: entry for name, entry in listing(place.root).items() if not (name + b"/").startswith(path + b"/")}
    assert place.index() == expected == apply_feed(place.feed())


def test_it_is_not_touched_by_later_scans_until_it_is_released(place: InProcess) -> None:
    place.eyes.deadly = {os.stat(place.root + b"/a/bad").st_ino}
    place.request()
    deaths_of(place)
    place.request()
    assert deaths_of(place) == 0 and place.document()["state"] == "partial"
    place.eyes.deadly = set()
    place.request(full=True, verify=True)
    assert deaths_of(place) == 0 and b"a/bad" not in place.index()

    with writing(place.engine) as connection:
        assert quarantine.release(connection, place.tenant.id, b"a/bad") == 1

    place.request()
    assert deaths_of(place) == 0 and place.document()["state"] == "succeeded"
    assert place.index() == listing(place.root) == apply_feed(place.feed())


def test_a_file_that_was_indexed_before_it_killed_keeps_its_digest(place: InProcess) -> None:
    place.request()
    assert deaths_of(place) == 0
    before = place.index()
    trees.write(place.root + b"/a/bad", b"worse")
    place.eyes.deadly = {os.stat(place.root + b"/a/bad").st_ino}
    place.request()

    assert deaths_of(place) == DEATHS

    assert place.index() == before and place.document()["deleted"] == 0


def test_two_that_kill_are_both_found(place: InProcess) -> None:
    paths = [b"a/7", b"b/c/3"]
    place.eyes.deadly = {os.stat(place.root + b"/" + path).st_ino for path in paths}
    place.request()

    deaths_of(place)

    assert quarantined(place) == paths
    assert place.index().keys() == listing(place.root).keys() - set(paths)


def test_deaths_that_are_no_entry_s_fault_convict_none(place: InProcess) -> None:
    place.request()
    # It becomes careful, and then each attempt dies a little later: as on a machine that loses its power now and then.
    deaths = [place.carry_on((commits, True)) for commits in (2, 2, 8, 12, 16, 20, 24)]
    assert not any(deaths)
    deaths_of(place)

    assert quarantined(place) == []
    assert place.document()["state"] == "succeeded" and place.index() == listing(place.root)


def test_a_shard_that_dies_of_nothing_that_can_be_named_is_left_alone(
    place: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object, **__: object) -> None:
        raise Died

    place.request()
    with monkeypatch.context() as patch:
        patch.setattr("tasks.scan_shard.Tree", die)
        assert deaths_of(place) == DEATHS_AT_MOST

    document = place.document()
    assert document["state"] == "partial" and quarantined(place) == []
    assert place.index() == {} and document["deleted"] == 0
    place.request()
    assert deaths_of(place) == 0 and place.index() == listing(place.root)


def test_a_root_that_kills_fails_the_scan(place: InProcess) -> None:
    place.eyes.deadly = {os.stat(place.root).st_ino}
    place.request()

    assert deaths_of(place) == DEATHS

    document = place.document()
    assert document["state"] == "failed" and "the root" in document["error"] and quarantined(place) == []


def test_what_hung_is_tried_again_after_its_time(place: InProcess) -> None:
    with writing(place.engine) as connection:
        for path, seconds in ((b"a/1", None), (b"a/2", 3600.0), (b"a/3", -1.0)):
            quarantine.add(connection, place.tenant.id, path, "it hung", fence=1, for_s=seconds)
    place.request()
    assert deaths_of(place) == 0

    assert listing(place.root).keys() - place.index().keys() == {b"a/1", b"a/2"}


def test_below_a_folder_in_quarantine_nothing_is_touched(place: InProcess) -> None:
    place.request()
    deaths_of(place)
    before = place.index()
    with writing(place.engine) as connection:
        quarantine.add(connection, place.tenant.id, b"b", "it hung", fence=1, for_s=3600.0)
    trees.write(place.root + b"/b/c/1", b"changed")

    place.request(full=True)

    assert deaths_of(place) == 0 and place.index() == before
    document = place.document()
    assert document["state"] == "partial" and [one["path"] for one in document["skipped"]] == ["b"]


def test_who_hung_at_the_root_and_wakes_too_late_does_not_end_the_scan(
    place: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[int] = []
    monkeypatch.setattr("tasks.careful.os.kill", lambda _, number: ended.append(number))
    scan_id = place.request()
    runtime = Runtime(place.settings)
    runtime.__dict__.update(engine=place.engine, redis=place.redis)
    with writing(place.engine) as connection:
        lease = shards.claim(connection, scan_id, 1, 60.0)
    assert lease is not None
    holder = Holder(place.engine, lease, 60.0)
    holder.look_at(b"")
    in_process.expire_leases(place.engine)

    when_stalled(runtime, holder)()

    assert ended == [signal.SIGKILL] and place.scan().ending is None
    assert deaths_of(place) == 0 and place.document()["state"] == "succeeded"
