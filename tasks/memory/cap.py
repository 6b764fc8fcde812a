"""How many children a worker may have, by the memory that there is. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tasks.memory.gauge import Reading
from tasks.memory.level import Level, Marks

# So long it stays as it is, at least.
STEADY_S = 10.0
# A child that has done nothing yet is smaller than it will be.
LEAST_BYTES = 40 << 20
# What the largest child took is forgotten slowly, from one look to the next: half of it in a minute.
REMEMBERED = 0.99


def fitting(reading: Reading, marks: Marks, children: Sequence[int], size: float) -> int:
    """How many children of that size fit below the mark of HIGH, beside what others use. `children`: what those that
    there are use, bytes each.
    """
    others = reading.used - sum(children)
    return max(1, int((marks.high * reading.limit - others) // max(size, LEAST_BYTES)))


@dataclass(slots=True)
class Cap:
    """The most children. It falls as far as it must, and rises one by one while memory is ample."""

    most: int
    value: int
    _since_s: float = float("-inf")
    _size: float = 0.0

    def step(self, reading: Reading, marks: Marks, level: Level, children: Sequence[int], now_s: float) -> int:
        """The cap now that this was seen."""
        self._size = max(self._size * REMEMBERED, *children, 0)
        wanted = min(self.most, fitting(reading, marks, children, self._size))
        if wanted > self.value:
            wanted = self.value + (level <= Level.MODERATE)
        if wanted != self.value and now_s - self._since_s >= STEADY_S:
            self.value, self._since_s = wanted, now_s
        return self.value
