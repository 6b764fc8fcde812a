"""The change feed: at most one change a path and fence, read in the order (fence, number) from a cursor."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, and_, select, tuple_

from db import scans
from db.bulk import merge
from db.tables import changes, scan_errors, tenants
from db.tables import scans as scans_table
from db.types import CursorLost

CHANGE = ("tenant_id", "fence", "n", "directory_id", "name", "kind", "path", "type", "size", "digest", "algorithm",
          "target", "reason")  # fmt: skip
# The place in a fence behind all its changes.
BEHIND = 1 << 62
# Folding: what was added in this fence and then modified is still added; whatever was deleted last is deleted.
_FOLD = (
    "ON CONFLICT (tenant_id, fence, directory_id, name) DO UPDATE SET "
    "kind = CASE WHEN changes.kind = 'added' AND excluded.kind = 'modified' THEN 'added' ELSE excluded.kind END, "
    + ", ".join(f"{name} = excluded.{name}" for name in ("type", "size", "digest", "algorithm", "target", "reason"))
)


class Change(NamedTuple):
    """One row of the feed, with the scan that published it and when."""

    fence: int
    n: int
    kind: str
    path: bytes
    old_path: bytes | None
    type: str
    size: int | None
    digest: bytes | None
    algorithm: str | None
    target: bytes | None
    reason: str | None
    scan: str
    at: datetime | None

    @property
    def cursor(self) -> str:
        """Where to read on after this change."""
        return make_cursor(self.fence, self.n, self.scan)


class Page(NamedTuple):
    """Some of the feed, the cursor behind it, and whether there may be more."""

    changes: Sequence[Change]
    behind: str | None
    more: bool


def write(connection: Connection, rows: Sequence[tuple[Any, ...]]) -> None:
    """Write changes (tuples in the order of CHANGE); part of a flush."""
    merge(connection, changes, CHANGE, rows, _FOLD)


def write_errors(connection: Connection, rows: Sequence[tuple[Any, ...]]) -> None:
    """Write what could not be looked at: (scan, hash of path and operation, path, operation, error)."""
    columns = ("scan_id", "path_hash", "path", "operation", "error")
    merge(connection, scan_errors, columns, rows, "ON CONFLICT (scan_id, path_hash) DO NOTHING")


def make_cursor(fence: int, n: int, scan_id: str) -> str:
    """An opaque place in the feed; the scan's id tells it from the same fence of a database that was restored."""
    # The last 12 digits of the id are random; the first are the time.
    return _encode(fence, n, scan_id[-12:])


def _encode(fence: int, n: int, mark: str) -> str:
    return base64.urlsafe_b64encode(f"{fence}.{n}.{mark}".encode()).decode().rstrip("=")


def _parse(cursor: str) -> tuple[int, int, str]:
    try:
        text = base64.urlsafe_b64decode(cursor.encode() + b"=" * (-len(cursor) % 4)).decode()
        place, number, mark = text.split(".")
        fence, n = int(place), int(number)
        if not (0 < fence <= BEHIND and 0 <= n <= BEHIND) or _encode(fence, n, mark) != cursor:
            raise ValueError("not as make_cursor writes it")
        return fence, n, mark
    except (ValueError, binascii.Error, UnicodeError) as error:
        raise CursorLost(
            f"{cursor!r} is no cursor of this feed; read `files`, then follow from the last scan's cursor"
        ) from error


def after(connection: Connection, tenant_id: int, cursor: str | None, limit: int,
          visible: int | None = None) -> Sequence[Change]:  # fmt: skip
    """The next visible changes after a cursor (None: from the beginning), oldest first. `visible`: up to which fence,
    by scans.last_visible_fence, where that was asked already.

    Raises CursorLost for a cursor that is malformed, from a database that was lost, or older than what is kept.
    """
    fence, n, mark = (0, 0, "") if cursor is None else _parse(cursor)
    if visible is None:
        visible = scans.last_visible_fence(connection, tenant_id)
    c = changes.c
    query = (
        select(c.fence, c.n, c.kind, c.path, c.old_path, c.type, c.size, c.digest, c.algorithm, c.target, c.reason,
               scans_table.c.id, scans_table.c.finished_at)
        .join(scans_table, and_(scans_table.c.tenant_id == c.tenant_id, scans_table.c.fence == c.fence))
        .where(c.tenant_id == tenant_id, tuple_(c.fence, c.n) > tuple_(fence, n))
        .where(c.fence <= visible)
        .order_by(c.fence, c.n)
        .limit(limit)
    )  # fmt: skip
    found = [Change._make(row) for row in connection.execute(query)]
    _require_kept(connection, tenant_id, fence, mark)  # last: while they were read, some may have been pruned
    return found


def page(connection: Connection, tenant_id: int, cursor: str | None, limit: int, visible: int | None = None) -> Page:
    """The same, with the place behind it. Who has all that there is stands behind the last scan, whatever that changed:
    so the cursor of whoever goes on asking does not grow old. Raises CursorLost.
    """
    if visible is None:
        visible = scans.last_visible_fence(connection, tenant_id)
    found = after(connection, tenant_id, cursor, limit, visible)
    if len(found) == limit:
        return Page(found, found[-1].cursor, True)
    return Page(found, end_cursor(connection, tenant_id, visible) or cursor, False)


def _require_kept(connection: Connection, tenant_id: int, fence: int, mark: str) -> None:
    pruned = connection.execute(select(tenants.c.pruned_fence).where(tenants.c.id == tenant_id)).scalar_one()
    # What comes after the last pruned fence itself is all there; but its scan, by which to know it, is not.
    if fence <= pruned and pruned > 0:
        raise CursorLost("changes after this cursor are no longer kept; begin again with `files`")
    if fence > 0:
        known = select(scans_table.c.id).where(scans_table.c.tenant_id == tenant_id, scans_table.c.fence == fence)
        scan_id = connection.execute(known).scalar()
        if scan_id is None or scan_id[-12:] != mark:
            raise CursorLost("this cursor is from a state that the database no longer has; begin again with `files`")


def end_cursor(connection: Connection, tenant_id: int, visible: int | None = None) -> str | None:
    """The cursor behind the last visible scan (`visible`: its fence, where that was asked already): what comes after
    it is news. None before any scan.
    """
    fence = scans.last_visible_fence(connection, tenant_id) if visible is None else visible
    query = select(scans_table.c.id).where(scans_table.c.tenant_id == tenant_id, scans_table.c.fence == fence)
    scan_id = connection.execute(query).scalar()
    return None if scan_id is None else make_cursor(fence, BEHIND, scan_id)
