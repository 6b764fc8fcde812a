"""How full the memory is that a process may use: by the limit that the kernel, or the operator, holds it to."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

import psutil

from tasks.memory.cgroup import Charge, Mounted, charges, mounted, stalled

_PRESSURE = "/proc/pressure/memory"
_SHARE = re.compile(rb"^Pss_(?:Anon|Shmem): *(\d+) kB", re.M)


class Reading(NamedTuple):
    """What limits, and how much of that is used, in bytes."""

    limited_by: str  # "control group /…", "STRANDLINE_MEMORY_LIMIT_MB" or "the machine"
    limit: int
    used: int
    working_set: int | None  # of the nearest group, as a kubelet counts it
    stalled: float  # hundredths of the last ten seconds in which all waited for memory
    oom_kills: int  # that the kernel counted in the nearest group

    @property
    def fraction(self) -> float:
        """Of the limit, that is used."""
        return self.used / self.limit


class Gauge:
    """Reads anew each time: a limit may change, and a process be moved. Only where groups are to be seen is kept while
    they are, since machines may have hundreds of mounts. `budget`: what the operator allows a worker with its children,
    in bytes, 0 for no such limit. `root`: before /proc and /sys, for tests.
    """

    def __init__(self, budget: int = 0, root: str = "") -> None:
        self._budget, self._root = budget, root
        self._mounted: Mounted | None = None

    def read(self, own: int = 0) -> Reading:
        """Where several limits hold, the one that is nearest. `own`: bytes that those use for whom the budget is."""
        found = self._charges()
        limits = [(f"control group {one.group}", one.limit, one.used) for one in found if one.limit]
        if self._budget:
            limits.append(("STRANDLINE_MEMORY_LIMIT_MB", self._budget, own))
        if not limits:
            limits.append(_machine())
        limited_by, limit, used = max(limits, key=lambda one: one[2] / one[1])
        nearest = found[0] if found else None
        return Reading(
            limited_by, limit, used, nearest.working_set if nearest else None, self._stalled(found),
            nearest.oom_kills if nearest else 0,
        )  # fmt: skip

    def _charges(self) -> Sequence[Charge]:
        self._mounted = self._mounted or mounted(self._root)
        found = charges(self._mounted, self._root) if self._mounted else []
        if not found:
            self._mounted = None
        return found

    def _stalled(self, found: Sequence[Charge]) -> float:
        """Of the nearest group that tells it, else of the machine."""
        told = [one.stalled for one in found if one.stalled is not None]
        return told[0] if told else stalled(self._root + _PRESSURE) or 0.0


def _machine() -> tuple[str, int, int]:
    memory = psutil.virtual_memory()
    return "the machine", memory.total, memory.total - memory.available


def share(pid: int) -> int:
    """Bytes of anonymous and shared memory of a process, of what it has in common with others only its share; 0 where
    it is gone, or is none of ours. Costs a look at each of its pages.
    """
    with suppress(OSError), open(f"/proc/{pid}/smaps_rollup", "rb") as file:
        return sum(int(number) for number in _SHARE.findall(file.read())) * 1024
    return 0
