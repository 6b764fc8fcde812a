"""Deleting batch by batch: what removed tenants left, by who removes them, and by the tick where he did not end it;
and what is too old, by the tick alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from sqlalchemy import Engine

from db import removals, retention
from db.engine import reading, write

# A tick gives each so long, in seconds: about half of the time.
GOES_ON_FOR_S = 1.0
LOOK_EVERY_S = 0.05


def go_on(engine: Engine, for_s: float = GOES_ON_FOR_S) -> int:
    """Delete for so long, or until nothing is left; how many rows."""

    def some() -> int | None:
        deleted = write(engine, removals.delete_some)
        return None if deleted is None else deleted.rows

    return _batches(some, for_s)


def prune(engine: Engine, days: float, for_s: float = GOES_ON_FOR_S) -> int:
    """Delete for so long what ended before so many days, or until none of it is left; how many rows."""
    return _batches(lambda: write(engine, retention.prune_some, days) or None, for_s)


def _batches(some: Callable[[], int | None], for_s: float) -> int:
    deadline_s, rows = time.monotonic() + for_s, 0
    while time.monotonic() < deadline_s and (deleted := some()) is not None:
        rows += deleted
    return rows


def finish(engine: Engine, tenant_id: int) -> None:
    """Delete until nothing of a tenant is left, also where somebody else does it."""
    while True:
        with reading(engine) as connection:
            if not removals.is_under_way(connection, tenant_id):
                return
        if write(engine, removals.delete_some) is None:
            time.sleep(LOOK_EVERY_S)
