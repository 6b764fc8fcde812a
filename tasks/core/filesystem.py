"""The only place that opens and stats what is in a tenant's tree.

Everything is opened relative to the descriptor of the directory above it and never through a symlink, so that a walk
stays inside its root whatever is swapped meanwhile. Names and paths are bytes; nothing is ever written.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import sys
from typing import NamedTuple

# What a walk may hold open below the root.
OPEN_DIRECTORIES = 64
_ENCODING = sys.getfilesystemencoding()
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_INT64 = 1 << 63
# Not there any more, or something else is there now: neither an error nor a deletion, the parent's listing decides.
_MISSING = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
# Refused to whoever asks, so that the visit of that directory itself reports it; anything else may be met here alone.
_REPORTED = frozenset({errno.EACCES, errno.EPERM, errno.EXDEV})


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
    """The error in words, lower-case, without a path."""
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


def stamps(fd: int) -> Stamps:
    """The times of an open directory."""
    found = os.fstat(fd)
    return Stamps(found.st_mtime_ns, found.st_ctime_ns)


class Tree:
    """A tenant's root, and the directories that are open below it: at most OPEN_DIRECTORIES at a time.

    Directories are asked for by path; asked for depth-first, each costs one `open`.
    Raises Unreadable where the root cannot be opened.
    """

    def __init__(self, root: bytes) -> None:
        try:
            self.fd = os.open(root, _DIRECTORY)
            try:
                found = os.fstat(self.fd)
            except OSError:
                os.close(self.fd)
                raise
        except OSError as error:
            raise Unreadable(b"", "open root", f"{explain(error)}: {os.fsdecode(root)!r}") from error
        self.device = found.st_dev
        self.inode = signed(found.st_ino)
        self._open: list[tuple[bytes, int]] = []  # (component, descriptor), from the top; -1: closed to save one

    def close(self) -> None:
        """Close everything."""
        self._keep(0)
        os.close(self.fd)

    def __enter__(self) -> Tree:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def directory(self, path: bytes) -> int:
        """A descriptor of the directory, good until the next call.

        Raises Missing where it is not there, Shadowed where one above it cannot be entered, Unreadable where it
        cannot be opened itself or is on another file system.
        """
        if not path:
            self._keep(0)
            return self.fd
        components = path.split(b"/")
        depth = self._common(components)
        self._keep(depth)
        if depth and self._open[-1][1] < 0:
            self._keep(0)
            depth = 0
        for at in range(depth, len(components)):
            self._enter(components, at)
        return self._open[-1][1]

    def _common(self, components: list[bytes]) -> int:
        depth = 0
        for (name, _), component in zip(self._open, components, strict=False):
            if name != component:
                break
            depth += 1
        return depth

    def _keep(self, depth: int) -> None:
        while len(self._open) > depth:
            _, fd = self._open.pop()
            if fd >= 0:
                os.close(fd)

    def _enter(self, components: list[bytes], at: int) -> None:
        above = self._open[-1][1] if self._open else self.fd
        try:
            fd = os.open(components[at], _DIRECTORY, dir_fd=above)
            self._open.append((components[at], fd))
            if os.fstat(fd).st_dev != self.device:
                raise OSError(errno.EXDEV, "")
        except OSError as error:
            self._keep(at)
            raise self._refusal(components, at, error) from None
        if at >= OPEN_DIRECTORIES:
            name, oldest = self._open[at - OPEN_DIRECTORIES]
            if oldest >= 0:  # closed already where the walk went up and comes down again
                os.close(oldest)
                self._open[at - OPEN_DIRECTORIES] = (name, -1)

    @staticmethod
    def _refusal(components: list[bytes], at: int, error: OSError) -> Exception:
        if error.errno in _MISSING:
            return Missing()
        if at < len(components) - 1 and error.errno in _REPORTED:
            return Shadowed()
        text = "another file system, not entered" if error.errno == errno.EXDEV else explain(error)
        return Unreadable(b"/".join(components[: at + 1]), "list", text)


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
        if error.errno in _MISSING:
            return None
        raise
    if stat.S_ISLNK(found.st_mode):
        return _entry(name, found, os.readlink(name, dir_fd=directory))
    return _entry(name, found, None) if stat.S_ISREG(found.st_mode) else None


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


_libc = ctypes.CDLL(None, use_errno=True)


def filesystem_magic(fd: int) -> int:
    """`f_type` of the file system that an open file is on (statfs(2)); 0 where it cannot be told."""
    buffer = ctypes.create_string_buffer(256)
    if _libc.fstatfs(fd, buffer) != 0:
        return 0
    return int(ctypes.c_long.from_buffer(buffer).value) & 0xFFFFFFFF
