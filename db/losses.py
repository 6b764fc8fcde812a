"""What a finish judges: each file that is gone, and beside them the additions that they may have become (moves).

They are noted in a scratch table before the verdict, and the verdict is carried out from there: what was judged is what
is done, however often the finish dies on the way. Everything is read and written in pages of the caller's size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, Select, and_, delete, exists, func, select, tuple_

from db import changes as feed
from db import vanished
from db.bulk import id_as_stored, merge, run_many
from db.ranges import place_listed
from db.scans import Scan
from db.tables import changes, directories, files, losses
from db.tables import vanished as vanished_table
from db.types import FileType, Gone, Kind

LOSS = ("scan_id", "key", "inode", "gone", "directory_id", "name", "n", "reason", "counted")
_PAGED = [losses.c[name] for name in ("key", "inode", "gone", "directory_id", "name", "n")]

# Every volume of the ext family has it.
LOST_FOUND = b"lost+found"
Place = tuple[int, bytes]  # directory and name


def content_key(type_: str, size: int, digest: bytes | None, algorithm: str | None, target: bytes | None) -> bytes:
    """Equal for files of equal content and for symlinks of equal target; empty for what is never paired."""
    if type_ == FileType.SYMLINK:
        return b"l" + hashlib.blake2b(target or b"", digest_size=16).digest()
    if digest is None or size == 0:
        return b""
    return (b"s" if algorithm == "stat" else b"f") + digest


_LOST = [files.c[name] for name in ("directory_id", "name", "type", "size", "digest", "algorithm", "target", "inode")]


def _lost(scan: Scan, reason: Any) -> Select[Any]:
    """File rows with the reason why they are gone, and the kind of change that this fence has for them already."""
    f, d, c = files.c, directories.c, changes.c
    return (
        select(*_LOST, reason.label("reason"), c.kind)
        .join(directories, and_(d.tenant_id == f.tenant_id, d.id == f.directory_id))
        .outerjoin(changes, and_(c.tenant_id == f.tenant_id, c.fence == scan.fence,
                                 c.directory_id == f.directory_id, c.name == f.name))
        .where(f.tenant_id == scan.tenant_id)
    )  # fmt: skip


def any_gone(connection: Connection, tenant_id: int) -> bool:
    """Is any row gone at all? In most scans none is, and there is nothing to note."""
    for table in (files, directories):
        query = select(table.c.gone).where(table.c.tenant_id == tenant_id, table.c.gone.is_not(None)).limit(1)
        if connection.execute(query).first() is not None:
            return True
    return False


def any_familiar(connection: Connection, scan: Scan) -> bool:
    """Is anything at the top of the root still there that was known before this scan?"""
    d, f, c = directories.c, files.c, changes.c
    root = select(d.id).where(d.tenant_id == scan.tenant_id, d.parent_id.is_(None)).scalar_subquery()
    children = select(d.id).where(
        d.tenant_id == scan.tenant_id, d.parent_id == root, d.gone.is_(None), d.born < scan.fence, d.name != LOST_FOUND
    )
    new = exists().where(
        c.tenant_id == f.tenant_id, c.fence == scan.fence, c.directory_id == f.directory_id, c.name == f.name,
        c.kind == Kind.ADDED,
    )  # fmt: skip
    top = select(f.name).where(f.tenant_id == scan.tenant_id, f.directory_id == root, f.gone.is_(None), ~new)
    return any(connection.execute(query.limit(1)).first() is not None for query in (children, top))


def note_missing(connection: Connection, scan: Scan, after: Place | None, limit: int) -> Place | None:
    """Note the next files that were missing from a listing of this fence; where to go on, None at the end."""
    f = files.c
    assert scan.fence is not None
    query = _lost(scan, f.gone_reason).where(
        f.gone <= scan.judged_fence, place_listed(directories, files, scan.fence), ~vanished.noted(scan, f.directory_id)
    )
    if after is not None:
        query = query.where(tuple_(f.directory_id, f.name) > tuple_(*after))
    rows = connection.execute(query.order_by(f.directory_id, f.name).limit(limit)).all()
    _note(connection, scan, rows)
    return (rows[-1].directory_id, rows[-1].name) if len(rows) == limit else None


def note_below(connection: Connection, scan: Scan, after: Place | None, limit: int) -> Place | None:
    """Note the next files of directories that are gone; where to go on, None at the end."""
    f, v = files.c, vanished_table.c
    query = _lost(scan, v.reason).join(vanished_table, and_(v.scan_id == scan.id, v.directory_id == f.directory_id))
    if after is not None:
        # The rest of one directory first, by its key: sorted with all others, a huge one would be read for each page.
        rest = query.where(f.directory_id == after[0], f.name > after[1]).order_by(f.name)
        rows = connection.execute(rest.limit(limit)).all()
        if rows:
            _note(connection, scan, rows)
            return rows[-1].directory_id, rows[-1].name
    ids = _next_vanished(connection, scan, after[0] if after is not None else 0, limit)
    if not ids:
        return None
    query = query.where(f.directory_id.in_(ids)).order_by(f.directory_id, f.name)
    rows = connection.execute(query.limit(limit) if len(ids) == 1 else query).all()
    _note(connection, scan, rows)
    return (rows[-1].directory_id, rows[-1].name) if len(ids) == 1 and rows else (ids[-1], b"\xff" * 256)


def _next_vanished(connection: Connection, scan: Scan, after: int, limit: int) -> Sequence[int]:
    """The next directories that are gone, together of about `limit` files."""
    v, d = vanished_table.c, directories.c
    query = (
        select(v.directory_id, d.files)
        .join(directories, and_(d.tenant_id == scan.tenant_id, d.id == v.directory_id))
        .where(v.scan_id == scan.id, v.directory_id > after)
        .order_by(v.directory_id)
        .limit(limit)
    )
    ids: list[int] = []
    total = 0
    for directory_id, count in connection.execute(query):
        total += count
        if ids and total > limit:
            break
        ids.append(directory_id)
    return ids


def _note(connection: Connection, scan: Scan, rows: Sequence[Row[Any]]) -> None:
    merge(connection, losses, LOSS, [_loss(scan, row) for row in rows], "ON CONFLICT DO NOTHING")


def _loss(scan: Scan, row: Row[Any]) -> tuple[Any, ...]:
    # What this very fence reported of a path is only folded: no source of a move, and if added, no loss either.
    key = content_key(row.type, row.size, row.digest, row.algorithm, row.target) if row.kind is None else b""
    visible = row.digest is not None or row.target is not None
    counted = visible and row.kind != Kind.ADDED and row.reason not in (Gone.IGNORED, Gone.REPLACED)
    return (scan.id, key, row.inode, True, row.directory_id, row.name, None, row.reason, counted)


def note_added(connection: Connection, scan: Scan, after: int, limit: int) -> int | None:
    """Note the next additions of this fence that still stand; the number to go on after, None at the end."""
    c, f = changes.c, files.c
    query = (
        select(c.n, c.directory_id, c.name, c.type, c.size, c.digest, c.algorithm, c.target, f.inode)
        .join(files, and_(f.tenant_id == c.tenant_id, f.directory_id == c.directory_id, f.name == c.name))
        .where(c.tenant_id == scan.tenant_id, c.fence == scan.fence, c.n > after, c.kind == Kind.ADDED)
        .where(f.gone.is_(None), ~vanished.noted(scan, c.directory_id))
        .order_by(c.n)
        .limit(limit)
    )
    rows = connection.execute(query).all()
    noted = [
        (scan.id, key, row.inode, False, row.directory_id, row.name, row.n, None, False)
        for row in rows
        if (key := content_key(row.type, row.size, row.digest, row.algorithm, row.target))
    ]
    merge(connection, losses, LOSS, noted, "ON CONFLICT DO NOTHING")
    return rows[-1].n if len(rows) == limit else None


def any_pairable(connection: Connection, scan: Scan) -> bool:
    """Is anything gone that may have moved?"""
    query = select(losses.c.inode).where(losses.c.scan_id == scan.id, losses.c.key > b"").limit(1)
    return connection.execute(query).first() is not None


def candidates(connection: Connection, scan: Scan, after: Row[Any] | None, limit: int) -> Sequence[Row[Any]]:
    """The next that may be paired: (key, inode, gone, directory, name, n), in this order."""
    query = select(*_PAGED).where(losses.c.scan_id == scan.id, losses.c.key > b"")
    if after is not None:
        query = query.where(tuple_(*_PAGED[:5]) > tuple_(*after[:5]))
    return connection.execute(query.order_by(*_PAGED[:5]).limit(limit)).all()


def note_moves(connection: Connection, scan: Scan, pairs: Sequence[tuple[Any, ...]]) -> None:
    """Note what files became: tuples (n of the addition, key, inode, directory, name of what is gone)."""
    run_many(
        connection,
        "UPDATE losses SET n = ? WHERE scan_id = ? AND key = ? AND inode = ? AND gone AND directory_id = ? "
        "AND name = ?",
        [(n, id_as_stored(connection, scan.id), *rest) for n, *rest in pairs],
    )


def counted(connection: Connection, scan: Scan) -> tuple[int, int]:
    """(files that the guard counts as deleted, those that moved)."""
    lo = losses.c
    query = select(func.count().filter(lo.n.is_(None)), func.count().filter(lo.n.is_not(None)))
    deleted, moved = connection.execute(query.where(lo.scan_id == scan.id, lo.gone, lo.counted)).one()
    return int(deleted), int(moved)


class Loss(NamedTuple):
    """A file that is to go, with all that the feed says of it. `n`: the change of the addition that it became."""

    key: bytes
    inode: int
    directory_id: int
    name: bytes
    n: int | None
    reason: str | None
    folder: bytes
    type: str
    size: int
    digest: bytes | None
    algorithm: str | None
    target: bytes | None

    @property
    def path(self) -> bytes:
        """Relative to the root."""
        return self.folder + b"/" + self.name if self.folder else self.name

    @property
    def visible(self) -> bool:
        """Was it ever in the feed? A file that was never read was not."""
        return self.digest is not None or self.target is not None


def page(connection: Connection, scan: Scan, *, moved: bool, after: Loss | None, limit: int) -> Sequence[Loss]:
    """The next files that are to go: those that moved, or those that did not."""
    lo, f, d = losses.c, files.c, directories.c
    order = (lo.key, lo.inode, lo.gone, lo.directory_id, lo.name)
    query = (
        select(lo.key, lo.inode, lo.directory_id, lo.name, lo.n, lo.reason, d.path, f.type, f.size, f.digest,
               f.algorithm, f.target)
        .join(files, and_(f.tenant_id == scan.tenant_id, f.directory_id == lo.directory_id, f.name == lo.name))
        .join(directories, and_(d.tenant_id == scan.tenant_id, d.id == lo.directory_id))
        .where(lo.scan_id == scan.id, lo.gone, lo.n.is_not(None) if moved else lo.n.is_(None))
    )  # fmt: skip
    if after is not None:
        query = query.where(tuple_(*order) > tuple_(after.key, after.inode, True, after.directory_id, after.name))
    return [Loss._make(row) for row in connection.execute(query.order_by(*order).limit(limit))]


def report_deleted(connection: Connection, scan: Scan, gone: Sequence[Loss], first: int) -> None:
    """Write their deletions into the feed, numbered from `first`."""
    feed.write(connection, [
        (scan.tenant_id, scan.fence, first + i, one.directory_id, one.name, Kind.DELETED.value, one.path, one.type,
         one.size, one.digest, one.algorithm, one.target, Gone.IGNORED.value if one.reason == Gone.IGNORED else None)
        for i, one in enumerate(gone)
        if one.visible
    ])  # fmt: skip


def report_moved(connection: Connection, scan: Scan, gone: Sequence[Loss], first: int) -> None:
    """Make moves of the additions that they became, numbered from `first`: before every addition."""
    run_many(
        connection,
        "UPDATE changes SET kind = 'moved', old_path = ?, n = ? WHERE tenant_id = ? AND fence = ? AND n = ?",
        [(one.path, first + i, scan.tenant_id, scan.fence, one.n) for i, one in enumerate(gone)],
    )


def forget(connection: Connection, scan: Scan, done: Sequence[Loss]) -> None:
    """Take away the notes of what is done."""
    run_many(
        connection,
        "DELETE FROM losses WHERE scan_id = ? AND key = ? AND inode = ? AND gone AND directory_id = ? AND name = ?",
        [(id_as_stored(connection, scan.id), one.key, one.inode, one.directory_id, one.name) for one in done],
    )


def clear(connection: Connection, scan: Scan, limit: int) -> bool:
    """Forget up to `limit` notes; False when none is left."""
    lo = losses.c
    key = (lo.key, lo.inode, lo.gone, lo.directory_id, lo.name)
    some = select(*key).where(lo.scan_id == scan.id).limit(limit)
    return connection.execute(delete(losses).where(lo.scan_id == scan.id, tuple_(*key).in_(some))).rowcount > 0
