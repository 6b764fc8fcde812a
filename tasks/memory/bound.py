"""How many of something may be in memory at once, decided before they are: what a batch needs is not given back after
it, since freed memory stays with the process. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tasks.memory.level import Level

# Where memory is ample a bound grows back in so many steps from nothing to the most.
STEPS = 16
# What was learned of the cost of one is forgotten slowly: a batch that fits into what was freed seems to cost nothing.
REMEMBERED = 0.9


@dataclass(slots=True)
class Bound:
    """`least` to `most` at once; `cost` is what one takes at least, in bytes."""

    least: int
    most: int
    cost: float
    _size: float = field(init=False)
    _learned: float = 0.0

    def __post_init__(self) -> None:
        self._size = self.most

    def step(self, level: Level) -> None:
        """Some time has passed at this level."""
        grown = self._size + (self.most / STEPS if level == Level.LOW else 0)
        shrunk = {Level.HIGH: 3 / 4, Level.CRITICAL: 1 / 2}.get(level, 1)
        self._size = min(max(grown * shrunk, self.least), self.most)

    def learn(self, count: int, taken: int) -> None:
        """So many took so many bytes more than there were before."""
        if count >= self.least:
            self._learned = max(taken / count, self._learned * REMEMBERED)

    def within(self, room: float) -> int:
        """How many, where so many bytes may be taken."""
        fitting = room / max(self.cost, self._learned)
        return int(min(max(min(self._size, fitting), self.least), self.most))
