"""One shard's work: list → compare → hash → write, directory by directory, in flushes that hold the lease."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Engine

from db import changes, tree
from db.engine import reading
from db.scans import Scan
from db.tenants import Tenant
from db.types import KnownDirectory, KnownFile, Place, Strategy
from tasks.budget import Budget
from tasks.core import filesystem
from tasks.core.compare import (
    Comparison,
    Outcome,
    compare,
    outcome_as_known,
    outcome_of_hash,
    outcome_of_symlink,
)
from tasks.core.filesystem import Entry, Missing, Shadowed, Unreadable
from tasks.core.hashing import Hasher
from tasks.core.listing import Listing, Seed, list_directory
from tasks.core.profile import profile_of
from tasks.frontier import Frontier
from tasks.lease import Holder
from tasks.redis.progress import Progress

# File rows a flush: with their changes it stays below 5,000 rows, and a transaction below 200 ms.
BATCH_FILES = 2_000
# Directories read from the database at a time.
PAGE = 500
# New directories kept in memory to be listed next; more wait as rows.
STACK = 1_000
ERRORS_KEPT = 1_000
# So much is hashed between two signs of life (a few milliseconds on a disk that is not hung).
TELL_BYTES = 4 << 20
# Places of the fields of a new directory's row that its own listing fills in (see tree.NEW_DIRECTORY).
_FINGERPRINT, _FILES, _BYTES, _OWNER, _LISTED = (
    tree.NEW_DIRECTORY.index(name) for name in ("fingerprint", "files", "bytes", "owner", "listed")
)


@dataclass(slots=True)
class Batch:
    """What the next flush writes."""

    tree: tree.TreeBatch = field(default_factory=tree.TreeBatch)
    changes: list[tuple[Any, ...]] = field(default_factory=list)  # without tenant, fence and number
    errors: list[tuple[Any, ...]] = field(default_factory=list)
    disowned: list[int] = field(default_factory=list)
    hashed_files: int = 0
    hashed_bytes: int = 0
    errors_total: int = 0

    def __len__(self) -> int:
        return len(self.tree) + len(self.errors) + len(self.disowned)


@dataclass(slots=True)
class Todo:
    """A directory to list. One that was born in the batch that is not written yet has its row there."""

    known: KnownDirectory
    row: list[Any] | None = None
    batch: Batch | None = None


class Pipeline:
    """Walks one shard's frontier. `clock_ns` is the wall clock; whatever is done goes through the `holder`'s lease."""

    def __init__(self, engine: Engine, holder: Holder, scan: Scan, tenant: Tenant, root: filesystem.Tree, *,
                 budget: Budget, ids: tree.Ids, progress: Progress, chunk_bytes: int,
                 clock_ns: Callable[[], int]) -> None:  # fmt: skip
        assert scan.fence is not None
        self._engine, self._holder, self._root = engine, holder, root
        self._scan, self._tenant, self._fence = scan, tenant, scan.fence
        self._number = holder.lease.number
        self._budget, self._ids, self._progress, self._clock_ns = budget, ids, progress, clock_ns
        self._trusting = scan.strategy == Strategy.INCREMENTAL
        self.profile = profile_of(filesystem.filesystem_magic(root.fd))
        self._seed = Seed.of(tenant.id, tenant.algorithm, self.profile)
        self._hasher = Hasher(tenant.algorithm, chunk_bytes, self._read_bytes, inode=self.profile.inode)
        self._stack: list[Todo] = []
        self._batch = Batch()
        self._errors_kept = 0
        self._untold_bytes = 0
        self.directories_unchanged = 0
        self.other = 0

    def run(self, frontier: Frontier) -> Frontier:
        """Walk until all is done or the budget is spent. What is left is the returned frontier, and what the shard
        still owns. Raises LeaseLost, StaleDirectory.
        """
        if frontier.ranged:
            frontier = self._walk_range(frontier)
        self._walk_owned()
        self._flush()
        self._tell()
        self._progress.tell()
        return frontier

    def _walk_range(self, frontier: Frontier) -> Frontier:
        after = frontier.after
        while True:
            with reading(self._engine) as connection:
                page = tree.range_page(connection, self._tenant.id, self._fence, after, frontier.to, PAGE)
            for known in page:
                if self._budget.spent:
                    return Frontier(True, after, frontier.to)
                self._visit(Todo(known))
                self._drain()
                after = Place(known.key, known.id)
            if len(page) < PAGE:
                return Frontier()

    def _walk_owned(self) -> None:
        while not self._budget.spent:
            self._flush()
            with reading(self._engine) as connection:
                page = tree.owned(connection, self._tenant.id, self._fence, self._number, PAGE)
            if not page:
                return
            self._stack = [Todo(known) for known in reversed(page)]
            self._drain()

    def _drain(self) -> None:
        while self._stack and not self._budget.spent:
            self._visit(self._stack.pop())
        self._stack.clear()  # each of them is a row that this shard owns

    def _visit(self, todo: Todo) -> None:
        self._holder.progress()
        known, now_ns = todo.known, self._clock_ns()
        try:
            fd = self._root.directory(known.path)
            listing = list_directory(fd, known.path, self._seed)
        except (Missing, Shadowed):
            self._give_up(todo)
            return
        except Unreadable as error:
            self._give_up(todo)
            self._note_error(error.path, error.operation, error.error)
            return
        files = len(listing.files)
        self._budget.entries -= files + tree.DIRECTORY_ENTRIES
        self._progress.add(directories=1, files=files, bytes=listing.size)
        self.other += listing.other
        if listing.fingerprint == known.fingerprint and (self._trusting or known.listed == self._fence):
            self.directories_unchanged += 1
            return
        self._settle(todo, fd, listing, now_ns)

    def _give_up(self, todo: Todo) -> None:
        """Nobody has to list this one any more in this scan."""
        if todo.row is not None and todo.batch is self._batch:
            todo.row[_OWNER] = None
        elif todo.known.born == self._fence:
            self._batch.disowned.append(todo.known.id)

    def _settle(self, todo: Todo, fd: int, listing: Listing, now_ns: int) -> None:
        """Compare a directory with its rows, hash what differs, and put all that into the batch."""
        known = todo.known
        files, children = {}, {}
        if todo.row is None:  # born in this very attempt it has no rows yet; a dead attempt may have left some
            with reading(self._engine) as connection:
                files = dict(tree.files_of(connection, self._tenant.id, known.id))
                children = dict(tree.children_of(connection, self._tenant.id, known.id))
        comparison = compare(listing, files, children, self.profile, self._tenant.algorithm)
        if not listing.steady:
            self._confirm_missing(fd, known.path, comparison)
        settled = comparison.settled and listing.steady
        for entry, before in comparison.to_hash:
            settled &= self._hash(known, fd, entry, before, now_ns)
        self._progress.add(hashed_files=len(comparison.to_hash))
        for entry, before in comparison.symlinks:
            self._record(known, outcome_of_symlink(entry, before, fence=self._fence))
        for entry, file in comparison.back:
            self._record(known, outcome_as_known(entry.name, file))
        self._write_missing(known, comparison)
        self._write_children(known, comparison)
        self._write_directory(todo, listing, settled)

    def _confirm_missing(self, fd: int, path: bytes, comparison: Comparison) -> None:
        """In a directory too busy to be listed whole, only what is really not there is missing."""
        try:
            comparison.missing = [one for one in comparison.missing if not filesystem.exists(fd, one[0])]
            comparison.missing_children = [
                one for one in comparison.missing_children if not filesystem.exists(fd, one[0])
            ]
        except OSError as error:
            comparison.missing, comparison.missing_children = [], []
            self._note_error(path, "stat", filesystem.explain(error))

    def _hash(self, directory: KnownDirectory, fd: int, entry: Entry, before: KnownFile | None, now_ns: int) -> bool:
        """Hash one file into the batch; False where it must be looked at again."""
        hashed = self._hasher.hash(fd, entry, now_ns)
        if hashed.entry is None:
            return False  # gone or something else by now: the next listing tells
        outcome = outcome_of_hash(hashed, hashed.entry, before, fence=self._fence, now_ns=now_ns,
                                  profile=self.profile, algorithm=self._tenant.algorithm)  # fmt: skip
        if hashed.error is not None:
            self._note_error(_join(directory.path, entry.name), "read", hashed.error)
        if hashed.digest is not None:
            self._batch.hashed_files += 1
            self._batch.hashed_bytes += hashed.entry.size
        self._record(directory, outcome)
        if len(self._batch.tree.files) >= BATCH_FILES:
            self._flush()
        return outcome.unsettled is None and hashed.entry == entry

    def _record(self, directory: KnownDirectory, outcome: Outcome) -> None:
        entry, digest, algorithm, unsettled, kind, changed = outcome
        name, type_, size, mtime_ns, ctime_ns, inode, target = entry
        self._batch.tree.files.append(
            (self._tenant.id, directory.id, name, type_, size, mtime_ns, ctime_ns, inode, unsettled, digest, algorithm,
             target, changed, None, None)
        )  # fmt: skip
        if kind is not None:
            path = _join(directory.path, name)
            self._batch.changes.append(
                (directory.id, name, kind.value, path, type_, size, digest, algorithm, target, None)
            )

    def _write_missing(self, directory: KnownDirectory, comparison: Comparison) -> None:
        batch = self._batch.tree
        for name, reason in comparison.missing:
            batch.gone_files.append((self._fence, reason.value, self._tenant.id, directory.id, name))
        for _, child, reason in comparison.missing_children:
            batch.gone_children.append((self._fence, reason.value, self._tenant.id, child))

    def _write_children(self, directory: KnownDirectory, comparison: Comparison) -> None:
        batch = self._batch
        for child, inode in comparison.found_children:
            batch.tree.found_children.append((inode, self._tenant.id, child))
        for name, inode in comparison.new_children:
            path, child = _join(directory.path, name), self._ids.next()
            key = tree.order_key(path)
            row = [self._tenant.id, child, directory.id, name, path, key, inode, None, 0, 0, 1, self._fence,
                   self._number, None]  # fmt: skip
            batch.tree.new_directories.append(row)
            if len(self._stack) < STACK:
                self._stack.append(Todo(KnownDirectory(child, path, key, None, 1, None, self._fence), row, batch))

    def _write_directory(self, todo: Todo, listing: Listing, settled: bool) -> None:
        fingerprint = listing.fingerprint if settled else None
        if todo.row is not None and todo.batch is self._batch:
            row = todo.row
            row[_FINGERPRINT], row[_FILES], row[_BYTES] = fingerprint, len(listing.files), listing.size
            row[_OWNER], row[_LISTED] = None, self._fence
        else:
            known = todo.known
            self._batch.tree.listed.append(
                (fingerprint, len(listing.files), listing.size, self._fence, self._tenant.id, known.id, known.version)
            )
        if len(self._batch) >= BATCH_FILES:
            self._flush()

    def _note_error(self, path: bytes, operation: str, error: str) -> None:
        self._batch.errors_total += 1
        self._errors_kept += 1
        if self._errors_kept <= ERRORS_KEPT:
            mark = hashlib.blake2b(operation.encode() + b"\0" + path, digest_size=16).digest()
            self._batch.errors.append((self._scan.id, mark, path, operation, error))

    def _read_bytes(self, count: int) -> None:
        self._budget.bytes -= count
        self._untold_bytes += count
        if self._untold_bytes >= TELL_BYTES:
            self._tell()

    def _tell(self) -> None:
        """A sign of life, from within long hashes too."""
        self._holder.progress()
        self._progress.add(hashed_bytes=self._untold_bytes)
        self._untold_bytes = 0

    def _flush(self) -> None:
        batch = self._batch
        if not len(batch):
            return
        with self._holder.flush(
            len(batch.changes), hashed_files=batch.hashed_files, hashed_bytes=batch.hashed_bytes,
            errors_total=batch.errors_total,
        ) as (connection, first):  # fmt: skip
            tree.write(connection, batch.tree)
            numbered = [(self._tenant.id, self._fence, first + i, *rest) for i, rest in enumerate(batch.changes)]
            changes.write(connection, numbered)
            changes.write_errors(connection, batch.errors)
            tree.disown(connection, self._tenant.id, batch.disowned)
        self._batch = Batch()


def _join(folder: bytes, name: bytes) -> bytes:
    return folder + b"/" + name if folder else name
