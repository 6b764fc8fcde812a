"""What is recorded about one path, for people who ask why it was or was not hashed, skipped or reported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, RowMapping, select

from db.scan_notes import LEFT_OUT, error_key
from db.tables import directories, files, scan_errors, scans
from db.tree import order_key
from db.types import ENDED

# Operations under which scans note a path itself, and that under which they note a rule file in a directory.
OPERATIONS = ("list", "read", "stat", *LEFT_OUT)
READ_RULES = "read rules"


@dataclass(frozen=True, slots=True)
class Trouble:
    """What the last scan noted about a path or a directory above it; every scan from `since` on noted something."""

    path: bytes
    operation: str
    error: str
    since: int


def directory(connection: Connection, tenant_id: int, path: bytes) -> RowMapping | None:
    """The row of a directory, by its path."""
    d = directories.c
    query = select(directories).where(d.tenant_id == tenant_id, d.order_key == order_key(path), d.path == path)
    return connection.execute(query).mappings().first()


def gone_above(connection: Connection, tenant_id: int, path: bytes) -> RowMapping | None:
    """The topmost directory on the way to a path, itself too, that waits to be deleted."""
    parts = path.split(b"/") if path else []
    for depth in range(1, len(parts) + 1):
        row = directory(connection, tenant_id, b"/".join(parts[:depth]))
        if row is not None and row["gone"] is not None:
            return row
    return None


def file(connection: Connection, tenant_id: int, directory_id: int, name: bytes) -> RowMapping | None:
    """The row of a file or symlink."""
    f = files.c
    query = select(files).where(f.tenant_id == tenant_id, f.directory_id == directory_id, f.name == name)
    return connection.execute(query).mappings().first()


def trouble(connection: Connection, tenant_id: int, path: bytes, rule_files: Sequence[bytes]) -> Trouble | None:
    """Why the last scan could not look at a path or into a directory above it, and since which scan; None: it could."""
    parts = path.split(b"/") if path else []
    for depth in range(len(parts) + 1):
        found = _trouble_at(connection, tenant_id, b"/".join(parts[:depth]), rule_files)
        if found is not None:
            return found
    return None


def _trouble_at(connection: Connection, tenant_id: int, path: bytes, rule_files: Sequence[bytes]) -> Trouble | None:
    prefix = path + b"/" if path else b""
    keys = [error_key(path, operation) for operation in OPERATIONS]
    keys += [error_key(prefix + name, READ_RULES) for name in rule_files]
    e, s = scan_errors.c, scans.c
    ended = select(s.fence).where(s.tenant_id == tenant_id, s.state.in_(ENDED), s.fence.is_not(None))
    fences = list(connection.execute(ended.order_by(s.fence.desc())).scalars())
    query = (
        select(s.fence, e.path, e.operation, e.error)
        .join(scans, s.id == e.scan_id)
        .where(s.tenant_id == tenant_id, e.path_hash.in_(keys))
        .order_by(s.fence.desc())
    )
    found: Any = None
    since = 0
    for fence, row in zip(fences, connection.execute(query), strict=False):
        if row.fence != fence:
            break
        found, since = found or row, row.fence
    return None if found is None else Trouble(found.path, found.operation, found.error, int(since))
