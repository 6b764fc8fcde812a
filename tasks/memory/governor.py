"""What a process of the pool does about memory: it keeps its batches small, waits, or hands on what it has not begun.

It looks for itself, since the worker's main process may be waiting for a broker. A shard that is handed on becomes
shards that whoever has memory takes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from tasks.memory import heap
from tasks.memory.bound import Bound
from tasks.memory.family import family
from tasks.memory.gauge import Gauge, share
from tasks.memory.level import PROFILES, Ladder, Level
from tasks.settings import Settings

# What takes much takes it in a fraction of a second.
LOOKED_EVERY_S = 0.25
# Batches shrink and grow this often, and what was freed is given back.
STEPPED_EVERY_S = 1.0
# So long a shard waits for memory, in all.
PAUSE_S = 10.0
PAUSED_EVERY_S = 0.25
# Files whose rows are written at once. With their changes the most are below 5,000 rows, a transaction below 200 ms.
LEAST_ROWS, MOST_ROWS, ROW_BYTES = 100, 2_000, 4_000
# Entries of a huge directory in memory at once: so many times those of one that is not huge. Each time costs a pass
# over all names.
GROUP, ENTRY_BYTES = 3, 1_000
# Buffers take no more than this part of what there is.
BUFFER, LEAST_BUFFER = 1 / 8, 4096


class Governor:
    """Of one process, for one shard after the other. `clock_s` is a monotonic clock, `sleep` waits."""

    def __init__(self, settings: Settings, clock_s: Callable[[], float] = time.monotonic,
                 sleep: Callable[[float], None] = time.sleep) -> None:  # fmt: skip
        self._on = settings.memory_governor == "on"
        self._budget = settings.memory_limit_mb << 20
        self._marks = PROFILES[settings.memory_profile]
        self._gauge, self._ladder = Gauge(self._budget), Ladder(self._marks)
        self._clock_s, self._sleep = clock_s, sleep
        self._looked_s = self._stepped_s = float("-inf")
        self._room = float("inf")  # bytes below the mark of HIGH, for each process of the pool
        self._bloated = False
        self._left_s = PAUSE_S
        self._rows = Bound(LEAST_ROWS, MOST_ROWS, ROW_BYTES)
        self.most_entries = GROUP * settings.huge_entries
        self._entries = Bound(settings.huge_entries, self.most_entries, ENTRY_BYTES)

    def begin(self) -> None:
        """Another shard begins."""
        self._left_s = PAUSE_S
        self._look_if_due()

    @property
    def hands_on(self) -> bool:
        """Shall the shard end where it is, and then the process, since only that gives back what it has once used? It
        has waited for long enough, or it is this process that takes much.
        """
        return self._left_s <= 0 or self._bloated

    @property
    def rows(self) -> int:
        """So many rows of files may wait to be written."""
        return self._rows.within(self._room)

    @property
    def entries(self) -> int:
        """So many entries of a huge directory may be listed at a time."""
        return self._entries.within(self._room)

    def buffer(self, wanted: int) -> int:
        """How large a buffer may be, in bytes: as large as is wanted, or a power of two."""
        size = wanted
        while size > max(LEAST_BUFFER, BUFFER * self._room):
            size = 1 << (size - 1).bit_length() - 1
        return size

    def check(self, interrupted: Callable[[], None]) -> None:
        """Call before each directory, and now and then within long files. Where memory is CRITICAL, and others have it,
        it waits a while; meanwhile `interrupted` is called, which may raise.
        """
        self._look_if_due()
        while self._ladder.level == Level.CRITICAL and not self.hands_on:
            interrupted()
            self._sleep(PAUSED_EVERY_S)
            self._left_s -= PAUSED_EVERY_S
            self._look_if_due()

    def writing(self, rows: int) -> AbstractContextManager[None]:
        """So many rows are written in this block."""
        return _learning(self._rows, rows)

    def listing(self, entries: int) -> AbstractContextManager[None]:
        """So many entries of a huge directory are listed and compared in this block."""
        return _learning(self._entries, entries)

    def _look_if_due(self) -> None:
        now_s = self._clock_s()
        if not self._on or now_s - self._looked_s < LOOKED_EVERY_S:
            return
        self._looked_s = now_s
        pool = family()
        try:
            reading = self._gauge.read(sum(map(share, pool)) if self._budget else 0)
        except OSError:  # no descriptor left, say: that is no reason to fail here
            return
        level = self._ladder.step(reading.fraction, reading.stalled, now_s)
        below_high = self._marks.high * reading.limit
        self._room = max(0.0, below_high - reading.used) / len(pool)
        self._bloated = level >= Level.HIGH and share(os.getpid()) > below_high / len(pool)
        if now_s - self._stepped_s >= STEPPED_EVERY_S:
            self._stepped_s = now_s
            for bound in (self._rows, self._entries):
                bound.step(level)
            if level >= Level.HIGH:
                heap.trim()


@contextmanager
def _learning(bound: Bound, count: int) -> Iterator[None]:
    before = heap.private()
    yield
    bound.learn(count, heap.private() - before)
