"""Removing a tenant with a million rows while it is being scanned. Only `make test-large` runs this."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from db import tables, tenants
from db.engine import reading
from tests import field as fields
from tests import invariants, trees
from tests.field import Field
from tests.trees import Dir
from tests.waiting import wait_until

pytestmark = [pytest.mark.large, pytest.mark.timeout(3600)]

FOLDERS, FILES = 5_000, 100  # each file has a row of its own and one in the feed
WITHIN_S = 60
LONG_S = 1800


@pytest.fixture
def field(postgres_url: str, own_redis, tmp_path: Path) -> Iterator[Field]:
    with own_redis() as broker, fields.running(tmp_path, postgres_url, broker, children=4) as field:
        yield field


def left(field: Field, tenant_id: int) -> int:
    """Rows that go by the id of a tenant."""
    known = [table.name for table in tables.metadata.sorted_tables if "tenant_id" in table.columns]
    counts = " + ".join(f"(SELECT count(*) FROM {name} WHERE tenant_id = :id)" for name in known)
    return int(field.rows(f"SELECT {counts} AS n", id=tenant_id)[0].n)


def test_a_tenant_with_a_million_rows_is_gone_within_a_minute_and_others_notice_nothing(field: Field) -> None:
    # given
    name, root = field.tenant(Dir())
    other, its_root = field.tenant()
    trees.make_many(root, FOLDERS, FILES)
    assert field.ended(field.ask(name), LONG_S)["added"] == FOLDERS * FILES
    with reading(field.engine) as connection:
        tenant_id = tenants.get(connection, name).id
    assert left(field, tenant_id) > 1_000_000
    alone = [field.scan(other)["duration_s"] for _ in range(5)]
    scan_id = field.ask(name, full=True)
    wait_until(lambda: [one.state for one in field.shards(scan_id)].count("done") > 2, LONG_S, "it is under way")

    # when
    began, took_s, beside = time.monotonic(), [0.0], []

    def remove() -> None:
        field.command("tenant", "remove", name)
        took_s[0] = time.monotonic() - began

    removing = threading.Thread(target=remove)
    removing.start()
    while removing.is_alive():
        beside.append(field.scan(other)["duration_s"])
    removing.join()

    # then
    print(f"\n{took_s[0]:.1f} s; scans of another {max(alone):.2f} s at most before, {max(beside):.2f} s meanwhile")
    assert left(field, tenant_id) == 0
    assert took_s[0] < WITHIN_S
    field.quiet({other: its_root})
    assert left(field, tenant_id) == 0, "no row comes back"
    invariants.check(field.engine, {other: its_root})
