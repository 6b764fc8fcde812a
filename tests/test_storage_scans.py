"""Scans: at most one queued and one running a tenant, whoever asks at once, and totals that are true."""

import functools
import threading
from collections import Counter

import pytest
from sqlalchemy import event, insert, update

from db import changes, scan_notes, scans, sending, shards, tenants
from db.clock import clock
from db.engine import reading, write, writing
from db.tables import changes as changes_table
from db.tables import directories, scan_errors
from db.tables import scans as scans_table
from db.tables import shards as shards_table
from db.types import ENDED, ScanState, Strategy, Trigger, UsageError, new_scan_id
from orchestrator import start as starts
from orchestrator.start import start
from tasks import settings as all_settings
from tests.storage import (
    ONLY_POSTGRES,
    add_tenant,
    at_once,
    claimed,
    complete,
    directory,
    end_scan,
    rows,
    start_scan,
    waits_for_a_lock,
    write_tree,
)
from tests.waiting import wait_until

SETTINGS = all_settings.load({})


@pytest.fixture
def tenant(engine):
    return add_tenant(engine)


def request(engine, tenant, full=False):
    with writing(engine) as connection:
        return scans.request(connection, tenant.id, trigger=Trigger.REQUEST, full=full)


def get(engine, scan):
    with reading(engine) as connection:
        return scans.get(connection, scan.id)


# Asking


def test_a_request_queues_a_scan(engine, tenant):
    scan, new = request(engine, tenant)

    assert new
    assert (scan.state, scan.tenant_id, scan.trigger, scan.full) == ("queued", tenant.id, "request", False)
    assert (scan.fence, scan.started_at, scan.finished_at) == (None, None, None)
    assert get(engine, scan) == scan


def test_a_request_joins_the_queued_scan_and_widens_it_for_good(engine, tenant):
    first, _ = request(engine, tenant)

    widened, new = request(engine, tenant, full=True)
    assert (widened.id, widened.full, new) == (first.id, True, False)
    assert get(engine, widened) == widened

    joined, new = request(engine, tenant, full=False)
    assert (joined.id, joined.full, new) == (first.id, True, False)


@pytest.mark.parametrize(("first", "then", "confirms"), [(None, 5, 5), (5, None, 5), (5, 3, 5), (3, 5, 5)])
def test_a_request_widens_what_is_verified_and_confirmed(engine, tenant, first, then, confirms):
    with writing(engine) as connection:
        scans.request(connection, tenant.id, trigger=Trigger.REQUEST, confirms=first)
    for verify in (True, False):
        with writing(engine) as connection:
            scan, _ = scans.request(
                connection, tenant.id, trigger=Trigger.REQUEST, verify=verify, confirms=None if verify else then
            )
        assert scan.verify and get(engine, scan) == scan
    assert scan.confirms == confirms


def test_a_request_never_joins_a_running_scan(engine, tenant):
    running = start_scan(engine, tenant)

    queued, new = request(engine, tenant, full=True)

    assert new and queued.id != running.id
    assert get(engine, running).full is False


def test_a_request_joins_no_scan_of_another_tenant(engine, tenant):
    other = add_tenant(engine, "other")

    assert request(engine, tenant)[0].id != request(engine, other)[0].id


def test_many_who_ask_at_once_get_one_queued_scan(engine, tenant):
    for turn in range(5):
        answers = at_once(*(functools.partial(request, engine, tenant, full=i == turn) for i in range(6)))

        assert len({scan.id for scan, _ in answers}) == 1, answers
        assert [new for _, new in answers].count(True) == 1
        (queued,) = rows(engine, scans_table, state="queued")
        assert queued["full"] is True
        with writing(engine) as connection:
            assert scans.cancel_queued(connection, queued["id"])


def test_a_request_for_a_tenant_that_was_removed_is_a_sentence(engine, tenant):
    with writing(engine) as connection:
        tenants.remove(connection, tenant.id)

    with pytest.raises(UsageError, match="was it removed just now"):
        request(engine, tenant)


def test_scan_ids_sort_by_time():
    ids = [new_scan_id() for _ in range(3)]

    assert {one[14] for one in ids} == {"7"} and {one[19] for one in ids} <= set("89ab")
    assert len(set(ids)) == 3
    assert [one[:8] for one in ids] == sorted(one[:8] for one in ids)


# Starting


def test_starting_takes_the_tenants_next_fence(engine, tenant):
    fences = []
    for _ in range(3):
        scan = start_scan(engine, tenant)
        end_scan(engine, scan)
        fences.append(scan.fence)

    assert fences == [1, 2, 3]


def test_a_scan_is_started_once_whoever_tries_at_once(engine, tenant):
    for turn in range(1, 6):
        scan, _ = request(engine, tenant)

        started = at_once(*[functools.partial(start, engine, [tenant.id], SETTINGS)] * 4)

        assert sorted(started) == [0, 0, 0, 1]
        assert get(engine, scan).fence == turn
        end_scan(engine, get(engine, scan))


def test_a_scan_that_is_not_queued_is_not_started_and_takes_no_fence(engine, tenant):
    scan, _ = request(engine, tenant)
    with writing(engine) as connection:
        scans.cancel_queued(connection, scan.id)

    assert start(engine, [tenant.id, tenant.id + 1], SETTINGS) == 0

    with reading(engine) as connection:
        assert tenants.get(connection, tenant.name).fence == 0


def test_a_scan_waits_while_its_tenant_has_one_running(engine, tenant):
    running = start_scan(engine, tenant)
    queued, _ = request(engine, tenant)

    assert startable(engine) == []
    assert start(engine, [tenant.id], SETTINGS) == 0

    end_scan(engine, running)
    assert startable(engine) == [(queued.id, tenant.id)]
    assert start(engine, [tenant.id], SETTINGS) == 1


def startable(engine, limit=100, most=100):
    with reading(engine) as connection:
        return sending.startable(connection, limit, most)


def test_who_waits_longest_is_started_first(engine):
    queued = [request(engine, add_tenant(engine, name))[0] for name in ("c", "a", "b")]

    assert [scan_id for scan_id, _ in startable(engine)] == [scan.id for scan in queued]
    assert len(startable(engine, 2)) == 2


def test_of_each_trigger_and_tier_only_so_many_wait_to_be_served(engine):
    tiers = ["standard"] * 4 + ["background"] * 3
    ids = [add_tenant(engine, f"t{n}", tier=tier).id for n, tier in enumerate(tiers)]
    with writing(engine) as connection:
        scans.request_scheduled(connection, ids)
    asked = [request(engine, add_tenant(engine, f"asked{n}"))[0].tenant_id for n in range(3)]

    def begun() -> list[int]:
        found = [tenant_id for _, tenant_id in startable(engine, most=2)]
        start(engine, found, SETTINGS)
        return sorted(found)

    assert begun() == [*ids[:2], *ids[4:6], *asked[:2]]
    assert begun() == []
    running = {scan.tenant_id: scan for scan in in_state(engine, ScanState.RUNNING)}
    end_scan(engine, running[ids[4]])
    claimed(engine, running[ids[0]])  # whoever holds it may hang: others are begun all the same
    assert begun() == [ids[2], ids[6]]


def test_who_knew_of_no_directory_and_was_stopped_before_he_started_a_scan_adds_no_second_root(engine, tenant):
    request(engine, tenant)
    start(engine, [tenant.id], SETTINGS)
    end_scan(engine, *in_state(engine, ScanState.RUNNING))
    request(engine, tenant)

    write(engine, starts._start, [tenant.id], {}, SETTINGS)

    assert [row["parent_id"] for row in rows(engine, directories)] == [None]
    assert [scan.strategy for scan in in_state(engine, ScanState.RUNNING)] == [Strategy.FULL_FALLBACK]


def in_state(engine, state):
    with reading(engine) as connection:
        return scans.in_state(connection, state)


def test_many_are_started_at_once_and_each_has_its_own(engine):
    there = [add_tenant(engine, f"t{n}") for n in range(5)]
    asked = {tenant.id: request(engine, tenant)[0].id for tenant in there}

    assert start(engine, list(asked), SETTINGS) == 5

    running = in_state(engine, ScanState.RUNNING)
    assert {scan.tenant_id: scan.id for scan in running} == asked
    assert {scan.fence for scan in running} == {1}
    assert Counter((row["tenant_id"], row["number"], row["state"]) for row in rows(engine, shards_table)) == Counter(
        (tenant.id, number, state) for tenant in there for number, state in ((0, "waiting"), (1, "ready"))
    )
    roots = rows(engine, directories)
    assert {row["tenant_id"] for row in roots} == set(asked) and len({row["id"] for row in roots}) == 5


@ONLY_POSTGRES
def test_what_is_asked_for_while_a_scan_starts_is_not_forgotten(engine, tenant):
    """The request either widens the scan before it starts, or queues another: it never joins one that is decided."""
    request(engine, tenant)
    asking = threading.Thread(target=request, args=(engine, tenant, True))

    @event.listens_for(engine, "before_cursor_execute")
    def ask_when_the_strategy_is_chosen(_connection, _cursor, statement, *_rest):
        if statement.startswith("UPDATE tenants") and not asking.ident:
            asking.start()
            wait_until(lambda: not asking.is_alive() or waits_for_a_lock(engine), 30, "the request is in or waits")

    assert start(engine, [tenant.id], SETTINGS) == 1
    asking.join(30)

    asked_for = [row["strategy"] if row["state"] == "running" else row["full"] for row in rows(engine, scans_table)]
    assert "full_forced" in asked_for or True in asked_for


# Ending


def test_a_queued_scan_can_be_cancelled_and_a_running_one_not_so(engine, tenant):
    queued, _ = request(engine, tenant)
    with writing(engine) as connection:
        assert scans.cancel_queued(connection, queued.id) is True
        assert scans.cancel_queued(connection, queued.id) is False
    assert get(engine, queued).state == "cancelled"
    assert get(engine, queued).finished_at is not None

    running = start_scan(engine, tenant)
    with writing(engine) as connection:
        assert scans.cancel_queued(connection, running.id) is False


def test_the_first_verdict_stands(engine, tenant):
    scan = start_scan(engine, tenant)

    with writing(engine) as connection:
        scans.store_verdict(connection, scan.id, "keep")
        scans.store_verdict(connection, scan.id, "delete")

    assert get(engine, scan).verdict == "keep"


@pytest.mark.parametrize("state", ENDED)
def test_what_a_scan_publishes_is_what_the_tables_hold(engine, tenant, state):
    scan, other = start_scan(engine, tenant, shard_count=2), start_scan(engine, add_tenant(engine, "other"))
    for owner, scale in ((tenant, 1), (other, 100)):
        write_tree(
            engine,
            new_directories=[
                directory(owner.id if scale == 1 else other.tenant_id, 1, b"", None, files=7 * scale, size=70),
                directory(owner.id if scale == 1 else other.tenant_id, 2, b"a", 1, files=4 * scale, size=2**40),
            ],
        )
    kinds = ["added"] * 3 + ["modified"] * 2 + ["deleted"] + ["moved"]
    for n, kind in enumerate(kinds):
        add_change(engine, tenant.id, scan.fence, n, kind)
    add_change(engine, tenant.id, scan.fence + 1, 0, "added")
    for number, peak in ((1, 500), (2, 300)):
        with writing(engine) as connection:
            lease = shards.claim(connection, scan.id, number, 60)
            shards.flush(connection, lease, 60, hashed_files=number, hashed_bytes=10, errors_total=2)
            shards.complete(connection, lease, peak_memory_bytes=peak, directories_unchanged=1, other=4)

    ended = end_scan(engine, scan, state)

    assert (ended.state, ended.directories, ended.files, ended.bytes) == (state, 2, 11, 70 + 2**40)
    assert (ended.added, ended.modified, ended.deleted, ended.moved, ended.unchanged) == (3, 2, 1, 1, 5)
    assert (ended.hashed_files, ended.hashed_bytes, ended.errors_total, ended.other) == (3, 20, 4, 8)
    assert (ended.shards, ended.attempts, ended.directories_unchanged, ended.peak_memory_bytes) == (3, 2, 2, 500)
    assert ended.started_at <= ended.finished_at


def add_change(engine, tenant_id, fence, n, kind):
    row = {"directory_id": 1, "name": b"%d" % n, "path": b"%d" % n, "type": "file"}
    old = b"old" if kind == "moved" else None
    with writing(engine) as connection:
        connection.execute(
            insert(changes_table).values(tenant_id=tenant_id, fence=fence, n=n, kind=kind, old_path=old, **row)
        )


def test_an_empty_scan_publishes_zeros(engine, tenant):
    ended = end_scan(engine, start_scan(engine, tenant, shard_count=0))

    assert (ended.directories, ended.files, ended.bytes, ended.added, ended.unchanged) == (0, 0, 0, 0, 0)
    assert (ended.shards, ended.attempts) == (1, 0)


def test_only_a_running_scan_is_published(engine, tenant):
    scan = start_scan(engine, tenant)
    ended = end_scan(engine, scan, ScanState.PARTIAL)

    assert end_scan(engine, scan, ScanState.SUCCEEDED) == ended


def test_a_tenants_scans_are_listed_newest_first(engine, tenant):
    scan_ids = []
    for _ in range(3):
        scan = start_scan(engine, tenant)
        scan_ids.append(end_scan(engine, scan).id)
    request(engine, add_tenant(engine, "other"))

    with reading(engine) as connection:
        assert [scan.id for scan in scans.of_tenant(connection, tenant.id, 2)] == scan_ids[:0:-1]
        assert len(scans.in_state(connection, ScanState.SUCCEEDED)) == 3
        assert len(scans.in_state(connection, ScanState.QUEUED)) == 1
        assert scans.running_of(connection, tenant.id) is None
        assert scans.running_of(connection, tenant.id) is None


def test_where_a_mount_came_or_went_is_found_among_the_notes(engine, tenant):
    scan = start_scan(engine, tenant)
    for operation, found in (("open", None), (scan_notes.SKIP, None), (scan_notes.MOUNT, b"m\xff")):
        with writing(engine) as connection:
            changes.write_errors(
                connection, [(scan.id, scan_notes.error_key(b"m\xff", operation), b"m\xff", operation, "x")]
            )
            assert scan_notes.mount_of(connection, scan.id) == found


def test_errors_of_a_scan_are_kept_once_each(engine, tenant):
    scan = start_scan(engine, tenant)
    lease = claimed(engine, scan)
    with writing(engine) as connection:
        shards.flush(connection, lease, 60, errors_total=2)
        noted = [(scan.id, bytes([i]) * 16, path, "open", "denied") for i, path in enumerate((b"b", b"a\xff"))]
        changes.write_errors(connection, noted)
        changes.write_errors(connection, noted)
    complete(engine, lease)

    with reading(engine) as connection:
        assert scan_notes.errors_of(connection, scan.id, 10) == [(b"a\xff", "open", "denied"), (b"b", "open", "denied")]
        assert len(scan_notes.errors_of(connection, scan.id, 1)) == 1
        assert shards.any_errors(connection, scan.id)
    assert len(rows(engine, scan_errors)) == 2


# What the database itself refuses


def insert_scan(engine, tenant, **values):
    row = {
        "id": new_scan_id(),
        "tenant_id": tenant.id,
        "trigger": "request",
        "state": "queued",
        "requested_at": clock(),
    }
    with writing(engine) as connection:
        connection.execute(insert(scans_table).values(**row | values))


RUNNING = {"state": "running", "fence": 7, "started_at": clock(), "strategy": Strategy.INCREMENTAL}


def test_two_queued_or_two_running_scans_of_a_tenant_are_refused(engine, tenant):
    insert_scan(engine, tenant)
    insert_scan(engine, tenant, **RUNNING)
    insert_scan(engine, add_tenant(engine, "other"))

    with pytest.raises(Exception, match=r"(?i)unique"):
        insert_scan(engine, tenant)
    with pytest.raises(Exception, match=r"(?i)unique"):
        insert_scan(engine, tenant, **RUNNING | {"fence": 8})
    insert_scan(engine, tenant, state="failed", finished_at=clock())
    insert_scan(engine, tenant, state="failed", finished_at=clock())


@pytest.mark.parametrize(
    "impossible",
    [
        {"state": "resting"},
        {"state": "running"},
        RUNNING | {"fence": None},
        RUNNING | {"started_at": None},
        RUNNING | {"finished_at": clock()},
        {"state": "queued", "finished_at": clock()},
        {"trigger": "whim"},
        {"strategy": "guess"},
        {"verdict": "perhaps"},
        {"ending": "succeeded"},
        {"tenant_id": 999},
        *({"state": state} for state in ENDED),
    ],
    ids=" ".join,
)
def test_an_impossible_scan_is_refused(engine, tenant, impossible):
    with pytest.raises(Exception, match=r"(?i)constraint"):
        insert_scan(engine, tenant, **impossible)


def test_a_fence_is_used_once(engine, tenant):
    insert_scan(engine, tenant, **RUNNING)
    with writing(engine) as connection:
        connection.execute(update(scans_table).values(state="failed", finished_at=clock()))

    with pytest.raises(Exception, match=r"(?i)unique"):
        insert_scan(engine, tenant, **RUNNING)
