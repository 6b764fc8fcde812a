"""What holds after every fault, once it is over and one quiet scan has run: read from the database itself.

The numbers are those of the catalogue of faults. Two of its nine are in no database:
tests/aftermath.py.
"""

import itertools
from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, Engine, text

from db import changes, indexed, tenants
from db.engine import reading
from db.tables import metadata
from orchestrator.documents import change_document, file_document
from tests import trees
from tests.storage import rows

EVERYTHING = 10**7


def check(
    engine: Engine, roots: dict[str, bytes], removed: Iterable[bytes] = (), *, overlapped: bool = False,
    restless: bool = False,
) -> None:  # fmt: skip
    """All that can be seen in the database, of these tenants. `removed`: what was really deleted or moved away;
    `overlapped`: the fault was that two scans did; `restless`: folders were renamed while they were scanned.
    """
    check_tenants(engine, roots, removed, overlapped=overlapped, restless=restless)
    with reading(engine) as connection:
        _check_shards(connection)
        _check_strangers(connection)


def check_tenants(
    engine: Engine, roots: dict[str, bytes], removed: Iterable[bytes] = (), *, overlapped: bool = False,
    restless: bool = False,
) -> None:  # fmt: skip
    """The same of these tenants alone, while others are scanned."""
    for name, root in roots.items():
        listed = trees.listing(root)  # no transaction is open for so long
        with reading(engine) as connection:
            tenant = tenants.by_name(connection, name)
            assert tenant is not None, f"{name} is no tenant any more"
            _check_feed(connection, tenant.id, listed, set(removed), restless)
            _check_scans(connection, tenant.id, overlapped)


def everything(engine: Engine) -> dict[str, list[dict[str, Any]]]:
    """All that is written, but for who was told what by whom."""
    return {name: rows(engine, table) for name, table in metadata.tables.items() if name != "id_blocks"}


def _check_feed(
    connection: Connection, tenant_id: int, listed: trees.State, removed: set[bytes], restless: bool
) -> None:
    index = trees.index([file_document(one) for one in indexed.page(connection, tenant_id, limit=EVERYTHING)])
    feed = [change_document(one) for one in changes.after(connection, tenant_id, None, EVERYTHING)]
    assert index == listed, f"(1) the index is not what is there: {_difference(index, listed)}"
    gone = {trees.exact(one, "path") for one in feed if one["kind"] == "deleted"}
    gone |= {trees.exact(one, "old_path") for one in feed if one["kind"] == "moved"}
    if restless:
        gone = taken_away(feed)
    assert gone <= removed, f"(2) deleted, but never gone: {sorted(gone - removed)[:5]}"
    told = [(one["fence"], trees.exact(one, "path")) for one in feed]
    assert len(told) == len(set(told)), "(9) a change is told twice"
    applied = trees.apply_feed(feed)
    assert applied == listed, f"(9) the feed does not give the index: {_difference(applied, listed)}"


def taken_away(feed: Iterable[dict[str, Any]]) -> set[bytes]:
    """The paths that a reader had and that were taken from him. A folder may be away while its parent is listed, and
    back, with something new in it, when it is listed itself: all in it is then told as deleted, the new too, which he
    never had, and added by the next scan.
    """
    had: set[bytes] = set()
    taken: set[bytes] = set()
    for one in feed:
        path = trees.exact(one, "path")
        away = {"deleted": path, "moved": trees.exact(one, "old_path") if "old_path" in one else path}.get(one["kind"])
        if away in had:
            taken.add(away)
            had.discard(away)
        if one["kind"] != "deleted":
            had.add(path)
    return taken


def _difference(found: trees.State, expected: trees.State) -> list[Any]:
    return sorted(dict(found.items() ^ expected.items()))[:5]


def _check_scans(connection: Connection, tenant_id: int, overlapped: bool) -> None:
    rows = connection.execute(
        text("SELECT fence, state, started_at, finished_at FROM scans WHERE tenant_id = :t AND fence IS NOT NULL "
             "ORDER BY fence"), {"t": tenant_id},
    ).all()  # fmt: skip
    watermark = connection.execute(text("SELECT watermark_fence FROM tenants WHERE id = :t"), {"t": tenant_id}).scalar()
    complete = [row.fence for row in rows if row.state in ("succeeded", "partial")]
    assert watermark is None or watermark in complete, f"(3) the watermark {watermark} is of no complete scan"
    assert [row.state for row in rows if row.finished_at is None] == [], "a scan still runs"
    for earlier, later in itertools.pairwise(rows):
        assert overlapped or earlier.finished_at <= later.started_at, (
            f"(4) scans {earlier.fence} and {later.fence} overlapped"
        )


def _check_shards(connection: Connection) -> None:
    query = "SELECT number, state, attempt FROM shards WHERE state NOT IN ('done', 'quarantined', 'dropped')"
    assert connection.execute(text(query)).all() == [], "(5) a shard has not ended"
    held = "SELECT count(*) FROM shards WHERE token IS NOT NULL OR lease_until IS NOT NULL OR sent_until IS NOT NULL"
    assert connection.execute(text(held)).scalar() == 0, "(5) a shard that ended is held or under way"


# A row whose tenant is not the one of what it belongs to.
_STRANGERS = {
    "files": "SELECT count(*) FROM files f LEFT JOIN directories d ON d.tenant_id = f.tenant_id "
    "AND d.id = f.directory_id WHERE d.id IS NULL",
    "directories": "SELECT count(*) FROM directories c LEFT JOIN directories p ON p.tenant_id = c.tenant_id "
    "AND p.id = c.parent_id WHERE c.parent_id IS NOT NULL AND p.id IS NULL",
    "ranges": "SELECT count(*) FROM directory_ranges r LEFT JOIN directories d ON d.tenant_id = r.tenant_id "
    "AND d.id = r.directory_id WHERE d.id IS NULL",
    "roots": "SELECT count(*) FROM directories d LEFT JOIN tenants t ON t.id = d.tenant_id WHERE t.id IS NULL",
    "changes": "SELECT count(*) FROM changes c LEFT JOIN scans s ON s.tenant_id = c.tenant_id "
    "AND s.fence = c.fence WHERE s.id IS NULL",
    "shards": "SELECT count(*) FROM shards h JOIN scans s ON s.id = h.scan_id WHERE s.tenant_id <> h.tenant_id",
}


def _check_strangers(connection: Connection) -> None:
    found = {what: connection.execute(text(query)).scalar() for what, query in _STRANGERS.items()}
    assert found == dict.fromkeys(_STRANGERS, 0), f"(6) rows of another tenant, or of none: {found}"
