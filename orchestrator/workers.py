"""The workers that answer: asked through the broker, which takes a second however many there are."""

from __future__ import annotations

import contextlib
import threading
from typing import Any, NamedTuple

from tasks.app import App
from tasks.redis.connection import BROKER_ERRORS

# How long workers may take to answer.
INSPECT_S = 1.0


class Worker(NamedTuple):
    """A worker that answered; `busy`: how many tasks it is at, where it said so."""

    name: str
    processes: int | None
    pid: int | None
    busy: int | None


def seen(app: App) -> list[Worker]:
    """The workers of the cluster, by name. Raises one of BROKER_ERRORS."""
    active: dict[str, Any] = {}

    def ask() -> None:
        with contextlib.suppress(*BROKER_ERRORS):  # the other question fails as well
            active.update(app.control.inspect(timeout=INSPECT_S).active() or {})

    # Beside the other question, since each waits for as long as a worker may take.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    stats = app.control.inspect(timeout=INSPECT_S).stats() or {}
    asking.join(INSPECT_S)
    return [
        Worker(name, found.get("pool", {}).get("max-concurrency"), found.get("pid"),
               len(active[name]) if name in active else None)
        for name, found in sorted(stats.items())
    ]  # fmt: skip
