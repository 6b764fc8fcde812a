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
from dataclasses import dataclass, field
from hashlib import blake2b

from tasks.core.filesystem import Entry, Missing, Stamps, Unreadable, explain, name_bytes, saturate, signed, stamps
from tasks.core.profile import Profile

FINGERPRINT_BYTES = 16
# A directory whose own times move while it is listed is listed again so many times.
LISTING_TRIES = 3
_MASK = (1 << 128) - 1
# Removed or replaced since readdir: then the directory's own times moved too, and it is listed again.
_REPLACED = frozenset({errno.ENOENT, errno.EINVAL})
_FILE = struct.Struct(">cqqqQ").pack
_CHILD = struct.Struct(">cQ").pack


@dataclass(slots=True)
class Listing:
    """What one listing of a directory showed."""

    files: list[Entry] = field(default_factory=list)  # and symlinks
    children: list[tuple[bytes, int]] = field(default_factory=list)  # (name, inode) of directories
    other: int = 0  # sockets, pipes, devices
    size: int = 0  # of the files, bytes
    fingerprint: bytes = b""
    steady: bool = True  # the directory's own times did not move meanwhile


@dataclass(frozen=True, slots=True)
class Seed:
    """What keeps fingerprints apart that must not be compared with each other."""

    salt: bytes
    ctime: bool
    inode: bool

    @classmethod
    def of(cls, tenant_id: int, algorithm: str, profile: Profile) -> Seed:
        """For a tenant's tree as it is to be compared now. Whatever changes here makes every fingerprint differ."""
        configuration = f"1 {tenant_id} {algorithm} {profile.ctime:d} {profile.inode:d}"
        return cls(blake2b(configuration.encode(), digest_size=16).digest(), profile.ctime, profile.inode)


def list_directory(fd: int, path: bytes, seed: Seed) -> Listing:
    """List an open directory, again where its own times moved meanwhile.

    Raises Unreadable where it cannot be listed to its end, and Missing where it was removed meanwhile.
    """
    for _ in range(LISTING_TRIES):
        try:
            before = stamps(fd)
            listing = _list_once(fd, seed)
            listing.steady = _still(fd, before)
        except OSError as error:
            raise Unreadable(path, "list", explain(error)) from error
        if listing.steady:
            break
    return listing


def _still(fd: int, before: Stamps) -> bool:
    found = os.fstat(fd)
    if found.st_nlink == 0:
        raise Missing()
    return (found.st_mtime_ns, found.st_ctime_ns) == before


def _list_once(fd: int, seed: Seed) -> Listing:
    # One loop, written out: it runs once for every file of every scan.
    listing = Listing()
    files, children = listing.files, listing.children
    total = size_total = other = 0
    salt, use_ctime, use_inode = seed.salt, seed.ctime, seed.inode
    new = tuple.__new__  # what Entry(…) ends in, without the call on the way
    with os.scandir(fd) as entries:
        for found in entries:
            name = name_bytes(found.name)
            if found.is_dir(follow_symlinks=False):
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
    listing.other, listing.size = other, size_total
    listing.fingerprint = (total & _MASK).to_bytes(FINGERPRINT_BYTES, "big")
    return listing
