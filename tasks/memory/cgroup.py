"""The control groups of a process, as far as they limit memory: version 1, version 2, or both side by side.

Where the memory controller is one of version 1 (on machines with both, too) that one counts, since the other has none.
Files and fields: Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst of Linux.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import NamedTuple

from tasks.core.filesystem import mount_field

# Version 1 says "no limit" by the largest number of whole pages.
_NO_LIMIT = 1 << 62
# What cannot be given back while its owner lives: what the kernel ends a process for.
_UNRECLAIMABLE = ("anon", "shmem", "slab_unreclaimable", "kernel_stack", "pagetables", "sock")


class Charge(NamedTuple):
    """What one group may use and uses, in bytes; `limit` is None where it has none of its own."""

    group: str
    limit: int | None
    used: int  # that the kernel cannot take back: anonymous, shared, and its own on their behalf
    working_set: int  # as a kubelet counts it: all but files not used lately
    oom_kills: int  # processes that the kernel has ended for want of memory, in it and (version 2) below
    stalled: float | None  # hundredths of the last ten seconds in which all waited for memory; None: not told


class Mounted(NamedTuple):
    """Where the groups of a version are to be seen, and which of them is at the top of that."""

    version: int
    point: str
    top: str


def charges(where: Mounted, root: str = "") -> list[Charge]:
    """Of the group that this process is in, and then of each above it that can be seen, as far as one may be limited.
    `root`: before /proc and /sys, for tests.
    """
    own = _own(root, where.version)
    below = own[len(where.top.rstrip("/")) :] if _within(own, where.top) else "/"
    read = _version_1 if where.version == 1 else _version_2
    found = []
    for path in _upwards(below):
        folder = root + where.point + path.rstrip("/")
        with suppress(OSError):  # removed meanwhile, or not limited, or none of our business
            found.append(read(folder, path))
            if where.version == 1 and found[-1].limit is None:
                break  # it tells the limits above it, too: there are none
    return found


def mounted(root: str = "") -> Mounted | None:
    """Where the memory controller is, if anywhere. A line of mountinfo: … top point options … - kind source options"""
    found = None
    with suppress(OSError), open(f"{root}/proc/self/mountinfo", "rb") as lines:
        for line in lines:
            before, _, after = line.partition(b" - ")
            kind, _, options = after.split(b" ", 2)
            top, point = (os.fsdecode(mount_field(field)) for field in before.split(b" ")[3:5])
            if kind == b"cgroup" and b"memory" in options.strip().split(b","):
                return Mounted(1, point, top)
            if kind == b"cgroup2" and found is None:
                found = Mounted(2, point, top)
    return found


def _own(root: str, version: int) -> str:
    """Each line of /proc/self/cgroup: number, controllers (none for version 2), path."""
    with suppress(OSError), open(f"{root}/proc/self/cgroup", "rb") as lines:
        for line in lines:
            number, controllers, path = line.rstrip(b"\n").split(b":", 2)
            if (b"memory" in controllers.split(b",")) if version == 1 else number == b"0":
                return os.fsdecode(path)
    return "/"


def _within(path: str, top: str) -> bool:
    """Is it below what is mounted? In a container the paths may be those of the machine, or begin above its own."""
    return "/.." not in path and (path + "/").startswith(top.rstrip("/") + "/")


def _upwards(path: str) -> Iterator[str]:
    while path.strip("/"):
        yield path
        path = os.path.dirname(path.rstrip("/"))
    yield "/"


def _version_1(folder: str, group: str) -> Charge:
    stat = _fields(f"{folder}/memory.stat")
    # A limit above what we can see counts too.
    limit = min(_number(f"{folder}/memory.limit_in_bytes"), stat.get("hierarchical_memory_limit", _NO_LIMIT))
    return Charge(
        group,
        limit if limit < _NO_LIMIT else None,
        stat.get("total_rss", 0)
        + stat.get("total_shmem", 0),  # it does not tell what of the kernel's own could be taken back
        max(0, _number(f"{folder}/memory.usage_in_bytes") - stat.get("total_inactive_file", 0)),
        _fields(f"{folder}/memory.oom_control").get("oom_kill", 0),
        None,
    )


def _version_2(folder: str, group: str) -> Charge:
    stat = _fields(f"{folder}/memory.stat")
    # Past memory.high a group is slowed down until it stands still: as much a limit as the other.
    limit = min(_number(f"{folder}/memory.max"), _number(f"{folder}/memory.high"))
    return Charge(
        group,
        limit if limit < _NO_LIMIT else None,
        sum(stat.get(name, 0) for name in _UNRECLAIMABLE),
        max(0, _number(f"{folder}/memory.current") - stat.get("inactive_file", 0)),
        _fields(f"{folder}/memory.events").get("oom_kill", 0),
        stalled(f"{folder}/memory.pressure"),
    )


def stalled(path: str) -> float | None:
    """Of a file of pressure stall information: hundredths of the last ten seconds in which all that could have run
    waited for memory. None where the kernel does not tell.
    """
    with suppress(OSError), open(path, "rb") as lines:
        for line in lines:
            if found := re.match(rb"full avg10=([0-9.]+)", line):
                return float(found[1])
    return None


def _fields(path: str) -> Mapping[str, int]:
    with open(path, "rb") as lines:
        pairs = (line.split() for line in lines)
        return {os.fsdecode(pair[0]): int(pair[1]) for pair in pairs if len(pair) == 2}


def _number(path: str) -> int:
    with open(path, "rb") as file:
        text = file.read().strip()
    return _NO_LIMIT if text == b"max" else int(text)
