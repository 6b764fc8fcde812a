"""What `top` shows on terminals of all sizes, and through outages of what it looks at."""

import datetime
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from sqlalchemy import Engine, update

from db import schema
from db.clock import clock
from db.engine import connect, writing
from db.overview import Counts, Late, counts, late
from db.progress import Running
from db.tables import tenants as tenants_table
from db.types import ScanState
from orchestrator.amounts import span
from orchestrator.cli.screen import Column, fitting, screen, shares
from orchestrator.progress import Progress
from orchestrator.watcher import NO_STACK, Look, Watcher
from orchestrator.workers import Worker
from tasks import settings as all_settings
from tests.command import Command
from tests.servers import PostgresServer
from tests.storage import add_tenant, claimed, end_scan, start_scan
from tests.waiting import wait_until

NOW = datetime.datetime(2026, 11, 22, 1, 2, 3, tzinfo=datetime.UTC)


def look(rows: int = 3, name: str = "tenant", **trouble: str) -> Look:
    seen = Progress(1234, 1234567, 1 << 40, 1000, 1 << 35, 120, 37, 8, 12, False, 12345.6, 9999999, 4321.0)
    running = [
        Running(f"{n}", f"{name}-{n}", "background", "schedule", "full_initial", NOW, 7265.0, None) for n in range(rows)
    ]
    behind = [Late(f"{name}-late-{n}", "standard", 3600, None if n else NOW, 90061.0) for n in range(rows)]
    return Look(
        at=NOW, counts=Counts(10000, 3, 20, 512, 40, 2, 5, {"waiting": 512, "ready": 6000, "leased": 8}),
        scans=[(one, seen) for one in running], late=behind,
        workers=[Worker(f"worker-{n}@host", 4, 4711, 3) for n in range(rows)], trouble=trouble,
    )  # fmt: skip


def lines(look: Look, width: int, height: int | None = None) -> list[str]:
    console = Console(width=width, color_system=None, highlight=False, markup=False)
    with console.capture() as text:
        console.print(screen(look, width, height))
    return text.get().splitlines()


# Laid out


@pytest.mark.parametrize("width", [9, 20, 40, 60, 80, 120, 200])
def test_nothing_is_wider_than_the_terminal_and_nothing_wraps(width: int) -> None:
    found = lines(look(name="a-name-that-is-very-much-longer-than-any-column-" * 2, database="it is away " * 30), width)
    assert max(map(len, found)) <= width
    # Header and trouble, then three sections: a blank line, titles, rows, and of two what is left out.
    assert len(found) == 5 + 1 + 3 * (2 + 3) + 2


def test_a_wide_terminal_shows_all_and_a_narrow_one_what_matters_most() -> None:
    wide, narrow = "\n".join(lines(look(), 200)), "\n".join(lines(look(), 60))
    for title in ("TIER", "STRATEGY", "AGE", "FILES", "FILES/S", "BYTES", "HASHED", "SHARDS", "LEFT", "LATE BY", "PID"):
        assert re.search(rf"\b{title}\b", wide), title
    assert re.search(r"tenant-0 +background +full_initial +2h 1m +1,234,567 +12,346 +1.0 TiB", wide)
    assert "37/120" in wide and "1h 12m" in wide and "never" in wide
    for title in ("RUNNING", "FILES", "SHARDS", "LATE BY", "PROCESSES"):
        assert title in narrow, title
    assert "STRATEGY" not in narrow and "1,234,567" in narrow


@pytest.mark.parametrize("height", [5, 10, 24, 50])
def test_a_low_terminal_loses_rows_and_says_how_many(height: int) -> None:
    found = lines(look(rows=40), 80, height)
    assert len(found) <= max(height, 5 + 3 * 3)
    if height >= 24:
        shown = [line for line in found if line.startswith("tenant-") and "late" not in line]
        assert f"… {512 - len(shown)} more" in found and shown


def test_what_others_named_cannot_speak_to_the_terminal() -> None:
    evil = look(rows=0, redis="\x1b[2Jgone\r\n[red]not markup[/red]")
    text = "\n".join(lines(Look(**{**_fields(evil), "workers": [Worker("w\x1b]0;x\x07", 1, 1, 1)]}), 120))
    assert "\x1b" not in text and "\x07" not in text and "[red]not markup" in text


def _fields(look: Look) -> dict[str, object]:
    return {name: getattr(look, name) for name in Look.__slots__}


def test_before_anything_has_answered_it_says_so() -> None:
    assert lines(Look(), 80) == ["strandline  no answer yet", "workers …"]
    assert Look().document()["tenants"] is None and Look().document()["workers"] is None


def test_a_database_that_hangs_is_told_of_before_it_is_an_error() -> None:
    console = Console(width=80, color_system=None)
    with console.capture() as text:
        console.print(screen(look(), 80, 24, silent_s=75))
    assert "has not answered for 1m 15s" in text.get().splitlines()[0]


@given(st.integers(-5, 200), st.lists(st.integers(0, 60), max_size=5))
def test_rows_are_shared_out_fairly(room: int, wanted: list[int]) -> None:
    given_ = shares(room, wanted)
    assert all(0 <= one <= want for one, want in zip(given_, wanted, strict=True))
    assert sum(given_) == min(max(room, 0), sum(wanted))
    short = [one for one, want in zip(given_, wanted, strict=True) if one < want]
    assert not short or max(given_) <= min(short) + 1


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 40)), min_size=1, max_size=9), st.integers(1, 120))
def test_columns_fit_and_the_first_always_stays(widths: list[tuple[int, int]], width: int) -> None:
    columns = [Column(f"{i}", rank, ["x" * cells]) for i, (rank, cells) in enumerate(widths)]
    kept = fitting(columns, width)
    assert kept[0][0] is columns[0] and kept[0][1] >= 1
    assert sum(cells for _, cells in kept) + 2 * (len(kept) - 1) <= width or len(kept) == 1
    left_out = [one.rank for one in columns[1:] if one not in [column for column, _ in kept]]
    assert not left_out or all(column.rank <= min(left_out) for column, _ in kept[1:])


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (0, "0s"), (59.4, "59s"), (59.6, "1m 0s"), (3599, "59m 59s"), (3600, "1h 0m"), (90061, "1d 1h")],
)
def test_times_are_told_in_two_units(seconds: float | None, text: str) -> None:
    assert span(seconds) == text


# What it is made of


def set_tenant(engine: Engine, name: str, **values: object) -> None:
    with writing(engine) as connection:
        connection.execute(update(tenants_table).where(tenants_table.c.name == name).values(values))


def test_who_is_late_is_told_by_its_interval_the_latest_first(engine: Engine) -> None:
    for name, values in {
        "fresh": {"watermark_started_at": clock(-50)},
        "late": {"watermark_started_at": clock(-100)},
        "slow": {"watermark_started_at": clock(-100), "interval_s": 1000},
        "never": {"created_at": clock(-3600)},
        "new": {},
        "paused": {"created_at": clock(-3600), "enabled": False},
    }.items():
        add_tenant(engine, name, interval_s=60)
        set_tenant(engine, name, **values) if values else None
    with writing(engine) as connection:
        found = late(connection, 10)
        assert [(one.tenant, round(one.late_s, -1)) for one in found] == [("never", 3540), ("late", 40)]
        assert counts(connection).late_total == 2
        assert found[0].watermark_started_at is None and len(late(connection, 1)) == 1


def test_everything_is_counted(engine: Engine) -> None:
    one, two = add_tenant(engine, "one"), add_tenant(engine, "two")
    set_tenant(engine, "two", enabled=False)
    end_scan(engine, start_scan(engine, one), ScanState.FAILED)  # its shards are of no interest any more
    claimed(engine, start_scan(engine, two, 3))
    with writing(engine) as connection:
        found = counts(connection)
    assert found[:7] == (2, 1, 0, 1, 0, 0, 0)
    assert (found.backlog["waiting"], found.backlog["leased"]) == (1, 1)


# Through outages


def watcher(engine: Engine, url: str | None, **settings: str) -> Watcher:
    return Watcher(all_settings.load({}, **settings), engine, lambda: url)


def test_a_database_that_is_away_is_told_and_what_it_said_stands(postgres_server: PostgresServer) -> None:
    with postgres_server.database() as url:
        engine = connect(url)
        schema.migrate(engine)
        add_tenant(engine)
        watching = watcher(engine, None)
        watching.look()
        assert watching.latest.counts.tenants == 1 and watching.latest.trouble == {"redis": NO_STACK}
        engine.dispose()
        name = engine.url.database
        postgres_server.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        watching.look()
        assert "database" in watching.latest.trouble and watching.latest.counts.tenants == 1
        assert any("cannot be used" in line for line in lines(watching.latest, 300))
        postgres_server.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
        watching.look()
        assert "database" not in watching.latest.trouble
        engine.dispose()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_redis_that_is_away_is_told_and_found_again(database_url: str, own_redis) -> None:
    engine = connect(database_url)
    schema.migrate(engine)
    start_scan(engine, add_tenant(engine))
    with own_redis() as server:
        watching = watcher(engine, server.url)
        watching.look()
        assert watching.latest.trouble == {}
        server.kill()
        watching.look()
        watching.ask_workers()
        assert set(watching.latest.trouble) == {"redis", "workers"} and len(watching.latest.scans) == 1
        server.start()
        watching.look()
        watching.ask_workers()
        assert watching.latest.trouble == {} and watching.latest.workers == []
        watching.begin(0.05)
        before = watching.latest.at
        wait_until(lambda: watching.latest.at > before, 10, "it looks again by itself")
        watching.end()
    engine.dispose()


def test_it_needs_a_state_and_not_a_stack(tmp_path: Path) -> None:
    command = Command(tmp_path / "state")
    done = command.run("top", "--once")
    assert done.returncode == 2 and "nothing was ever scanned" in done.stderr
    words: Sequence[str] = ("--every", "0")
    done = command.run("top", *words)
    assert done.returncode == 2 and "Traceback" not in done.stderr
