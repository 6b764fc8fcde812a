"""The index as people see it: its objects, in the order of the tree, page by page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, and_, false, func, select, tuple_
from sqlalchemy.sql.expression import ColumnElement

from db import tree
from db.tables import directories, files
from db.types import FileType


class IndexedFile(NamedTuple):
    """One object of the index, as people see it; `place` is where to read on after it."""

    path: bytes
    type: str
    size: int
    mtime_ns: int
    digest: bytes | None
    algorithm: str | None
    target: bytes | None
    changed: int
    place: tuple[bytes, int, bytes]


def page(connection: Connection, tenant_id: int, *, prefix: bytes = b"",
               after: tuple[bytes, int, bytes] | None = None, limit: int = 1000) -> Sequence[IndexedFile]:  # fmt: skip
    """The next objects of the index: depth-first by directory, then by name; only paths that begin with `prefix`."""
    d, f = directories.c, files.c
    query = (
        select(
            d.path, d.order_key, d.id, f.name, f.type, f.size, f.mtime_ns, f.digest, f.algorithm, f.target, f.changed
        )
        .join(files, and_(f.tenant_id == d.tenant_id, f.directory_id == d.id))
        .where(d.tenant_id == tenant_id, (f.digest.is_not(None)) | (f.type == FileType.SYMLINK))
    )
    if prefix:
        query = query.where(_under(prefix))
    rows: list[Row[Any]] = []
    if after is not None:
        # The rest of a directory first, by its key: sought among all others, a huge one would be read for each page.
        rest = query.where(d.id == after[1], f.name > after[2]).order_by(f.name).limit(limit)
        rows += connection.execute(rest)
        query = query.where(tuple_(d.order_key, d.id) > tuple_(after[0], after[1]))
    if len(rows) < limit:
        rows += connection.execute(query.order_by(d.order_key, d.id, f.name).limit(limit - len(rows)))
    return [_indexed(row) for row in rows]


def _under(prefix: bytes) -> ColumnElement[bool]:
    d, f = directories.c, files.c
    if prefix.startswith(b"/"):  # else its folder would be taken for the root
        return false()
    folder, _, start = prefix.rpartition(b"/")
    key = tree.order_key(prefix)
    below = d.order_key >= key
    following = _successor(key)
    if following is not None:
        below = and_(below, d.order_key < following)
    below = and_(below, func.substr(d.path, 1, len(prefix)) == prefix)
    here = and_(d.order_key == tree.order_key(folder), d.path == folder, f.name >= start)
    return below | and_(here, func.substr(f.name, 1, len(start)) == start)


def _successor(key: bytes) -> bytes | None:
    """The least byte string above all that begin with `key`."""
    stripped = key.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1]) if stripped else None


def _indexed(row: Any) -> IndexedFile:
    path = row.path + b"/" + row.name if row.path else row.name
    return IndexedFile(path, row.type, row.size, row.mtime_ns, row.digest, row.algorithm, row.target, row.changed,
                       (row.order_key, row.id, row.name))  # fmt: skip
