"""The only place that opens and stats what is in a tenant's tree.

Everything is opened relative to the descriptor of the directory above it and never through a symlink, so that a walk
stays inside its root whatever is swapped meanwhile. Names and paths are bytes; nothing is ever written.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import stat
import sys
from typing import NamedTuple

from db.types import Exhausted

_ENCODING = sys.getfilesystemencoding()
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_INT64 = 1 << 63
# Not there any more, or something else is there now: neither an error nor a deletion, the parent's listing decides.
MISSING = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
# Says nothing of the place that was looked at.
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


class Unreadable(Exception):
    """A place that could not be looked at: what is recorded below it is UNKNOWN, and stays."""

    def __init__(self, path: bytes, operation: str, error: str) -> None:
        super().__init__(operation, error)
        self.path = path
        self.operation = operation
        self.error = error


class Missing(Exception):
    """A directory that is not there (any more)."""


class Shadowed(Exception):
    """A directory below one that cannot be entered, which is reported by itself."""


class Ignored(Exception):
    """A directory that the rules leave out: it is not entered, and what is recorded of it is for its parent to say."""


class OtherMount(Exception):
    """A directory on which another file system (or another part of this one) is mounted; those are not entered."""


class Entry(NamedTuple):
    """A file or symlink as a listing saw it. Times in ns since the epoch, saturated to 64 bits, like the inode."""

    name: bytes
    type: str
    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    target: bytes | None


class Stamps(NamedTuple):
    """A directory's own times: they move when an entry is added, removed or renamed."""

    mtime_ns: int
    ctime_ns: int


def explain(error: OSError) -> str:
    """The error in words, lower-case, without a path. Raises Exhausted where it is no error of a place."""
    if error.errno in _EXHAUSTED:
        raise Exhausted(f"this process is at its limits: {os.strerror(error.errno).lower()}") from error
    return os.strerror(error.errno).lower() if error.errno else str(error)


def name_bytes(name: str) -> bytes:
    """The exact bytes of a name that `os.scandir` decoded."""
    return name.encode(_ENCODING, "surrogateescape")


def saturate(value: int) -> int:
    """The nearest signed 64-bit integer; years beyond 2262 do not fit in nanoseconds."""
    return value if -_INT64 <= value < _INT64 else max(-_INT64, min(_INT64 - 1, value))


def signed(inode: int) -> int:
    """An unsigned 64-bit inode number as the database's signed one."""
    return inode - 2 * _INT64 if inode >= _INT64 else inode


def inode_of(fd: int) -> int:
    """The inode of an open file or directory."""
    return signed(os.fstat(fd).st_ino)


def stamps(fd: int) -> Stamps:
    """The times of an open directory."""
    found = os.fstat(fd)
    return Stamps(found.st_mtime_ns, found.st_ctime_ns)


def open_file(directory: int, name: bytes) -> int:
    """A descriptor for reading; never through a symlink, never blocking on a pipe. Raises OSError."""
    return os.open(name, _FILE, dir_fd=directory)


def entry_of(fd: int, name: bytes) -> Entry | None:
    """The entry of an open file as it is now; None where it is not a regular file."""
    found = os.fstat(fd)
    return _entry(name, found, None) if stat.S_ISREG(found.st_mode) else None


def unchanged(fd: int, entry: Entry, *, inode: bool = True) -> bool:
    """Has an open file still the stat of its entry? `inode`: does its number stay the same for the same file here?"""
    found = os.fstat(fd)
    return (
        found.st_size == entry.size
        and saturate(found.st_mtime_ns) == entry.mtime_ns
        and saturate(found.st_ctime_ns) == entry.ctime_ns
        and (not inode or signed(found.st_ino) == entry.inode)
        and stat.S_ISREG(found.st_mode)
    )


def is_regular(fd: int) -> bool:
    """Is this a regular file, so that reading it neither blocks nor does anything?"""
    return stat.S_ISREG(os.fstat(fd).st_mode)


def look(directory: int, name: bytes) -> Entry | None:
    """The file or symlink of that name as it is now; None where there is none. Raises OSError."""
    try:
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except OSError as error:
        if error.errno in MISSING:
            return None
        raise
    if stat.S_ISLNK(found.st_mode):
        return _entry(name, found, os.readlink(name, dir_fd=directory))
    return _entry(name, found, None) if stat.S_ISREG(found.st_mode) else None


def look_at(directory: int, found: os.DirEntry[str]) -> Entry | None:
    """What a listing showed, if it is a file or a symlink. Raises OSError."""
    status = found.stat(follow_symlinks=False)
    if stat.S_ISLNK(status.st_mode):
        target = name_bytes(os.readlink(found.name, dir_fd=directory))
        return _entry(name_bytes(found.name), status, target)
    return _entry(name_bytes(found.name), status, None) if stat.S_ISREG(status.st_mode) else None


def may_look(directory: int, name: bytes) -> bool:
    """May the stat of this name be seen at all?"""
    try:
        return exists(directory, name) or True
    except OSError:
        return False


_KINDS = {
    stat.S_IFREG: "file", stat.S_IFLNK: "symlink", stat.S_IFDIR: "directory", stat.S_IFIFO: "pipe",
    stat.S_IFSOCK: "socket", stat.S_IFBLK: "device", stat.S_IFCHR: "device",
}  # fmt: skip


def kind_of(directory: int, name: bytes) -> str | None:
    """What is there under this name, in a word; None: nothing. Raises Unreadable."""
    try:
        return _KINDS[stat.S_IFMT(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode)]
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Unreadable(name, "stat", explain(error)) from error


def exists(directory: int, name: bytes) -> bool:
    """Is there anything of that name? Raises OSError where that cannot be said."""
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _entry(name: bytes, found: os.stat_result, target: bytes | None) -> Entry:
    mtime, ctime, inode = found.st_mtime_ns, found.st_ctime_ns, found.st_ino
    if not (-_INT64 <= mtime < _INT64 and -_INT64 <= ctime < _INT64 and inode < _INT64):
        mtime, ctime, inode = saturate(mtime), saturate(ctime), signed(inode)
    return Entry(name, "file" if target is None else "symlink", found.st_size, mtime, ctime, inode, target)


def mount_points() -> frozenset[bytes]:
    """The folders on which something is mounted, as this process sees them (proc(5), mountinfo); none without /proc."""
    try:
        with open("/proc/self/mountinfo", "rb") as lines:
            return frozenset(mount_field(line.split(b" ", 5)[4]) for line in lines)
    except OSError as error:
        explain(error)  # which may be that there is no descriptor left
        return frozenset()


def mount_field(field: bytes) -> bytes:
    """A path as mountinfo tells it, without its escapes."""
    return _OCTAL.sub(lambda found: bytes([int(found[1], 8)]), field)


_OCTAL = re.compile(rb"\\([0-7]{3})")  # blanks, line feeds and backslashes are written so
_libc = ctypes.CDLL(None, use_errno=True)


def filesystem_magic(fd: int) -> int:
    """`f_type` of the file system that an open file is on (statfs(2)); 0 where it cannot be told."""
    buffer = ctypes.create_string_buffer(256)
    if _libc.fstatfs(fd, buffer) != 0:
        return 0
    return int(ctypes.c_long.from_buffer(buffer).value) & 0xFFFFFFFF
