"""What a finish does with that which is gone: note it, pair moves, judge, and carry the stored verdict out.

Before the verdict is stored nothing of the index is touched, and a retry begins anew; after it, a retry goes on with
what was noted. Every step is one flush, so that the lease holds it and no transaction is long.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

from sqlalchemy import Connection

from db import losses, scans, tree, vanished
from db.engine import reading
from db.losses import Loss
from db.scans import Scan
from tasks.core import guard, moves
from tasks.core.moves import Candidate
from tasks.lease import Holder

# Rows a flush, on each side of a move three tables: together below 5,000 and 200 ms.
BATCH = 1_000


class Deletions:
    """The deletions of one scan. `count` is their number, as the guard counts, once they are noted."""

    def __init__(self, holder: Holder, scan: Scan) -> None:
        self._holder, self._scan = holder, scan
        self.count = self._moved = 0
        self._noted = holder.lease.attempt > 1  # maybe, by an attempt that died

    def note(self) -> None:
        """Find out what is gone, and what of it has moved."""
        self.forget()
        with reading(self._holder.engine) as connection:
            self._noted = losses.any_gone(connection, self._scan.tenant_id)
        if not self._noted:
            return
        self._holder.flush(vanished.collect, self._scan)
        self._until_done(vanished.expand)
        self._in_pages(losses.note_missing, None)
        self._in_pages(losses.note_below, None)
        with reading(self._holder.engine) as connection:
            any_pairable = losses.any_pairable(connection, self._scan)
        if any_pairable:
            self._in_pages(losses.note_added, 0)
            self._note_moves()
        with reading(self._holder.engine) as connection:
            self.count, self._moved = losses.counted(connection, self._scan)

    def doubt(self, limit_percent: int) -> str | None:
        """Why there are too many of them, in words; None: they may go."""
        if self.count < guard.DOUBTED_ALL_FROM:
            return None
        with reading(self._holder.engine) as connection:
            known = scans.known_files(connection, self._scan) + self.count + self._moved
        return guard.doubt(self.count, known, limit_percent)

    def carry_out(self) -> None:
        """Delete and move what was noted: deletions come first in the feed, then moves, then all else."""
        if not self._noted:
            return
        self._apply(False, losses.report_deleted)
        self._apply(True, losses.report_moved)
        self._until_done(vanished.delete_noted)
        self.forget()

    def forget(self) -> None:
        """Take the notes away; what is gone stays as it is."""
        if not self._noted:
            return
        self._until_done(losses.clear)
        self._until_done(vanished.clear)

    def _until_done(self, step: Callable[[Connection, Scan, int], bool]) -> None:
        more = True
        while more:
            more = self._holder.flush(step, self._scan, BATCH)

    def _in_pages(self, step: Callable[[Connection, Scan, Any, int], Any], after: Any) -> None:
        while True:
            after = self._holder.flush(step, self._scan, after, BATCH)
            if after is None:
                return

    def _note_moves(self) -> None:
        found = moves.pair(self._candidates())
        while pairs := list(islice(found, BATCH)):
            rows = [(added.n, gone.key, gone.inode, gone.directory_id, gone.name) for gone, added in pairs]
            self._holder.flush(losses.note_moves, self._scan, rows)

    def _candidates(self) -> Iterator[Candidate]:
        after = None
        while True:
            with reading(self._holder.engine) as connection:
                page = losses.candidates(connection, self._scan, after, BATCH)
            self._holder.check()  # where nothing pairs, no flush does
            yield from (Candidate._make(row) for row in page)
            if len(page) < BATCH:
                return
            after = page[-1]

    def _apply(self, moved: bool, report: Callable[[Connection, Scan, Sequence[Loss], int], None]) -> None:
        after: Loss | None = None

        def apply(connection: Connection, first: int) -> Sequence[Loss]:
            page = losses.page(connection, self._scan, moved=moved, after=after, limit=BATCH)
            if page:
                report(connection, self._scan, page, first)
                tree.delete_files(connection, self._scan.tenant_id, [(one.directory_id, one.name) for one in page])
                losses.forget(connection, self._scan, page)
            return page

        while True:
            page = self._holder.flush_changes(apply, BATCH)
            if len(page) < BATCH:
                return
            after = page[-1]
