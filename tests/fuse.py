"""A file system that passes everything through to a folder, and misbehaves as it is told. It is a process of its own:

    python -m tests.fuse FOLDER MOUNTPOINT CONTROL

CONTROL is a JSON file (see tests/fuse_control.py), read again whenever another is put in its place. `tests.volumes`
starts this and writes that file. Exchanging two names in one step works too, by a wrapper of mfusepy's `rename`,
which drops the flags.
"""

import contextlib
import errno
import fnmatch
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import mfusepy

from tests.fuse_control import Control, Rule
from tests.scenarios import rename_with
from tests.trees import SECOND_NS

Attributes = dict[str, int]
Row = tuple[str, Attributes, int]  # name, mode and inode, place in the listing

FROZEN_NS = 1_600_000_000 * SECOND_NS
SHOWN = ("st_mode", "st_nlink", "st_uid", "st_gid", "st_rdev", "st_size", "st_blocks")
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2  # linux/stat.h
# Inodes of another mount or another lookup differ from those before in these bits.
INODE_STEP = 1 << 32
DOTS = 2  # entries of every folder: itself and the one above
HANGING_S = 0.05  # between two looks whether it is over
DROPPED_FLAGS = os.O_APPEND | os.O_NOFOLLOW | os.O_CREAT | os.O_EXCL


class PassThrough(mfusepy.Operations):
    use_ns = True
    # An open file is asked for by its handle: its name may be gone.
    flag_nopath = flag_nullpath_ok = True

    def __init__(self, folder: str, control: str) -> None:
        self._folder = folder
        self._control_path = control
        self._lock = threading.Lock()
        self._read_at: tuple[int, int] | None = None
        self._left: dict[int, int] = {}  # of rules with `times`, by their place
        self._paths: dict[int, str] = {}  # of open files and folders, by handle
        self._given: dict[int, list[tuple[str, int, int]]] = {}  # (name, mode, inode) of open folders
        self._mounted = int.from_bytes(os.urandom(2), "big") + 1
        self._lookups = 0
        self._control = Control()

    # ---- What was told

    def _told(self) -> Control:
        with self._lock:
            found = os.stat(self._control_path)
            version = (found.st_ino, found.st_mtime_ns)
            if version != self._read_at:
                with open(self._control_path) as file:
                    self._control = Control.load(file.read())
                self._read_at = version
                self._left = {n: rule.times for n, rule in enumerate(self._control.rules) if rule.times is not None}
            return self._control

    def _obey(self, path: str, operation: str, done: int = 0) -> None:
        control = self._told()
        if control.latency_s:
            time.sleep(control.latency_s)
        for number, rule in enumerate(control.rules):
            if rule in self._rules(path, operation) and done >= rule.after and self._is_left(number):
                for what in rule.do:
                    if what == ["hang"]:
                        self._hang(rule)
                    else:
                        self._do(*what)
                if rule.error is not None:
                    code = getattr(errno, rule.error)
                    raise OSError(code, os.strerror(code))

    def _rules(self, path: str, operation: str) -> list[Rule]:
        of_path = [rule for rule in self._control.rules if fnmatch.fnmatchcase(path.strip("/"), rule.path)]
        return [rule for rule in of_path if rule.operation == operation]

    def _is_left(self, number: int) -> bool:
        with self._lock:
            left = self._left.get(number)
            if left is not None:
                self._left[number] = left - 1
        return left is None or left > 0

    def _hang(self, rule: Rule) -> None:
        while rule in self._told().rules:
            time.sleep(HANGING_S)

    def _do(self, what: str, path: str = "", other: str = "") -> None:
        behind = self._behind(path)
        with contextlib.suppress(FileNotFoundError):  # done already
            match what:
                case "kill":
                    _, _, pid = mfusepy.fuse_get_context()
                    os.kill(pid, signal.SIGKILL)
                case "unlink":
                    os.unlink(behind)
                case "rename":
                    os.rename(behind, self._behind(other))
                case "append":
                    with open(behind, "a") as file:
                        file.write(other)
                case "symlink":
                    os.symlink(other, behind)
                case "truncate":
                    os.truncate(behind, int(other))
                case _:
                    raise ValueError(what)

    def _behind(self, path: str) -> str:
        return os.path.join(self._folder, path.strip("/"))

    # ---- Looking

    def getattr(self, path: str | None, fh: int | None = None) -> Attributes:
        if path is not None:
            self._obey(path, "stat")
        found = os.fstat(fh) if path is None else os.lstat(self._behind(path))
        return self._shown(found)

    def _shown(self, found: os.stat_result) -> Attributes:
        control = self._control
        shown = {name: getattr(found, name) for name in SHOWN}
        times = {"st_atime": found.st_atime_ns, "st_mtime": found.st_mtime_ns, "st_ctime": found.st_ctime_ns}
        if control.ctime != "true":
            times["st_ctime"] = times["st_mtime"] if control.ctime == "mtime" else FROZEN_NS
        if control.directory_times == "frozen" and found.st_mode & 0o170000 == 0o040000:
            times = dict.fromkeys(times, FROZEN_NS)
        if control.granularity_s:
            step = control.granularity_s * SECOND_NS
            times = {name: ns // step * step for name, ns in times.items()}
        return shown | times | {"st_ino": self._inode(found.st_ino)}

    def _inode(self, inode: int) -> int:
        match self._control.inodes:
            case "mount":
                return inode + self._mounted * INODE_STEP
            case "lookup":
                self._lookups += 1
                return inode + self._lookups * INODE_STEP
            case _:
                return inode

    def readlink(self, path: str) -> str:
        self._obey(path, "readlink")
        return os.readlink(self._behind(path))

    def statfs(self, path: str) -> dict[str, int]:
        found = os.statvfs(self._folder)
        return {name: getattr(found, name) for name in dir(found) if name.startswith("f_")}

    def opendir(self, path: str) -> int:
        self._obey(path, "opendir")
        fh = os.open(self._behind(path), os.O_RDONLY | os.O_DIRECTORY)
        self._paths[fh] = path
        return fh

    def readdir_with_offset(self, path: str | None, offset: int, fh: int) -> Iterator[Row]:
        """In pieces and in the order of names, each piece of what is there by then: so it can fail half-way through,
        or be torn by renames."""
        path = self._paths[fh]
        self._obey(path, "readdir", offset - DOTS)
        given = self._given.get(fh, [])[:offset]
        rest = [row for row in self._rows(fh) if row > given[-1]] if offset > DOTS else self._dots(fh) + self._rows(fh)
        self._given[fh] = given + rest
        stop = min((rule.after + DOTS for rule in self._rules(path, "readdir") if rule.after), default=0)
        for at, (name, mode, inode) in enumerate(rest, start=offset + 1):
            yield name, {"st_mode": mode, "st_ino": self._inode(inode)}, at
            if at == stop:
                return

    def _dots(self, fh: int) -> list[tuple[str, int, int]]:
        here = os.fstat(fh)
        return [(name, here.st_mode, here.st_ino) for name in (".", "..")]

    def _rows(self, fh: int) -> list[tuple[str, int, int]]:
        with os.scandir(fh) as entries:
            return sorted((entry.name, entry.stat(follow_symlinks=False).st_mode, entry.inode()) for entry in entries)

    def releasedir(self, path: str | None, fh: int) -> int:
        self._given.pop(fh, None)
        return self.release(path, fh)

    # ---- Files

    def open(self, path: str, flags: int) -> int:
        self._obey(path, "open")
        fh = os.open(self._behind(path), flags & ~DROPPED_FLAGS)
        self._paths[fh] = path
        return fh

    def create(self, path: str, mode: int, flags: int) -> int:
        fh = os.open(self._behind(path), flags & ~DROPPED_FLAGS | os.O_CREAT | os.O_EXCL, mode)
        self._paths[fh] = path
        return fh

    def read(self, path: str | None, size: int, offset: int, fh: int) -> bytes:
        self._obey(self._paths[fh], "read", offset)
        return os.pread(fh, size, offset)

    def write(self, path: str | None, data: bytes, offset: int, fh: int) -> int:
        return os.pwrite(fh, data, offset)

    def truncate(self, path: str | None, length: int, fh: int | None = None) -> int:
        os.truncate(fh if path is None else self._behind(path), length)
        return 0

    def fsync(self, path: str | None, datasync: int, fh: int) -> int:
        os.fsync(fh)
        return 0

    def release(self, path: str | None, fh: int) -> int:
        self._paths.pop(fh, None)
        os.close(fh)
        return 0

    # ---- Changing

    def utimens(self, path: str, times: tuple[int, int] | None = None) -> int:
        behind = self._behind(path)
        if times is None or times == (UTIME_NOW, UTIME_NOW):
            os.utime(behind, follow_symlinks=False)
            return 0
        found = os.lstat(behind)
        known = (found.st_atime_ns, found.st_mtime_ns)
        chosen = [{UTIME_NOW: time.time_ns(), UTIME_OMIT: old}.get(new, new)
                  for new, old in zip(times, known, strict=True)]  # fmt: skip
        os.utime(behind, ns=(chosen[0], chosen[1]), follow_symlinks=False)
        return 0

    def rename(self, old: str, new: str, flags: int = 0) -> int:
        rename_with(flags, os.fsencode(self._behind(old)), os.fsencode(self._behind(new)))
        return 0

    def chmod(self, path: str, mode: int) -> int:
        os.chmod(self._behind(path), mode)
        return 0

    def chown(self, path: str, uid: int, gid: int) -> int:
        os.lchown(self._behind(path), uid, gid)
        return 0

    def mkdir(self, path: str, mode: int) -> int:
        os.mkdir(self._behind(path), mode)
        return 0

    def mknod(self, path: str, mode: int, dev: int) -> int:
        os.mknod(self._behind(path), mode, dev)
        return 0

    def link(self, target: str, source: str) -> int:
        os.link(self._behind(source), self._behind(target), follow_symlinks=False)
        return 0

    def symlink(self, target: str, source: str) -> int:
        os.symlink(source, self._behind(target))
        return 0

    def unlink(self, path: str) -> int:
        os.unlink(self._behind(path))
        return 0

    def rmdir(self, path: str) -> int:
        os.rmdir(self._behind(path))
        return 0


class Mount(mfusepy.FUSE):
    def rename_fuse_3(self, old: bytes, new: bytes, flags: int) -> int:
        return self.operations.rename(os.fsdecode(old), os.fsdecode(new), flags)


def main(folder: str, mountpoint: str, control: str) -> None:
    # Nothing is remembered: what is told holds from the next call on.
    options: dict[str, Any] = {"attr_timeout": 0, "entry_timeout": 0, "negative_timeout": 0, "ac_attr_timeout": 0}
    Mount(PassThrough(folder, control), mountpoint, foreground=True, allow_other=True, use_ino=True, hard_remove=True,
          fsname="tests.fuse", **options)  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
