"""Huge directories: listed in ranges of a hash of the name, so that no more than a part is ever in memory.

One pass over the directory folds the fingerprints of all ranges. Of those that differ, as many as fit into memory are
then listed, compared and hashed at a time, by a pass that looks at their entries only; what the budget leaves over is
handed on as pieces, for other shards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from db import ranges
from db.engine import reading
from db.ranges import KnownRange
from db.types import HASHES, KnownDirectory, StaleDirectory
from tasks.core.listing import Fold, count_entries, fold_ranges, list_ranges
from tasks.frontier import Piece
from tasks.write_back import Todo

if TYPE_CHECKING:
    from tasks.pipeline import Opened, Pipeline

# So many ranges are made of a directory that has just become huge.
PARTS = 5
# Ranges that have grown to so many times their size are split.
GROWN = 4
# Rows whose hash is noted in one flush.
BATCH = 1_000


class Huge:
    """The huge directories of one pipeline."""

    def __init__(self, pipeline: Pipeline, huge_entries: int) -> None:
        self._pipeline = pipeline
        self._range_entries = huge_entries // PARTS

    def look(self, todo: Todo, opened: Opened, now_ns: int, piece: Piece | None) -> None:
        """Bring a huge directory's rows up to date, or the `piece` of it that was handed on."""
        pipeline = self._pipeline
        pipeline.write.flush()  # its own row must be there
        listed: Mapping[str, int] = {}
        if piece is not None and piece.ranges == todo.known.ranges:
            groups = piece.groups
        else:
            groups, listed = self._differing(todo, opened)
        known = todo.known
        while groups:
            pipeline.governor.check(pipeline.holder.check)
            now, *groups = allowed(groups, pipeline.governor.entries, pipeline.governor.most_entries)
            self._settle(known, opened, now, now_ns)
            if groups and pipeline.budget.spent:
                assert known.ranges is not None
                pipeline.pieces.append(Piece(known.id, known.ranges, groups))
                pipeline.walked.update(listed)  # it is disowned as the shard is done
                return
        pipeline.write.count(**listed)
        pipeline.write.give_up(todo)  # all that there is to list has been listed

    def _differing(self, todo: Todo, opened: Opened) -> tuple[Sequence[Sequence[int]], Mapping[str, int]]:
        """The ranges that differ from what is recorded, in groups that fit into memory; and what is to be counted with
        the write that disowns the directory, if it was born in this scan.
        """
        pipeline = self._pipeline
        folds, rows = self._fold(todo, opened)
        files, size = sum(one.files for one in folds), sum(one.size for one in folds)
        pipeline.count(todo.known, files, size, sum(one.other for one in folds))
        differing = [
            number
            for number, fold in enumerate(folds)
            if fold.fingerprint != rows[number].fingerprint
            or not (pipeline.trusting or rows[number].listed == pipeline.fence)
            or pipeline.verifies(todo.known.id, number)
        ]
        pipeline.directories_unchanged += not differing
        born = todo.known.born == pipeline.fence
        listed = {"directories": 1, "files": files, "bytes": size} if born else {}
        return grouped(differing, [one.entries for one in folds], pipeline.governor.entries), listed

    def _fold(self, todo: Todo, opened: Opened) -> tuple[list[Fold], dict[int, KnownRange]]:
        if todo.known.ranges is None:
            entries = count_entries(opened.fd, todo.known.path)
            self._until_done(todo.known)
            self._resize(todo, ranges_for(entries, self._range_entries))
        while True:
            known = todo.known
            assert known.ranges is not None
            folds = fold_ranges(opened.fd, known.path, opened.seed, opened.rules, known.ranges)
            entries = sum(one.entries for one in folds)
            if entries <= known.ranges * self._range_entries * GROWN:
                with reading(self._pipeline.engine) as connection:
                    return folds, ranges.of_directory(connection, self._pipeline.tenant.id, known.id)
            self._resize(todo, ranges_for(entries, self._range_entries))

    def _until_done(self, known: KnownDirectory) -> None:
        more = True
        while more:
            more = self._pipeline.holder.flush(ranges.note_hashes, self._pipeline.tenant.id, known.id, BATCH)

    def _resize(self, todo: Todo, count: int) -> None:
        known = todo.known
        if not self._pipeline.holder.flush(ranges.resize, self._pipeline.tenant.id, known.id, known.version, count):
            raise StaleDirectory(f"directory {known.id} was written by somebody else meanwhile")
        todo.known = known._replace(ranges=count, version=known.version + 1, fingerprint=None)
        todo.row = todo.batch = None

    def _settle(self, known: KnownDirectory, opened: Opened, group: Sequence[int], now_ns: int) -> None:
        pipeline = self._pipeline
        assert known.ranges is not None
        with reading(pipeline.engine) as connection:
            rows = ranges.of_directory(connection, pipeline.tenant.id, known.id)
        width = HASHES // known.ranges
        with pipeline.governor.listing(len(group) * self._range_entries):
            listed = list_ranges(opened.fd, known.path, opened.seed, opened.rules, known.ranges, frozenset(group))
            pipeline.confirm(known, opened)
            for number, listing in listed.items():
                listing.hashes = (number * width, (number + 1) * width)
                files, children = pipeline.rows(Todo(known), listing.hashes)
                verifying = pipeline.verifies(known.id, number)
                settled = pipeline.settle(known, opened, listing, files, children, now_ns, verifying)
                pipeline.budget.entries -= len(listing.files)
                if not (settled.whole and listing.fingerprint == rows[number].fingerprint):
                    pipeline.write.range(known, rows[number], listing.fingerprint, *settled)
            pipeline.write.flush()


def ranges_for(entries: int, range_entries: int) -> int:
    """How many ranges, a power of two, of about so many entries each, a directory of so many is kept in."""
    count = 2
    while count * range_entries < entries:
        count *= 2
    return count


def grouped(numbers: Sequence[int], entries: Sequence[int], limit: int) -> list[list[int]]:
    """Ranges in groups of at most `limit` entries, or of one."""
    groups: list[list[int]] = []
    total = 0
    for number in numbers:
        total += entries[number]
        if not groups or total > limit:
            groups.append([])
            total = entries[number]
        groups[-1].append(number)
    return groups


def allowed(groups: Sequence[Sequence[int]], entries: int, most_entries: int) -> list[Sequence[int]]:
    """The same ranges, of the first group no more than memory allows: `entries` now, of `most_entries` where there is
    plenty, which is what a group has at most.
    """
    most = max(1, len(groups[0]) * entries // most_entries)
    now, later = groups[0][:most], groups[0][most:]
    return [now, *([later] if later else ()), *groups[1:]]
