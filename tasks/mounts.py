"""Mounts below a root: one that came, or went, must not turn what is recorded there into deletions."""

from __future__ import annotations

from sqlalchemy import Engine

from db import scan_notes, tree
from db.engine import reading
from db.scans import Scan
from db.tenants import Tenant
from db.types import KnownDirectory
from tasks.core import filesystem
from tasks.core.listing import Listing, count_entries
from tasks.core.walk import Tree
from tasks.write_back import Todo, WriteBack

# So many names of a directory are looked for where a mount came or went: is any there, it is the place that was known.
SOME_NAMES = 1_000


class Mounts:
    """Those that one shard meets."""

    def __init__(self, engine: Engine, scan: Scan, tenant: Tenant, root: Tree, write: WriteBack) -> None:
        self._engine, self._scan, self._tenant, self._root, self._write = engine, scan, tenant, root, write

    def unmounted(self, todo: Todo, fd: int, listing: Listing | None) -> bool:
        """Was something mounted here that is not there now, so that its empty mount point shows?

        Whatever else came or went with a mount is for the finish to doubt, if nothing is there of what was known.
        """
        if not self._tenant.cross_mounts:
            return False
        known = todo.known
        mount = filesystem.filesystem_magic(fd) if self._root.is_other_mount else None
        if mount == known.mount:
            return False
        if mount is None:
            seen = count_entries(fd, known.path) if listing is None else len(listing.files) + len(listing.children)
            if not seen:
                text = "what was mounted here is not; what is recorded below stays as it is"
                self._write.give_up(todo)
                self._write.error(known.path, "list", text)
                return True
        if self._scan.confirms is not None or self._familiar(known, fd):
            self._write.mount(known, mount)
        else:
            self._write.error(
                known.path, scan_notes.MOUNT, "a mount came or went, and nothing of what was known is there"
            )
        return False

    def _familiar(self, known: KnownDirectory, fd: int) -> bool:
        """Is anything there that was known here, if anything was? Once something of it is missing, it is not."""
        with reading(self._engine) as connection:
            names = tree.names_in(connection, self._tenant.id, known.id, SOME_NAMES)
        if not names:
            return True
        try:
            return not any(gone for _, gone in names) and any(filesystem.exists(fd, name) for name, _ in names)
        except OSError:
            return False

    def note_other(self, known: KnownDirectory) -> None:
        """Note a directory on which something is mounted that is not crossed."""
        with reading(self._engine) as connection:
            holds = tree.names_in(connection, self._tenant.id, known.id, 1)
        if holds:
            text = "something is mounted here now; what is recorded below stays as it is"
            self._write.error(known.path, "list", text)
        else:
            self._write.skip(known.path, "something is mounted here, and mounts are not crossed")
