"""Walking a tenant's tree by descriptors: from the root down to any directory, and never out of it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass

from tasks.core.filesystem import (
    MISSING,
    Ignored,
    Missing,
    OtherMount,
    Shadowed,
    Unreadable,
    explain,
    mount_points,
    signed,
)
from tasks.core.ignore import Rules
from tasks.core.rule_sources import RuleSources

# What a walk may hold open below the root.
OPEN_DIRECTORIES = 64
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
# Refused to whoever asks, so that the visit of that directory itself reports it; anything else may be met here alone.
_REPORTED = frozenset({errno.EACCES, errno.EPERM, errno.EXDEV})


@dataclass(slots=True)
class _Open:
    """A directory on the way down; its descriptor is -1 where it was closed to save one."""

    name: bytes
    fd: int
    rules: Rules


class Tree:
    """A tenant's root, and the directories that are open below it: at most OPEN_DIRECTORIES at a time.

    Directories are asked for by path; asked for depth-first, each costs one `open`. What is mounted below the root is
    entered only if it shall be crossed. `rule_sources` tell the rules that hold in each. `touching` is told each path
    before it is touched, in case that never returns. Raises Unreadable where the root cannot be opened.
    """

    def __init__(self, root: bytes, *, cross_mounts: bool = False, rule_sources: RuleSources | None = None,
                 touching: Callable[[bytes], None] | None = None) -> None:  # fmt: skip
        self._touching = touching or (lambda _: None)
        self._rule_sources = rule_sources if rule_sources is not None else RuleSources()
        self._root_rules: Rules | None = None
        mounts = mount_points()
        self.is_mount = root in mounts
        self._cross_mounts = cross_mounts
        prefix = root.rstrip(b"/") + b"/"
        self._mounts = frozenset(mount.removeprefix(prefix) for mount in mounts if mount.startswith(prefix))
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
        self._open: list[_Open] = []  # from the top

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

        Raises Missing where it is not there, Ignored where the rules leave it or one above it out, Shadowed where one
        above it cannot be entered, OtherMount where it is one that is not crossed, Unreadable where it cannot be
        opened itself or its rules cannot be read.
        """
        if not path:
            self._keep(0)
            return self.fd
        components = path.split(b"/")
        depth = self._common(components)
        self._keep(depth)
        if depth and self._open[-1].fd < 0:
            self._keep(0)
            depth = 0
        for at in range(depth, len(components)):
            self._enter(components, at)
        return self._open[-1].fd

    def mark(self, path: bytes) -> str | None:
        """What stat shows of a directory that may not be entered itself; none: nothing."""
        above, _, name = path.rpartition(b"/")
        try:
            fd = self.directory(above) if path else self.fd
            self._touching(path)
            found = os.stat(name, dir_fd=fd, follow_symlinks=False) if path else os.fstat(fd)
        except (OSError, Missing, Shadowed, Ignored, OtherMount, Unreadable):
            return None
        return f"{found.st_mode} {found.st_ino} {found.st_ctime_ns}"

    def confirm(self, path: bytes, fd: int) -> None:
        """Raise Missing unless `path`, for which `fd` was given last, still leads to the same directory.

        A descriptor follows its directory wherever that is moved, and so do those below it: what is listed there then
        was never under this path. A path that cannot be looked at (it may be too long for that) is believed.
        """
        if not path:
            return
        try:
            found = os.stat(path, dir_fd=self.fd, follow_symlinks=False)
        except OSError as error:
            if error.errno not in MISSING:
                return
        else:
            if os.path.samestat(found, os.fstat(fd)):
                return
        self._keep(0)
        raise Missing()

    @property
    def rules(self) -> Rules:
        """The rules that hold in the directory that was asked for last. Raises Unreadable."""
        if self._open:
            return self._open[-1].rules
        if self._root_rules is None:
            self._root_rules = self._rule_sources.read(self.fd, b"", self._rule_sources.patterns)
        return self._root_rules

    @property
    def is_other_mount(self) -> bool:
        """Is the directory that was asked for last the root of another mount?"""
        return bool(self._open) and self._is_mount(self._open[-1].fd, [one.name for one in self._open])

    def _common(self, components: list[bytes]) -> int:
        depth = 0
        for one, component in zip(self._open, components, strict=False):
            if one.name != component:
                break
            depth += 1
        return depth

    def _keep(self, depth: int) -> None:
        while len(self._open) > depth:
            fd = self._open.pop().fd
            if fd >= 0:
                os.close(fd)

    def _enter(self, components: list[bytes], at: int) -> None:
        above, rules, path = self._open[-1].fd if self._open else self.fd, self.rules, b"/".join(components[: at + 1])
        if rules and rules.ignores(path, True):
            raise Ignored()
        if not self._cross_mounts and path in self._mounts:
            raise OtherMount() if at == len(components) - 1 else Shadowed()  # not touched: it may hang
        self._touching(path)
        try:
            fd = os.open(components[at], _DIRECTORY, dir_fd=above)
            self._open.append(_Open(components[at], fd, rules))
            if not self._cross_mounts and self._is_mount(fd, components[: at + 1]):
                raise OSError(errno.EXDEV, "")
            self._open[-1].rules = self._rule_sources.read(fd, path, rules)
        except OSError as error:
            self._keep(at)
            raise self._refusal(components, at, error) from None
        except Unreadable:
            self._keep(at)
            if at < len(components) - 1:
                raise Shadowed() from None
            raise
        if at >= OPEN_DIRECTORIES:
            oldest = self._open[at - OPEN_DIRECTORIES]
            if oldest.fd >= 0:  # closed already where the walk went up and comes down again
                os.close(oldest.fd)
                oldest.fd = -1

    def _is_mount(self, fd: int, components: list[bytes]) -> bool:
        # A bind mount of the same file system shows in the list of mounts only, one that came just now in stat only.
        if os.fstat(fd).st_dev != self.device:
            return True
        return bool(self._mounts) and b"/".join(components) in self._mounts

    @staticmethod
    def _refusal(components: list[bytes], at: int, error: OSError) -> Exception:
        if error.errno in MISSING:
            return Missing()
        if at < len(components) - 1 and error.errno in _REPORTED:
            return Shadowed()
        if error.errno == errno.EXDEV:
            return OtherMount()
        return Unreadable(b"/".join(components[: at + 1]), "list", explain(error))
