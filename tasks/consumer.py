"""How a worker's main process meets its broker: when it has connected, and when it is given what is no message."""

from __future__ import annotations

import logging
import time
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import redis
from celery import bootsteps
from celery.worker import state
from celery.worker.consumer import Consumer as CeleryConsumer

from tasks.app import Runtime
from tasks.health import TOUCHED_EVERY_S
from tasks.redis import mark, presence
from tasks.redis.transport import MALFORMED

log = logging.getLogger(__name__)

# A connection that broke sooner was no good: each time the worker waits a second longer, up to as many.
GOOD_AFTER_S = 5.0


class Doubt(bootsteps.StartStopStep):
    """Doubts what is under way: a message that was being handed over when the connection broke is lost. And keeps a
    worker from connecting many times a second to a server that takes it and then refuses what it asks.
    """

    requires = ("celery.worker.consumer.tasks:Tasks",)
    clock_s: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        self._started_s: float | None = None
        self._pause_s = 0.0

    def start(self, consumer: Any) -> None:
        """Connected, for the first time or again."""
        again = self._started_s is not None
        self._wait()
        if again:
            self._doubt(consumer.app.runtime)

    def _wait(self) -> None:
        soon = self._started_s is not None and self.clock_s() - self._started_s < GOOD_AFTER_S
        self._pause_s = min(self._pause_s + 1, GOOD_AFTER_S) if soon else 0.0
        if self._pause_s:
            self.sleep(self._pause_s)
        self._started_s = self.clock_s()

    def _doubt(self, runtime: Runtime) -> None:
        try:
            mark.wipe(runtime.redis, runtime.keys)
        except redis.RedisError as error:
            runtime.outage.failed("what was lost with the connection is waited for", error)
        else:
            runtime.outage.over()


class Told(bootsteps.StartStopStep):
    """Something that is told again and again as long as the worker is connected, and taken back when it is not."""

    requires = ("celery.worker.consumer.tasks:Tasks",)
    every_s: float

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        self._timer: Any = None

    def start(self, consumer: Any) -> None:
        """Connected, for the first time or again."""
        self.tell(consumer)
        self._timer = consumer.timer.call_repeatedly(self.every_s, self.tell, (consumer,))

    def stop(self, consumer: Any) -> None:
        """Nothing is taken any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self.take_back(consumer)

    @abstractmethod
    def tell(self, consumer: Any) -> None:
        """It holds."""

    @abstractmethod
    def take_back(self, consumer: Any) -> None:
        """It holds no longer."""


class Presence(Told):
    """Tells that this worker lives, how much it can do at once and how full memory is."""

    every_s = presence.TOLD_EVERY_S

    def tell(self, consumer: Any) -> None:
        """To all, by Redis."""
        scaler = consumer.controller.autoscaler
        self._do(consumer, presence.tell, scaler.max_concurrency, scaler.seen.document())

    def take_back(self, consumer: Any) -> None:
        """At once: nobody need wait until it expires."""
        self._do(consumer, presence.leave)

    def _do(self, consumer: Any, what: Callable[..., None], *more: Any) -> None:
        runtime: Runtime = consumer.app.runtime
        if runtime.outage.paused:
            return
        try:
            what(runtime.redis, runtime.keys, consumer.hostname, *more)
        except redis.RedisError as error:
            runtime.outage.failed("nobody hears that this worker lives", error)
        else:
            runtime.outage.over()


class Healthy(Told):
    """Tells that the main loop turns and takes messages."""

    every_s = TOUCHED_EVERY_S

    def tell(self, consumer: Any) -> None:
        """To probes, by a file."""
        consumer.app.runtime.health.ready()

    def take_back(self, consumer: Any) -> None:
        """It may live on, and take nothing."""
        consumer.app.runtime.health.busy()


class Consumer(CeleryConsumer):
    """Drops a message whose envelope is right and whose content is not. Celery's ends the worker of it, and since the
    message then goes back to its queue, every worker, one after the other. And is alive while it tries to connect.
    """

    def ensure_connected(self, conn: Any) -> Any:
        """The connection, once it is there."""
        ensure, health = conn.ensure_connection, self.app.runtime.health

        def waiting(errback: Any, retries: Any, callback: Any) -> Any:
            return ensure(errback, retries, callback=health.while_waiting(callback))

        conn.ensure_connection = waiting
        return super().ensure_connected(conn)

    def create_task_handler(self, *args: Any, **more: Any) -> Callable[[Any], Any]:
        """What is called with each message."""
        handle = super().create_task_handler(*args, **more)

        def on_task_received(message: Any) -> Any:
            try:
                return handle(message)
            except MALFORMED as error:
                log.warning("a message is none of ours, and is dropped: %.200r", error)
                # What was reserved for it would be waited for, and nothing else be taken.
                for request in [one for one in state.requests.values() if one.message is message]:
                    state.task_ready(request)
                return message.reject_log_error(log, self.connection_errors)

        return on_task_received
