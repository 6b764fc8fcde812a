"""Sending: which shards are offered to the broker next, and how many are under way."""

import random

import pytest
from sqlalchemy.exc import DBAPIError

from db import overview, scans, sending
from db.clock import clock
from db.engine import reading, writing
from db.sending import Sendable
from db.tables import metadata
from db.tenants import TIERS
from db.types import ScanState
from orchestrator.fairness import allot
from orchestrator.windows import Windows
from tests.storage import (
    ONLY_POSTGRES,
    add_tenant,
    claimed,
    complete,
    end_scan,
    expire,
    set_shard,
    start_scan,
)


@pytest.fixture
def tenant(engine):
    return add_tenant(engine)


@pytest.fixture
def scan(engine, tenant):
    return start_scan(engine, tenant, shard_count=2)


def sendable(engine, limit=100):
    with writing(engine) as connection:
        return sending.sendable(connection, [scan.id for scan in scans.in_state(connection, ScanState.RUNNING)], limit)


def mark_sent(engine, sent, expires_s=600.0):
    with writing(engine) as connection:
        sending.mark_sent(connection, sent, expires_s)


def contenders(engine):
    with writing(engine) as connection:
        return sending.contenders(connection, 9)


def in_flight(engine):
    return sum(one.in_flight for one in contenders(engine))


def test_ready_shards_are_sendable_until_they_are_sent_and_again_when_the_message_expired(engine, scan, tenant):
    offered = sendable(engine)
    assert offered == [Sendable(scan.id, number, tenant.id, "bulk") for number in (1, 2)]

    mark_sent(engine, offered[:1])
    assert [shard.number for shard in sendable(engine)] == [2]

    mark_sent(engine, offered[:1], -1.0)
    assert [shard.number for shard in sendable(engine)] == [1, 2]

    mark_sent(engine, offered)
    mark_sent(engine, offered, None)
    assert [shard.number for shard in sendable(engine)] == [1, 2]


def test_the_limit_is_kept(engine, scan):
    assert [shard.number for shard in sendable(engine, 1)] == [1]


def test_an_expired_lease_is_offered_and_a_living_one_is_not(engine, scan):
    lost = claimed(engine, scan, 1)
    claimed(engine, scan, 2)
    assert sendable(engine) == []

    expire(engine, lost)
    assert [shard.number for shard in sendable(engine)] == [1]

    mark_sent(engine, sendable(engine))
    assert sendable(engine) == []


def test_what_must_wait_is_not_offered(engine, scan):
    set_shard(engine, scan.id, 1, not_before=clock(60))

    assert [shard.number for shard in sendable(engine)] == [2]


def test_nothing_of_a_scan_that_ended_is_offered(engine, scan):
    end_scan(engine, scan)

    assert sendable(engine) == []


def test_each_running_scan_contends_with_what_it_has(engine):
    served, other, idle = (add_tenant(engine, name) for name in ("served", "other", "idle"))
    begun = [start_scan(engine, tenant, shard_count=3) for tenant in (served, other)]
    start_scan(engine, idle, shard_count=0)
    claimed(engine, begun[0], 1)
    mark_sent(engine, sendable(engine, 1))
    for tenant, ago_s in ((served, -5.0), (other, -1000.0)):
        with writing(engine) as connection:
            table = metadata.tables["tenants"]
            connection.execute(table.update().where(table.c.id == tenant.id).values(served_at=clock(ago_s)))

    one, two = sorted(contenders(engine), key=lambda one: one.scan_id)

    assert (one.scan_id, one.tier, one.trigger, one.ready, one.in_flight) == (begun[0].id, "standard", "request", 1, 2)
    assert (two.scan_id, two.ready, two.in_flight) == (begun[1].id, 3, 0)
    assert 0 <= two.waited_s < 60, "it waits since it was started, not since its last scan"


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_of_many_that_wait_as_many_contend_as_could_be_served(engine, slots):
    rng, table = random.Random(slots), metadata.tables["tenants"]
    begun = []
    for n in range(40):
        tenant = add_tenant(engine, f"t{n}", tier=rng.choice(TIERS))
        begun.append(start_scan(engine, tenant, shard_count=rng.randint(1, 3)))
        with writing(engine) as connection:
            longest = table.update().where(table.c.id == tenant.id).values(served_at=clock(float(n)))
            connection.execute(longest)
            scan = metadata.tables["scans"].update().where(metadata.tables["scans"].c.id == begun[-1].id)
            connection.execute(scan.values(trigger=rng.choice(["schedule", "request"])))
    for scan in rng.sample(begun, 2 * slots - 1):
        claimed(engine, scan, 1)
    windows = Windows(slots, 100, 100)
    with writing(engine) as connection:
        some, every = (sending.contenders(connection, most) for most in (windows.in_all, len(begun)))

    assert len(every) == len(begun) > len(some)
    for ageing_s in (-1e6, 1e6):  # all have waited for too long, and none
        assert allot(some, windows, ageing_s) == allot(every, windows, ageing_s) != {}


@ONLY_POSTGRES
def test_two_dispatchers_at_once_take_turns(engine, scan):
    with writing(engine) as one:
        assert [contender.ready for contender in sending.contenders(one, 9)] == [2]
        with pytest.raises(DBAPIError, match="lock timeout"), writing(engine) as other:
            other.exec_driver_sql("SET LOCAL lock_timeout = '50ms'")
            sending.contenders(other, 9)


@ONLY_POSTGRES
def test_whoever_takes_shards_at_once_is_offered_others(engine, scan):
    with writing(engine) as one, writing(engine) as other:
        first, second = sending.sendable(one, [scan.id], 1), sending.sendable(other, [scan.id], 10)

    assert [shard.number for shard in first + second] == [1, 2]


def test_in_flight_counts_what_is_leased_and_what_is_sent_once_each(engine, tenant):
    scan = start_scan(engine, tenant, shard_count=5)
    assert in_flight(engine) == 0

    claimed(engine, scan, 1)
    mark_sent(engine, sendable(engine, 2))
    assert in_flight(engine) == 3

    claimed(engine, scan, 2)
    assert in_flight(engine) == 3

    complete(engine, claimed(engine, scan, 3))
    assert in_flight(engine) == 2


def test_a_lease_that_ran_out_is_not_in_flight_else_dead_workers_would_fill_the_window_for_ever(engine, scan):
    for number in (1, 2):
        expire(engine, claimed(engine, scan, number))

    assert in_flight(engine) == 0
    mark_sent(engine, sendable(engine, 1))
    assert in_flight(engine) == 1


def test_the_backlog_counts_open_shards_by_state(engine, tenant):
    with reading(engine) as connection:
        assert overview.backlog(connection) == {"waiting": 0, "ready": 0, "leased": 0}
    scan = start_scan(engine, tenant, shard_count=4)
    claimed(engine, scan, 1)
    complete(engine, claimed(engine, scan, 2))

    with reading(engine) as connection:
        assert overview.backlog(connection) == {"waiting": 1, "ready": 2, "leased": 1}
