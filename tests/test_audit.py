"""The log of who changed or asked for what, and the keys under which asking again gives the same: kept for a time."""

import os
from pathlib import Path

import pytest
from sqlalchemy import update

from db import audit, idempotency
from db.clock import clock
from db.engine import reading, write, writing
from db.idempotency import Answered
from db.tables import audit as audit_table
from db.tables import idempotency as idempotency_table
from orchestrator import asking
from tests.command import Command
from tests.storage import add_tenant, rows, start_scan


def test_a_command_is_logged_with_what_it_was_given(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    command = Command(tmp_path / "state", starts_nothing=True)
    for words in (["add", "notes", os.fspath(tmp_path / "root"), "--interval", "60"], ["pause", "notes"],
                  ["remove", "notes"]):  # fmt: skip
        assert command.run("tenant", *words).returncode == 0

    logged = command.json("audit", "notes")

    assert [(one["by"], one["action"], one["tenant"]) for one in logged] == [
        ("cli", "tenant remove", "notes"), ("cli", "tenant set", "notes"), ("cli", "tenant add", "notes")
    ]  # fmt: skip
    assert (logged[1]["enabled"], logged[2]["interval_s"], logged[2]["root"]) == (False, 60, str(tmp_path / "root"))
    assert command.run("audit", "--limit", "1").stdout.count("\n") == 1


def test_a_scan_of_some_paths_is_logged_as_such(engine) -> None:
    tenant = add_tenant(engine)
    for paths in ([], [b"a", b"b"]):
        write(engine, asking.ask, "x", asking.Asked(tenant, paths=paths))
    with reading(engine) as connection:
        some, whole = audit.newest(connection, 2)

    assert some.details["paths"] == 2 and "paths" not in whole.details


def test_old_rows_of_the_log_go_in_batches_and_so_do_those_that_are_too_many(
    engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "BATCH", 3)
    with writing(engine) as connection:
        for number in range(8):
            audit.note(connection, "x", "scan", "t", number=number)
        old = audit_table.c.id <= 5
        connection.execute(update(audit_table).where(old).values(at=clock(-2 * 86400)))

        assert [audit.prune(connection, 1.0) for _ in range(3)] == [3, 2, 0]
        monkeypatch.setattr(audit, "ROWS", 1)
        assert audit.prune(connection, 1.0) == 2
    assert [row["id"] for row in rows(engine, audit_table)] == [8]


def test_a_key_is_forgotten_after_a_day_and_may_then_be_used_again(engine) -> None:
    tenant = add_tenant(engine)
    scan = start_scan(engine, tenant)
    answered = Answered(tenant.id, scan.id, b"f", True)
    with writing(engine) as connection:
        assert idempotency.keep(connection, "x", "k", answered)
        assert not idempotency.keep(connection, "x", "k", answered), "somebody else was first"
        assert idempotency.keep(connection, "y", "k", answered), "another caller's key is another"
        assert idempotency.find(connection, "x", "k") == answered
        connection.execute(update(idempotency_table).values(at=clock(-idempotency.KEPT_S - 1)))

        assert idempotency.find(connection, "x", "k") is None
        assert idempotency.keep(connection, "x", "k", answered)
        assert idempotency.prune(connection) == 1
        assert idempotency.find(connection, "x", "k") == answered
