"""What readers of events wait for: one look at the database for all of them, however many there are."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from db import progress, scans
from db.types import ENDED
from orchestrator.api.access import Access
from orchestrator.api.coordination import Coordination
from orchestrator.api.problems import Away, problem_of
from orchestrator.api.tokens import Caller
from orchestrator.api.work import streams
from orchestrator.progress import progress_in

log = logging.getLogger(__name__)

EVERY_S = 0.5
# Progress is told each time that so many looks have been taken.
PROGRESS_EACH = 2
# What looks for all readers at once sees everything; what is read for one of them does not.
HUB = Caller("hub")


@dataclass(slots=True)
class Topic:
    """A tenant's feed, or a scan. `latest`: up to which fence it can be read, or (state, progress)."""

    latest: Any = None
    is_gone: bool = False
    readers: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)  # take it, look, and then wait for it


class Hub:
    """The topics that somebody reads."""

    def __init__(self, access: Access, redis: Coordination, most: int) -> None:
        self._access, self._redis, self._most = access, redis, most
        self._feeds: dict[int, Topic] = {}
        self._scans: dict[str, Topic] = {}
        self._readers = 0
        self.is_closing = False

    def require_room(self) -> None:
        """Raise a problem (503) where there are too many readers."""
        if self.is_closing or self._readers >= self._most:
            raise Away(f"{self._readers} readers of events are served, and no more can be")

    def feed(self, tenant_id: int) -> Any:
        """A context: the topic of a tenant's feed, while somebody reads it."""
        return self._read(self._feeds, tenant_id)

    def scan(self, scan_id: str) -> Any:
        """A context: the topic of a scan, while somebody reads it."""
        return self._read(self._scans, scan_id)

    @contextmanager
    def _read(self, topics: dict[Any, Topic], key: Any) -> Iterator[Topic]:
        topic = topics.setdefault(key, Topic())
        topic.readers += 1
        self._readers += 1
        try:
            yield topic
        finally:
            topic.readers -= 1
            self._readers -= 1
            if not topic.readers and topics.get(key) is topic:
                del topics[key]

    async def run(self) -> None:
        """Look again and again, until it is cancelled."""
        number = 0
        while True:
            await asyncio.sleep(EVERY_S)
            number += 1
            if not (self._feeds or self._scans):
                continue
            asked = dict(self._feeds), dict(self._scans)
            look = functools.partial(
                self._look, list(asked[0]), list(asked[1]), with_progress=number % PROGRESS_EACH == 0
            )
            try:
                feeds, found = await streams.do(look)
            except Exception as error:  # noqa: BLE001 - a reader waits for the next look
                problem_of(error)  # which says so, where it is a mistake of ours
                continue
            self._tell(asked[0], feeds)
            self._tell(asked[1], found)

    def _look(
        self, tenant_ids: list[int], scan_ids: list[str], *, with_progress: bool
    ) -> tuple[dict[int, int], dict[str, Any]]:
        told = self._redis.told(scan_ids) if with_progress else {}
        with self._access.read(HUB) as connection:
            fences = scans.visible_fences(connection, tenant_ids) if tenant_ids else {}
            states = scans.states(connection, scan_ids) if scan_ids else {}
            moving = [one for one, state in states.items() if state not in ENDED] if with_progress else []
            running = progress.running(connection, len(moving), scan_ids=moving) if moving else []
            seen = progress_in(connection, running, told)
        return fences, {one: (state, seen[one].document() if one in seen else None) for one, state in states.items()}

    @staticmethod
    def _tell(topics: dict[Any, Topic], found: dict[Any, Any]) -> None:
        for key, topic in topics.items():
            latest = found.get(key)
            if isinstance(latest, tuple) and topic.latest is not None and latest[1] is None:
                latest = (latest[0], topic.latest[1])  # no progress was looked at
            if latest is None:
                topic.is_gone = True
            elif latest == topic.latest:
                continue
            topic.latest = latest
            topic.changed.set()
            topic.changed = asyncio.Event()

    def close(self) -> None:
        """Let all readers end."""
        self.is_closing = True
        for topic in (*self._feeds.values(), *self._scans.values()):
            topic.changed.set()

    async def wait(self, changed: asyncio.Event, seconds: float) -> bool:
        """Wait for a topic to change; False where nothing came for so long."""
        if self.is_closing:
            return True
        with suppress(TimeoutError):
            await asyncio.wait_for(changed.wait(), seconds)
        return changed.is_set()
