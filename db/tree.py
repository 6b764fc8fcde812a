"""Directories and files as the last scans saw them: what a scan reads of them, and writes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    Connection,
    Engine,
    and_,
    cast,
    delete,
    func,
    insert,
    select,
    true,
    tuple_,
    update,
)
from sqlalchemy.sql.expression import ColumnElement

from db import engine, ranges
from db.bulk import merge, run_many
from db.tables import directories, directory_ranges, files, id_blocks
from db.types import KnownChild, KnownDirectory, KnownFile, Place, StaleDirectory

ORDER_KEY_BYTES = 1024
IDS_PER_BLOCK = 1024
# Opening, listing and closing a directory costs about as much as so many files in it.
DIRECTORY_ENTRIES = 4


def order_key(path: bytes) -> bytes:
    """Sorts directories depth-first: NUL, which no name contains, sorts before every other byte."""
    return path.replace(b"/", b"\0")[:ORDER_KEY_BYTES]


NEW_DIRECTORY = ("tenant_id", "id", "parent_id", "name", "path", "order_key", "inode", "fingerprint", "files", "bytes",
                 "version", "born", "owner", "listed", "name_hash")  # fmt: skip
FILE = ("tenant_id", "directory_id", "name", "type", "size", "mtime_ns", "ctime_ns", "inode", "unsettled", "digest",
        "algorithm", "target", "changed", "hashed", "hashed_because", "name_hash")  # fmt: skip
_FILE_CONFLICT = "ON CONFLICT (tenant_id, directory_id, name) DO UPDATE SET " + ", ".join(
    [f"{name} = excluded.{name}" for name in FILE[3:]] + ["gone = NULL", "gone_reason = NULL"]
)


@dataclass(slots=True)
class TreeBatch:
    """What one flush writes to the index: tuples ready for the driver, so that a first scan builds nothing twice."""

    new_directories: list[Iterable[Any]] = field(default_factory=list)  # in the order of NEW_DIRECTORY
    # (fingerprint, files, bytes, fence, tenant, id, version)
    listed: list[tuple[Any, ...]] = field(default_factory=list)
    found_children: list[tuple[Any, ...]] = field(default_factory=list)  # (inode, tenant, id): seen again
    gone_children: list[tuple[Any, ...]] = field(default_factory=list)  # (fence, reason, tenant, id)
    files: list[tuple[Any, ...]] = field(default_factory=list)  # in the order of FILE
    gone_files: list[tuple[Any, ...]] = field(default_factory=list)  # (fence, reason, tenant, directory, name)
    # (fingerprint, files, bytes, fence, tenant, directory, number, version): ranges of huge directories …
    ranges: list[tuple[Any, ...]] = field(default_factory=list)
    grown: list[tuple[Any, ...]] = field(default_factory=list)  # … (more files, more bytes, fence, tenant, directory)
    mounts: list[tuple[Any, ...]] = field(default_factory=list)  # (f_type, tenant, id)

    def __len__(self) -> int:
        return (
            len(self.new_directories) + len(self.listed) + len(self.found_children) + len(self.gone_children)
            + len(self.files) + len(self.gone_files) + len(self.ranges) + len(self.mounts)
        )  # fmt: skip


def write(connection: Connection, batch: TreeBatch) -> None:
    """Write a batch; part of a flush. Raises StaleDirectory where a directory's version moved meanwhile."""
    matched = run_many(
        connection,
        "UPDATE directories SET fingerprint = ?, files = ?, bytes = ?, listed = ?, owner = NULL, version = version + 1 "
        "WHERE tenant_id = ? AND id = ? AND version = ?",
        batch.listed,
    )
    matched += run_many(
        connection,
        "UPDATE directory_ranges SET fingerprint = ?, files = ?, bytes = ?, listed = ?, version = version + 1 "
        "WHERE tenant_id = ? AND directory_id = ? AND number = ? AND version = ?",
        batch.ranges,
    )
    if matched != len(batch.listed) + len(batch.ranges):
        missed = len(batch.listed) + len(batch.ranges) - matched
        raise StaleDirectory(f"{missed} directories were written by somebody else meanwhile")
    run_many(
        connection,
        "UPDATE directories SET files = files + ?, bytes = bytes + ?, listed = ? WHERE tenant_id = ? AND id = ?",
        batch.grown,
    )
    # No ON CONFLICT: the parent's version proves that its children are those that were compared.
    merge(connection, directories, NEW_DIRECTORY, batch.new_directories, "")
    run_many(connection, "UPDATE directories SET mount = ? WHERE tenant_id = ? AND id = ?", batch.mounts)
    run_many(
        connection,
        "UPDATE directories SET inode = ?, gone = NULL, gone_reason = NULL WHERE tenant_id = ? AND id = ?",
        batch.found_children,
    )
    run_many(
        connection,
        "UPDATE directories SET gone = ?, gone_reason = ? WHERE tenant_id = ? AND id = ? AND gone IS NULL",
        batch.gone_children,
    )
    merge(connection, files, FILE, batch.files, _FILE_CONFLICT)
    run_many(
        connection,
        "UPDATE files SET gone = ?, gone_reason = ? "
        "WHERE tenant_id = ? AND directory_id = ? AND name = ? AND gone IS NULL",
        batch.gone_files,
    )


class Ids:
    """Ids for new directories, taken from the database in blocks; what a process leaves unused is lost: no harm."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._left: Iterator[int] = iter(())

    def next(self) -> int:
        """A directory id that nobody else has."""
        for number in self._left:
            return number
        block = engine.write(self._engine, take_block)
        self._left = iter(range(block * IDS_PER_BLOCK, (block + 1) * IDS_PER_BLOCK))
        return next(self._left)


def take_block(connection: Connection) -> int:
    """The number of a block of directory ids that is now the caller's."""
    query = update(id_blocks).where(id_blocks.c.name == "directories").values(next=id_blocks.c.next + 1)
    return int(connection.execute(query.returning(id_blocks.c.next)).scalar_one()) - 1


class Size(NamedTuple):
    """How much is known of a tenant: entries as ranges are cut by (see DIRECTORY_ENTRIES), bytes of all its files."""

    entries: int
    bytes: int


def sizes(connection: Connection, tenant_ids: Sequence[int]) -> dict[int, Size]:
    """How much is known of each of these tenants, as last listed; those of whom nothing is are left out."""
    d = directories.c
    query = select(d.tenant_id, func.sum(d.files) + DIRECTORY_ENTRIES * func.count(), func.sum(d.bytes))
    found = connection.execute(query.where(d.tenant_id.in_(tenant_ids)).group_by(d.tenant_id))
    return {tenant_id: Size(int(entries), int(size)) for tenant_id, entries, size in found}


def add_roots(connection: Connection, fences: Mapping[int, int]) -> None:
    """The root's row of each of these tenants (not more than IDS_PER_BLOCK), owned by shard 1 of its first scan; by
    tenant, that scan's fence.
    """
    if fences:
        first = take_block(connection) * IDS_PER_BLOCK
        connection.execute(
            insert(directories).values(name=b"", path=b"", order_key=b"", owner=1),
            [{"tenant_id": tenant_id, "id": first + i, "born": fence}
             for i, (tenant_id, fence) in enumerate(fences.items())],
        )  # fmt: skip


_KNOWN = [
    directories.c[name]
    for name in ("id", "path", "order_key", "fingerprint", "version", "listed", "born", "ranges", "mount")
]


def range_page(connection: Connection, tenant_id: int, fence: int, after: Place | None, to: Place | None,
               limit: int) -> Sequence[KnownDirectory]:  # fmt: skip
    """The next directories of a range known before this fence, depth-first; `after` excluded, `to` included."""
    d = directories.c
    place = tuple_(d.order_key, d.id)
    query = select(*_KNOWN).where(d.tenant_id == tenant_id, d.born < fence)
    if after is not None:
        query = query.where(place > tuple_(after.key, after.id))
    if to is not None:
        query = query.where(place <= tuple_(to.key, to.id))
    query = query.order_by(d.order_key, d.id).limit(limit)
    return [KnownDirectory._make(row) for row in connection.execute(query)]


def known_among(connection: Connection, tenant_id: int, fence: int, paths: Collection[bytes]) -> list[KnownDirectory]:
    """Those of these paths that are directories known before this fence."""
    d = directories.c
    query = select(*_KNOWN).where(d.tenant_id == tenant_id, d.born < fence, d.order_key.in_(set(map(order_key, paths))))
    found = [KnownDirectory._make(row) for row in connection.execute(query)]
    return [known for known in found if known.path in paths]  # a long path's key is another's, too


def _owned(tenant_id: int, fence: int, number: int) -> ColumnElement[bool]:
    d = directories.c
    return and_(d.tenant_id == tenant_id, d.owner == number, d.born == fence)


def owned(connection: Connection, tenant_id: int, fence: int, number: int, limit: int) -> Sequence[KnownDirectory]:
    """Directories born in this fence that shard `number` still has to list, depth-first."""
    d = directories.c
    query = select(*_KNOWN).where(_owned(tenant_id, fence, number)).order_by(d.order_key, d.id).limit(limit)
    return [KnownDirectory._make(row) for row in connection.execute(query)]


def disown(connection: Connection, tenant_id: int, ids: Sequence[int]) -> None:
    """Nobody has to list these in this scan any more: they could not be opened, and the next scan tries again."""
    run_many(
        connection,
        "UPDATE directories SET owner = NULL WHERE tenant_id = ? AND id = ?",
        [(tenant_id, number) for number in ids],
    )


def hand_over(connection: Connection, tenant_id: int, fence: int, number: int, new_owners: Sequence[int]) -> None:
    """Share what shard `number` still owns out among new ones, numbered in a row, in pieces of depth-first order."""
    # In the database alone: a frontier may be larger than memory.
    d = directories.c
    piece = func.ntile(len(new_owners)).over(order_by=(d.order_key, d.id)).label("piece")
    pieces = select(d.id, piece).where(_owned(tenant_id, fence, number)).subquery()
    query = update(directories).where(d.tenant_id == tenant_id, d.id == pieces.c.id)
    connection.execute(query.values(owner=new_owners[0] - 1 + pieces.c.piece))


def count_owned(connection: Connection, tenant_id: int, fence: int, number: int) -> int:
    """How many directories shard `number` still has to list."""
    query = select(func.count()).select_from(directories).where(_owned(tenant_id, fence, number))
    return int(connection.execute(query).scalar_one())


def cuts(connection: Connection, tenant_id: int, entries: int) -> Sequence[Place]:
    """Places that cut the tenant's directories into ranges of about `entries` entries each; the last is the end."""
    d = directories.c
    # PostgreSQL sums into a numeric, whose quotient keeps its fraction: every directory would be a range of its own.
    weight = cast(func.sum(d.files + DIRECTORY_ENTRIES).over(order_by=(d.order_key, d.id)), BigInteger)
    cumulated = select(d.order_key, d.id, weight.label("total")).where(d.tenant_id == tenant_id).subquery()
    piece = cumulated.c.total // entries
    following = func.lead(piece).over(order_by=(cumulated.c.order_key, cumulated.c.id))
    marked = select(
        cumulated.c.order_key, cumulated.c.id, piece.label("piece"), following.label("following")
    ).subquery()
    query = (
        select(marked.c.order_key, marked.c.id)
        .where(marked.c.following.is_distinct_from(marked.c.piece))
        .order_by(marked.c.order_key, marked.c.id)
    )
    return [Place(row.order_key, row.id) for row in connection.execute(query)]


Hashes = tuple[int, int]


def _within(name_hash: ColumnElement[int | None], hashes: Hashes | None) -> ColumnElement[bool]:
    """Is the hash of the name in this part [from, to) of a huge directory? None: all of any directory."""
    return true() if hashes is None else and_(name_hash >= hashes[0], name_hash < hashes[1])


def known_directory(connection: Connection, tenant_id: int, directory_id: int) -> KnownDirectory | None:
    """One directory, if it is (still) known."""
    d = directories.c
    row = connection.execute(select(*_KNOWN).where(d.tenant_id == tenant_id, d.id == directory_id)).first()
    return None if row is None else KnownDirectory._make(row)


def with_inode(connection: Connection, tenant_id: int, inode: int, limit: int) -> Sequence[int]:
    """Directories that had this inode when they were last seen: a renamed one is known by its old name."""
    d = directories.c
    query = select(d.id).where(d.tenant_id == tenant_id, d.inode == inode)
    # By an expression: in the order of the key itself, all the tenant's directories would be read for the few.
    return list(connection.execute(query.order_by(d.id + 0).limit(limit)).scalars())


def names_in(connection: Connection, tenant_id: int, directory_id: int, limit: int) -> Sequence[tuple[bytes, bool]]:
    """Some names that are recorded in a directory, files first; each with whether it waits to be deleted."""
    d, f = directories.c, files.c
    queries = (
        select(f.name, f.gone).where(f.tenant_id == tenant_id, f.directory_id == directory_id),
        select(d.name, d.gone).where(d.tenant_id == tenant_id, d.parent_id == directory_id),
    )
    return [
        (row.name, row.gone is not None) for query in queries for row in connection.execute(query.limit(limit)).all()
    ]


def files_of(connection: Connection, tenant_id: int, directory_id: int,
             hashes: Hashes | None = None) -> Mapping[bytes, KnownFile]:  # fmt: skip
    """The rows of one directory's files, by name; of a huge one, of those whose name has such a hash."""
    f = files.c
    query = select(f.name, *(f[name] for name in KnownFile._fields)).where(
        f.tenant_id == tenant_id, f.directory_id == directory_id, _within(f.name_hash, hashes)
    )
    return {row[0]: KnownFile._make(row[1:]) for row in connection.execute(query)}


def children_of(connection: Connection, tenant_id: int, directory_id: int,
                hashes: Hashes | None = None) -> Mapping[bytes, KnownChild]:  # fmt: skip
    """The rows of one directory's child directories, by name; of a huge one, as `files_of`."""
    d = directories.c
    query = select(d.name, *(d[name] for name in KnownChild._fields)).where(
        d.tenant_id == tenant_id, d.parent_id == directory_id, _within(d.name_hash, hashes)
    )
    return {row[0]: KnownChild._make(row[1:]) for row in connection.execute(query)}


@contextmanager
def removing(connection: Connection, tenant_id: int, ids: set[int]) -> Iterator[None]:
    """Whatever deletes rows of directories clears those directories' fingerprints in the same transaction."""
    d = directories.c
    yield
    connection.execute(
        update(directories)
        .where(d.tenant_id == tenant_id, d.id.in_(ids), d.fingerprint.is_not(None))
        .values(fingerprint=None, version=d.version + 1)
    )


def delete_files(connection: Connection, tenant_id: int, keys: Sequence[tuple[int, bytes]]) -> None:
    """Remove file rows, given as (directory, name)."""
    ranges.clear_fingerprints(connection, tenant_id, keys)
    with removing(connection, tenant_id, {directory for directory, _ in keys}):
        run_many(
            connection,
            "DELETE FROM files WHERE tenant_id = ? AND directory_id = ? AND name = ?",
            [(tenant_id, directory, name) for directory, name in keys],
        )


def delete_directories(connection: Connection, tenant_id: int, ids: Sequence[int]) -> None:
    """Remove directory rows (their files are gone already)."""
    d = directories.c
    ours = and_(d.tenant_id == tenant_id, d.id.in_(ids))
    query = select(d.parent_id, d.name).where(ours, d.parent_id.is_not(None))
    places = [(row.parent_id, row.name) for row in connection.execute(query)]
    ranges.clear_fingerprints(connection, tenant_id, places)
    with removing(connection, tenant_id, {parent for parent, _ in places}):
        r = directory_ranges.c
        connection.execute(delete(directory_ranges).where(r.tenant_id == tenant_id, r.directory_id.in_(ids)))
        connection.execute(delete(directories).where(ours))
