"""The directories that a finish deletes: those gone below a place that was listed in its fence, and all below them.

Everything here is done in batches, each of them idempotent: a finish that died is simply done again.
"""

from __future__ import annotations

from sqlalchemy import ColumnElement, Connection, and_, delete, exists, insert, literal, select, update

from db import tree
from db.ranges import place_listed
from db.scans import Scan
from db.tables import directories, vanished

_COLUMNS = ["scan_id", "directory_id", "reason"]


def collect(connection: Connection, scan: Scan) -> None:
    """Begin: note the directories that are gone and that the scan may judge."""
    d, parent = directories.alias("d"), directories.alias("parent")
    assert scan.fence is not None
    roots = (
        select(_id_of(scan), d.c.id, d.c.gone_reason)
        .join(parent, and_(parent.c.tenant_id == d.c.tenant_id, parent.c.id == d.c.parent_id))
        .where(d.c.tenant_id == scan.tenant_id, d.c.gone <= scan.judged_fence, place_listed(parent, d, scan.fence))
        .where(~noted(scan, d.c.id))
    )
    connection.execute(insert(vanished).from_select(_COLUMNS, roots))


def _id_of(scan: Scan) -> ColumnElement[str]:
    return literal(scan.id, vanished.c.scan_id.type)


def noted(scan: Scan, directory_id: ColumnElement[int]) -> ColumnElement[bool]:
    """Is this directory among those that are gone?"""
    note = vanished.alias("note").c  # of its own, since the query may join the table already
    return exists().where(note.scan_id == scan.id, note.directory_id == directory_id)


def expand(connection: Connection, scan: Scan, limit: int) -> bool:
    """Note the children of up to `limit` noted directories; False when all are expanded."""
    v, d = vanished.c, directories.c
    ids = connection.execute(
        select(v.directory_id).where(v.scan_id == scan.id, ~v.expanded).order_by(v.directory_id).limit(limit)
    ).scalars().all()  # fmt: skip
    children = (
        select(_id_of(scan), d.id, v.reason)
        .join(vanished, and_(v.scan_id == scan.id, v.directory_id == d.parent_id))
        .where(d.tenant_id == scan.tenant_id, d.parent_id.in_(ids))
        .where(~noted(scan, d.id))
    )
    connection.execute(insert(vanished).from_select(_COLUMNS, children))
    connection.execute(update(vanished).where(v.scan_id == scan.id, v.directory_id.in_(ids)).values(expanded=True))
    return bool(ids)


def clear(connection: Connection, scan: Scan, limit: int) -> bool:
    """Forget up to `limit` notes; False when none is left."""
    v = vanished.c
    ids = select(v.directory_id).where(v.scan_id == scan.id).limit(limit)
    return connection.execute(delete(vanished).where(v.scan_id == scan.id, v.directory_id.in_(ids))).rowcount > 0


def delete_noted(connection: Connection, scan: Scan, limit: int) -> bool:
    """Delete up to `limit` noted directories with their notes; False when none is left."""
    v = vanished.c
    ids = connection.execute(select(v.directory_id).where(v.scan_id == scan.id).limit(limit)).scalars().all()
    if ids:
        tree.delete_directories(connection, scan.tenant_id, ids)
        connection.execute(delete(vanished).where(v.scan_id == scan.id, v.directory_id.in_(ids)))
    return bool(ids)
