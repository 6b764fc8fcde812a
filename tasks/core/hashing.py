"""Hashing one file, with proof that it held still: the same stat before and after, and as many bytes as it says."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from hashlib import sha256
from typing import NamedTuple, Protocol

from blake3 import blake3

from db.types import Unsettled
from tasks.core.filesystem import Entry, entry_of, explain, is_regular, look, open_file, unchanged
from tasks.core.policy import PART_BYTES, STAT, Policy

# A file that moves while it is read is read again so many times; then it is left to the next scan.
TRIES = 3
# A memory-mapped writer moves no time until its pages are flushed, so that files touched within this are flushed first.
FRESH_NS = 60_000_000_000
# A flush costs a millisecond or more: a shard does so many, the other fresh files wait for the next scan.
FSYNCS_PER_SHARD = 200
# Reading a large file must not push everything else out of the page cache.
DROP_CACHE_BYTES = 16 << 20
# What a digest begins with that does not cover all of a file: so it equals none that does.
_PARTIAL, _STAT = b"strandline partial", b"strandline stat"


class Digest(Protocol):
    """What hashlib and blake3 have in common."""

    def update(self, data: memoryview, /) -> object:
        """Take in more bytes."""

    def digest(self) -> bytes:
        """The digest of all bytes so far."""


ALGORITHMS: dict[str, Callable[[memoryview], Digest]] = {"sha256": sha256, "blake3": blake3}


class Hashed(NamedTuple):
    """A digest and the stat that it was proven under; or why there is none.

    `entry` is None where the name no longer is a regular file. `unsettled` says that the next scan must look again.
    """

    entry: Entry | None
    digest: bytes | None = None
    unsettled: Unsettled | None = None
    error: str | None = None  # why it could not be read
    read: bool = True  # False: by policy its digest covers nothing but its stat


class Hasher:
    """Hashes the files of one shard. Keeps one buffer, and counts the flushes that it may still do.

    `progress(bytes)` is called after each chunk; an exception from it ends the hash and passes through. `inode`: does
    the number stay the same for the same file? Where it does not, it proves nothing of a file that held still.
    """

    def __init__(self, policy: Policy, chunk_bytes: int, progress: Callable[[int], None], *,
                 inode: bool = True) -> None:  # fmt: skip
        self._policy = policy
        self._new = ALGORITHMS[policy.algorithm]
        # Page-aligned: copying into memory at odd offsets is up to four times slower on some processors.
        # Private: what is shared the kernel cannot take from a process that it kills for memory, and kills the next.
        self._buffer = mmap.mmap(-1, chunk_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._view = memoryview(self._buffer)
        self._chunk_bytes = chunk_bytes
        self._progress = progress
        self._inode = inode
        self._fsyncs_left = FSYNCS_PER_SHARD

    def close(self) -> None:
        """Give the buffer back at once: whose progress is told holds this too, and garbage is looked for rarely."""
        self._view.release()
        self._buffer.close()

    def hash(self, directory: int, listed: Entry, now_ns: int) -> Hashed:
        """Hash the file that a listing showed, opened relative to its directory. `now_ns`: the time of that listing."""
        if self._policy.algorithm_for(listed.size) == STAT:
            stat = b"%s %d %d" % (_STAT, listed.size, listed.mtime_ns)
            return Hashed(listed, self._new(memoryview(stat)).digest(), read=False)
        try:
            fd = open_file(directory, listed.name)
            try:
                return self._hash_open(fd, listed, now_ns)
            finally:
                os.close(fd)
        except FileNotFoundError:
            return Hashed(None)
        except OSError as error:
            if _replaced(directory, listed):
                return Hashed(None)
            return Hashed(listed, unsettled=Unsettled.FAILED, error=explain(error))

    def _hash_open(self, fd: int, listed: Entry, now_ns: int) -> Hashed:
        if not is_regular(fd):
            return Hashed(None)
        fresh = listed.ctime_ns > now_ns - FRESH_NS or listed.mtime_ns > now_ns - FRESH_NS
        unsettled: Unsettled | None = None
        expected: Entry | None = listed
        for _ in range(TRIES):
            if expected is None:
                return Hashed(None)
            if fresh and not self._flush(fd):
                unsettled = Unsettled.FSYNC_BUDGET
            digest, count = self._read_as_told(fd, expected.size)
            # As it was when it was listed, and all of it read: then nothing moved from the listing until now.
            if count == expected.size and unchanged(fd, expected, inode=self._inode):
                return Hashed(expected, digest, unsettled)
            # Somebody is writing: flush again, for what a map has dirtied moves no time, and look again next time.
            expected, fresh, unsettled = entry_of(fd, listed.name), True, Unsettled.RACY
            os.lseek(fd, 0, os.SEEK_SET)
        return Hashed(expected, unsettled=Unsettled.UNSTABLE)

    def _flush(self, fd: int) -> bool:
        if self._fsyncs_left <= 0:
            return False
        self._fsyncs_left -= 1
        try:
            os.fsync(fd)
        except OSError:
            return True  # a file system that cannot flush: nothing more can be done
        return True

    def _read_as_told(self, fd: int, size: int) -> tuple[bytes, int]:
        if self._policy.algorithm_for(size) == self._policy.algorithm:
            return self._read(fd, size)
        return self._read_parts(fd, size)

    def _read_parts(self, fd: int, size: int) -> tuple[bytes, int]:
        """The digest of the first and last 64 KiB and the size; the size, if the file has it still."""
        hasher = self._new(memoryview(b"%s %d " % (_PARTIAL, size)))
        count = 0
        for start in (0, max(PART_BYTES, size - PART_BYTES)):
            part = os.pread(fd, PART_BYTES, start)
            hasher.update(memoryview(part))
            count += len(part)
            self._progress(len(part))
        return hasher.digest(), size if count == min(size, 2 * PART_BYTES) else count

    def _read(self, fd: int, size: int) -> tuple[bytes, int]:
        """The digest of what is there, and how many bytes that was: one more than `size` is enough to know it grew."""
        got = os.readv(fd, (self._view,))
        self._progress(got)
        if got <= size < self._chunk_bytes:
            return self._new(self._view[:got]).digest(), got
        hasher = self._new(self._view[:got])
        count, dropped = got, 0
        while got > 0 and count <= size:
            got = os.readv(fd, (self._view,))
            hasher.update(self._view[:got])
            count += got
            self._progress(got)
            if count - dropped >= DROP_CACHE_BYTES:
                os.posix_fadvise(fd, dropped, count - dropped, os.POSIX_FADV_DONTNEED)
                dropped = count
        return hasher.digest(), count


def _replaced(directory: int, listed: Entry) -> bool:
    """Is the name something else by now (a symlink, a directory, nothing)?"""
    try:
        found = look(directory, listed.name)
    except OSError:
        return False
    return found is None or found.type != "file"
