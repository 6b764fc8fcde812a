"""Live progress: what is counted, told and made of it. (tests/test_live.py: in a running cluster.)"""

import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import fakeredis
import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, func, select

from db.engine import reading
from db.progress import COUNTED, Shards, shards_of
from db.shards import Lease
from db.tables import shards
from db.types import LeaseLost, ShardState
from orchestrator.progress import SLOWEST, Progress, Reader, eta_s, progress_of
from tasks import settings as all_settings
from tasks.app import make_app
from tasks.redis import progress as live
from tasks.redis.keys import Keys
from tasks.redis.outage import PAUSE_S, Outage
from tasks.redis.progress import KEPT_S, RATE_OVER_S, TOLD_EVERY_S, Rate, Told
from tests import in_process, trees
from tests.in_process import InProcess
from tests.storage import add_tenant, claimed, expire, start_scan
from tests.trees import Dir, File, build

KEYS = Keys("test:")
COMMITS_AT_MOST = 150
EACH = 7
FIRST_FILES = 2 * 3 + 20 + 1


def group(state: ShardState, *, number: int | None = None, attempt: int | None = None, shards: int = 1,
          **counted: int) -> Shards:  # fmt: skip
    return Shards("s", state, number, attempt, shards, *(counted.get(name, 0) for name in COUNTED))


def held(number: int, **counted: int) -> Shards:
    return group(ShardState.LEASED, number=number, attempt=1, **counted)


def told(attempt: int = 1, rate: float = 0.0, **counted: int) -> Told:
    return Told(attempt, *(counted.get(name, 0) for name in COUNTED), rate=rate)


# What is made of rows and words


def test_what_is_done_and_what_is_told_is_added_up() -> None:
    found = [
        group(ShardState.DONE, shards=3, files=300, bytes=7), held(4, files=10), held(5, files=1),
        group(ShardState.READY, shards=2), group(ShardState.WAITING),
    ]  # fmt: skip

    seen = progress_of(found, {4: told(files=50, rate=20.0), 5: told(files=60, rate=5.0)}, 10.0, 1000)

    assert (seen.files, seen.bytes, seen.files_per_s) == (410, 7, 25.0)
    assert (seen.shards, seen.shards_done, seen.shards_leased, seen.shards_ready) == (8, 3, 2, 2)
    assert seen.eta_s == pytest.approx((1000 - 410) / 25) and not seen.finishing


def test_the_word_of_who_held_a_shard_before_counts_no_more() -> None:
    seen = progress_of([group(ShardState.LEASED, number=1, attempt=2, files=5)], {1: told(1, 9.0, files=90)}, 1.0, None)
    assert (seen.files, seen.eta_s) == (5, None)


def test_a_row_may_be_ahead_of_the_word() -> None:
    assert progress_of([held(1, files=90)], {1: told(files=50)}, 1.0, None).files == 90


def test_where_nobody_has_told_anything_the_rate_is_the_average_and_where_nobody_works_it_is_nought() -> None:
    assert progress_of([held(1, files=90)], {}, 9.0, 180) == progress_of([held(1, files=90)], {7: told()}, 9.0, 180)
    assert progress_of([held(1, files=90)], {}, 9.0, 180).eta_s == pytest.approx(9.0)
    assert progress_of([group(ShardState.READY, files=90)], {}, 9.0, 180).files_per_s == 0


def test_a_scan_is_finishing_once_its_finish_waits_no_more() -> None:
    assert progress_of([group(ShardState.DONE), held(0)], {}, 1.0, None).finishing
    assert not progress_of([], {}, 1.0, None).finishing, "its first shards are not seen yet"


@given(st.one_of(st.none(), st.integers(0, 10**12)), st.integers(0, 10**12), st.floats(0, 1e12))
def test_the_time_left_is_unknown_or_not_negative(expected: int | None, files: int, rate: float) -> None:
    left = eta_s(expected, files, rate)
    assert left is None or left >= 0
    assert left is not None or not expected or rate < SLOWEST or files > expected


COUNTS = st.fixed_dictionaries({name: st.integers(0, 10**9) for name in COUNTED})
GROUPS = st.builds(
    lambda state, number, attempt, many, counts: (
        group(state, number=number, attempt=attempt, **counts)
        if state == ShardState.LEASED
        else group(state, shards=many, **counts)
    ),
    st.sampled_from(list(ShardState)), st.integers(1, 5), st.integers(1, 3), st.integers(1, 9), COUNTS,
)  # fmt: skip
WORDS = st.dictionaries(
    st.integers(1, 5),
    st.builds(
        lambda attempt, rate, counts: told(attempt, rate, **counts), st.integers(1, 3), st.floats(0, 1e9), COUNTS
    ),
)


@given(st.lists(GROUPS), WORDS, st.floats(0, 1e9), st.one_of(st.none(), st.integers(0, 10**12)))
def test_nothing_is_negative_and_an_emptied_redis_takes_away_no_more_than_it_told(
    found: list[Shards], words: dict[int, Told], age_s: float, expected: int | None
) -> None:
    seen, flushed = progress_of(found, words, age_s, expected), progress_of(found, {}, age_s, expected)
    for name in COUNTED:
        assert 0 <= getattr(flushed, name) <= getattr(seen, name)
        live_ones = sum(getattr(words[one.number], name) for one in found if one.number in words)
        assert getattr(seen, name) - getattr(flushed, name) <= live_ones
    for one in (seen, flushed):
        assert one.files_per_s >= 0 and (one.eta_s is None or one.eta_s >= 0)
        assert one.shards >= one.shards_done + one.shards_leased + one.shards_ready
        assert json.loads(json.dumps(one.document(), allow_nan=False))["files"] == one.files


# What is told


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def server() -> fakeredis.FakeServer:
    return fakeredis.FakeServer()


@pytest.fixture
def client(server: fakeredis.FakeServer) -> redis.Redis:
    return fakeredis.FakeRedis(server=server)


def lease(attempt: int = 1, **before: int) -> Lease:
    counted = (before.get(name, 0) for name in COUNTED)
    return Lease("s", 3, 1, 1, "{}", attempt, 0, None, 0, None, "bulk", "token", *counted)


def word(client: redis.Redis) -> Told | None:
    return live.read(client, KEYS, ["s"])["s"].get(3)


def test_totals_are_told_four_times_a_second_at_most_and_again_after_a_flush(client: redis.Redis, clock: Clock) -> None:
    with live.Progress(client, KEYS, lease(2, files=100), clock, Outage(clock)) as progress:
        progress.add(files=1)
        assert word(client) is None, "it has only begun"
        for _ in range(10):
            clock.now_s += TOLD_EVERY_S * 1.01
            progress.add(files=10, bytes=1000)
        assert word(client) == told(2, pytest.approx(101 / (10 * TOLD_EVERY_S * 1.01), abs=0.1), files=201, bytes=10000)
        assert 0 < client.ttl(KEYS.progress("s")) <= KEPT_S
        progress.add(files=10)
        assert word(client).files == 201, "not yet"

        client.flushall()
        clock.now_s += TOLD_EVERY_S * 1.01
        progress.add(files=0)
        assert word(client).files == 211
    assert not client.exists(KEYS.progress("s")), "the database knows it by now"


def test_who_has_lost_the_shard_leaves_what_another_tells(client: redis.Redis, clock: Clock) -> None:
    with (
        pytest.raises(LeaseLost),
        live.Progress(client, KEYS, lease(), clock, Outage(clock)) as late,
        live.Progress(client, KEYS, lease(2), clock, Outage(clock)) as now,
    ):
        for one in (late, now):
            clock.now_s += 1
            one.add(files=5)
        raise LeaseLost("by another")
    assert word(client).attempt == 2


def test_without_redis_work_goes_on_and_is_told_in_full_afterwards(
    server: fakeredis.FakeServer, client: redis.Redis, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    with live.Progress(client, KEYS, lease(), clock, Outage(clock)) as progress:
        server.connected = False
        for _ in range(20):
            clock.now_s += TOLD_EVERY_S * 1.01
            progress.add(files=1)
        server.connected = True
        clock.now_s += PAUSE_S
        progress.add(files=1)
        assert word(client).files == 21
    assert caplog.records[0].message.startswith("progress is not shown")
    assert len(caplog.records) == 2


def test_other_words_mean_nothing(client: redis.Redis) -> None:
    good = json.dumps(told(files=1)._asdict())
    for field, value in {
        "error": "x", "files": "17", "1": "no json", "2": "[]", "4": "7", "5": "{}", "6": good.replace("1", "-1"),
        "7": good.replace("0.0", "Infinity"), "8": good.replace("0.0", "NaN"), "9": good,
        "10": good.replace("0", "1e400"),
    }.items():  # fmt: skip
        client.hset(KEYS.progress("s"), field, value)
    assert live.read(client, KEYS, ["s"]) == {"s": {9: told(files=1)}}
    assert live.read(client, KEYS, []) == {}


def test_what_keeps_a_scan_from_going_on_is_told_beside_and_goes_in_time(client: redis.Redis) -> None:
    live.tell_error(client, KEYS, "s", "the root is gone")
    assert live.read_error(client, KEYS, "s") == "the root is gone" and 0 < client.ttl(KEYS.progress("s")) <= KEPT_S


@given(st.lists(st.tuples(st.floats(0.01, 10), st.integers(0, 10**6)), min_size=1, max_size=60))
def test_the_rate_is_that_of_the_last_seconds(steps: list[tuple[float, int]]) -> None:
    rate, now_s, files = Rate(0.0), 0.0, 0
    marks = [(0.0, 0)]
    for pause_s, more in steps:
        now_s, files = now_s + pause_s, files + more
        found = rate.at(now_s, files)
        marks.append((now_s, files))
    # Between the mean since the last look that is older than the window, and nothing else.
    older = [one for one in marks[:-1] if one[0] <= now_s - RATE_OVER_S] or marks[:1]
    assert math.isclose(found, (files - older[-1][1]) / (now_s - older[-1][0]), rel_tol=1e-9)


# What the database says


def test_shards_are_added_up_by_state_but_those_that_are_held(engine: Engine) -> None:
    first, second = (start_scan(engine, add_tenant(engine, name), 4) for name in ("one", "two"))
    claimed(engine, first, 1)
    expire(engine, claimed(engine, first, 2))

    with reading(engine) as connection:
        found = {one[1:5] for one in shards_of(connection, [first.id])}
        both = shards_of(connection, [first.id, second.id])

    assert found == {("waiting", None, None, 1), ("ready", None, None, 3), ("leased", 1, 1, 1)}
    assert {one.scan_id for one in both} == {first.id, second.id}
    assert all(sum(one[5:]) == 0 for one in both)


@pytest.fixture(scope="module")
def sqlite() -> Iterator[Engine]:
    with in_process.database() as engine:
        yield engine


@pytest.fixture
def place(sqlite: Engine) -> Iterator[Callable[[], InProcess]]:
    """A tree that was scanned once, and since then has more of everything: small folders, and a huge one."""
    made: list[InProcess] = []
    with tempfile.TemporaryDirectory(prefix="strandline-progress-") as folder:
        os.chmod(folder, 0o755)

        def make() -> InProcess:
            end()
            root = os.fsencode(Path(folder, "root"))
            trees.remove(root)
            build(root, tree(2, b"old"))
            app = make_app(all_settings.load({}, redis_url="redis://nowhere"))
            made.append(InProcess(app, sqlite, root, policy={}, shard_entries=20, huge_entries=16))
            made[-1].request()
            assert made[-1].carry_on()
            build(root + b"/more", tree(2, b"new"))
            made[-1].request()
            return made[-1]

        def end() -> None:
            while made:
                made.pop().close()

        yield make
        end()


def tree(folders: int, salt: bytes) -> Dir:
    small = {b"%d" % d: Dir({b"%d" % n: File(salt + b"%d %d" % (d, n)) for n in range(3)}) for d in range(folders)}
    huge = Dir({b"%d" % n: File(salt + b"huge %d" % n) for n in range(20)})
    return Dir({**small, b"huge": huge, b"f": File(salt)})


def walked(engine: Engine, scan_id: str) -> dict[str, int]:
    with reading(engine) as connection:
        query = select(*(func.sum(shards.c[name]) for name in COUNTED)).where(shards.c.scan_id == scan_id)
        return dict(zip(COUNTED, map(int, connection.execute(query).one()), strict=True))


def test_wherever_a_process_dies_all_is_counted_once(place: Callable[[], InProcess]) -> None:
    for number in range(0, COMMITS_AT_MOST, EACH):
        scanned = place()
        unharmed = scanned.carry_on((number, False))
        assert unharmed or scanned.carry_on()

        document = scanned.document()
        assert document["state"] == "succeeded", number
        assert walked(scanned.engine, scanned.scan_id) == {name: document[name] for name in COUNTED}, number
        if unharmed:
            return
    raise AssertionError("it dies without end")


def test_a_reader_sees_a_scan_without_redis_and_none_that_does_not_run(place: Callable[[], InProcess]) -> None:
    scanned = place()
    reader = Reader(scanned.engine, None, KEYS)
    seen = reader.of_scan(scanned.scan_id)
    assert isinstance(seen, Progress) and (seen.expected_files, seen.files) == (FIRST_FILES, 0)
    assert scanned.carry_on()
    assert reader.of_scan(scanned.scan_id) is None and reader.trouble is None
