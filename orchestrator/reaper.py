"""What slipped by: a scan all of whose shards are settled, and whose finish nobody made ready.

Shards that a dead holder left, or that nobody was ever sent, need no more than the dispatcher, which sends them again.
"""

from __future__ import annotations

import logging

from sqlalchemy import Connection, Engine

from db import scans, shards
from db.engine import reading, write

log = logging.getLogger(__name__)


def reap(engine: Engine) -> int:
    """One pass: make ready each finish that waits for nothing; how many."""
    with reading(engine) as connection:
        stuck = scans.with_nothing_left(connection)
    ready = [scan_id for scan_id in stuck if write(engine, _make_ready, scan_id)]
    for scan_id in ready:
        log.warning("scan %s: its finish had slipped by", scan_id)
    return len(ready)


def _make_ready(connection: Connection, scan_id: str) -> bool:
    scans.lock(connection, scan_id)
    return shards.ready_finish(connection, scan_id)
