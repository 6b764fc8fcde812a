"""What a finish deletes: rows that are gone below directories that were listed in its fence, and all below those.

Everything here is done in batches, each of them idempotent: a finish that died is simply done again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import ColumnElement, Connection, and_, delete, exists, insert, literal, select, update

from db import tree
from db.scans import Scan
from db.tables import directories, files, vanished


class GoneFile(NamedTuple):
    """A file row that is to be deleted."""

    directory_id: int
    name: bytes
    folder: bytes
    type: str
    size: int
    digest: bytes | None
    algorithm: str | None
    target: bytes | None
    reason: str | None

    @property
    def path(self) -> bytes:
        """Relative to the root."""
        return self.folder + b"/" + self.name if self.folder else self.name

    @property
    def visible(self) -> bool:
        """Was it ever in the feed? A file that was never read was not."""
        return self.digest is not None or self.target is not None


def collect(connection: Connection, scan: Scan) -> None:
    """Begin: note the directories that are gone below a parent that was listed in this fence."""
    d, parent = directories.alias("d"), directories.alias("parent")
    roots = (
        select(literal(scan.id, vanished.c.scan_id.type), d.c.id)
        .join(parent, and_(parent.c.tenant_id == d.c.tenant_id, parent.c.id == d.c.parent_id))
        .where(d.c.tenant_id == scan.tenant_id, d.c.gone <= scan.fence, parent.c.listed == scan.fence)
        .where(~_noted(scan, d.c.id))
    )
    connection.execute(insert(vanished).from_select(["scan_id", "directory_id"], roots))


def _noted(scan: Scan, directory_id: ColumnElement[int]) -> ColumnElement[bool]:
    return exists().where(vanished.c.scan_id == scan.id, vanished.c.directory_id == directory_id)


def expand(connection: Connection, scan: Scan, limit: int) -> bool:
    """Note the children of up to `limit` noted directories; False when all are expanded."""
    v, d = vanished.c, directories.c
    ids = connection.execute(
        select(v.directory_id).where(v.scan_id == scan.id, ~v.expanded).order_by(v.directory_id).limit(limit)
    ).scalars().all()  # fmt: skip
    children = (
        select(literal(scan.id, v.scan_id.type), d.id)
        .where(d.tenant_id == scan.tenant_id, d.parent_id.in_(ids))
        .where(~_noted(scan, d.id))
    )
    connection.execute(insert(vanished).from_select(["scan_id", "directory_id"], children))
    connection.execute(update(vanished).where(v.scan_id == scan.id, v.directory_id.in_(ids)).values(expanded=True))
    return bool(ids)


_GONE = [files.c.directory_id, files.c.name, directories.c.path, files.c.type, files.c.size, files.c.digest,
         files.c.algorithm, files.c.target, files.c.gone_reason]  # fmt: skip
_PARENT = and_(directories.c.tenant_id == files.c.tenant_id, directories.c.id == files.c.directory_id)


def gone_files(connection: Connection, scan: Scan, limit: int) -> Sequence[GoneFile]:
    """Files that were missing from a listing of this fence."""
    query = (
        select(*_GONE)
        .join(directories, _PARENT)
        .where(files.c.tenant_id == scan.tenant_id, files.c.gone <= scan.fence, directories.c.listed == scan.fence)
    )
    return [GoneFile._make(row) for row in connection.execute(query.limit(limit))]


def files_below(connection: Connection, scan: Scan, limit: int) -> Sequence[GoneFile]:
    """Files in the noted directories."""
    query = (
        select(*_GONE)
        .join(directories, _PARENT)
        .join(vanished, vanished.c.directory_id == files.c.directory_id)
        .where(files.c.tenant_id == scan.tenant_id, vanished.c.scan_id == scan.id)
    )
    return [GoneFile._make(row) for row in connection.execute(query.limit(limit))]


def delete_noted(connection: Connection, scan: Scan, limit: int) -> bool:
    """Delete up to `limit` noted directories with their notes; False when none is left."""
    v = vanished.c
    ids = connection.execute(select(v.directory_id).where(v.scan_id == scan.id).limit(limit)).scalars().all()
    if ids:
        tree.delete_directories(connection, scan.tenant_id, ids)
        connection.execute(delete(vanished).where(v.scan_id == scan.id, v.directory_id.in_(ids)))
    return bool(ids)
