"""Listing one directory: its entries, and their fingerprint folded while they pass.

The fingerprint is the sum modulo 2¹²⁸ of one BLAKE2b hash an entry, so that the order of the listing does not matter
(the additive multiset hash of Bellare and Micciancio, 1997), salted so that no two tenants, algorithms or sets of
compared fields share one. Of a file or symlink it covers name, type, size, mtime, inode, ctime and target; of a child
directory only name, type and inode, since what is in it has a fingerprint of its own.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import islice

from db.types import name_hash, number_of
from tasks.core.filesystem import Entry, Missing, Unreadable, explain, look_at, name_bytes, saturate, signed, stamps
from tasks.core.ignore import Rules
from tasks.core.policy import Policy
from tasks.core.profile import Profile

FINGERPRINT_BYTES = 16
# A directory whose own times move while it is listed is listed again so many times.
LISTING_TRIES = 3
_MASK = (1 << 128) - 1
# Removed or replaced since readdir: then the directory's own times moved too, and it is listed again. Where they stand
# still, the name is there and its stat is hidden.
_REPLACED = frozenset({errno.ENOENT, errno.EINVAL})
_INODE = (1 << 64) - 1
_FILE = struct.Struct(">cqqqQ").pack
_CHILD = struct.Struct(">cQ").pack


class TooLarge(Exception):
    """A directory of more entries than are kept in memory at a time."""


@dataclass(slots=True)
class Listing:
    """What one listing of a directory, or of a range of a huge one, showed."""

    files: list[Entry] = field(default_factory=list)  # and symlinks
    children: list[tuple[bytes, int]] = field(default_factory=list)  # (name, inode) of directories
    ignored: set[bytes] = field(default_factory=set)  # names that the rules leave out
    unseen: set[bytes] = field(default_factory=set)  # names that were there and had no stat: gone since, or hidden
    other: int = 0  # sockets, pipes, devices
    size: int = 0  # of the files, bytes
    fingerprint: bytes = b""
    steady: bool = True  # the directory's own times did not move meanwhile
    hashes: tuple[int, int] | None = None  # a range: of names with such a hash, from … to before …


@dataclass(frozen=True, slots=True)
class Seed:
    """What keeps fingerprints apart that must not be compared with each other."""

    salt: bytes
    ctime: bool
    inode: bool

    @classmethod
    def of(cls, tenant_id: int, policy: Policy, profile: Profile) -> Seed:
        """For a tenant's tree as it is to be compared now. Whatever changes here makes every fingerprint differ."""
        configuration = f"1 {tenant_id} {policy} {profile.ctime:d} {profile.inode:d}"
        return cls(blake2b(configuration.encode(), digest_size=16).digest(), profile.ctime, profile.inode)


def list_directory(fd: int, path: bytes, seed: Seed, rules: Rules | None = None, limit: int | None = None) -> Listing:
    """List an open directory, again where its own times moved meanwhile; without what the rules leave out.

    Raises TooLarge beyond `limit` entries, Unreadable where it cannot be listed to its end, and Missing where it was
    removed meanwhile.
    """
    for _ in range(LISTING_TRIES):
        with watched(fd, path) as watch:
            listing = _list_once(fd, path, seed, rules, limit)
        listing.steady = watch.steady
        if listing.steady and not listing.unseen:
            break
    return listing


class Watch:
    """Did a directory's own times stay as they were while it was listed?"""

    steady = False


@contextmanager
def watched(fd: int, path: bytes) -> Iterator[Watch]:
    """Look at a directory's own times before and after it is listed. Raises Unreadable, Missing."""
    watch = Watch()
    try:
        before = stamps(fd)
        yield watch
        found = os.fstat(fd)
    except OSError as error:
        raise Unreadable(path, "list", explain(error)) from error
    if found.st_nlink == 0:
        raise Missing()
    watch.steady = (found.st_mtime_ns, found.st_ctime_ns) == before


def _list_once(fd: int, path: bytes, seed: Seed, rules: Rules | None, limit: int | None) -> Listing:
    # One loop, written out: it runs once for every file of every scan.
    listing = Listing()
    files, children, ignored = listing.files, listing.children, listing.ignored
    total = size_total = other = 0
    salt, use_ctime, use_inode = seed.salt, seed.ctime, seed.inode
    ignores, prefix = (rules.ignores if rules else None), (path + b"/" if path else b"")
    new = tuple.__new__  # what Entry(…) ends in, without the call on the way
    with os.scandir(fd) as entries:
        rest = iter(entries)
        for found in islice(rest, limit):
            name = name_bytes(found.name)
            is_directory = found.is_dir(follow_symlinks=False)
            if ignores is not None and ignores(prefix + name, is_directory):
                ignored.add(name)
                continue
            if is_directory:
                inode = found.inode()
                record = _CHILD(b"d", inode if use_inode else 0) + name
                children.append((name, signed(inode)))
            else:
                try:
                    status = found.stat(follow_symlinks=False)
                    mode = status.st_mode
                    target = name_bytes(os.readlink(found.name, dir_fd=fd)) if stat.S_ISLNK(mode) else None
                except OSError as error:
                    if error.errno in _REPLACED:
                        listing.unseen.add(name)
                        continue
                    raise
                size, mtime, ctime, inode = status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino
                if stat.S_ISREG(mode):
                    kind, type_ = b"f", "file"
                    size_total += size
                elif target is not None:
                    kind, type_ = b"l", "symlink"
                else:
                    other += 1
                    continue
                try:
                    record = _FILE(kind, size, mtime, ctime if use_ctime else 0, inode if use_inode else 0) + name
                except struct.error:
                    mtime, ctime = saturate(mtime), saturate(ctime)
                    record = _FILE(kind, size, mtime, ctime if use_ctime else 0, inode if use_inode else 0) + name
                if target is not None:
                    record += b"\0" + target
                files.append(new(Entry, (name, type_, size, mtime, ctime, signed(inode), target)))
            total += int.from_bytes(blake2b(record, digest_size=16, salt=salt).digest(), "big")
        if limit is not None and next(rest, None) is not None:
            raise TooLarge()
    listing.other, listing.size = other, size_total
    listing.fingerprint = (total & _MASK).to_bytes(FINGERPRINT_BYTES, "big")
    return listing


def count_entries(fd: int, path: bytes) -> int:
    """How many entries a directory has, without a look at any. Raises Unreadable, Missing."""
    with watched(fd, path), os.scandir(fd) as entries:
        return sum(1 for _ in entries)


def list_ranges(
    fd: int, path: bytes, seed: Seed, rules: Rules, count: int, wanted: Container[int]
) -> dict[int, Listing]:
    """List those `wanted` of the `count` ranges of a huge directory, in one pass. Raises Unreadable, Missing."""
    found: dict[int, Listing] = {number: Listing() for number in range(count) if number in wanted}
    totals = dict.fromkeys(found, 0)
    prefix = path + b"/" if path else b""
    with watched(fd, path) as watch, os.scandir(fd) as entries:
        for one in entries:
            name = name_bytes(one.name)
            number = number_of(name_hash(name), count)
            listing = found.get(number)
            if listing is not None:
                totals[number] += _take(one, name, fd, seed, rules, prefix, listing)
    for number, listing in found.items():
        listing.steady = watch.steady
        listing.fingerprint = (totals[number] & _MASK).to_bytes(FINGERPRINT_BYTES, "big")
    return found


def fold_ranges(fd: int, path: bytes, seed: Seed, rules: Rules, count: int) -> list[Fold]:
    """The fingerprints of all ranges of a huge directory, in one pass. Raises Unreadable, Missing."""
    folds = [Fold() for _ in range(count)]
    prefix = path + b"/" if path else b""
    with watched(fd, path), os.scandir(fd) as entries:
        for one in entries:
            name, listing = name_bytes(one.name), Listing()
            fold = folds[number_of(name_hash(name), count)]
            fold.total += _take(one, name, fd, seed, rules, prefix, listing)
            fold.entries += 1
            fold.files += len(listing.files)
            fold.size += listing.size
            fold.other += listing.other
    return folds


@dataclass(slots=True)
class Fold:
    """A range of a huge directory, of which nothing is kept but this."""

    total: int = 0
    entries: int = 0
    files: int = 0
    size: int = 0
    other: int = 0

    @property
    def fingerprint(self) -> bytes:
        """As of a listing."""
        return (self.total & _MASK).to_bytes(FINGERPRINT_BYTES, "big")


def _take(found: os.DirEntry[str], name: bytes, fd: int, seed: Seed, rules: Rules, prefix: bytes,
          listing: Listing) -> int:  # fmt: skip
    """Put one entry into a listing; what it adds to the fingerprint. The same as the loop above, entry by entry."""
    if rules and rules.ignores(prefix + name, found.is_dir(follow_symlinks=False)):
        listing.ignored.add(name)
        return 0
    if found.is_dir(follow_symlinks=False):
        record = _CHILD(b"d", found.inode() if seed.inode else 0) + name
        listing.children.append((name, signed(found.inode())))
    else:
        try:
            entry = look_at(fd, found)
        except OSError as error:
            if error.errno in _REPLACED:
                listing.unseen.add(name)
                return 0
            raise
        if entry is None:
            listing.other += 1
            return 0
        listing.files.append(entry)
        listing.size += entry.size if entry.target is None else 0
        record = _record(entry, seed)
    return int.from_bytes(blake2b(record, digest_size=16, salt=seed.salt).digest(), "big")


def _record(entry: Entry, seed: Seed) -> bytes:
    kind = b"f" if entry.target is None else b"l"
    ctime = entry.ctime_ns if seed.ctime else 0
    record = _FILE(kind, entry.size, entry.mtime_ns, ctime, entry.inode & _INODE if seed.inode else 0) + entry.name
    return record if entry.target is None else record + b"\0" + entry.target
