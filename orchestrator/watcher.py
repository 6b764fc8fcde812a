"""Looking at the whole cluster again and again, through outages of all that it runs on: what `top` shows."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import redis
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from db import overview, progress, schema
from db.engine import reading
from db.overview import Counts, Late
from db.progress import Running
from db.types import StrandlineError
from orchestrator.documents import running_document, timestamp
from orchestrator.progress import Progress, Reader
from orchestrator.workers import Worker, seen
from tasks.app import App, make_app
from tasks.redis.connection import BROKER_ERRORS, Address
from tasks.redis.keys import Keys
from tasks.settings import Settings

# Of scans and tenants so many are looked at, the longest under way and the latest.
ROWS = 50
# To ask workers costs each of them a little.
WORKERS_EVERY_S = 5.0
# A server that hangs says nothing for long before it is an error.
SILENT_S = 5
NO_STACK = "no stack runs"


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen. Where something is away, what it said last stands; `trouble` says so, by its name."""

    at: datetime | None = None  # when the database answered
    counts: Counts | None = None
    scans: Sequence[tuple[Running, Progress]] = ()
    late: Sequence[Late] = ()
    workers: Sequence[Worker] | None = None  # None: nobody was asked yet
    trouble: dict[str, str] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """As it is printed."""
        counts = dict.fromkeys(Counts._fields) if self.counts is None else self.counts._asdict()
        return {
            "at": timestamp(self.at),
            **counts,
            "scans": [running_document(*one) for one in self.scans],
            "late": [
                one._asdict()
                | {"watermark_started_at": timestamp(one.watermark_started_at), "late_s": round(one.late_s, 1)}
                for one in self.late
            ],
            "workers": None if self.workers is None else [one._asdict() for one in self.workers],
            "trouble": {name: self.trouble.get(name) for name in ("database", "redis", "workers")},
        }


class Watcher:
    """`latest` is what was seen last. `redis_url` tells where Redis is by now: that of a stack comes and goes."""

    def __init__(self, settings: Settings, engine: Engine, redis_url: Callable[[], str | None]) -> None:
        self._settings, self._engine, self._redis_url = settings, engine, redis_url
        self._url: str | None = None
        self._reader = Reader(engine, None, Keys(settings.redis_prefix))
        self._app: tuple[str, App] | None = None
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._every_s = 0.0
        self._answered_s = time.monotonic()
        self.latest = Look()

    @property
    def silent_s(self) -> int:
        """Whole seconds since the database answered; 0 while that is nothing to speak of."""
        seconds = int(time.monotonic() - self._answered_s)
        return seconds if seconds > self._every_s + SILENT_S else 0

    # One pass of each

    def look(self) -> None:
        """Ask the database and Redis."""
        try:
            with reading(self._engine) as connection:
                counts, late = overview.counts(connection), overview.late(connection, ROWS)
                running = progress.running(connection, ROWS)
            found = self._reader_now().of(running)
        except DBAPIError as error:
            self._note(database=str(schema.unusable(self._engine, error)))
            return
        with self._lock:
            self.latest = replace(
                self.latest, at=datetime.now(UTC), counts=counts, late=late,
                scans=[(one, found[one.scan_id]) for one in running],
            )  # fmt: skip
        self._answered_s = time.monotonic()
        self._note(database=None, redis=NO_STACK if self._url is None else self._reader.trouble)

    def ask_workers(self) -> None:
        """Ask the workers, through the broker."""
        url = self._redis_url()
        try:
            workers = [] if url is None else seen(self._app_at(url))
        except BROKER_ERRORS as error:
            self._note(workers=f"the broker does not answer: {error}")
            return
        with self._lock:
            self.latest = replace(self.latest, workers=workers)
        self._note(workers=None)

    def _reader_now(self) -> Reader:
        url = self._redis_url()
        if url != self._url:
            client: redis.Redis | None = None
            if url is not None:
                client = Address.of(self._settings.model_copy(update={"redis_url": url})).client()
            self._url, self._reader = url, Reader(self._engine, client, Keys(self._settings.redis_prefix))
        return self._reader

    def _app_at(self, url: str) -> App:
        if self._app is None or self._app[0] != url:
            self._app = url, make_app(self._settings.model_copy(update={"redis_url": url}))
        return self._app[1]

    def _note(self, **trouble: str | None) -> None:
        with self._lock:
            known = self.latest.trouble | trouble
            self.latest = replace(self.latest, trouble={name: said for name, said in known.items() if said})

    # Again and again

    def begin(self, every_s: float) -> None:
        """Do so from now on, in threads that end with the process: a server that hangs must not hold up a key."""
        self._every_s = every_s
        for work, pause_s in ((self.look, every_s), (self.ask_workers, WORKERS_EVERY_S)):
            threading.Thread(target=self._repeat, args=(work, pause_s), daemon=True).start()

    def end(self) -> None:
        """Look no more."""
        self._over.set()

    def _repeat(self, work: Callable[[], None], pause_s: float) -> None:
        while not self._over.is_set():
            try:
                work()
            except StrandlineError as error:
                self._note(database=str(error))
            self._over.wait(pause_s)
