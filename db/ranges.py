"""Huge directories: their entries are kept in ranges of a 32-bit hash of the name, each with a fingerprint of its own.

The number of ranges is a power of two that only grows. A file's or child's row says its hash, so that growing needs no
rewriting: which range a row is in follows from the number of ranges.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from sqlalchemy import ColumnElement, Connection, FromClause, and_, delete, exists, insert, or_, select, update

from db.bulk import run_many
from db.tables import directories, directory_ranges, files
from db.types import HASHES, name_hash, number_of


def place_listed(directory: FromClause, entry: FromClause, fence: int) -> ColumnElement[bool]:
    """Was the place of an entry (a row of files or directories) listed in this fence: its directory; in a huge one,
    its range? `directory` is the row that it is in.
    """
    r = directory_ranges.c
    number = entry.c.name_hash * directory.c.ranges // HASHES
    its_range = exists().where(
        r.tenant_id == directory.c.tenant_id, r.directory_id == directory.c.id, r.number == number, r.listed == fence
    )
    return and_(directory.c.listed == fence, or_(directory.c.ranges.is_(None), its_range))


class KnownRange(NamedTuple):
    """A row of `directory_ranges`."""

    number: int
    fingerprint: bytes | None
    files: int
    bytes: int
    version: int
    listed: int | None


def of_directory(connection: Connection, tenant_id: int, directory_id: int) -> dict[int, KnownRange]:
    """The ranges of a huge directory, by number."""
    r = directory_ranges.c
    query = select(*(r[name] for name in KnownRange._fields)).where(
        r.tenant_id == tenant_id, r.directory_id == directory_id
    )
    return {row.number: KnownRange._make(row) for row in connection.execute(query)}


def resize(connection: Connection, tenant_id: int, directory_id: int, version: int, count: int) -> bool:
    """Give a directory `count` ranges, none of them listed; False where somebody else wrote the directory meanwhile.

    How many files and bytes it has is counted anew, range by range.
    """
    d, r = directories.c, directory_ranges.c
    mine = and_(d.tenant_id == tenant_id, d.id == directory_id, d.version == version)
    query = update(directories).where(mine)
    values = {"ranges": count, "fingerprint": None, "files": 0, "bytes": 0, "version": version + 1}
    if connection.execute(query.values(**values)).rowcount != 1:
        return False
    connection.execute(delete(directory_ranges).where(r.tenant_id == tenant_id, r.directory_id == directory_id))
    rows = [{"tenant_id": tenant_id, "directory_id": directory_id, "number": number} for number in range(count)]
    connection.execute(insert(directory_ranges), rows)
    return True


def note_hashes(connection: Connection, tenant_id: int, directory_id: int, limit: int) -> bool:
    """Write the hash of their name into up to `limit` files and as many child directories of a directory that becomes
    huge; False when all have it.
    """
    more = False
    for table, parent in ((files, files.c.directory_id), (directories, directories.c.parent_id)):
        query = select(table.c.name).where(
            table.c.tenant_id == tenant_id, parent == directory_id, table.c.name_hash.is_(None)
        )
        names = connection.execute(query.limit(limit)).scalars().all()
        more |= bool(names)
        run_many(
            connection,
            f"UPDATE {table.name} SET name_hash = ? WHERE tenant_id = ? AND {parent.name} = ? AND name = ?",
            [(name_hash(name), tenant_id, directory_id, name) for name in names],
        )
    return more


def clear_fingerprints(connection: Connection, tenant_id: int, keys: Iterable[tuple[int, bytes]]) -> None:
    """Let the ranges of these entries, given as (directory, name), be compared by the next scan."""
    names = list(keys)
    d = directories.c
    query = select(d.id, d.ranges).where(
        d.tenant_id == tenant_id, d.id.in_({directory for directory, _ in names}), d.ranges.is_not(None)
    )
    huge = {row.id: row.ranges for row in connection.execute(query)}
    places = {(one, number_of(name_hash(name), huge[one])) for one, name in names if one in huge}
    run_many(
        connection,
        "UPDATE directory_ranges SET fingerprint = NULL, version = version + 1 "
        "WHERE tenant_id = ? AND directory_id = ? AND number = ? AND fingerprint IS NOT NULL",
        [(tenant_id, *place) for place in sorted(places)],
    )
