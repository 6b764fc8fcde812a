"""A control group of version 1 with a limit, and programs that are in it from their first page on.

with limited_to(1024) as group:
    worker = cluster.begin("worker", "worker", program=program(group, STRANDLINE))
    …
    used(group)
"""

import contextlib
import os
import re
import signal
from collections.abc import Iterator

from tests.cgroups import Group, limited
from tests.waiting import wait_until

_FIELDS = re.compile(r"^(total_rss|total_shmem) (\d+)$", re.M)
# The group that podman makes for who looks after a container.
KEEPER = "conmon"
END_S = 30
ROUNDS = 20
_KILLS = re.compile(r"^oom_kill (\d+)$", re.M)


@contextlib.contextmanager
def limited_to(megabytes: int) -> Iterator[Group]:
    """No processes yet, and at most so many MiB (0: any number). At the end who is in it is killed, and what files left
    in memory there is dropped: whoever reads them next pays for that himself.
    """
    with limited("memory") as group:
        if megabytes:
            group.write("memory.limit_in_bytes", megabytes << 20)
        try:
            yield group
        finally:
            wait_until(lambda: _emptied(group), END_S, f"all end that are in {group.path}")
            _drop(group)


def _emptied(group: Group) -> bool:
    """Kill who is there; has everybody ended by now?"""
    for pid in pids(group):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return not pids(group)


def _drop(group: Group) -> None:
    """Drop what files and inodes left, as long as that gets anywhere; what is not on the disk yet could not be."""
    os.sync()
    for _ in range(ROUNDS):
        before = int(group.read("memory.usage_in_bytes"))
        with contextlib.suppress(OSError):  # not all could be dropped
            group.write("memory.force_empty", 0)
        if int(group.read("memory.usage_in_bytes")) > before * 0.95:
            return


def program(group: Group, executable: str) -> str:
    """Python that enters the group and becomes that program: what it was before is not in the group."""
    return (
        f"import os, sys; open({str(group.path / 'cgroup.procs')!r}, 'w').write(str(os.getpid())); "
        f"os.execv({executable!r}, [{executable!r}, *sys.argv[1:]])"
    )


def pids(group: Group) -> list[int]:
    """In it and below it, where a container has a group of its own; not those that only look after the container."""
    return [int(pid) for text in _read(group, "cgroup.procs") for pid in text.split()]


def used(group: Group) -> int:
    """Bytes of anonymous and shared memory, in it and below: what cannot be taken back."""
    return sum(int(size) for _, size in _FIELDS.findall(group.read("memory.stat")))


def oom_kills(group: Group) -> int:
    """Processes that the kernel has ended for want of memory, in it and below: it counts by group."""
    return sum(int(kills) for text in _read(group, "memory.oom_control") for kills in _KILLS.findall(text))


def _read(group: Group, name: str) -> Iterator[str]:
    for path in group.path.rglob(name):
        if path.parent.name != KEEPER:
            with contextlib.suppress(OSError):  # a container that has ended
                yield path.read_text()
