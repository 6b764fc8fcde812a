"""Whose shards are sent next. Pure: all that is known is given.

Max-min fairness within strict priorities (Bertsekas and Gallager, Data Networks, 1992, section 6.5.2): a free slot goes
to the scan of the highest priority that has the fewest shards under way, so that one with thousands takes turns with
one that has a single shard. Strict priorities starve; so a part of the window is kept for those that others overtake:
whoever of them has waited for too long takes one of its slots, the longest first.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Mapping, Sequence

from db.sending import Contender
from db.tenants import TIERS
from db.types import Trigger
from orchestrator.windows import Windows

# One slot in so many is kept for those that others overtake.
KEPT = 4
# Of the ageing period, after so much of which one has waited for too long: the rest is for a slot to come free.
PATIENCE = 0.5


def priority(one: Contender) -> int:
    """Somebody waits for what was asked for; the rest goes by tier. The lowest number goes first."""
    return 0 if one.trigger == Trigger.REQUEST else 1 + TIERS.index(one.tier)


def allot(running: Sequence[Contender], windows: Windows, ageing_s: float, unread: int = 0) -> Mapping[str, int]:
    """How many shards of each scan to send now. `unread` messages lie in the broker, some of them in vain maybe."""
    free = windows.in_all - max(unread, sum(one.in_flight for one in running))
    room = {one.scan_id: _room(one, windows, alone=len(running) == 1) for one in running}
    waiting = [one for one in running if room[one.scan_id]]
    given = Counter(one.scan_id for one in _overtaken(running, waiting, windows.in_all, ageing_s)[: max(free, 0)])
    free -= given.total()
    turns = [(priority(one), one.in_flight + given[one.scan_id], -one.waited_s, n) for n, one in enumerate(waiting)]
    heapq.heapify(turns)
    while free > 0 and turns:
        rank, under_way, waited_s, n = heapq.heappop(turns)
        one = waiting[n]
        if given[one.scan_id] < room[one.scan_id]:
            given[one.scan_id] += 1
            free -= 1
            heapq.heappush(turns, (rank, under_way + 1, waited_s, n))
    return +given


def _room(one: Contender, windows: Windows, *, alone: bool) -> int:
    return max(0, min(one.ready, windows.of_one(one.done, alone=alone) - one.in_flight))


def _overtaken(
    running: Sequence[Contender], waiting: Sequence[Contender], window: int, ageing_s: float
) -> list[Contender]:
    """Who takes a slot that is kept."""
    highest = min((priority(one) for one in waiting), default=0)
    kept = max(1, window // KEPT) - sum(one.in_flight for one in running if priority(one) > highest)
    late = [one for one in waiting if priority(one) > highest and one.waited_s >= ageing_s * PATIENCE]
    return sorted(late, key=lambda one: -one.waited_s)[: max(kept, 0)]
