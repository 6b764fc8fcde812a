"""What slipped by: a scan all of whose shards are settled, and whose finish nobody made ready.

Shards that a dead holder left, or that nobody was ever sent, need no more than the dispatcher, which sends them again.
"""

from __future__ import annotations

import logging

from sqlalchemy import Engine

from db import scans, shards
from db.engine import reading, writing

log = logging.getLogger(__name__)


def reap(engine: Engine) -> int:
    """One pass: make ready each finish that waits for nothing; how many."""
    with reading(engine) as connection:
        stuck = scans.with_nothing_left(connection)
    return sum(_finish(engine, scan_id) for scan_id in stuck)


def _finish(engine: Engine, scan_id: str) -> bool:
    with writing(engine) as connection:
        scans.lock(connection, scan_id)
        is_ready = shards.ready_finish(connection, scan_id)
    if is_ready:
        log.warning("scan %s: its finish had slipped by", scan_id)
    return is_ready
