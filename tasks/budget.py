"""How much one shard may do before it hands on the rest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tasks.settings import Settings


@dataclass(slots=True)
class Budget:
    """What is left of entries and bytes, and when the seconds are over; `clock_s` is a monotonic clock.

    It is never spent before the shard has `begun`: one that only handed on would do so for ever.
    """

    entries: int
    bytes: int
    until_s: float
    clock_s: Callable[[], float]
    asked: Callable[[], bool] = lambda: False
    begun: bool = False

    @classmethod
    def of(cls, settings: Settings, clock_s: Callable[[], float], asked: Callable[[], bool]) -> Budget:
        """A fresh one, as the settings say. `asked`: shall this process hand on the rest now?"""
        return cls(settings.shard_entries, settings.shard_bytes, clock_s() + settings.shard_seconds, clock_s, asked)

    @property
    def spent(self) -> bool:
        """Is any of the three used up, or are we asked to hand on the rest?"""
        return self.begun and (self.entries <= 0 or self.bytes <= 0 or self.clock_s() >= self.until_s or self.asked())
