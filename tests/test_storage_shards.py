"""Shards: who holds one, what a holder that lost it can still do (nothing), and what is sent next."""

import functools
import uuid

import pytest

from db import changes, scans, shards, tenants, tree
from db.clock import clock
from db.engine import connect, reading, writing
from db.shards import FINISH, NUMBERS_PER_SHARD
from db.tables import changes as changes_table
from db.tables import directories, files
from db.tables import scans as scans_table
from db.tables import shards as shards_table
from db.types import LeaseLost, ScanState, ShardState, StaleDirectory
from tests.storage import (
    LEASE_S,
    add_tenant,
    at_once,
    claim,
    claimed,
    complete,
    directory,
    end_scan,
    expire,
    file,
    rows,
    set_shard,
    start_scan,
    write_tree,
)


@pytest.fixture
def tenant(engine):
    return add_tenant(engine)


@pytest.fixture
def scan(engine, tenant):
    return start_scan(engine, tenant, shard_count=2)


def states(engine, scan):
    return [row["state"] for row in rows(engine, shards_table, scan_id=scan.id)]


def flush(engine, lease, reserve=0, **counted):
    with writing(engine) as connection:
        return shards.flush(connection, lease, LEASE_S, reserve, **counted)


# Claim


def test_a_claim_takes_a_ready_shard_and_says_what_it_is(engine, scan, tenant):
    lease = claimed(engine, scan, 2)

    assert (lease.scan_id, lease.number, lease.tenant_id, lease.fence) == (scan.id, 2, tenant.id, scan.fence)
    assert (lease.frontier, lease.queue, lease.attempt, lease.deaths) == ("{}", "bulk", 1, 0)
    assert states(engine, scan) == ["waiting", "ready", "leased"]


@pytest.mark.parametrize("state", sorted(set(ShardState) - {ShardState.READY, ShardState.LEASED, ShardState.WAITING}))
def test_a_claim_takes_no_shard_that_is_over(engine, scan, state):
    set_shard(engine, scan.id, 1, state=state)

    assert claim(engine, scan) is None


def test_a_claim_takes_neither_a_waiting_finish_nor_what_somebody_holds_nor_what_is_not_there(engine, scan):
    claimed(engine, scan, 1)

    assert claim(engine, scan, FINISH) is None
    assert claim(engine, scan, 1) is None
    assert claim(engine, scan, 3) is None


def test_a_claim_takes_nothing_before_its_time(engine, scan):
    set_shard(engine, scan.id, 1, not_before=clock(60))
    assert claim(engine, scan) is None

    set_shard(engine, scan.id, 1, not_before=clock(-1))
    assert claim(engine, scan) is not None


def test_a_claim_takes_over_a_lease_that_ran_out_and_counts_a_death(engine, scan):
    first = claimed(engine, scan)
    expire(engine, first)

    second = claimed(engine, scan)

    assert second.token != first.token
    assert (second.attempt, second.deaths) == (2, 1)


def test_a_claim_takes_no_expired_lease_before_its_time(engine, scan):
    expire(engine, claimed(engine, scan))
    set_shard(engine, scan.id, 1, not_before=clock(60))

    assert claim(engine, scan) is None


def test_of_claims_at_once_exactly_one_wins(engine, tenant):
    scan = start_scan(engine, tenant, shard_count=20)

    for number in range(1, 21):
        won = at_once(*[functools.partial(claim, engine, scan, number)] * 4)

        assert [lease is not None for lease in won].count(True) == 1
    assert {row["attempt"] for row in rows(engine, shards_table, scan_id=scan.id) if row["number"]} == {1}


def test_of_claims_at_once_exactly_one_takes_over_an_expired_lease(engine, tenant):
    scan = start_scan(engine, tenant, shard_count=20)

    for number in range(1, 21):
        expire(engine, claimed(engine, scan, number))
        won = at_once(*[functools.partial(claim, engine, scan, number)] * 4)

        assert [lease.deaths for lease in won if lease is not None] == [1]


def test_of_claims_from_engines_of_their_own_exactly_one_wins(engine, migrated_url, scan):
    others = [connect(migrated_url) for _ in range(2)]

    won = at_once(*(functools.partial(claim, other, scan) for other in others))

    assert [lease is not None for lease in won].count(True) == 1
    for other in others:
        other.dispose()


# What a holder may write


def taken_over(engine, scan, lease):
    expire(engine, lease)
    claimed(engine, scan, lease.number)


def ran_out(engine, scan, lease):
    expire(engine, lease)


def given_back(engine, scan, lease):
    with writing(engine) as connection:
        shards.release(connection, lease)


def dropped(engine, scan, lease):
    with writing(engine) as connection:
        assert shards.end_early(connection, scan.id, ScanState.CANCELLED, "a test")


def completed(engine, scan, lease):
    complete(engine, lease)


def removed(engine, scan, lease):
    with writing(engine) as connection:
        tenants.remove(connection, lease.tenant_id)


LOSSES = [taken_over, ran_out, given_back, dropped, completed, removed]


@pytest.mark.parametrize("lose", LOSSES)
def test_no_write_of_a_holder_that_lost_its_shard_leaves_anything(engine, scan, tenant, lose):
    write_tree(engine, new_directories=[directory(tenant.id, 1, b"", None)])
    lease = claimed(engine, scan)
    lose(engine, scan, lease)
    before = [rows(engine, table) for table in (shards_table, scans_table, directories, files, changes_table)]

    with pytest.raises(LeaseLost, match=f"shard 1 of scan {scan.id}"):
        full_flush(engine, lease)
    with pytest.raises(LeaseLost), writing(engine) as connection:
        shards.renew(connection, lease, LEASE_S)
    with pytest.raises(LeaseLost):
        complete(engine, lease)
    with writing(engine) as connection:
        shards.release(connection, lease, error="too late")

    assert [rows(engine, table) for table in (shards_table, scans_table, directories, files, changes_table)] == before


def full_flush(engine, lease, version=1):
    """As the pipeline does it."""
    with writing(engine) as connection:
        number = shards.flush(connection, lease, LEASE_S, 1, hashed_files=1)
        batch = tree.TreeBatch(
            listed=[(None, 1, 1, lease.fence, lease.tenant_id, 1, version)],
            new_directories=[directory(lease.tenant_id, 2, b"new", 1)],
            files=[file(lease.tenant_id, 1, b"a")],
        )
        change = (lease.tenant_id, lease.fence, number, 1, b"a", "added", b"a", "file", 1, None, None, None, None)
        changes.write(connection, [change])
        tree.write(connection, batch)


def test_a_flush_of_a_holder_writes_all(engine, scan, tenant):
    write_tree(engine, new_directories=[directory(tenant.id, 1, b"", None)])
    lease = claimed(engine, scan)

    full_flush(engine, lease)

    assert [row["name"] for row in rows(engine, files)] == [b"a"]
    assert [row["n"] for row in rows(engine, changes_table)] == [NUMBERS_PER_SHARD]
    assert [row["hashed_files"] for row in rows(engine, shards_table, number=1)] == [1]


def test_a_flush_on_a_directory_that_moved_leaves_nothing_neither_numbers_nor_counters(engine, scan, tenant):
    write_tree(engine, new_directories=[directory(tenant.id, 1, b"", None)])
    lease = claimed(engine, scan)
    before = rows(engine, shards_table)

    with pytest.raises(StaleDirectory):
        full_flush(engine, lease, version=7)

    assert rows(engine, shards_table) == before
    assert rows(engine, files) == rows(engine, changes_table) == []
    assert len(rows(engine, directories)) == 1


def test_a_flush_extends_the_lease_and_adds_to_the_counters(engine, scan):
    lease = claimed(engine, scan)
    set_shard(engine, scan.id, 1, lease_until=clock(1))

    flush(engine, lease, hashed_files=2, hashed_bytes=2**40)
    flush(engine, lease, hashed_files=3, errors_total=1)

    (shard,) = rows(engine, shards_table, number=1)
    with reading(engine) as connection:
        left = connection.exec_driver_sql("SELECT 1 FROM shards WHERE number = 1").scalar()
        still = connection.execute(
            shards_table.select().where(shards_table.c.number == 1, shards_table.c.lease_until > clock(LEASE_S / 2))
        ).first()
    assert left == 1 and still is not None
    assert (shard["hashed_files"], shard["hashed_bytes"], shard["errors_total"]) == (5, 2**40, 1)


def test_reserved_numbers_follow_each_other_and_carry_the_shard(engine, scan):
    lease = claimed(engine, scan, 2)

    reserved = [flush(engine, lease, reserve=count) for count in (3, 0, 2, 1)]

    assert reserved == [2 * NUMBERS_PER_SHARD + sequence for sequence in (0, 3, 3, 5)]


def test_numbers_go_on_where_the_holder_before_stopped(engine, scan):
    first = claimed(engine, scan)
    flush(engine, first, reserve=10)
    expire(engine, first)

    assert flush(engine, claimed(engine, scan), reserve=1) == NUMBERS_PER_SHARD + 10


def test_numbers_reserved_at_once_never_overlap(engine, scan):
    lease = claimed(engine, scan)

    reserved = at_once(*[functools.partial(flush, engine, lease, reserve=5)] * 8)

    assert sorted(reserved) == [NUMBERS_PER_SHARD + 5 * i for i in range(8)]


def test_a_flush_that_is_rolled_back_gives_its_numbers_back(engine, scan):
    lease = claimed(engine, scan)

    with pytest.raises(RuntimeError), writing(engine) as connection:
        shards.flush(connection, lease, LEASE_S, 100)
        raise RuntimeError

    assert flush(engine, lease, reserve=1) == NUMBERS_PER_SHARD


# Release


def test_a_released_shard_is_ready_again_after_its_delay(engine, scan):
    lease = claimed(engine, scan)

    with writing(engine) as connection:
        shards.release(connection, lease, delay_s=60, error="disk on fire")

    (shard,) = rows(engine, shards_table, number=1)
    assert (shard["state"], shard["token"], shard["lease_until"], shard["error"]) == (
        "ready",
        None,
        None,
        "disk on fire",
    )
    assert claim(engine, scan) is None
    set_shard(engine, scan.id, 1, not_before=clock())
    again = claimed(engine, scan)
    assert (again.attempt, again.deaths) == (2, 0)


def test_releasing_all_gives_back_what_is_leased_or_sent_and_nothing_else(engine, tenant):
    scan = start_scan(engine, tenant, shard_count=4)
    lost = claimed(engine, scan, 1)
    complete(engine, claimed(engine, scan, 2))
    set_shard(engine, scan.id, 3, sent_until=clock(600))

    with writing(engine) as connection:
        assert shards.release_all(connection) == 3

    assert states(engine, scan) == ["waiting", "ready", "done", "ready", "ready"]
    assert {row["sent_until"] for row in rows(engine, shards_table)} == {None}
    assert [row["deaths"] for row in rows(engine, shards_table)] == [0, 1, 0, 0, 0]
    with pytest.raises(LeaseLost):
        flush(engine, lost)


# Completing


def test_the_last_shard_that_completes_makes_the_finish_ready(engine, scan):
    assert complete(engine, claimed(engine, scan, 1)) is False
    assert states(engine, scan)[FINISH] == "waiting"

    assert complete(engine, claimed(engine, scan, 2)) is True
    assert states(engine, scan)[FINISH] == "ready"


def test_of_two_last_shards_that_complete_at_once_exactly_one_makes_the_finish_ready(engine):
    for turn in range(15):
        scan = start_scan(engine, add_tenant(engine, f"tenant{turn}"), shard_count=2)
        leases = [claimed(engine, scan, number) for number in (1, 2)]

        made_ready = at_once(*(functools.partial(complete, engine, lease) for lease in leases))

        assert sorted(made_ready) == [False, True]
        assert states(engine, scan) == ["ready", "done", "done"]


def test_the_finish_waits_for_shards_handed_on_in_the_completing_transaction(engine, tenant):
    scan = start_scan(engine, tenant, shard_count=1)
    lease = claimed(engine, scan)

    with writing(engine) as connection:
        scans.lock(connection, scan.id)
        assert shards.add(connection, scan, ["{}", "{}"], "bulk") == [2, 3]
        shards.complete(connection, lease, peak_memory_bytes=5, directories_unchanged=7, other=2)
        assert shards.ready_finish(connection, scan.id) is False

    (done,) = rows(engine, shards_table, number=1)
    assert (done["peak_memory_bytes"], done["directories_unchanged"], done["other"]) == (5, 7, 2)
    assert [complete(engine, claimed(engine, scan, number)) for number in (2, 3)] == [False, True]


def test_a_quarantined_shard_does_not_hold_the_finish_up_and_is_told(engine, scan):
    set_shard(engine, scan.id, 1, state=ShardState.QUARANTINED)

    assert complete(engine, claimed(engine, scan, 2)) is True

    with reading(engine) as connection:
        assert shards.any_not_done(connection, scan.id)
        assert not shards.any_errors(connection, scan.id)


def test_the_finish_is_made_ready_once(engine, scan):
    for number in (1, 2):
        complete(engine, claimed(engine, scan, number))
    finish = claimed(engine, scan, FINISH)

    with writing(engine) as connection:
        assert shards.ready_finish(connection, scan.id) is False

    assert flush(engine, finish, reserve=1) == 0


# Ending early


@pytest.mark.parametrize("ending", [ScanState.CANCELLED, ScanState.FAILED])
def test_a_scan_that_ends_early_drops_its_open_shards_and_readies_its_finish(engine, tenant, ending):
    scan = start_scan(engine, tenant, shard_count=4)
    complete(engine, claimed(engine, scan, 1))
    held = claimed(engine, scan, 2)
    set_shard(engine, scan.id, 3, state=ShardState.QUARANTINED)

    with writing(engine) as connection:
        assert shards.end_early(connection, scan.id, ending, "the folder is gone")

    assert states(engine, scan) == ["ready", "done", "dropped", "quarantined", "dropped"]
    with pytest.raises(LeaseLost):
        flush(engine, held)
    with reading(engine) as connection:
        ended = scans.get(connection, scan.id)
    assert (ended.state, ended.ending, ended.error, ended.verdict) == ("running", ending, "the folder is gone", "keep")


def test_the_first_reason_to_end_early_stands(engine, scan):
    with writing(engine) as connection:
        assert shards.end_early(connection, scan.id, ScanState.FAILED, "first")
        assert shards.end_early(connection, scan.id, ScanState.CANCELLED, "second")

        ended = scans.get(connection, scan.id)
    assert (ended.ending, ended.error) == ("failed", "first")


def test_a_scan_that_is_over_cannot_end_early(engine, scan):
    end_scan(engine, scan)

    with writing(engine) as connection:
        assert not shards.end_early(connection, scan.id, ScanState.CANCELLED, None)

    assert states(engine, scan) == ["waiting", "ready", "ready"]


def test_a_finish_that_is_at_work_keeps_its_lease_when_the_scan_is_cancelled(engine, scan):
    for number in (1, 2):
        complete(engine, claimed(engine, scan, number))
    finish = claimed(engine, scan, FINISH)

    with writing(engine) as connection:
        shards.end_early(connection, scan.id, ScanState.CANCELLED, None)

    flush(engine, finish)


# What the database itself refuses


@pytest.mark.parametrize(
    "impossible",
    [
        {"state": "leased"},
        {"state": "leased", "token": str(uuid.UUID(int=1))},
        {"state": "ready", "token": str(uuid.UUID(int=1)), "lease_until": clock()},
        {"state": "done", "token": str(uuid.UUID(int=1)), "lease_until": clock()},
        {"state": "waiting"},
        {"state": "asleep"},
        {"state": None},
        {"not_before": None},
        {"frontier": None},
    ],
    ids=" ".join,
)
def test_an_impossible_shard_is_refused(engine, scan, impossible):
    with pytest.raises(Exception, match=r"(?i)constraint"):
        set_shard(engine, scan.id, 1, **impossible)
