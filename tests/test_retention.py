"""Old scans go with their changes, the newest of each tenant stays, and who reads meanwhile misses nothing unsaid."""

from datetime import timedelta

import pytest
from sqlalchemy import select, update

from db import changes, clock, removals, retention, scans
from db.changes import BEHIND, make_cursor
from db.engine import reading, write, writing
from db.tables import changes as changes_table
from db.tables import scans as scans_table
from db.tables import shards as shards_table
from db.tables import tenants as tenants_table
from db.types import CursorLost, ScanState, Trigger
from orchestrator import removal
from tests.storage import DIGEST, ONLY_POSTGRES, add_tenant, end_scan, rows, start_scan

DAY = timedelta(days=1)
ALL = -1.0  # what ended before tomorrow is too old


@pytest.fixture
def tenant(engine):
    return add_tenant(engine)


def scanned(engine, tenant, changed=0, state=ScanState.SUCCEEDED):
    scan = start_scan(engine, tenant)
    made = [
        (tenant.id, scan.fence, (1 << 32) + n, 1, b"%d" % n, "modified", b"d/%d" % n, "file", 1, DIGEST, "sha256")
        for n in range(changed)
    ]
    with writing(engine) as connection:
        changes.write(connection, [(*row, None, None) for row in made])
    return end_scan(engine, scan, state)


def cursor(scan):
    return make_cursor(scan.fence, BEHIND, scan.id)


def told(engine, tenant, since=None):
    with reading(engine) as connection:
        return [(one.fence, one.path) for one in changes.after(connection, tenant.id, since, 1000)]


def kept(engine):
    return {row["id"] for row in rows(engine, scans_table)}


def test_what_is_older_goes_and_the_rest_stays_as_it_is(engine, tenant, monkeypatch):
    old = [scanned(engine, tenant, 3) for _ in range(3)]
    with reading(engine) as connection:
        at = clock.now(connection)
    new = [scanned(engine, tenant, changed) for changed in (2, 0, 1)]
    monkeypatch.setattr(retention, "now", lambda _: at + DAY)

    assert removal.prune(engine, 1.0) == 9 + 3
    assert removal.prune(engine, 1.0) == 0

    assert kept(engine) == {scan.id for scan in new}
    assert {row["scan_id"] for row in rows(engine, shards_table)} == kept(engine)
    for lost in (None, cursor(old[0]), make_cursor(3, 1 << 32, old[2].id), cursor(old[2])):
        with pytest.raises(CursorLost, match="no longer kept; begin again with `files`"):
            told(engine, tenant, lost)
    assert told(engine, tenant, cursor(new[0])) == [(6, b"d/0")]


def test_the_newest_ended_scan_of_a_tenant_stays_and_so_does_the_cursor_where_the_feed_ends(engine, tenant):
    other = add_tenant(engine, "other")
    ended = [scanned(engine, one, 2) for one in (tenant, tenant, other)]
    running = start_scan(engine, tenant)

    removal.prune(engine, ALL)

    assert kept(engine) == {ended[1].id, ended[2].id, running.id}
    for one, last in ((tenant, ended[1]), (other, ended[2])):
        with reading(engine) as connection:
            assert changes.end_cursor(connection, one.id) == cursor(last)
            assert changes.page(connection, one.id, cursor(last), 10) == changes.Page([], cursor(last), False)
    assert told(engine, other) == [(1, b"d/0"), (1, b"d/1")], "nothing of it is missing"


def test_scans_that_take_many_rows_along_go_one_by_one(engine, tenant, monkeypatch):
    monkeypatch.setitem(removals.ROWS_AT_ONCE, engine.dialect.name, 5)
    for _ in range(4):
        end_scan(engine, start_scan(engine, tenant, shard_count=6))
    with writing(engine) as connection:
        connection.execute(update(scans_table).values(shards=7))

    assert [write(engine, retention.prune_some, ALL) for _ in range(4)] == [1, 1, 1, 0]
    assert len(rows(engine, shards_table)) == 7


def test_a_scan_that_was_never_started_goes_too(engine, tenant):
    last = scanned(engine, tenant)
    with writing(engine) as connection:
        queued, _ = scans.request(connection, tenant.id, trigger=Trigger.REQUEST)
        scans.cancel_queued(connection, queued.id)

    removal.prune(engine, ALL)

    assert kept(engine) == {last.id}
    assert rows(engine, tenants_table)[0]["pruned_fence"] == 0


def test_between_two_batches_a_reader_is_given_all_or_told_that_something_is_gone(engine, tenant, monkeypatch):
    monkeypatch.setitem(removals.ROWS_AT_ONCE, engine.dialect.name, 4)
    monkeypatch.setattr(retention, "SCANS_AT_ONCE", 2)
    ended = [scanned(engine, tenant, changed) for changed in (3, 6, 0, 9, 1, 2)]
    places = [None, *map(cursor, ended)]
    whole = {place: told(engine, tenant, place) for place in places}

    batches = lost = 0
    while deleted := write(engine, retention.prune_some, ALL):
        assert deleted <= 4 + 2
        batches += 1
        before, lost = lost, 0
        for place in places:
            try:
                assert told(engine, tenant, place) == whole[place]
            except CursorLost:
                lost += 1
        assert lost >= before, "what is gone does not come back"

    assert batches > 5 and lost == len(places) - 1
    with reading(engine) as connection:
        assert len(connection.execute(select(changes_table)).all()) == 2


@ONLY_POSTGRES
def test_who_reads_while_it_is_pruned_is_told(engine, tenant, monkeypatch):
    ended = [scanned(engine, tenant, 2) for _ in range(3)]
    real = scans.last_visible_fence

    def meanwhile(connection, tenant_id):
        visible = real(connection, tenant_id)
        assert removal.prune(engine, ALL)
        return visible

    monkeypatch.setattr(scans, "last_visible_fence", meanwhile)
    with pytest.raises(CursorLost, match="no longer kept"):
        told(engine, tenant, cursor(ended[0]))


def test_who_goes_on_asking_stands_behind_the_newest_scan_though_nothing_changes(engine, tenant):
    first = scanned(engine, tenant, 2)
    with reading(engine) as connection:
        part = changes.page(connection, tenant.id, None, 1)
        assert part.more and part.behind == part.changes[-1].cursor
    quiet = scanned(engine, tenant)
    start_scan(engine, tenant)

    with reading(engine) as connection:
        page = changes.page(connection, tenant.id, cursor(first), 10)

    assert page == changes.Page([], cursor(quiet), False)
    removal.prune(engine, ALL)
    assert told(engine, tenant, page.behind) == []
