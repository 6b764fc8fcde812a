"""What a worker's main process sees of its memory each second, and tells."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.memory.gauge import Gauge, Reading, share
from tasks.memory.level import PROFILES, STALLED, Ladder, Level, Marks
from tasks.settings import Settings

LOOKED_EVERY_S = 1.0
# A look at one child takes some milliseconds, in which nothing else is done: at so many at a time, each in its turn.
AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Seen:
    """What was seen: the level, what it follows from, and the share of each child (process id, bytes)."""

    level: Level
    reading: Reading
    marks: Marks
    children: Sequence[tuple[int, int]]

    @property
    def why(self) -> str:
        """Why the level is what it is, for people."""
        reading = self.reading
        lower = sum(reading.fraction >= mark for mark in self.marks)
        parts = [f"{reading.fraction:.0%} of the limit is used"]
        if lower:
            parts.append(f"{Level(lower).name} begins at {self.marks[lower - 1]:.0%}")
        if lower < self.level:
            stalled = f"all waited for memory in {reading.stalled:.0f} % of the last ten seconds"
            parts.append(stalled if reading.stalled >= STALLED else "it was more a moment ago")
        return ", ".join(parts)

    def document(self) -> dict[str, Any]:
        """For JSON."""
        reading = self.reading
        return {
            "level": self.level.name,
            "why": self.why,
            "limited_by": reading.limited_by,
            "limit_bytes": reading.limit,
            "used_bytes": reading.used,
            "working_set_bytes": reading.working_set,
            "stalled_percent": reading.stalled,
            "oom_kills": reading.oom_kills,
            "children": [{"pid": pid, "bytes": size} for pid, size in self.children],
        }


class Watch:
    """The memory of a worker with its children; `clock_s` is a monotonic clock."""

    def __init__(self, settings: Settings, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._marks = PROFILES[settings.memory_profile]
        self._budget = settings.memory_limit_mb << 20
        self._gauge = Gauge(self._budget)
        self._ladder, self._clock_s = Ladder(self._marks), clock_s
        self._shares: dict[int, int] = {}  # of each child, by process id; last the one that was looked at last

    def look(self, children: Sequence[int]) -> Seen:
        """Look now. `children`: the processes of the pool."""
        known = [pid for pid in self._shares if pid in children]
        new = [pid for pid in children if pid not in self._shares]
        self._shares = {pid: self._shares[pid] for pid in known}
        for pid in [*new, *known][:AT_ONCE]:
            self._shares.pop(pid, None)
            self._shares[pid] = share(pid)
        shares = sorted(self._shares.items())
        own = share(os.getpid()) + sum(self._shares.values()) if self._budget else 0
        reading = self._gauge.read(own)
        level = self._ladder.step(reading.fraction, reading.stalled, self._clock_s())
        return Seen(level, reading, self._marks, shares)
