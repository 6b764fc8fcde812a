"""What a scan noted of places: errors, what it left out and why, mounts that came or went."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from sqlalchemy import ColumnElement, Connection, select

from db.tables import scan_errors

# The operations under which a place is noted that is left out on purpose: what is not to be entered (no error), …
SKIP = "skip"
# … what failed too often lately, and what ended whoever touched it: of these something is not known.
BREAKER, QUARANTINE = "breaker", "quarantine"
LEFT_OUT = (SKIP, BREAKER, QUARANTINE)
# And that under which a mount below the root is noted that came, went or changed, with nothing of what was known there.
MOUNT = "mount"


def error_key(path: bytes, operation: str) -> bytes:
    """What a note of a scan is found by: a path may be too long for an index."""
    return hashlib.blake2b(operation.encode() + b"\0" + path, digest_size=16).digest()


def errors_of(connection: Connection, scan_id: str, limit: int) -> Sequence[tuple[bytes, str, str]]:
    """What a scan could not look at: (path, operation, error), by path."""
    return _notes(connection, scan_id, scan_errors.c.operation.not_in(LEFT_OUT), limit)


def skipped_of(connection: Connection, scan_id: str, limit: int) -> Sequence[tuple[bytes, str]]:
    """What a scan left out on purpose: (path, reason), by path."""
    notes = _notes(connection, scan_id, scan_errors.c.operation.in_(LEFT_OUT), limit)
    return [(path, reason) for path, _, reason in notes]


def any_refused(connection: Connection, scan_id: str) -> bool:
    """Was anything left out that should have been looked at?"""
    return bool(_notes(connection, scan_id, scan_errors.c.operation.in_((BREAKER, QUARANTINE)), 1))


def mount_of(connection: Connection, scan_id: str) -> bytes | None:
    """A place where a mount came, went or changed, with nothing of what was known there; None: there was none."""
    for path, _, _ in _notes(connection, scan_id, scan_errors.c.operation == MOUNT, 1):
        return path
    return None


def _notes(connection: Connection, scan_id: str, which: ColumnElement[bool],
           limit: int) -> Sequence[tuple[bytes, str, str]]:  # fmt: skip
    e = scan_errors.c
    query = select(e.path, e.operation, e.error).where(e.scan_id == scan_id, which).order_by(e.path, e.operation)
    return [(row.path, row.operation, row.error) for row in connection.execute(query.limit(limit))]
