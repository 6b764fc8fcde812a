"""Which folders may be a tenant's root."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable
from itertools import permutations

from db.types import UsageError
from tasks.core.filesystem import explain
from tasks.settings import Settings


def checked_root(path: bytes, settings: Settings) -> bytes:
    """The folder's one true path. Raises UsageError where it cannot be a root, and says why."""
    try:
        return _checked(path, settings)
    except UsageError as error:
        error.field = "root"
        raise


def _checked(path: bytes, settings: Settings) -> bytes:
    shown = repr(os.fsdecode(path))
    if not path or b"\0" in path:
        raise UsageError(f"root {shown} is no path")
    clean = os.path.normpath(os.path.abspath(path))
    try:
        found = os.lstat(clean)
        real = os.path.realpath(clean, strict=True)
        if stat.S_ISLNK(found.st_mode):
            raise UsageError(f"root {shown} is a symbolic link; give the folder itself: {os.fsdecode(real)!r}")
        if not stat.S_ISDIR(found.st_mode):
            raise UsageError(f"root {shown} is not a folder; give the folder that holds it")
        # Its "." rather than itself: that must be entered too, without which nothing in it can be looked at.
        os.close(os.open(os.path.join(real, b"."), os.O_RDONLY | os.O_DIRECTORY))
    except OSError as error:
        raise UsageError(
            f"root {shown} cannot be read: {explain(error)}; see that it may be listed and entered"
        ) from error
    if real == os.path.realpath(os.fsencode(settings.state_dir)):
        raise UsageError(f"root {shown} is our own state folder; give another, or another --state")
    if real == b"/":
        raise UsageError("root '/' is the whole machine; give a folder below it")
    _require_allowed(real, shown, settings)
    return real


def apart(roots: Iterable[bytes]) -> list[bytes]:
    """The roots, each once. Raises UsageError where one holds another."""
    found = list(dict.fromkeys(roots))
    for root, other in permutations(found, 2):
        if below(root, other):
            raise UsageError(
                f"root {os.fsdecode(other)!r} lies in root {os.fsdecode(root)!r}; each file may be in one tenant: "
                "give the outer folder alone, or folders that lie apart",
                field="root",
            )
    return found


def below(root: bytes, path: bytes) -> bytes | None:
    """A path, absolute or relative to the root, as one relative to it; None where it is not below the root. Nothing is
    looked at.
    """
    full = os.path.normpath(os.path.join(root, path))
    if full == root:
        return b""
    return full[len(root) + 1 :] if full.startswith(root + b"/") else None


def named_paths(root: bytes, paths: Iterable[bytes]) -> list[bytes]:
    """The paths of a tenant that a scan is asked for, relative to its root. Raises UsageError."""
    found = []
    for path in paths:
        relative = None if b"\0" in path else below(root, path)
        if relative is None:
            raise UsageError(
                f"path {os.fsdecode(path)!r} is not below the tenant's root {os.fsdecode(root)!r}", field="paths"
            )
        found.append(relative)
    return found


def _require_allowed(root: bytes, shown: str, settings: Settings) -> None:
    allowed = [os.path.realpath(os.fsencode(one)) for one in settings.roots.split(":") if one]
    if allowed and not any(root == one or root.startswith(one.rstrip(b"/") + b"/") for one in allowed):
        raise UsageError(f"root {shown} lies outside of the folders that STRANDLINE_ROOTS allows: {settings.roots}")


def own_patterns(root: bytes, settings: Settings) -> list[str]:
    """What a new tenant ignores from the beginning: our own state folder, where that lies in its root."""
    state = os.path.realpath(os.fsencode(settings.state_dir))
    if not state.startswith(root.rstrip(b"/") + b"/"):
        return []
    below = state[len(root.rstrip(b"/")) :]
    return [os.fsdecode(re.sub(rb"([\\*?\[ !#])", rb"\\\1", below)) + "/"]


def name_for(root: bytes, taken: set[str]) -> str:
    """A tenant name made from the folder's, and from a number where that is taken."""
    base = re.sub(r"[^A-Za-z0-9._-]+", "-", os.path.basename(root).decode("utf-8", "replace")).strip(".-")[:80]
    base = base or "folder"
    number, name = 1, base
    while name in taken:
        number += 1
        name = f"{base}-{number}"
    return name
