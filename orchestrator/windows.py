"""How many shards may be in flight (sent or leased): in all, and of one scan. Pure.

By the slots of the workers that live. In all it is twice as many, so that a shard waits for whoever ends another. Of
one scan it is less: a mount may hang, and keep every slot that it was given for a minute, or be slow, and keep each for
as long as a shard lasts. So while others run nobody gets more than half of the slots, and beyond a quarter only one for
each shard of his that has come to an end.
"""

from __future__ import annotations

from dataclasses import dataclass

# Where no worker has told that he lives, as many are sent for as he may have who comes first.
SLOTS_UNKNOWN = 4


@dataclass(frozen=True, slots=True)
class Windows:
    """`slots`: of all workers together. `most` and `most_of_one`: what the settings allow, in all and of one scan."""

    slots: int
    most: int
    most_of_one: int

    @property
    def in_all(self) -> int:
        """In flight at most."""
        return min(2 * (self.slots or SLOTS_UNKNOWN), self.most)

    def of_one(self, done: int, *, alone: bool) -> int:
        """In flight at most of a scan of which so many shards are done, and that runs alone or beside others."""
        slots = self.slots or SLOTS_UNKNOWN
        least, share = (2, self.in_all) if alone else (1, slots // 2)
        return max(1, min(max(slots // 4, least) + done, share, self.in_all, self.most_of_one))
