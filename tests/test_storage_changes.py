"""The feed: one change a path and fence, seen once the scan has ended, read from a cursor without skip or repeat."""

import base64
import random

import pytest
from sqlalchemy import event

from db import changes, scans
from db.changes import BEHIND, make_cursor
from db.engine import connect, reading, writing
from db.tables import changes as changes_table
from db.types import ENDED, CursorLost, ScanState, Trigger
from tests.storage import DIGEST, ONLY_POSTGRES, add_tenant, end_scan, remove_tenant, rows, start_scan


@pytest.fixture
def tenant(engine):
    return add_tenant(engine)


def write(engine, scan, *some, shard=1):
    """Changes as (number, name, kind)."""
    made = [
        (scan.tenant_id, scan.fence, (shard << 32) + n, 1, name, kind, b"d/" + name, "file", n, DIGEST, "sha256")
        for n, name, kind in some
    ]
    with writing(engine) as connection:
        changes.write(connection, [(*row, None, None) for row in made])


def after(engine, tenant, cursor=None, limit=1000):
    with reading(engine) as connection:
        return changes.after(connection, tenant.id, cursor, limit)


def end_cursor(engine, tenant):
    with reading(engine) as connection:
        return changes.end_cursor(connection, tenant.id)


def published(engine, tenant, *some):
    scan = start_scan(engine, tenant)
    write(engine, scan, *some)
    return end_scan(engine, scan)


# Folding


@pytest.mark.parametrize(
    "kinds, folded",
    [
        (["added"], "added"),
        (["added", "modified"], "added"),
        (["added", "modified", "modified"], "added"),
        (["modified", "modified"], "modified"),
        (["modified", "deleted"], "deleted"),
        (["added", "deleted"], "deleted"),
        (["added", "modified", "deleted"], "deleted"),
    ],
)
def test_changes_of_one_path_in_one_scan_become_one(engine, tenant, kinds, folded):
    scan = start_scan(engine, tenant)
    for n, kind in enumerate(kinds):
        write(engine, scan, (n, b"f", kind))

    (row,) = rows(engine, changes_table)
    assert (row["kind"], row["n"], row["size"]) == (folded, 1 << 32, len(kinds) - 1)


def test_nothing_is_folded_over_scans_directories_names_or_tenants(engine, tenant):
    other = add_tenant(engine, "other")
    for one in (tenant, other, tenant):
        published(engine, one, (0, b"f", "added"), (1, b"g", "added"))

    assert len(rows(engine, changes_table)) == 6


# Reading


def test_a_change_says_the_whole_new_state_and_which_scan_published_it(engine, tenant):
    scan = published(engine, tenant, (3, b"\xff", "modified"))

    (change,) = after(engine, tenant)

    assert change[:11] == (1, (1 << 32) + 3, "modified", b"d/\xff", None, "file", 3, DIGEST, "sha256", None, None)
    assert (change.scan, change.at) == (scan.id, scan.finished_at)


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 1000])
def test_pages_neither_skip_nor_repeat(engine, tenant, limit):
    expected = []
    for fence in range(1, 4):
        numbers = random.Random(fence).sample(range(1000), 7)
        scan = start_scan(engine, tenant)
        for shard in (2, 0, 1):
            write(engine, scan, *((n, b"%d.%d" % (shard, n), "added") for n in numbers), shard=shard)
        end_scan(engine, scan)
        expected += [(fence, (shard << 32) + n) for shard in range(3) for n in sorted(numbers)]
    published(engine, add_tenant(engine, "other"), (0, b"other", "added"))

    met, cursor = [], None
    while page := after(engine, tenant, cursor, limit):
        assert len(page) <= limit
        met += page
        cursor = page[-1].cursor

    assert [(change.fence, change.n) for change in met] == expected


def test_changes_are_invisible_while_their_scan_runs(engine, tenant):
    first = published(engine, tenant, (0, b"a", "added"))
    write(engine, start_scan(engine, tenant), (0, b"b", "added"))

    assert [change.path for change in after(engine, tenant)] == [b"d/a"]
    assert after(engine, tenant, end_cursor(engine, tenant)) == []
    assert end_cursor(engine, tenant) == make_cursor(1, BEHIND, first.id)


@pytest.mark.parametrize("state", ENDED)
def test_changes_are_visible_in_whatever_state_their_scan_ends(engine, tenant, state):
    scan = start_scan(engine, tenant)
    write(engine, scan, (0, b"a", "added"))
    end_scan(engine, scan, ScanState(state))

    assert [change.path for change in after(engine, tenant)] == [b"d/a"]


@ONLY_POSTGRES
def test_a_scan_that_starts_while_the_feed_is_read_stays_invisible(engine, migrated_url, tenant):
    """Were its first changes seen, the cursor would stand behind those that its finish numbers lower."""
    published(engine, tenant, (0, b"a", "added"))
    other, started = connect(migrated_url), []

    @event.listens_for(engine, "after_cursor_execute")
    def start_once_it_was_asked_what_runs(_connection, _cursor, statement, *_rest):
        if "scans.state" in statement and not started:
            started.append(start_scan(other, tenant))
            write(other, started[0], (0, b"too early", "added"))

    seen = after(engine, tenant)

    assert len(rows(engine, changes_table)) == 2
    assert [change.path for change in seen] == [b"d/a"]
    other.dispose()


# Cursors


def test_there_is_no_end_before_any_scan_and_then_it_is_behind_the_last_that_ended(engine, tenant):
    assert end_cursor(engine, tenant) is None
    with writing(engine) as connection:
        scans.request(connection, tenant.id, trigger=Trigger.REQUEST)
    assert end_cursor(engine, tenant) is None

    scan = start_scan(engine, tenant)
    assert end_cursor(engine, tenant) is None

    end_scan(engine, scan)
    assert after(engine, tenant, end_cursor(engine, tenant)) == []


def test_behind_a_fence_comes_the_next_fence_only(engine, tenant):
    published(engine, tenant, (0, b"a", "added"), (2**32 - 1, b"z", "added"))
    behind = end_cursor(engine, tenant)
    published(engine, tenant)
    published(engine, tenant, (0, b"b", "added"))

    assert [change.path for change in after(engine, tenant, behind)] == [b"d/b"]


def encoded(text):
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "nonsense",
        "é",
        "\udcff",
        "a" * 10_000,
        encoded("1.2"),
        encoded("1.2.3.4"),
        encoded("one.two.three"),
        encoded("0.0."),
        encoded("-1.0.x"),
        encoded("99999999999999999999.0.x"),
        encoded("1." + "9" * 5000 + ".x"),
    ],
)
def test_what_is_no_cursor_is_refused(engine, tenant, cursor):
    published(engine, tenant, (0, b"a", "added"))

    with pytest.raises(CursorLost):
        after(engine, tenant, cursor)


def test_a_cursor_whose_numbers_were_tampered_with_is_refused(engine, tenant):
    scan = published(engine, tenant, (0, b"a", "added"))
    mark = scan.id[-12:]

    for text in (f"1.{10**30}.{mark}", f"1.-5.{mark}", f"1.+5.{mark}", f" 1.5.{mark}", f"1.5_0.{mark}", f"١.5.{mark}"):
        with pytest.raises(CursorLost):
            after(engine, tenant, encoded(text))
    for cursor in (make_cursor(1, 5, scan.id) + "=", "*" + make_cursor(1, 5, scan.id)):
        with pytest.raises(CursorLost):
            after(engine, tenant, cursor)


def test_a_cursor_of_another_database_or_tenant_is_refused(engine, tenant):
    scan = published(engine, tenant, (0, b"a", "added"))
    other = add_tenant(engine, "other")
    foreign = published(engine, other, (0, b"a", "added"))

    for lost in (make_cursor(1, 0, foreign.id), make_cursor(2, 0, scan.id)):
        with pytest.raises(CursorLost, match="a state that the database no longer has"):
            after(engine, tenant, lost)
    assert len(after(engine, tenant, make_cursor(1, 0, scan.id))) == 1


def test_a_change_tells_where_to_read_on(engine, tenant):
    published(engine, tenant, (0, b"a", "added"), (1, b"b", "added"))

    first, second = after(engine, tenant)

    assert after(engine, tenant, first.cursor) == [second]
    assert after(engine, tenant, second.cursor) == []
    assert first.cursor.isascii() and "=" not in first.cursor


def test_the_feed_of_a_removed_tenant_is_gone(engine, tenant):
    published(engine, tenant, (0, b"a", "added"))
    remove_tenant(engine, tenant.id)

    assert rows(engine, changes_table) == []
