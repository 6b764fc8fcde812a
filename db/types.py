"""The words that every layer shares: states and their arrows, ids, and the errors that reach a person.

A leaf: it imports nothing of ours.
"""

from __future__ import annotations

import os
import time
import uuid
from enum import StrEnum
from typing import NamedTuple
from zlib import crc32


class ScanState(StrEnum):
    """queued → running → succeeded | partial | suspect | failed | cancelled; queued → cancelled."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    PARTIAL = "partial"  # finished, but something could not be looked at
    SUSPECT = "suspect"  # finished without deletions: the guard doubts them
    FAILED = "failed"
    CANCELLED = "cancelled"


ENDED = (ScanState.SUCCEEDED, ScanState.PARTIAL, ScanState.SUSPECT, ScanState.FAILED, ScanState.CANCELLED)


class ShardState(StrEnum):
    """waiting → ready → leased → done | ready (yield, retry) | quarantined | dropped (its scan was cancelled).

    Only shard 0, the finish, waits: for all the others.
    """

    WAITING = "waiting"
    READY = "ready"
    LEASED = "leased"
    DONE = "done"
    QUARANTINED = "quarantined"
    DROPPED = "dropped"


SETTLED_SHARDS = (ShardState.DONE, ShardState.QUARANTINED, ShardState.DROPPED)


class Strategy(StrEnum):
    """Why a scan trusts the stored fingerprints, or does not."""

    FULL_INITIAL = "full_initial"
    INCREMENTAL = "incremental"
    FULL_FALLBACK = "full_fallback"
    FULL_DELETIONS = "full_deletions"
    FULL_FORCED = "full_forced"
    VERIFY = "verify"
    PATHS = "paths"


class Trigger(StrEnum):
    """Who asked for a scan."""

    REQUEST = "request"
    SCHEDULE = "schedule"


class Kind(StrEnum):
    """What a change says of its path."""

    ADDED = "added"
    MODIFIED = "modified"
    DELETED = "deleted"
    MOVED = "moved"


class FileType(StrEnum):
    """The types that are indexed; sockets, pipes and devices are counted as `other`."""

    FILE = "file"
    SYMLINK = "symlink"


class Gone(StrEnum):
    """Why a row's entry was not in its directory's last listing."""

    ABSENT = "absent"
    IGNORED = "ignored"
    REPLACED = "replaced"  # by an entry of another type under the same name


class Unsettled(StrEnum):
    """Why a file's recorded stat must not be trusted: the entry is looked at again by the next scan."""

    RACY = "racy"  # touched so near to the listing that a later write could carry the same stamps
    UNSTABLE = "unstable"  # moved while it was hashed, at every try
    FAILED = "failed"  # could not be opened or read
    FSYNC_BUDGET = "fsync_budget"  # fresh, and the shard had no fsync left to flush a memory-mapped writer


class Place(NamedTuple):
    """A place in the depth-first order of a tenant's directories."""

    key: bytes
    id: int


class KnownDirectory(NamedTuple):
    """What a scan must know of a directory before it lists it."""

    id: int
    path: bytes
    key: bytes
    fingerprint: bytes | None
    version: int
    listed: int | None
    born: int
    ranges: int | None = None  # it is huge: in so many ranges
    mount: int | None = None  # the file system that is mounted on it, by f_type


class KnownFile(NamedTuple):
    """A row of `files`, as the comparison needs it."""

    type: str
    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    unsettled: str | None
    digest: bytes | None
    algorithm: str | None
    target: bytes | None
    changed: int
    gone: int | None
    hashed: int | None = None
    hashed_because: str | None = None


class KnownChild(NamedTuple):
    """A row of `directories`, as its parent's comparison needs it."""

    id: int
    inode: int | None
    gone: int | None


class StrandlineError(Exception):
    """Something is wrong that a person can mend; the message says what, where and what to do."""

    exit_code = 2


class UsageError(StrandlineError):
    """A value that somebody gave cannot be used; `field`: which, where that is known."""

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class Conflict(UsageError):
    """It could be used, were it not for what is there already (HTTP 409)."""


class Unknown(UsageError):
    """There is nothing of that name (HTTP 404)."""


class DatabaseError(StrandlineError):
    """The database cannot be used as it is."""


class LeaseLost(StrandlineError):
    """This shard is no longer ours: whoever holds it now does the work."""


class Exhausted(StrandlineError):
    """This process has no descriptor, thread or memory left: no place is to blame, and another may have some."""


class CursorLost(StrandlineError):
    """A cursor that the feed cannot honour (HTTP 410)."""


def new_scan_id() -> str:
    """A UUID version 7 (RFC 9562): milliseconds since the epoch, then randomness, so that ids sort by time."""
    milliseconds = time.time_ns() // 1_000_000
    value = (milliseconds << 80) | int.from_bytes(os.urandom(10))
    value = value & ~(0xF << 76) | 0x7 << 76
    return str(uuid.UUID(int=value & ~(0x3 << 62) | 0x2 << 62))


# A huge directory is kept in ranges of a 32-bit hash of its entries' names.
HASHES = 1 << 32


def name_hash(name: bytes) -> int:
    """The 32-bit hash that puts an entry into a range."""
    return crc32(name)


def number_of(hashed: int, ranges: int) -> int:
    """The range, of so many, that a hash is in."""
    return hashed * ranges // HASHES


class StaleDirectory(StrandlineError):
    """A directory was written by somebody else since it was read: list it again."""
