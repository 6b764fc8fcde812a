"""`strandline doctor`: what is well is said to be, and what is not is named, without waiting for what hangs."""

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import Engine

from db.types import UsageError
from orchestrator import doctor
from orchestrator.cli import group
from orchestrator.doctor import Finding, examine
from tasks.settings import Settings, load
from tests.command import Command
from tests.storage import SQLITE_AND_NEWEST, add_tenant


def found(settings: Settings, database_url: str = "", redis_url: str | None = None) -> dict[str, list[str]]:
    """By check, how each finding begins."""
    by_check: dict[str, list[str]] = {}
    for one in examine(settings, database_url, redis_url):
        by_check.setdefault(one.check, []).append(f"{one.state}: {one.detail}")
    return by_check


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    root = tmp_path / "root"
    root.mkdir()
    yield root


@SQLITE_AND_NEWEST
def test_a_cluster_that_is_well(engine: Engine, migrated_url: str, own_redis: Any, folder: Path) -> None:
    add_tenant(engine, "notes", root=os.fsencode(folder))
    with own_redis() as broker:
        told = found(load({}), migrated_url, broker.url)
    assert {one.partition(":")[0] for all_ in told.values() for one in all_} == {"ok"}, told
    assert "schema" in told["database"][0] and "keeps what it is given" in told["redis"][0]
    assert told["roots"] == ["ok: 1 of 1 can be read by this user on this machine"] and len(told["clock"]) == 2


@SQLITE_AND_NEWEST
def test_roots_that_cannot_be_read_are_named_and_one_that_hangs_is_not_waited_for(
    engine: Engine, migrated_url: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("well", "hangs"):
        (folder / name).mkdir()
    for name in ("well", "hangs", "gone"):
        add_tenant(engine, name, root=os.fsencode(folder / name))
    released, looked = threading.Event(), doctor.checked_root

    def look(root: bytes, settings: Settings) -> bytes:
        if root.endswith(b"hangs"):
            released.wait()
        return looked(root, settings)

    monkeypatch.setattr(doctor, "checked_root", look)
    monkeypatch.setattr(doctor, "ROOTS_WITHIN_S", 1.0)
    try:
        told = found(load({}), migrated_url)["roots"]
    finally:
        released.set()
    assert len(told) == 3 and "1 of 3" in told[2]
    assert told[0].startswith("failed: gone: ") and told[1].startswith("failed: hangs: ") and "hangs" in told[1]


def test_servers_that_are_away_or_not_fit_are_told(tmp_path: Path, own_redis: Any) -> None:
    nowhere = f"postgresql+psycopg://somebody:hunter22@/nothing?host={tmp_path}"
    with own_redis("--maxmemory-policy", "allkeys-lru") as evicting:
        told = found(load({}), nowhere, evicting.url)
    assert told["database"][0].startswith("failed: ") and "hunter22" not in told["database"][0]
    assert told["redis"][0].startswith("failed: ") and "allkeys-lru" in told["redis"][0]
    assert found(load({}), nowhere, evicting.url)["redis"][0].startswith("failed: ")  # it has ended


def test_clocks_that_differ_are_told() -> None:
    assert doctor._skew("database", 100.0, 99.0, 101.0).state == "ok"
    for moment in (90.0, 110.0):
        finding = doctor._skew("database", moment, 99.0, 101.0)
        assert finding.state == "warning" and "9.0 s" in finding.detail and "NTP" in finding.detail


def test_settings_that_cannot_be_met_are_told(tmp_path: Path) -> None:
    told = found(load({"STRANDLINE_ROOTS": f"{tmp_path}:/no/such/folder", "STRANDLINE_MEMORY_GOVERNOR": "off"}))
    assert told["roots"][0] == "failed: STRANDLINE_ROOTS names /no/such/folder: that is no folder here"
    assert told["memory"][0].startswith("warning: ") and "governor is off" in told["memory"][0]
    with pytest.raises(UsageError, match="STRANDLINE_MEMORY_GOVERNOR"):
        load({"STRANDLINE_MEMORY_GOVERNOR": "perhaps"})


def test_a_folder_of_roots_that_hangs_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()
    monkeypatch.setattr(doctor.os.path, "isdir", lambda path: released.wait() if path == "/hangs" else True)
    monkeypatch.setattr(doctor, "ROOTS_WITHIN_S", 1.0)
    try:
        told = found(load({"STRANDLINE_ROOTS": f"{tmp_path}:/hangs"}))["roots"]
    finally:
        released.set()
    assert len(told) == 2 and told[0].startswith("failed: STRANDLINE_ROOTS names /hangs: ") and "hangs" in told[0]


def test_the_command_ends_with_1_where_something_failed_and_makes_nothing(tmp_path: Path) -> None:
    state = tmp_path / "state"
    done = CliRunner().invoke(group, ["doctor", "--state", str(state), "--json"])
    assert done.exit_code == 0 and not state.exists()
    lines = [Finding(**json.loads(line)) for line in done.stdout.splitlines()]
    assert [one.check for one in lines] == ["python", "database", "redis", "roots", "memory"]
    wrong = CliRunner(env={"STRANDLINE_ROOTS": "/no/such/folder"}).invoke(group, ["doctor", "--state", str(state)])
    assert wrong.exit_code == 1 and "failed   roots" in wrong.stdout


def test_beside_an_embedded_stack_of_one_scan(tmp_path: Path, folder: Path) -> None:
    (folder / "note.md").write_text("text")
    command = Command(tmp_path / "state")
    command.scan(os.fsencode(folder))
    done = command.run("doctor")
    assert done.returncode == 0 and "sqlite" in done.stdout and "1 of 1 can be read" in done.stdout, done
