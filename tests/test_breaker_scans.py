"""The breaker in scans: what fails is tried again until it has failed too often, then left alone, then probed."""

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from tasks import settings as all_settings
from tasks.app import make_app
from tasks.core.breaker import State
from tasks.redis import breaker
from tests import in_process, trees
from tests.in_process import InProcess
from tests.trees import Dir, File, apply_feed, build, listing

HOUR_S = 3600.0
FAILURES = 3


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with in_process.database() as engine:
        yield engine


@pytest.fixture
def place(engine: Engine) -> Iterator[InProcess]:
    with tempfile.TemporaryDirectory(prefix="strandline-breaker-") as folder:
        os.chmod(folder, 0o755)
        root = os.fsencode(Path(folder, "root"))
        build(root, Dir({b"a": Dir({b"bad": File(b"bad"), b"good": File(b"good")}), b"b": File(b"b")}))
        made = InProcess(make_app(all_settings.load({}, redis_url="redis://nowhere")), engine, root, policy={})
        yield made
        made.close()


def scan(place: InProcess) -> dict:
    place.request()
    assert place.carry_on()
    return place.document()


def scans(place: InProcess, count: int) -> None:
    for _ in range(count):
        scan(place)


def entries(place: InProcess) -> dict[tuple[str, bytes], State]:
    found, now = breaker.read(place.redis, place._app.runtime.keys, place.tenant.id)
    return {(str(key.covers), key.path): entry.state(now + place.later_s) for key, entry in found.items()}


def inode(place: InProcess, path: bytes) -> int:
    return os.stat(place.root + b"/" + path).st_ino


def test_a_file_that_cannot_be_read_is_tried_left_alone_probed_and_well_again(place: InProcess) -> None:
    bad = inode(place, b"a/bad")
    place.eyes.files = {bad}
    for tried in range(1, FAILURES + 2):
        document = scan(place)
        assert place.eyes.reads[bad] == tried and document["errors"][0]["path"] == "a/bad"
        assert document["state"] == "partial" and document["skipped_total"] == 0
    assert entries(place) == {("file", b"a/bad"): State.OPEN}

    trees.write(place.root + b"/a/new", b"beside it")
    document = scan(place)  # left alone, and all else in its folder is looked at
    assert place.eyes.reads[bad] == FAILURES + 1 and document["state"] == "partial"
    [skipped] = document["skipped"]
    assert skipped["path"] == "a/bad" and skipped["reason"].startswith("breaker open until ")
    assert b"a/new" in place.index() and document["errors_total"] == 0

    place.later_s += HOUR_S + 60
    scans(place, 3)  # one probe, which fails and opens it again
    assert place.eyes.reads[bad] == FAILURES + 2
    assert entries(place) == {("file", b"a/bad"): State.OPEN}

    place.later_s += HOUR_S + 60
    place.eyes.files = set()
    assert scan(place)["state"] == "succeeded" and entries(place) == {}
    assert place.index() == listing(place.root) == apply_feed(place.feed())


def test_a_file_that_was_changed_since_is_tried_at_once(place: InProcess) -> None:
    bad = inode(place, b"a/bad")
    place.eyes.files = {bad}
    scans(place, FAILURES + 2)
    assert place.eyes.reads[bad] == FAILURES + 1

    os.utime(place.root + b"/a/bad", ns=(0, trees.SECOND_NS))

    scan(place)
    assert place.eyes.reads[bad] == FAILURES + 2
    scan(place)
    assert place.eyes.reads[bad] == FAILURES + 2, "it is as it was when it failed last"
    place.eyes.files = set()
    with open(place.root + b"/a/bad", "ab") as file:
        file.write(b" no more")
    assert scan(place)["state"] == "succeeded" and place.index() == listing(place.root)


def test_a_file_keeps_its_digest_while_it_is_left_alone(place: InProcess) -> None:
    scan(place)
    before = place.index()
    os.utime(place.root + b"/a/bad", ns=(0, trees.SECOND_NS))
    place.eyes.files = {inode(place, b"a/bad")}
    scans(place, FAILURES + 3)

    assert place.index() == before and [one["kind"] for one in place.feed()] == ["added"] * 3


def test_a_folder_that_cannot_be_listed_is_left_alone_and_tried_when_its_permission_is_given_back(
    place: InProcess,
) -> None:
    scan(place)
    before = place.index()
    os.chmod(place.root + b"/a", 0)
    for _ in range(FAILURES + 1):
        assert [one["path"] for one in scan(place)["errors"]] == ["a"]
    document = scan(place)
    assert [one["path"] for one in document["skipped"]] == ["a"] and document["state"] == "partial"
    assert place.index() == before

    os.chmod(place.root + b"/a", 0o755)

    assert scan(place)["state"] == "succeeded" and entries(place) == {}


def test_a_folder_that_breaks_off_is_probed_after_the_hour(place: InProcess) -> None:
    place.eyes.folders = {inode(place, b"a"): 1}
    scans(place, FAILURES + 2)
    assert entries(place) == {("directory", b"a"): State.OPEN}
    place.eyes.folders = {}
    assert [one["path"] for one in scan(place)["skipped"]] == ["a"]

    place.later_s += HOUR_S + 60

    assert scan(place)["state"] == "succeeded" and place.index() == listing(place.root)


@pytest.mark.needs("root")
def test_thousands_of_files_that_fail_collapse_and_cost_nothing_any_more(
    place: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in (b"x", b"y"):
        build(place.root + b"/" + folder, Dir({b"%d" % number: File(b"%d" % number) for number in range(1_000)}))
        for number in range(1_000):
            os.chmod(place.root + b"/%s/%d" % (folder, number), 0)
    opened = []
    real = all_open()
    monkeypatch.setattr("tasks.core.hashing.open_file", lambda fd, name: opened.append(name) or real(fd, name))
    for _ in range(FAILURES + 1):
        opened.clear()
        assert scan(place)["errors_total"] == 2_000 <= len(opened)
    assert entries(place) == {("files", b"x"): State.OPEN, ("files", b"y"): State.OPEN}

    opened.clear()
    document = scan(place)
    assert opened == [] and document["skipped_total"] == 2_000

    place.later_s += HOUR_S + 60
    scan(place)
    assert len(opened) == 2 * breaker.PROBES, "a few of each, not all"

    os.chmod(place.root + b"/x/7", 0o644)  # changed: read at once
    opened.clear()
    scan(place)
    assert opened == [b"7"] and b"x/7" in place.index()


@pytest.mark.needs("root")
def test_files_of_a_folder_that_are_all_well_again_leave_no_entry_and_some_bring_the_probe_forward(
    place: InProcess,
) -> None:
    names = [place.root + b"/many/%d" % number for number in range(20)]
    build(place.root + b"/many", Dir({b"%d" % number: File(b"%d" % number) for number in range(20)}))
    for name in names:
        os.chmod(name, 0)
    scans(place, FAILURES + 1)
    assert entries(place) == {("files", b"many"): State.OPEN}

    for name in names[:5]:
        os.chmod(name, 0o644)
    scan(place)
    assert entries(place) == {("files", b"many"): State.HALF_OPEN}
    assert scan(place)["errors_total"] == breaker.PROBES and entries(place) == {("files", b"many"): State.OPEN}

    for name in names:
        os.chmod(name, 0o644)
    assert scan(place)["state"] == "succeeded" and entries(place) == {}
    assert place.index() == listing(place.root) == apply_feed(place.feed())


def all_open():
    from tasks.core import hashing

    return hashing.open_file


def test_without_redis_everything_is_tried(place: InProcess, caplog: pytest.LogCaptureFixture) -> None:
    bad = inode(place, b"a/bad")
    place.eyes.files = {bad}
    scans(place, FAILURES + 2)
    reads = place.eyes.reads[bad]
    place.redis_server.connected = False

    scan(place)

    assert place.eyes.reads[bad] == reads + 1
    assert "the breaker lets everything through" in caplog.text


def test_a_flushed_redis_begins_anew(place: InProcess) -> None:
    bad = inode(place, b"a/bad")
    place.eyes.files = {bad}
    scans(place, FAILURES + 2)
    place.redis.flushall()

    scans(place, FAILURES + 2)

    assert place.eyes.reads[bad] == 2 * (FAILURES + 1)


def test_it_can_be_reset(place: InProcess) -> None:
    bad = inode(place, b"a/bad")
    place.eyes.files = {bad}
    scans(place, FAILURES + 1)
    place.eyes.files = set()
    limits = breaker.Limits(FAILURES, HOUR_S, HOUR_S, 100)

    assert breaker.reset(place.redis, place._app.runtime.keys, place.tenant.id, b"a/bad", limits) == 1

    assert scan(place)["state"] == "succeeded"


def test_time_is_redis_s_own(place: InProcess) -> None:
    _, now = breaker.read(place.redis, place._app.runtime.keys, place.tenant.id)

    assert abs(now - time.time()) < 5
