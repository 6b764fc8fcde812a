"""What ended scans came to is counted once each, whatever dies, and what the metrics ask stays cheap."""

from bisect import bisect_left
from collections import Counter, defaultdict
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, select, update

from db import figures, overview, scans, schema, tallies, tenants
from db.clock import clock
from db.engine import connect, reading, writing
from db.tables import TALLIED
from db.tables import scans as scans_table
from db.tables import tallies as tallies_table
from db.tables import tenants as tenants_table
from db.types import ENDED, ScanState, Trigger
from tests.storage import add_tenant, at_once, claimed, complete, end_scan, rows, set_shard, start_scan


def totals(engine: Engine) -> list[dict]:
    with reading(engine) as connection:
        return [dict(row._mapping) for row in tallies.totals(connection)]


def ended(engine: Engine, name: str, state: ScanState = ScanState.SUCCEEDED, tier: str = "standard"):
    """A scan of a new tenant that ended so, counted."""
    scan = start_scan(engine, add_tenant(engine, name, tier=tier))
    for number in (1, 0):
        complete(engine, claimed(engine, scan, number))
    set_shard(engine, scan.id, 1, files=7, directories=2, bytes=70, hashed_files=3)
    found = end_scan(engine, scan, state)
    with writing(engine) as connection:
        tallies.add(connection, found, tier)
    return found


@pytest.mark.parametrize(
    ("seconds", "number"), [(0, 0), (0.1, 0), (0.1001, 1), (5.0, 3), (14400, 9), (14400.1, 10), (1e9, 10)]
)
def test_a_bin_holds_what_took_no_longer_than_its_bound(seconds: float, number: int) -> None:
    assert tallies.bin_of(seconds) == number


def test_scans_are_counted_by_strategy_state_and_tier_with_what_they_came_to(engine):
    for name, state, tier in (
        ("a", ScanState.SUCCEEDED, "standard"), ("b", ScanState.SUCCEEDED, "standard"),
        ("c", ScanState.SUSPECT, "standard"), ("d", ScanState.SUCCEEDED, "priority"),
    ):  # fmt: skip
        ended(engine, name, state, tier)

    found: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    for row in totals(engine):  # one may have taken longer than another
        found[row["strategy"], row["state"], row["tier"]].update({name: int(row[name]) for name in tallies.SUMMED})

    assert {key: one["scans"] for key, one in found.items()} == {
        ("incremental", "succeeded", "standard"): 2, ("incremental", "suspect", "standard"): 1,
        ("incremental", "succeeded", "priority"): 1,
    }  # fmt: skip
    both = found["incremental", "succeeded", "standard"]
    assert (both["files"], both["directories"], both["bytes"], both["hashed_files"]) == (14, 4, 140, 6)
    assert (both["shards"], both["attempts"]) == (4, 4)


def test_scans_that_end_at_once_are_all_counted(engine):
    scan = ended(engine, "a")

    def add() -> None:
        with writing(engine) as connection:
            tallies.add(connection, scan, "standard")

    assert at_once(*[add] * 12) == [None] * 12
    assert sum(row["scans"] for row in totals(engine)) == 13


def test_a_queued_scan_that_is_cancelled_counts_as_one_that_never_started(engine):
    tenant = add_tenant(engine, tier="background")
    with writing(engine) as connection:
        queued, _ = scans.request(connection, tenant.id, trigger=Trigger.REQUEST)
        assert scans.cancel_queued(connection, queued.id) and not scans.cancel_queued(connection, queued.id)

    [row] = totals(engine)
    assert (row["strategy"], row["state"], row["tier"], row["scans"], row["took_ms"]) == (
        "", "cancelled", "background", 1, 0,
    )  # fmt: skip


def test_a_clock_that_was_set_back_takes_nothing_from_a_counter(engine):
    scan = ended(engine, "a")
    with writing(engine) as connection:
        connection.execute(update(scans_table).values(started_at=clock(5), requested_at=clock(10)))
        tallies.add(connection, scans.get(connection, scan.id), "standard")

    assert min(row[name] for row in totals(engine) for name in tallies.SUMMED) >= 0


def test_migrating_counts_the_scans_that_have_ended(database_url: str):
    engine = connect(database_url)
    schema.migrate(engine)
    for name, state in (("a", ScanState.SUCCEEDED), ("b", ScanState.SUSPECT), ("c", ScanState.SUCCEEDED)):
        scan = ended(engine, name, state)
        began = datetime(2026, 1, 1, tzinfo=UTC)
        with writing(engine) as connection:
            values = {"requested_at": began, "started_at": began + timedelta(seconds=2), "added": 5}
            took = timedelta(seconds=0.75 if name == "c" else 40)
            connection.execute(
                update(scans_table).where(scans_table.c.id == scan.id).values(
                    **values, finished_at=values["started_at"] + took
                )
            )  # fmt: skip
    start_scan(engine, add_tenant(engine, "runs"))
    with writing(engine) as connection:
        connection.execute(tallies_table.delete())
        for row in connection.execute(select(scans_table.c.id).where(scans_table.c.state.in_(ENDED))).all():
            tallies.add(connection, scans.get(connection, row.id), "standard")
    counted = totals(engine)

    config = Config()
    config.set_main_option("script_location", str(Path(schema.__file__).parent / "migrations"))
    for step in (command.downgrade, command.upgrade):
        with writing(engine) as connection:
            config.attributes["connection"] = connection
            step(config, "0004" if step is command.downgrade else "head")

    assert totals(engine) == counted and len(counted) == 3
    assert {(row["took"], row["waited"]) for row in counted} == {(2, 3), (5, 3)}
    engine.dispose()


def test_what_is_counted_of_a_scan_stands_in_its_row() -> None:
    assert set(TALLIED) <= set(scans_table.c.keys()) and set(TALLIED) <= set(tallies_table.c.keys())
    assert bisect_left(tallies.BOUNDS_S, 0) == 0 and list(tallies.BOUNDS_S) == sorted(tallies.BOUNDS_S)


# The cluster now


def read(engine: Engine, late: int = 0) -> figures.Figures:
    with reading(engine) as connection:
        return figures.read(connection, late)


def set_tenant(engine: Engine, tenant: tenants.Tenant, **values: object) -> None:
    with writing(engine) as connection:
        connection.execute(update(tenants_table).where(tenants_table.c.id == tenant.id).values(**values))


def test_of_a_cluster_without_tenants_there_is_nothing_to_tell(engine):
    found = read(engine, 5)

    assert found == (schema.HEAD, [], {}, [], {}, 0, [], [])


def test_the_tenants_of_each_tier_are_counted_and_the_oldest_index_told(engine):
    fresh, stale = add_tenant(engine, "fresh"), add_tenant(engine, "stale")
    paused, other = add_tenant(engine, "paused"), add_tenant(engine, "other", tier="priority")
    set_tenant(engine, fresh, watermark_started_at=clock(-10), watermark_fence=1, next_scan_at=clock(50))
    set_tenant(engine, stale, watermark_started_at=clock(-160), watermark_fence=1, next_scan_at=clock(-100))
    set_tenant(engine, paused, watermark_started_at=clock(-9999), enabled=False, next_scan_at=clock(-9999))
    set_tenant(engine, other, created_at=clock(-65))

    found = {one.tier: one for one in read(engine).tiers}

    standard, priority = found["standard"], found["priority"]
    assert (standard.enabled, standard.paused, standard.late) == (2, 1, 1)
    assert standard.lag_s == pytest.approx(100, abs=5) and standard.watermark_age_s == pytest.approx(160, abs=5)
    assert standard.overdue_s == pytest.approx(100, abs=5)
    assert (priority.enabled, priority.late, priority.watermark_age_s, priority.overdue_s) == (1, 1, 0, 0)
    assert priority.lag_s == pytest.approx(5, abs=4)
    with reading(engine) as connection:
        assert overview.counts(connection).late_total == standard.late + priority.late
    assert [one.tenant for one in read(engine, 1).late] == ["stale"]


def test_a_suspect_scan_is_told_until_a_complete_one_follows(engine):
    scan = ended(engine, "a", ScanState.SUSPECT)
    assert read(engine).suspect == {"standard": 1}

    with writing(engine) as connection:
        tenants.move_watermark(connection, scan.tenant_id, fence=scan.fence + 1, started_at=scan.started_at, files=1)

    assert read(engine).suspect == {}


def test_open_scans_and_shards_are_counted(engine):
    tenant = add_tenant(engine, "a")
    scan = start_scan(engine, tenant, 3)
    claimed(engine, scan, 2)
    with writing(engine) as connection:
        scans.request(connection, tenant.id, trigger=Trigger.REQUEST)
        connection.execute(update(scans_table).values(requested_at=clock(-30)))
    ended(engine, "b")

    found = read(engine)

    assert {(one.tier, one.state): one.scans for one in found.open} == {
        ("standard", "queued"): 1, ("standard", "running"): 1,
    }  # fmt: skip
    ages = {one.state: one.oldest_s for one in found.open}
    assert ages["queued"] == pytest.approx(30, abs=5) and ages["running"] < 5
    assert found.backlog == {("bulk", "ready"): 2, ("bulk", "leased"): 1}
    assert len(rows(engine, scans_table)) == 3
