"""What a shard found, gathered into batches and written in flushes that hold its lease."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection

from db import changes, ranges, scan_notes, tree
from db.scans import Scan
from db.types import KnownDirectory, name_hash
from tasks.core.compare import Comparison, Outcome
from tasks.lease import Holder
from tasks.memory.governor import Governor

ERRORS_KEPT = 1_000


@dataclass(slots=True)
class Batch:
    """What the next flush writes."""

    tree: tree.TreeBatch = field(default_factory=tree.TreeBatch)
    changes: list[tuple[Any, ...]] = field(default_factory=list)  # without tenant, fence and number
    errors: list[tuple[Any, ...]] = field(default_factory=list)
    disowned: list[int] = field(default_factory=list)
    counted: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tree) + len(self.errors) + len(self.disowned) + len(self.counted)


@dataclass(slots=True)
class Born:
    """The row of a new directory. Its path is put together as it is written: all of a directory's are written at once,
    and the path that they begin with may be long.
    """

    tenant_id: int
    id: int
    above: KnownDirectory
    name: bytes
    inode: int
    fence: int
    owner: int | None
    fingerprint: bytes | None = None
    files: int = 0
    bytes: int = 0
    listed: int | None = None

    def __iter__(self) -> Iterator[Any]:
        """In the order of tree.NEW_DIRECTORY."""
        path, hashed = join(self.above.path, self.name), None if self.above.ranges is None else name_hash(self.name)
        yield from (self.tenant_id, self.id, self.above.id, self.name, path, tree.order_key(path), self.inode)
        yield from (self.fingerprint, self.files, self.bytes, 1, self.fence, self.owner, self.listed, hashed)


@dataclass(slots=True)
class Todo:
    """A directory to list. One that was born in the batch that is not written yet has its row there."""

    known: KnownDirectory
    row: Born | None = None
    batch: Batch | None = None


class WriteBack:
    """The batch of one shard, and its flush."""

    def __init__(self, holder: Holder, scan: Scan, ids: tree.Ids, governor: Governor) -> None:
        assert scan.fence is not None
        self._holder, self._scan, self._ids, self._fence = holder, scan, ids, scan.fence
        self._tenant_id, self._number = scan.tenant_id, holder.lease.number
        self._governor, self._most = governor, governor.rows
        self._batch = Batch()
        self._kept: Counter[str] = Counter()

    def count(self, **counted: int) -> None:
        """Add to the shard's counters."""
        for name, value in counted.items():
            if value:
                self._batch.counted[name] = self._batch.counted.get(name, 0) + value

    def outcome(self, directory: KnownDirectory, outcome: Outcome) -> None:
        """What became of one file or symlink."""
        entry, digest, algorithm, unsettled, kind, changed, hashed, because = outcome
        name, type_, size, mtime_ns, ctime_ns, inode, target = entry
        self._batch.tree.files.append(
            (self._tenant_id, directory.id, name, type_, size, mtime_ns, ctime_ns, inode, unsettled, digest, algorithm,
             target, changed, hashed, because, None if directory.ranges is None else name_hash(name))
        )  # fmt: skip
        if kind is not None:
            self._batch.changes.append(
                (directory.id, name, kind.value, join(directory.path, name), type_, size, digest, algorithm, target,
                 None)
            )  # fmt: skip
        if len(self._batch.tree.files) >= self._most:
            self.flush()

    def missing(self, directory: KnownDirectory, comparison: Comparison) -> None:
        """What is gone from a directory."""
        batch = self._batch.tree
        for name, reason in comparison.missing:
            batch.gone_files.append((self._fence, reason.value, self._tenant_id, directory.id, name))
        for _, child, reason in comparison.missing_children:
            batch.gone_children.append((self._fence, reason.value, self._tenant_id, child))

    def children(self, directory: KnownDirectory, comparison: Comparison) -> Iterable[Todo]:
        """The directories in a directory; those that are new are what is to be listed next."""
        batch = self._batch
        for child, inode in comparison.found_children:
            batch.tree.found_children.append((inode, self._tenant_id, child))
        for name, inode in comparison.new_children:
            path, child = join(directory.path, name), self._ids.next()
            row = Born(self._tenant_id, child, directory, name, inode, self._fence, self._number)
            batch.tree.new_directories.append(row)
            yield Todo(KnownDirectory(child, path, tree.order_key(path), None, 1, None, self._fence), row, batch)

    def directory(self, todo: Todo, fingerprint: bytes, whole: bool, files: int, size: int) -> None:
        """A directory as it was listed; its fingerprint only where nothing in it waits for another look."""
        found = (fingerprint if whole else None, files, size)
        if todo.row is not None and todo.batch is self._batch:
            row = todo.row
            row.fingerprint, row.files, row.bytes = found
            row.owner, row.listed = None, self._fence
        else:
            known = todo.known
            self._batch.tree.listed.append((*found, self._fence, self._tenant_id, known.id, known.version))
        self._flush_if_full()

    def range(self, directory: KnownDirectory, known: ranges.KnownRange, fingerprint: bytes, whole: bool, files: int,
              size: int) -> None:  # fmt: skip
        """A range of a huge directory as it was listed."""
        found, key = (fingerprint if whole else None, files, size), (self._tenant_id, directory.id)
        self._batch.tree.ranges.append((*found, self._fence, *key, known.number, known.version))
        self._batch.tree.grown.append((files - known.files, size - known.bytes, self._fence, *key))
        self._flush_if_full()

    def mount(self, directory: KnownDirectory, magic: int | None) -> None:
        """Another file system is mounted on this directory, or (None) no longer."""
        self._batch.tree.mounts.append((magic, self._tenant_id, directory.id))

    def give_up(self, todo: Todo) -> None:
        """Nobody has to list this one any more in this scan."""
        if todo.row is not None and todo.batch is self._batch:
            todo.row.owner = None
        elif todo.known.born == self._fence:
            self._batch.disowned.append(todo.known.id)

    def error(self, path: bytes, operation: str, error: str) -> None:
        """A place that could not be looked at."""
        self.count(errors_total=1)
        self._keep(path, operation, error)

    def skip(self, path: bytes, reason: str, operation: str = scan_notes.SKIP) -> None:
        """A place that is left out on purpose."""
        self.count(skipped_total=1)
        self._keep(path, operation, reason)

    def _keep(self, path: bytes, operation: str, text: str) -> None:
        self._kept[operation] += 1
        if self._kept[operation] <= ERRORS_KEPT:  # of each kind some: the finish asks for that
            self._batch.errors.append((self._scan.id, scan_notes.error_key(path, operation), path, operation, text))

    def _flush_if_full(self) -> None:
        if len(self._batch) >= self._most:
            self.flush()

    def flush(self) -> None:
        """Write the batch, if there is anything in it. Raises LeaseLost, StaleDirectory."""
        batch = self._batch
        if not len(batch):
            return

        def write(connection: Connection, first: int) -> None:
            tree.write(connection, batch.tree)
            numbered = [(self._tenant_id, self._fence, first + i, *rest) for i, rest in enumerate(batch.changes)]
            changes.write(connection, numbered)
            changes.write_errors(connection, batch.errors)
            tree.disown(connection, self._tenant_id, batch.disowned)

        with self._governor.writing(len(batch)):
            self._holder.flush_changes(write, len(batch.changes), settles=len(batch.tree) > 0, **batch.counted)
        self._batch, self._most = Batch(), self._governor.rows


def join(folder: bytes, name: bytes) -> bytes:
    """The path of an entry."""
    return folder + b"/" + name if folder else name
