"""Tenants: who is scanned, where, how often, and how far the last complete scan came."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, RowMapping, and_, bindparam, delete, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from db import removals
from db.bulk import set_values
from db.clock import clock
from db.tables import removals as leaving
from db.tables import scans, tenants
from db.types import Conflict, Unknown, UsageError

ALGORITHMS = ("sha256", "blake3")
LARGE_FILE = ("full", "partial", "skip")
# Below this the first and last 64 KiB are all that there is.
SMALLEST_LARGE_FILE = 128 << 10
TIERS = ("priority", "standard", "background")  # what is due of the first is scanned first
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
ALLOWED = "use 1 to 100 letters, digits, '.', '_' or '-', not beginning with '.' or '-'"


@dataclass(frozen=True, slots=True)
class Tenant:
    """A row of `tenants`; the meaning of each field is said there."""

    id: int
    name: str
    root: bytes
    tier: str
    interval_s: int
    algorithm: str
    enabled: bool
    created_at: datetime
    next_scan_at: datetime | None
    fence: int
    watermark_fence: int | None
    watermark_started_at: datetime | None
    watermark_files: int | None
    pruned_fence: int
    filesystem: str | None
    root_inode: int | None
    ignore: str
    gitignore: bool
    cross_mounts: bool
    large_file: str
    large_file_bytes: int | None
    deletion_limit: int
    verify_at: datetime | None
    verify_place: int
    silent_changes: int

    @property
    def patterns(self) -> list[str]:
        """The tenant's own ignore patterns."""
        return [str(pattern) for pattern in json.loads(self.ignore)]

    @property
    def place(self) -> tuple[str, int | None] | None:
        """Which folder the root was at the last complete scan: file system, and inode where that is stable."""
        return None if self.filesystem is None else (self.filesystem, self.root_inode)


class Known(NamedTuple):
    """As much of a tenant as most requests need."""

    id: int
    name: str
    root: bytes


_COLUMNS = [tenants.c[name] for name in Tenant.__slots__]
_BY_NAME = select(*_COLUMNS).where(tenants.c.name == bindparam("called"))
_KNOWN = select(*(tenants.c[name] for name in Known._fields)).where(
    tenants.c.name.in_(bindparam("called", expanding=True))
)


def _tenant(row: RowMapping) -> Tenant:
    return Tenant(**row)


def check_name(name: str) -> str:
    """The name, if it may be one. Raises UsageError that says what is allowed."""
    if NAME.fullmatch(name) is None:
        shown = name if len(name) <= 60 else name[:57] + "…"
        raise UsageError(f"tenant name {shown!r} is not allowed: {ALLOWED}", field="name")
    return name


def check_algorithm(algorithm: str) -> str:
    """The algorithm, if it is known. Raises UsageError."""
    if algorithm not in ALGORITHMS:
        raise UsageError(f"unknown algorithm {algorithm!r}: use one of {', '.join(ALGORITHMS)}", field="algorithm")
    return algorithm


def add(connection: Connection, *, name: str, root: bytes, tier: str, interval_s: int, algorithm: str,
        **policy: Any) -> Tenant:  # fmt: skip
    """Register a tenant; `policy` are other columns that `change` may set. Raises UsageError for a bad value, a name
    that is taken, or a root that overlaps another's.
    """
    check_name(name)
    policy = _checked(tier=tier, interval_s=interval_s, algorithm=algorithm, **policy)
    _require_large_size(policy.get("large_file", "full"), policy.get("large_file_bytes"))
    _refuse_overlap(connection, root)
    if by_name(connection, name) is not None:
        raise Conflict(f"tenant {name!r} exists already; choose another name", field="name")
    try:
        connection.execute(
            insert(tenants).values(_id(connection) | {"created_at": clock(), "name": name, "root": root} | policy)
        )
    except IntegrityError as error:
        raise Conflict(f"tenant {name!r} or its root was registered by somebody else just now") from error
    return get(connection, name)


def _id(connection: Connection) -> dict[str, Any]:
    """SQLite gives the id of the newest out again once that is removed, and it may have left rows."""
    if connection.dialect.name != "sqlite":
        return {}
    newest = [select(func.max(ids)).scalar_subquery() for ids in (tenants.c.id, leaving.c.tenant_id)]
    return {"id": func.max(*(func.coalesce(one, 0) for one in newest)) + 1}


def _checked(**values: Any) -> dict[str, Any]:
    """The values, as they are stored. Raises UsageError."""
    if "algorithm" in values:
        check_algorithm(values["algorithm"])
    if "tier" in values and values["tier"] not in TIERS:
        raise UsageError(f"unknown tier {values['tier']!r}: use one of {', '.join(TIERS)}", field="tier")
    if "interval_s" in values and not 1 <= values["interval_s"] <= 366 * 86400:
        raise UsageError(f"interval {values['interval_s']} is not between 1 second and 366 days", field="interval_s")
    if "large_file" in values and values["large_file"] not in LARGE_FILE:
        raise UsageError(
            f"unknown policy {values['large_file']!r} for large files: use {', '.join(LARGE_FILE)}", field="large_file"
        )
    if "large_file_bytes" in values and values["large_file_bytes"] < SMALLEST_LARGE_FILE:
        raise UsageError(
            f"files of {values['large_file_bytes']} bytes are not large: from {SMALLEST_LARGE_FILE} on",
            field="large_file_bytes",
        )
    if "deletion_limit" in values and not 1 <= values["deletion_limit"] <= 100:
        raise UsageError(
            f"deletion limit {values['deletion_limit']} is not between 1 and 100 percent", field="deletion_limit"
        )
    if "ignore" in values:
        values["ignore"] = json.dumps(_patterns(values["ignore"]))
    return values


def _require_large_size(policy: str, size: int | None) -> None:
    if policy != "full" and size is None:
        raise UsageError(
            f"--large-file {policy} needs --large-file-bytes: from which size is a file large?",
            field="large_file_bytes",
        )


def _patterns(given: Sequence[str]) -> list[str]:
    for pattern in given:
        if "\n" in pattern or "\0" in pattern:
            raise UsageError(
                f"ignore pattern {pattern!r} holds a line feed or a NUL: give one pattern at a time", field="ignore"
            )
    return [pattern for pattern in given if pattern]


def _refuse_overlap(connection: Connection, root: bytes, but: int | None = None) -> None:
    # Two indexes of one place would each call the other's view their own; and one tenant could read another's files.
    _one_at_a_time(connection)
    t = tenants.c
    query = select(t.name, t.root).where(or_(t.root.in_(_ancestors(root)), _is_below(root)), t.id.is_distinct_from(but))
    other = connection.execute(query.order_by(t.root).limit(1)).first()
    if other is not None:
        how = "is" if root == other.root else "is inside" if len(other.root) < len(root) else "contains"
        raise Conflict(
            f"root {_show(root)} {how} the root of tenant {other.name!r} ({_show(other.root)}); "
            "roots of tenants may not overlap",
            field="root",
        )


def _ancestors(path: bytes) -> list[bytes]:
    """The path itself and all folders that it is in."""
    parts = path.rstrip(b"/").split(b"/")
    return [b"/".join(parts[:n]) or b"/" for n in range(1, len(parts) + 1)]


def _is_below(folder: bytes) -> ColumnElement[bool]:
    """Is a root in the folder? A range of the index, so that only what is there is looked at."""
    first = folder.rstrip(b"/") + b"/"
    return and_(tenants.c.root > first, tenants.c.root < first[:-1] + b"0")  # "0" follows "/"


def _one_at_a_time(connection: Connection) -> None:
    """Until the transaction ends: two that overlap must not be added at once (on SQLite, the write lock sees to it)."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(hashtext('strandline tenants'))")


def _show(path: bytes) -> str:
    return repr(path.decode("utf-8", "backslashreplace"))


def by_name(connection: Connection, name: str) -> Tenant | None:
    """The tenant of that name, if there is one."""
    row = connection.execute(_BY_NAME, {"called": name}).first()
    return None if row is None else Tenant(*row)


def known(connection: Connection, names: Collection[str]) -> Mapping[str, Known]:
    """As much of the tenants of these names, as far as there are any."""
    found = [Known(*row) for row in connection.execute(_KNOWN, {"called": list(names)})]
    return {one.name: one for one in found}


def get(connection: Connection, name: str) -> Tenant:
    """The tenant of that name. Raises UsageError."""
    found = by_name(connection, name)
    if found is None:
        raise Unknown(f"there is no tenant {name!r}; `strandline tenant list` shows those that are")
    return found


def by_id(connection: Connection, tenant_id: int) -> Tenant | None:
    """The tenant of that id, if there is (still) one."""
    row = connection.execute(select(*_COLUMNS).where(tenants.c.id == tenant_id)).mappings().first()
    return None if row is None else _tenant(row)


def by_root(connection: Connection, root: bytes) -> Tenant | None:
    """The tenant of exactly that root, if there is one."""
    row = connection.execute(select(*_COLUMNS).where(tenants.c.root == root)).mappings().first()
    return None if row is None else _tenant(row)


def list_all(connection: Connection) -> Sequence[Tenant]:
    """All tenants, by name."""
    return [_tenant(row) for row in connection.execute(select(*_COLUMNS).order_by(tenants.c.name)).mappings()]


def page(connection: Connection, after: str, limit: int, names: Collection[str] | None) -> Sequence[Tenant]:
    """The next tenants by name, of all or (`names`) of some."""
    query = select(*_COLUMNS).where(tenants.c.name > after).order_by(tenants.c.name).limit(limit)
    if names is not None:
        query = query.where(tenants.c.name.in_(names))
    return [_tenant(row) for row in connection.execute(query).mappings()]


def lock(connection: Connection, tenant_id: int) -> None:
    """Hold the tenant's row until the transaction ends. First in the lock order: tenant, scan, shard."""
    connection.execute(select(tenants.c.id).where(tenants.c.id == tenant_id).with_for_update())


def change(connection: Connection, tenant_id: int, **values: Any) -> None:
    """Set columns: root (which may then be another place), tier, interval_s, algorithm, ignore (a list of patterns),
    gitignore, cross_mounts, large_file, large_file_bytes, deletion_limit, enabled, next_scan_at. Raises UsageError for
    a bad value.
    """
    values = _checked(**values)
    if "root" in values:
        _refuse_overlap(connection, values["root"], but=tenant_id)
        values |= {"filesystem": None, "root_inode": None}
    if "large_file" in values and values.get("large_file_bytes") is None:
        known = connection.execute(select(tenants.c.large_file_bytes).where(tenants.c.id == tenant_id)).scalar()
        _require_large_size(values["large_file"], known)
    connection.execute(update(tenants).where(tenants.c.id == tenant_id).values(**values))


def remove(connection: Connection, tenant_id: int) -> None:
    """Forget a tenant: from here on nobody finds anything of it. What it leaves is deleted by db/removals. Its files
    are not touched.
    """
    lock(connection, tenant_id)
    # First the scans with their shards: this waits for every flush under way, and no other can begin.
    connection.execute(delete(scans).where(scans.c.tenant_id == tenant_id))
    connection.execute(delete(tenants).where(tenants.c.id == tenant_id))
    removals.add(connection, tenant_id)


def due(connection: Connection, now: datetime, limit: int) -> Sequence[int]:
    """The ids of enabled tenants whose next scan's time has come or was never set; who has waited longest first."""
    t = tenants.c
    never_set = select(t.id).where(t.enabled, t.next_scan_at.is_(None)).limit(limit)
    found = list(connection.execute(never_set).scalars())
    come = select(t.id).where(t.enabled, t.next_scan_at <= now).order_by(t.next_scan_at).limit(limit - len(found))
    return found + list(connection.execute(come).scalars())


def lock_due(connection: Connection, tenant_ids: Sequence[int], now: datetime) -> Sequence[Tenant]:
    """Those of these that are due still, locked; those that another holds are left to him."""
    t = tenants.c
    return _lock(connection, t.id.in_(tenant_ids), t.enabled, or_(t.next_scan_at.is_(None), t.next_scan_at <= now))


def lock_free(connection: Connection, tenant_ids: Sequence[int]) -> Sequence[Tenant]:
    """Those of these that nobody holds, locked."""
    return _lock(connection, tenants.c.id.in_(tenant_ids))


def _lock(connection: Connection, *which: ColumnElement[bool]) -> Sequence[Tenant]:
    query = select(*_COLUMNS).where(*which).order_by(tenants.c.id).with_for_update(skip_locked=True)
    return [_tenant(row) for row in connection.execute(query).mappings()]


def schedule(connection: Connection, slots: Mapping[int, datetime]) -> None:
    """Set when the schedule wants the next scan of each of these."""
    set_values(connection, tenants, ["next_scan_at"], ["id"], [(slot, tenant_id) for tenant_id, slot in slots.items()])


def next_fences(connection: Connection, tenant_ids: Sequence[int]) -> dict[int, int]:
    """Take the next fence of each of these."""
    query = update(tenants).where(tenants.c.id.in_(tenant_ids)).values(fence=tenants.c.fence + 1)
    return {row.id: row.fence for row in connection.execute(query.returning(tenants.c.id, tenants.c.fence))}


def note_verified(
    connection: Connection, tenant_id: int, *, until: datetime | None, place: int, silent_changes: int
) -> None:
    """How far the rotating verification has come, and what it found."""
    connection.execute(
        update(tenants)
        .where(tenants.c.id == tenant_id)
        .values(verify_at=until, verify_place=place, silent_changes=tenants.c.silent_changes + silent_changes)
    )


def move_watermark(connection: Connection, tenant_id: int, *, fence: int, started_at: datetime, files: int) -> None:
    """Note the last complete scan; never backwards."""
    query = update(tenants).where(
        tenants.c.id == tenant_id, func.coalesce(tenants.c.watermark_fence, 0) < fence
    )  # fmt: skip
    connection.execute(
        query.values(watermark_fence=fence, watermark_started_at=started_at, watermark_files=files)
    )  # fmt: skip


def watermarks(connection: Connection, after: int, limit: int) -> Sequence[tuple[int, int, datetime, int]]:
    """The watermarks of tenants with a greater id, by id: (tenant, fence, started_at, files)."""
    t = tenants.c
    query = (
        select(t.id, t.watermark_fence, t.watermark_started_at, t.watermark_files)
        .where(t.id > after, t.watermark_fence.is_not(None))
        .order_by(t.id)
        .limit(limit)
    )
    return [tuple(row) for row in connection.execute(query)]


def note_root(connection: Connection, tenant_id: int, *, filesystem: str, inode: int | None) -> None:
    """Remember which place the root is; writes only what differs."""
    query = update(tenants).where(
        tenants.c.id == tenant_id,
        (tenants.c.filesystem.is_distinct_from(filesystem)) | (tenants.c.root_inode.is_distinct_from(inode)),
    )
    connection.execute(query.values(filesystem=filesystem, root_inode=inode))
