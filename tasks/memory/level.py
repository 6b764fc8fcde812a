"""From how full memory is to how carefully to go on. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

# A level is left for a lower one only this far below the mark at which it began …
GAP = 0.05
# … and after so long there, one level at a time.
CALM_S = 5.0
# Where all waited for memory for so many hundredths of the last ten seconds, it is scarcer than its amount tells.
STALLED = 10.0


class Level(IntEnum):
    """`LOW`: batches may grow. `MODERATE`: they stay. `HIGH`: they shrink, and nothing new is begun. `CRITICAL`: who
    works pauses, then yields.
    """

    LOW = 0
    MODERATE = 1
    HIGH = 2
    CRITICAL = 3


class Marks(NamedTuple):
    """Fractions of the limit at which a level begins."""

    moderate: float
    high: float
    critical: float


PROFILES = {
    "conservative": Marks(0.50, 0.60, 0.80),
    "aggressive": Marks(0.60, 0.70, 0.85),
    "development": Marks(0.60, 0.75, 0.90),
}


@dataclass(slots=True)
class Ladder:
    """The level, which rises at once and falls slowly."""

    marks: Marks
    level: Level = Level.LOW
    _calm_since_s: float | None = None

    def step(self, fraction: float, stalled: float, now_s: float) -> Level:
        """The level now that so much of the limit is used, and all have waited for so many hundredths of the time."""
        lowest = self._of(fraction, stalled)
        if lowest >= self.level:
            self.level, self._calm_since_s = lowest, None
        elif self._of(fraction + GAP, stalled) >= self.level:
            self._calm_since_s = None
        elif self._calm_since_s is None:
            self._calm_since_s = now_s
        elif now_s - self._calm_since_s >= CALM_S:
            self.level, self._calm_since_s = Level(self.level - 1), now_s
        return self.level

    def _of(self, fraction: float, stalled: float) -> Level:
        level = sum(fraction >= mark for mark in self.marks)
        # Others may be who makes all wait: that slows us down, but does not stop us.
        return Level(level + 1 if stalled >= STALLED and level < Level.HIGH else level)
