"""A scan whose processes die, at each of its commits in turn: tried by the tasks themselves, in this process."""

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from db import tallies
from db.engine import reading
from tasks import settings as all_settings
from tasks.app import make_app
from tasks.finish import DEATHS_ALTOGETHER, DEATHS_AT_MOST
from tests import in_process
from tests.in_process import Died, InProcess
from tests.trees import Dir, File, apply_feed, build, listing

pytestmark = pytest.mark.chaos

COMMITS_AT_MOST = 100


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with in_process.database() as engine:
        yield engine


@pytest.fixture
def place(engine: Engine) -> Iterator[Callable[[], InProcess]]:
    """Scanned once, and since then a file is gone, one has moved, and one is new; each call gives it anew."""
    with tempfile.TemporaryDirectory(prefix="strandline-dying-") as folder:
        os.chmod(folder, 0o755)
        root = os.fsencode(Path(folder, "root"))
        build(root, Dir({b"a": Dir({b"gone": File(b"1"), b"old": File(b"2")}), b"stays": File(b"3")}))
        made = InProcess(make_app(all_settings.load({}, redis_url="redis://nowhere")), engine, root, policy={})
        made.request()
        assert made.carry_on()
        made.news()
        os.unlink(root + b"/a/gone")
        os.rename(root + b"/a/old", root + b"/a/new")
        build(root + b"/added", File(b"4"))
        made.request()
        made.keep()
        yield made.again
        made.close()


# Before a commit is as after the one before.
@pytest.mark.parametrize(
    "committed", [pytest.param(False, marks=pytest.mark.large), True], ids=["before it", "after it"]
)
def test_a_scan_that_died_at_any_commit_is_carried_on(place: Callable[[], InProcess], committed: bool) -> None:
    for number in range(COMMITS_AT_MOST):
        scanned = place()
        before = tallied(scanned)
        survived = scanned.carry_on((number, committed))
        assert survived or scanned.carry_on()

        document = scanned.document()
        assert document["state"] == "succeeded", number
        assert tallied(scanned) == before + 1, number
        assert (document["added"], document["deleted"], document["moved"]) == (1, 1, 1), number
        assert scanned.index() == listing(scanned.root) == apply_feed(scanned.feed()), number
        if survived:
            assert number > 10
            return
    raise AssertionError("it dies without end")


def test_a_scan_that_is_cancelled_after_any_commit_deletes_nothing(place: Callable[[], InProcess]) -> None:
    for number in range(COMMITS_AT_MOST):
        scanned = place()
        before = scanned.index()
        ended = scanned.carry_on((number, True))
        in_time = not ended and scanned.cancel()
        assert ended or scanned.carry_on()

        document, index = scanned.document(), scanned.index()
        assert (document["state"] == "cancelled") == in_time, number
        if in_time:
            assert (document["deleted"], document["moved"]) == (0, 0) and before.items() <= index.items(), number
        else:
            assert index == listing(scanned.root), number
        assert apply_feed(scanned.feed()) == index, number
        if ended:
            return
    raise AssertionError("it dies without end")


def test_a_finish_that_dies_again_and_again_fails_the_scan_and_the_next_one_deletes(
    place: Callable[[], InProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    scanned = place()
    before = scanned.index()
    with monkeypatch.context() as patch:
        patch.setattr("tasks.finish._look_again", die)
        assert [scanned.carry_on() for _ in range(DEATHS_AT_MOST)] == [False] * DEATHS_AT_MOST

    assert scanned.carry_on()

    document = scanned.document()
    assert (document["state"], document["deleted"], document["moved"]) == ("failed", 0, 0)
    assert "nothing was deleted" in document["error"] and before.items() <= scanned.index().items()
    scanned.request()
    assert scanned.carry_on() and scanned.document()["state"] == "succeeded"
    assert scanned.index() == listing(scanned.root) == apply_feed(scanned.feed())


def test_a_finish_that_dies_of_what_it_carries_out_leaves_the_rest_to_the_next_scan(
    place: Callable[[], InProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    scanned = place()
    with monkeypatch.context() as patch:
        patch.setattr("tasks.deletions.losses.report_moved", die)
        assert [scanned.carry_on() for _ in range(DEATHS_ALTOGETHER)] == [False] * DEATHS_ALTOGETHER
        assert scanned.carry_on()

    document = scanned.document()
    assert (document["state"], document["deleted"], document["moved"]) == ("failed", 1, 0)
    assert "left to the next scan" in document["error"]
    scanned.request()
    assert scanned.carry_on() and scanned.document()["state"] == "succeeded"
    assert scanned.index() == listing(scanned.root) == apply_feed(scanned.feed())


def tallied(scanned: InProcess) -> int:
    """So many scans were counted as ended."""
    with reading(scanned.engine) as connection:
        return sum(row.scans for row in tallies.totals(connection))


def die(*_: object) -> None:
    raise Died
