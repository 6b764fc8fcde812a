"""Before anything of a tenant's tree is touched: may it be, and who is to blame if that ends this process?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from db import shards
from db.scan_notes import BREAKER, QUARANTINE
from db.types import KnownFile, Unsettled
from tasks.core.breaker import Covers, Failed, Key, ancestors
from tasks.core.filesystem import Entry, Shadowed
from tasks.core.hashing import Hashed
from tasks.core.profile import Profile
from tasks.core.walk import Tree
from tasks.lease import Holder
from tasks.redis.breaker import PROBES, Breaker
from tasks.write_back import WriteBack

ToHash = tuple[Entry, KnownFile | None]


class Refusal(NamedTuple):
    """Why something is not touched, and under which operation a scan notes that."""

    operation: str
    reason: str


class Gate:
    """Of one shard. `quarantined`: what must not be touched, with reasons; `careful`: name each entry first."""

    def __init__(self, holder: Holder, write: WriteBack, breaker: Breaker, quarantined: Mapping[bytes, str], *,
                 careful: bool) -> None:  # fmt: skip
        self._holder, self._write, self._breaker = holder, write, breaker
        self._quarantined, self._careful = quarantined, careful

    def directory(self, path: bytes, root: Tree) -> Refusal | None:
        """Why a directory must not be listed; None: it is about to be. Raises LeaseLost, and Shadowed where one above
        it is in quarantine: below a mount that hangs, each would cost as much time again.
        """
        if self._quarantined and any(above in self._quarantined for above in ancestors(path)):
            raise Shadowed
        key, refusal = Key(Covers.DIRECTORY, path), self._enter(path)
        if refusal is None and self._breaker.knows_of_any and self._breaker.has(key):
            reason = self._breaker.refuses(key, root.mark(path))  # a look at it, in which it may hang
            return None if reason is None else Refusal(BREAKER, reason)
        return refusal

    def file(self, path: bytes, entry: Entry, before: KnownFile | None, profile: Profile) -> Refusal | None:
        """Why a file must not be read; None: it is about to be. Raises LeaseLost."""
        if self._breaker.knows_of_any:
            reason = self._breaker.refuses(
                Key(Covers.FILE, path),
                mark_of(entry, profile),
                failed_before=has_failed(before),
                stamp_ns=stamp_of(entry, profile),
            )
            if reason is not None:
                return Refusal(BREAKER, reason)
        return self._enter(path)

    def _enter(self, path: bytes) -> Refusal | None:
        self._holder.check()
        reason = self._quarantined.get(path)
        if reason is not None:
            return Refusal(QUARANTINE, f"in quarantine: {reason}")
        self._holder.at = path
        if self._careful:
            self._write.flush()  # what is done is settled, whatever comes
            self._holder.flush(shards.name, self._holder.lease, path)
        return None

    def was_listed(self, path: bytes) -> None:
        """A directory was listed to its end."""
        if self._breaker.knows_of_any:
            self._breaker.succeeded(Key(Covers.DIRECTORY, path))

    def was_not_listed(self, path: bytes, root: Tree, error: str) -> None:
        """A directory could not be listed."""
        self._breaker.failed(Failed(Key(Covers.DIRECTORY, path), error, root.mark(path)))

    def was_read(self, path: bytes, entry: Entry, before: KnownFile | None, profile: Profile, hashed: Hashed) -> None:
        """A file was read, or could not be."""
        if hashed.error is not None:
            shown = mark_of(entry, profile), stamp_of(entry, profile)
            self._breaker.failed(Failed(Key(Covers.FILE, path), hashed.error, *shown))
        elif self._breaker.knows_of_any and hashed.digest is not None and has_failed(before):
            self._breaker.succeeded(Key(Covers.FILE, path))

    def in_turn(self, to_hash: Sequence[ToHash], fence: int) -> Sequence[ToHash]:
        """In an order in which a probe of some, of many that fail, is of others each time."""
        if not self._breaker.knows_of_any or not to_hash:
            return to_hash
        first = fence * PROBES % len(to_hash)
        return [*to_hash[first:], *to_hash[:first]]

    def tell(self) -> None:
        """Let the others know what failed."""
        self._breaker.tell()


def has_failed(before: KnownFile | None) -> bool:
    """Could a file not be read when it was looked at last?"""
    return before is not None and before.unsettled == Unsettled.FAILED


def mark_of(entry: Entry, profile: Profile) -> str:
    """What stat shows of a file, as far as it is to be trusted: one that has changed is tried again at once."""
    ctime, inode = entry.ctime_ns if profile.ctime else 0, entry.inode if profile.inode else 0
    return f"{entry.size} {entry.mtime_ns} {ctime} {inode}"


def stamp_of(entry: Entry, profile: Profile) -> int:
    """When a file was changed last, by its file system's clock, nanoseconds."""
    return entry.ctime_ns if profile.ctime else entry.mtime_ns
