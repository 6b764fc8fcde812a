"""The breaker in a real Redis: many workers at once, in real seconds."""

import time
from collections.abc import Callable

import pytest
import redis

from tasks.core.breaker import Covers, Failed, Key, Limits, State
from tasks.redis import breaker
from tasks.redis.breaker import PROBES, Breaker
from tasks.redis.keys import Keys
from tasks.redis.outage import Outage
from tests.storage import at_once
from tests.waiting import wait_until

KEYS = Keys("test:")
TENANT = 7
FILE = Key(Covers.FILE, b"a/f")
WORKERS = 8
OPEN_S = 1.0

Make = Callable[..., Breaker]


@pytest.fixture
def worker(redis_client: redis.Redis) -> Make:
    """The breaker as a shard of the scan of some fence sees it."""
    limits = Limits(failures=3, window_s=60.0, open_s=OPEN_S, tracked=100)
    return lambda fence: Breaker(
        redis_client, KEYS, Outage(time.monotonic), TENANT, fence, limits, time.monotonic
    )  # fmt: skip


def fail(worker: Make, fence: int, *keys: Key) -> None:
    told = worker(fence)
    for key in keys:
        told.failed(Failed(key, "denied", "as it is"))
    told.tell()


def states(client: redis.Redis) -> list[State]:
    entries, now = breaker.read(client, KEYS, TENANT)
    return [entry.state(now) for entry in entries.values()]


def refused(one: Breaker, key: Key = FILE) -> bool:
    return one.refuses(key, "as it is") is not None


def test_the_whole_turn_in_real_seconds(worker: Make, redis_client: redis.Redis) -> None:
    for fence in range(1, 5):
        assert not refused(worker(fence))
        fail(worker, fence, FILE)
    assert states(redis_client) == [State.OPEN] and refused(worker(5))
    assert not worker(5).refuses(FILE, "another"), "it was changed"

    wait_until(lambda: states(redis_client) == [State.HALF_OPEN], 10, "the time is over")
    probing = worker(6)
    assert not refused(probing) and refused(probing) and refused(worker(6)), "one probe"
    fail(worker, 6, FILE)
    assert states(redis_client) == [State.OPEN] and refused(worker(7))

    wait_until(lambda: states(redis_client) == [State.HALF_OPEN], 10, "the time is over again")
    probing = worker(8)
    assert not refused(probing)
    probing.succeeded(FILE)
    probing.tell()
    assert states(redis_client) == [] and not refused(worker(9))


def test_of_eight_workers_one_gets_the_probe(worker: Make, redis_client: redis.Redis) -> None:
    for fence in range(1, 5):
        fail(worker, fence, FILE)
    wait_until(lambda: states(redis_client) == [State.HALF_OPEN], 10, "the time is over")

    answers = at_once(*[lambda: refused(worker(5))] * WORKERS)

    assert sorted(answers) == [False] + [True] * (WORKERS - 1)


def test_of_many_files_that_fail_one_worker_probes_a_few(worker: Make, redis_client: redis.Redis) -> None:
    keys = [Key(Covers.FILE, b"a/%d" % number) for number in range(100)]
    for fence in range(1, 5):
        fail(worker, fence, *keys)
    wait_until(lambda: states(redis_client) == [State.HALF_OPEN], 10, "the time is over")

    def tried() -> int:
        one = worker(5)
        return sum(not refused(one, key) for key in keys)

    assert sorted(at_once(*[tried] * WORKERS)) == [0] * (WORKERS - 1) + [PROBES]


def test_failures_that_are_told_at_once_all_count(worker: Make, redis_client: redis.Redis) -> None:
    keys = [Key(Covers.FILE, b"%d/f" % number) for number in range(WORKERS)]

    at_once(*[lambda key=key: [fail(worker, fence, key) for fence in range(1, 5)] for key in keys])

    assert states(redis_client) == [State.OPEN] * WORKERS


def test_what_is_kept_goes_by_itself(worker: Make, redis_client: redis.Redis) -> None:
    fail(worker, 1, FILE)

    assert 0 < redis_client.pttl(KEYS.breaker(TENANT)) <= (60 + OPEN_S) * 1000


def test_paths_of_any_bytes_and_of_any_length_are_kept(worker: Make, redis_client: redis.Redis) -> None:
    keys = {Key(Covers.FILE, b"\xff\n\x01'\"/" + b"x" * 4000), Key(Covers.DIRECTORY, b"")}

    fail(worker, 1, *keys)

    assert breaker.read(redis_client, KEYS, TENANT)[0].keys() == keys
