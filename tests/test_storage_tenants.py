"""Tenants and the clock: no root within another, no tenant taken twice at once, and removal that leaves nothing."""

import functools
import threading
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import event, insert, select, update

from db import changes, idempotency, quarantine, removals, scans, shards, tenants, tree, webhooks
from db import clock as clocks
from db.clock import clock
from db.engine import reading, write, writing
from db.tables import metadata
from db.tables import tenants as tenants_table
from db.types import UsageError
from orchestrator import removal
from tests.storage import (
    LEASE_S,
    ONLY_POSTGRES,
    add_tenant,
    at_once,
    claimed,
    directory,
    file,
    rows,
    start_scan,
    tree_rows,
    waits_for_a_lock,
    write_tree,
)
from tests.waiting import wait_until

# Names and roots


@pytest.mark.parametrize("name", ["a", "A9", "_", "9", "a.b-c_d", "x" * 100, "0.", "a-"])
def test_a_name_of_allowed_characters_is_allowed(engine, name):
    assert add_tenant(engine, name, root=b"/srv/x").name == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".a", "-a", "a b", "a/b", "a\n", "\n", "é", "a\0", "x" * 101, "a%", "a:b", "а", "a\udcff"]
)
def test_any_other_name_is_refused_with_what_is_allowed(engine, name):
    with pytest.raises(UsageError, match="use 1 to 100 letters, digits"):
        add_tenant(engine, name, root=b"/srv/x")


@pytest.mark.parametrize(
    "values", [{"tier": "gold"}, {"algorithm": "md5"}, {"interval_s": 0}, {"interval_s": -1}, {"interval_s": 10**9}]
)
def test_a_bad_value_is_refused_when_a_tenant_is_added_or_changed(engine, values):
    with pytest.raises(UsageError):
        add_tenant(engine, "bad", **values)

    tenant = add_tenant(engine)
    with pytest.raises(UsageError), writing(engine) as connection:
        tenants.change(connection, tenant.id, **values)
    assert [row["name"] for row in rows(engine, tenants_table)] == ["acme"]


def test_a_name_that_is_taken_is_refused(engine):
    add_tenant(engine, root=b"/one")

    with pytest.raises(UsageError, match="'acme' exists already"):
        add_tenant(engine, root=b"/two")


@pytest.mark.parametrize(
    "root, how",
    [
        (b"/srv/a", "is the root"),
        (b"/srv/a/b", "is inside the root"),
        (b"/srv/a/b/\xff", "is inside the root"),
        (b"/srv", "contains the root"),
        (b"/", "contains the root"),
    ],
)
def test_a_root_that_overlaps_another_is_refused_both_ways(engine, root, how):
    add_tenant(engine, root=b"/srv/a")

    with pytest.raises(UsageError, match=f"{how} of tenant 'acme'"):
        add_tenant(engine, "other", root=root)


def test_a_root_below_the_whole_machine_is_refused_where_that_is_a_tenant(engine):
    add_tenant(engine, root=b"/")

    with pytest.raises(UsageError, match="is inside the root of tenant 'acme'"):
        add_tenant(engine, "other", root=b"/srv")


@pytest.mark.parametrize("root", [b"/srv/ab", b"/srv/a.b", b"/srv/A", b"/sr", b"/srv/a\xff", b"/srv/b"])
def test_a_root_beside_another_is_allowed(engine, root):
    add_tenant(engine, root=b"/srv/a")

    assert add_tenant(engine, "other", root=root).root == root


def test_of_overlapping_roots_added_at_once_only_one_is_taken(engine):
    for turn in range(10):
        roots = [b"/srv/%d" % turn, b"/srv/%d/inner" % turn, b"/srv/%d/inner/most" % turn]
        added = at_once(
            *(functools.partial(add_tenant, engine, f"t{turn}.{i}", root=root) for i, root in enumerate(roots))
        )

        assert [isinstance(one, UsageError) for one in added].count(False) == 1, added


def test_who_is_due_is_found_by_an_index_whatever_else_there_is(engine):
    with writing(engine) as connection:
        now = clocks.now(connection)
        connection.execute(
            insert(tenants_table).values(tier="standard", interval_s=1, algorithm="sha256", created_at=now),
            [
                {"name": f"t{n}", "root": b"/%d" % n, "next_scan_at": now + timedelta(seconds=n - 9)}
                for n in range(2000)
            ],
        )
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("ANALYZE")
    plans = []

    @event.listens_for(engine, "before_cursor_execute", retval=True)
    def explain(connection, cursor, statement, parameters, *_):
        if "next_scan_at" in statement:
            how = "EXPLAIN " if engine.dialect.name == "postgresql" else "EXPLAIN QUERY PLAN "
            plans.append(str(cursor.execute(how + statement, parameters).fetchall()))
        return statement, parameters

    with reading(engine) as connection:
        found = tenants.due(connection, now, 100)

    assert len(found) == 10 and found == sorted(found)
    assert len(plans) == 2 and all("ix_tenants_due" in plan for plan in plans), plans


def test_tenants_are_found_by_name_id_and_root(engine):
    first, second = add_tenant(engine, "b"), add_tenant(engine, "a", root=b"/\xff")

    with reading(engine) as connection:
        assert tenants.list_all(connection) == [second, first]
        assert tenants.get(connection, "a") == tenants.by_id(connection, second.id) == second
        assert tenants.by_root(connection, b"/\xff") == second
        assert tenants.by_name(connection, "A") is tenants.by_id(connection, 99) is None
        with pytest.raises(UsageError, match="there is no tenant 'c'"):
            tenants.get(connection, "c")


def test_the_watermark_never_moves_backwards(engine):
    tenant = add_tenant(engine)
    started = datetime(2026, 1, 1, tzinfo=UTC)

    for fence, count in ((3, 30), (2, 20), (3, 31), (4, 40)):
        with writing(engine) as connection:
            tenants.move_watermark(connection, tenant.id, fence=fence, started_at=started, files=count)
            found = tenants.get(connection, "acme")
            assert (found.watermark_fence, found.watermark_files) == ((3, 30) if fence < 4 else (4, 40))
    assert found.watermark_started_at == started


# The schedule


def set_next(engine, tenant, when):
    with writing(engine) as connection:
        connection.execute(update(tenants_table).where(tenants_table.c.id == tenant.id).values(next_scan_at=when))


def due(engine, limit=100):
    with writing(engine) as connection:
        found = tenants.due(connection, clocks.now(connection), limit)
        return [tenants.by_id(connection, tenant_id).name for tenant_id in found]


def test_due_are_enabled_tenants_whose_time_has_come(engine):
    past, long_past, future, paused = (add_tenant(engine, name) for name in ("past", "long", "future", "paused"))
    for tenant, when in ((past, -10), (long_past, -1000), (future, 60), (paused, -10)):
        set_next(engine, tenant, clock(when))
    with writing(engine) as connection:
        tenants.change(connection, paused.id, enabled=False)

    assert due(engine) == ["long", "past"]
    assert due(engine, 1) == ["long"]


def test_a_tenant_that_never_had_a_time_is_due(engine):
    add_tenant(engine)

    assert due(engine) == ["acme"]


def test_who_is_due_no_more_is_not_taken(engine):
    ids = {name: add_tenant(engine, name).id for name in "abcd"}
    with writing(engine) as connection:
        looked_at = tenants.due(connection, clocks.now(connection), 3)
        tenants.change(connection, ids["a"], next_scan_at=clock(60))
        tenants.change(connection, ids["b"], enabled=False)

        assert [tenant.name for tenant in tenants.lock_due(connection, looked_at, clocks.now(connection))] == ["c"]


@ONLY_POSTGRES
def test_two_ticks_at_once_take_different_tenants(engine):
    ids = [add_tenant(engine, name).id for name in "abc"]

    with writing(engine) as one, writing(engine) as other:
        first = [tenant.name for tenant in tenants.lock_due(one, ids[:2], clocks.now(one))]
        second = [tenant.name for tenant in tenants.lock_due(other, ids, clocks.now(one))]

    assert (first, second) == (["a", "b"], ["c"])


# Removal


def fill(engine, tenant):
    scan = start_scan(engine, tenant)
    write_tree(engine, new_directories=[directory(tenant.id, 1, b"", None)], files=[file(tenant.id, 1, b"f")])
    with writing(engine) as connection:
        row = (tenant.id, scan.fence, 1, 1, b"f", "added", b"f", "file", 1, None, None, None, None)
        changes.write(connection, [row])
        changes.write_errors(connection, [(scan.id, b"mark", b"p", "open", "denied")])
        vanished = metadata.tables["vanished"]
        connection.execute(vanished.insert().values(scan_id=scan.id, directory_id=1))
        losses = metadata.tables["losses"]
        loss = {"key": b"", "inode": 1, "gone": True, "directory_id": 1, "name": b"f", "counted": True}
        connection.execute(losses.insert().values(scan_id=scan.id, **loss))
        idempotency.keep(connection, "x", tenant.name, idempotency.Answered(tenant.id, scan.id, b"f", True))
        quarantine.add(connection, tenant.id, b"p", "it died", fence=1, for_s=None)
        webhooks.put(connection, tenant.id, webhooks.Webhook("https://x/", "whsec_"))
        webhooks.scan_ended(connection, tenant.id, scan.id)
        ranges = metadata.tables["directory_ranges"]
        connection.execute(ranges.insert().values(tenant_id=tenant.id, directory_id=1, number=0))
    return scan


def everything(engine):
    return {
        name: rows(engine, table)
        for name, table in metadata.tables.items()
        # What is of no tenant, and who removed it, which is still told.
        if name not in ("id_blocks", "compatibility", "removals", "tallies", "audit")
    }


def test_removing_a_tenant_forgets_everything_of_it_and_nothing_of_another(engine):
    fill(engine, add_tenant(engine, "other"))
    before = everything(engine)
    assert all(before.values()), "each table is filled, else this test proves nothing"
    tenant = add_tenant(engine)
    fill(engine, tenant)

    with writing(engine) as connection:
        tenants.remove(connection, tenant.id)
    removal.finish(engine, tenant.id)

    assert everything(engine) == before
    assert rows(engine, metadata.tables["removals"]) == []


def test_what_a_removed_tenant_leaves_is_deleted_in_batches_by_whoever_comes_by(engine, monkeypatch):
    monkeypatch.setitem(removals.ROWS_AT_ONCE, engine.dialect.name, 10)
    tenant, other = add_tenant(engine), add_tenant(engine, "other")
    for one in (tenant, other):
        write_tree(
            engine,
            new_directories=tree_rows(one.id, [b"%d" % n for n in range(12)]),
            files=[file(one.id, directory, b"%d" % n) for directory in (1, 2, 3) for n in range(7)],
        )
    with writing(engine) as connection:
        tenants.remove(connection, tenant.id)
        assert tenants.by_id(connection, tenant.id) is None

    batches = []
    while batch := write(engine, removals.delete_some):
        batches.append((batch.tenant_id, batch.rows, batch.over))

    # 21 files, 13 directories
    assert batches == [(tenant.id, rows, rows == 0) for rows in (10, 10, 1, 10, 3, 0)]
    left = everything(engine)
    assert (len(left["files"]), len(left["directories"]), len(left["tenants"])) == (21, 13, 1)


def test_a_removal_that_was_cut_off_is_ended_by_the_tick(engine, monkeypatch):
    tenant = add_tenant(engine)
    fill(engine, tenant)
    with writing(engine) as connection:
        tenants.remove(connection, tenant.id)

    assert removal.go_on(engine) > 0

    assert not any(everything(engine).values())


def test_a_new_tenant_never_finds_what_a_removed_one_left(engine):
    tenant = add_tenant(engine)
    fill(engine, tenant)
    with writing(engine) as connection:
        tenants.remove(connection, tenant.id)

    assert add_tenant(engine).id != tenant.id


@ONLY_POSTGRES
def test_two_who_delete_at_once_do_not_wait_for_one_another(engine):
    for name in "ab":
        tenant = add_tenant(engine, name)
        fill(engine, tenant)
        with writing(engine) as connection:
            tenants.remove(connection, tenant.id)

    with writing(engine) as one, writing(engine) as other:
        first, second = removals.delete_some(one), removals.delete_some(other)

    assert first.tenant_id != second.tenant_id


@ONLY_POSTGRES
def test_what_a_worker_is_writing_while_its_tenant_is_removed_is_removed_too(engine):
    tenant = add_tenant(engine)
    lease = claimed(engine, fill(engine, tenant))

    def remove():
        with writing(engine) as connection:
            tenants.remove(connection, tenant.id)

    removing = threading.Thread(target=remove)
    with writing(engine) as connection:
        shards.flush(connection, lease, LEASE_S)
        removing.start()
        wait_until(lambda: waits_for_a_lock(engine), 30, "the removal waits for the flush")
        tree.write(connection, tree.TreeBatch(files=[file(tenant.id, 1, b"late")]))
    removing.join(30)
    removal.finish(engine, tenant.id)

    assert not any(everything(engine).values())


# The clock


@pytest.mark.parametrize(
    "instant",
    [
        datetime(2026, 2, 3, 4, 5, 6, 789012, tzinfo=UTC),
        datetime(1970, 1, 1, tzinfo=UTC),
        datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
        datetime(2262, 4, 11, 23, 47, 16, 854775, tzinfo=UTC),
        datetime(1, 1, 2, 0, 0, 0, 1, tzinfo=UTC),
        datetime(2026, 7, 1, 12, 0, 0, 1, tzinfo=UTC).astimezone(tz=None),
        None,
    ],
)
def test_an_instant_comes_back_to_the_microsecond_and_in_utc(engine, instant):
    tenant = add_tenant(engine)
    set_next(engine, tenant, instant)

    with reading(engine) as connection:
        found = tenants.get(connection, "acme").next_scan_at
    assert found == instant
    assert found is None or found.tzinfo is UTC


def test_the_clock_moves_within_a_transaction_and_is_near_the_hosts(engine):
    with reading(engine) as connection:
        now = functools.partial(connection.scalar, select(clock()))
        first = now()
        wait_until(lambda: now() > first, 10, "the clock moves")

        assert abs(first - datetime.now(UTC)) < timedelta(seconds=60)


@pytest.mark.parametrize("plus_s", [0.001, 1.5, 86400 * 400, -90])
def test_the_clock_can_be_asked_ahead_and_back(engine, plus_s):
    with reading(engine) as connection:
        now, then = connection.execute(select(clock(), clock(plus_s))).one()

    assert abs((then - now).total_seconds() - plus_s) < 1


def test_instants_of_the_database_and_of_the_program_are_one_time(engine):
    scan = start_scan(engine, add_tenant(engine))

    with reading(engine) as connection:
        found = scans.get(connection, scan.id)
        now = connection.scalar(select(clock()))
    assert now - timedelta(seconds=60) < found.requested_at <= found.started_at <= now
