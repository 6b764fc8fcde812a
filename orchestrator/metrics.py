"""Metrics for Prometheus: looked up as they are asked for, since a cluster's figures are in its database and its Redis.

A part that is away is told of (`strandline_up`) and left out; the answer comes within WITHIN_S whatever hangs.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, NamedTuple, TypeVar

import redis
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from db import figures
from db.engine import reading
from db.figures import Figures
from orchestrator import families
from tasks.app import QUEUES
from tasks.redis import breaker, presence, traffic
from tasks.redis.breaker import States
from tasks.redis.keys import Keys
from tasks.redis.traffic import Traffic

log = logging.getLogger(__name__)

# Two Prometheus servers that ask in turns cost one look.
FRESH_S = 5.0
WITHIN_S = 1.5
# Breakers of more tenants than these are not read: then all that matters is that there are so many.
BREAKERS = 2_000

T = TypeVar("T")


class Coordination(NamedTuple):
    """What Redis knows."""

    workers: Mapping[str, tuple[int, Mapping[str, Any] | None]]
    breakers: States
    traffic: Traffic


class Part(Generic[T]):
    """Something that is looked at in a thread, since it may hang; `clock_s` is a monotonic clock."""

    def __init__(self, look: Callable[[], T], errors: tuple[type[Exception], ...],
                 clock_s: Callable[[], float]) -> None:  # fmt: skip
        self._look, self._errors, self._clock_s = look, errors, clock_s
        self._asked = threading.Lock()
        self._looked = threading.Event()
        self._looked.set()
        self._began_s = float("-inf")
        self._seen: T | None = None
        self.took_s = 0.0

    def begin(self) -> None:
        """Look anew, unless that is under way, or was done a moment ago."""
        with self._asked:
            if self._looked.is_set() and self._clock_s() - self._began_s >= FRESH_S:
                self._looked.clear()
                self._began_s = self._clock_s()
                threading.Thread(target=self._once, daemon=True, name="metrics").start()

    def seen(self, until_s: float) -> T | None:
        """What was seen; None: it does not answer, or not by then."""
        return self._seen if self._looked.wait(max(0.0, until_s - self._clock_s())) else None

    def _once(self) -> None:
        self._seen = None
        try:
            self._seen = self._look()
        except self._errors as error:
            log.warning("metrics are incomplete: %s", getattr(error, "orig", None) or error)
        finally:
            self.took_s = self._clock_s() - self._began_s
            self._looked.set()


class Exporter(Collector):
    """The metrics of a cluster. `late`: so many tenants that are behind most are named."""

    def __init__(self, engine: Engine, client: redis.Redis, keys: Keys, late: int = 0,
                 clock_s: Callable[[], float] = time.monotonic) -> None:  # fmt: skip
        self._engine, self._client, self._keys, self._late = engine, client, keys, late
        self._database = Part(self._figures, (SQLAlchemyError,), clock_s)
        self._redis = Part(self._coordination, (redis.RedisError,), clock_s)
        self._clock_s = clock_s
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def exposition(self, accept: str = "") -> tuple[bytes, str]:
        """The text and its content type, as the `Accept` header of whoever asks wants it."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type

    def collect(self) -> Iterable[Metric]:
        """What prometheus_client calls at each scrape. Both are looked at side by side: neither waits for the other."""
        part: Part[Any]
        for part in (self._database, self._redis):
            part.begin()
        until_s = self._clock_s() + WITHIN_S
        found, coordination = self._database.seen(until_s), self._redis.seen(until_s)
        yield from _parts(database=(self._database, found), redis=(self._redis, coordination))
        if found is not None:
            yield from families.of_database(found)
        if coordination is not None:
            yield from families.of_workers(coordination.workers)
            yield from families.of_breakers(coordination.breakers)
            yield from families.of_traffic(coordination.traffic)

    def _figures(self) -> Figures:
        with reading(self._engine) as connection:
            return figures.read(connection, self._late)

    def _coordination(self) -> Coordination:
        return Coordination(
            presence.seen(self._client, self._keys), breaker.states(self._client, self._keys, BREAKERS),
            traffic.read(self._client, self._keys, QUEUES),
        )  # fmt: skip


def _parts(**parts: tuple[Part[Any], object]) -> Iterable[Metric]:
    up = GaugeMetricFamily("strandline_up", "1 where this part answers, else 0", labels=["part"])
    took = GaugeMetricFamily("strandline_look_seconds", "What the last look at this part took", labels=["part"])
    for name, (part, found) in parts.items():
        up.add_metric([name], float(found is not None))
        took.add_metric([name], part.took_s)
    return up, took
