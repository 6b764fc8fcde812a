"""The pure decision: what a listing says of the rows that a directory had. No input, no output, no clock of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from db.types import FileType, Gone, Kind, KnownChild, KnownFile, Unsettled
from tasks.core.filesystem import Entry
from tasks.core.hashing import Hashed
from tasks.core.listing import Listing
from tasks.core.policy import Policy
from tasks.core.profile import Profile

# A change time farther in the future than this was set by a clock that has been mended since: no later write gets it.
FUTURE_NS = 86_400_000_000_000
# Said in place of the fields that had moved, of a file that was not hashed at all.
TAKEN_OVER = "renamed folder"


@dataclass(slots=True)
class Comparison:
    """What is to be done about one directory."""

    to_hash: list[tuple[Entry, KnownFile | None]] = field(default_factory=list)
    symlinks: list[tuple[Entry, KnownFile | None]] = field(default_factory=list)  # new, or with another target or stat
    equal: list[tuple[Entry, KnownFile]] = field(default_factory=list)  # files whose stat is as it was
    back: list[tuple[Entry, KnownFile]] = field(default_factory=list)  # missing once, and here again as it was
    missing: list[tuple[bytes, Gone]] = field(default_factory=list)
    new_children: list[tuple[bytes, int]] = field(default_factory=list)
    found_children: list[tuple[int, int]] = field(default_factory=list)  # (id, inode): changed or back
    missing_children: list[tuple[bytes, int, Gone]] = field(default_factory=list)
    settled: bool = True  # False: something waits for finish or for another look, so no fingerprint may be stored


def compare(listing: Listing, files: Mapping[bytes, KnownFile], children: Mapping[bytes, KnownChild],
            profile: Profile, policy: Policy) -> Comparison:  # fmt: skip
    """Decide for each entry of a listing, and for each row without one."""
    found = Comparison()
    for entry in listing.files:
        known = files.get(entry.name)
        if known is not None and same(entry, known, profile, policy):
            if known.gone is not None:
                found.back.append((entry, known))
            if entry.target is None:
                found.equal.append((entry, known))
        elif entry.type == FileType.SYMLINK:
            found.symlinks.append((entry, known))
        else:
            found.to_hash.append((entry, known))
    _compare_children(found, listing, children)
    _find_missing(found, listing, files, children)
    return found


def same(entry: Entry, known: KnownFile, profile: Profile, policy: Policy) -> bool:
    """Is the entry, by all that can be relied on here, what the row was recorded from?"""
    return (
        known.unsettled is None
        and entry.type == known.type
        and entry.size == known.size
        and entry.mtime_ns == known.mtime_ns
        and (not profile.ctime or entry.ctime_ns == known.ctime_ns)
        and (not profile.inode or entry.inode == known.inode)
        and entry.target == known.target
        and (
            known.type == FileType.SYMLINK
            or (known.digest is not None and known.algorithm == policy.algorithm_for(entry.size))
        )
    )


def moved_fields(entry: Entry, known: KnownFile, profile: Profile, algorithm: str | None) -> str:
    """What made an entry be looked into again, for people: the fields of stat that moved, or why it had to be."""
    compared = ("type", "size", "mtime_ns", "ctime_ns", "inode", "target")
    relied = {"ctime_ns": profile.ctime, "inode": profile.inode}
    moved = [
        name.removesuffix("_ns")
        for name in compared
        if relied.get(name, True) and getattr(entry, name) != getattr(known, name)
    ]
    if known.digest is not None and known.algorithm != algorithm:
        moved.append("algorithm")
    if known.unsettled is not None:
        moved.append(known.unsettled)
    return ", ".join(moved) or "verify"


def _compare_children(found: Comparison, listing: Listing, children: Mapping[bytes, KnownChild]) -> None:
    for name, inode in listing.children:
        known = children.get(name)
        if known is None:
            found.new_children.append((name, inode))
        elif known.gone is not None or known.inode != inode:
            found.found_children.append((known.id, inode))


def _find_missing(found: Comparison, listing: Listing, files: Mapping[bytes, KnownFile],
                  children: Mapping[bytes, KnownChild]) -> None:  # fmt: skip
    file_names = {entry.name for entry in listing.files}
    child_names = {name for name, _ in listing.children}
    for name in files.keys() - file_names - listing.unseen:
        found.missing.append((name, _reason(name, child_names, listing)))
    for name in children.keys() - child_names - listing.unseen:
        found.missing_children.append((name, children[name].id, _reason(name, file_names, listing)))
    found.settled = not (found.missing or found.missing_children or listing.unseen)


def _reason(name: bytes, others: set[bytes], listing: Listing) -> Gone:
    if name in listing.ignored:
        return Gone.IGNORED
    return Gone.REPLACED if name in others else Gone.ABSENT


def racy(entry: Entry, now_ns: int, profile: Profile) -> bool:
    """Could a write after the listing at `now_ns` have left the entry with these same stamps?

    Git's "racily clean" problem. A date in the future is judged by the change time; without one it is not racy, but
    for a window: of a write after `now_ns` and before the entry's own turn, or by a clock that is ahead.
    """
    recent = now_ns - profile.racy_window_ns
    if profile.ctime:
        return recent <= entry.ctime_ns <= now_ns + FUTURE_NS or recent <= entry.mtime_ns <= now_ns
    return recent <= entry.mtime_ns <= now_ns + profile.racy_window_ns


class Outcome(NamedTuple):
    """What becomes of one entry: the stat and digest to write, and the change to report."""

    entry: Entry
    digest: bytes | None
    algorithm: str | None
    unsettled: Unsettled | None
    kind: Kind | None  # none: no change of the feed
    changed: int  # fence that last changed it
    hashed: int | None = None  # fence that last looked into it; none: the one that added it
    hashed_because: str | None = None


def outcome_of_hash(hashed: Hashed, entry: Entry, known: KnownFile | None, *, fence: int, now_ns: int,
                    profile: Profile, algorithm: str) -> Outcome:  # fmt: skip
    """Decide on a file that was hashed, or could not be. `entry` is what the hash was proven under."""
    if hashed.digest is None:
        return outcome_unread(entry, known, fence=fence)._replace(unsettled=hashed.unsettled)
    unsettled = hashed.unsettled or (Unsettled.RACY if racy(entry, now_ns, profile) else None)
    kind = _kind(entry, known, (hashed.digest, algorithm))
    if known is None:
        return Outcome(entry, hashed.digest, algorithm, unsettled, kind, fence)
    changed = fence if kind is not None else known.changed
    because = moved_fields(entry, known, profile, algorithm)
    return Outcome(entry, hashed.digest, algorithm, unsettled, kind, changed, fence, because)


def outcome_unread(entry: Entry, known: KnownFile | None, *, fence: int) -> Outcome:
    """A file that was not read: what is recorded of it stays."""
    if known is None:  # invisible until it can be read
        return Outcome(entry, None, None, Unsettled.FAILED, None, fence)
    return outcome_as_known(entry.name, known)._replace(unsettled=Unsettled.FAILED)


def outcome_taken_over(entry: Entry, known: KnownFile, *, fence: int) -> Outcome:
    """An entry of a renamed directory: by all that stat shows it is the file of a row of its old place, so not read."""
    return Outcome(entry, known.digest, known.algorithm, None, Kind.ADDED, fence, None, TAKEN_OVER)


def outcome_as_known(name: bytes, known: KnownFile) -> Outcome:
    """What is recorded stays as it is, and is no longer gone."""
    entry = Entry(name, known.type, known.size, known.mtime_ns, known.ctime_ns, known.inode, known.target)
    return Outcome(entry, known.digest, known.algorithm, None, None, known.changed, known.hashed, known.hashed_because)


def outcome_of_symlink(entry: Entry, known: KnownFile | None, *, fence: int) -> Outcome:
    """Decide on a symlink, whose whole content the listing showed."""
    kind = _kind(entry, known, None)
    return Outcome(entry, None, None, None, kind, fence if kind is not None or known is None else known.changed)


def _kind(entry: Entry, known: KnownFile | None, content: tuple[bytes, str] | None) -> Kind | None:
    if known is None or (known.type == FileType.FILE and known.digest is None):
        return Kind.ADDED
    if known.type != entry.type or known.target != entry.target:
        return Kind.MODIFIED
    if content is not None and content != (known.digest, known.algorithm):
        return Kind.MODIFIED
    return None
