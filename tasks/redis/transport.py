"""kombu's Redis transport, for which a server that cannot be written to is one that is not there.

As kombu has it, an answer such as READONLY or OOM is an error of one command: a worker's loop logs it and pops again at
once, thousands of times a second, loses what it popped but could not note as unacknowledged, and dies where a queue
cannot be declared. Here every such answer breaks the connection, and a connection is only made once a write has
succeeded; so a worker waits for a server that is well, saying so, as it does for one that is down.
"""

# kombu is typed only in part.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from queue import Empty
from typing import Any

from celery.app.amqp import AMQP
from kombu.connection import Connection as KombuConnection
from kombu.transport import TRANSPORT_ALIASES, redis, virtual

log = logging.getLogger(__name__)

# The wait between two attempts grows to this, not to kombu's 30 s: who restarts a Redis expects seconds.
INTERVAL_MAX_S = 5.0
WRITABLE_S = 60


_ERRORS = redis.Transport.connection_errors + redis.Transport.channel_errors


class QoS(redis.QoS):
    """Counts a message as done also where Redis could not be told. kombu forgets to, and after as many such messages
    as a worker may hold it takes no more, for ever. (Redis may hand the message out once again, which does no harm.)
    """

    def ack(self, delivery_tag: str) -> None:
        try:
            super().ack(delivery_tag)
        except _ERRORS:
            virtual.QoS.ack(self, delivery_tag)
            raise

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        try:
            super().reject(delivery_tag, requeue)
        except _ERRORS:
            virtual.QoS.ack(self, delivery_tag)
            raise


# What reading something makes of it that is no message.
MALFORMED = (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError)


class Channel(redis.Channel):
    """A channel that begins by writing something, and does not go on in silence where a pop was never answered. What is
    popped and is no message is dropped: kombu would end the worker.
    """

    QoS = QoS
    _pop_lost = False
    _refused: frozenset[str] = frozenset()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        try:
            with self.conn_or_acquire() as client:
                client.set("writable", "1", ex=WRITABLE_S)
        except BaseException:
            self.close()
            raise

    def _connparams(self, asynchronous: bool = False) -> dict[str, Any]:
        """kombu closes a broken channel twice, the second time without a transport: that killed the worker."""
        if self.connection is None or self.connection.client is None:
            raise ConnectionError("this channel is closed")
        found: dict[str, Any] = super()._connparams(asynchronous)
        return found

    def close(self) -> None:
        """kombu writes something, on a new connection, after it has closed those that there were."""
        try:
            super().close()
        finally:
            self._disconnect_pools()

    @contextmanager
    def conn_or_acquire(self, client: Any = None) -> Iterator[Any]:
        """What is acknowledged late, on a channel that is closed, needs a connection once more, and then no more."""
        try:
            with super().conn_or_acquire(client) as found:
                yield found
        finally:
            if self.closed:
                self._disconnect_pools()

    def refuse(self, queues: Collection[str]) -> None:
        """Pop from these queues no more, until told otherwise. A pop that is under way ends as it was begun."""
        if self._refused != set(queues):
            self._refused = frozenset(queues)
            self._update_queue_cycle()

    @property
    def active_queues(self) -> list[str]:
        """What is popped from."""
        return [queue for queue in super().active_queues if queue not in self._refused]

    def _on_connection_disconnect(self, connection: Any) -> None:
        self._pop_lost |= self._in_poll is connection
        super()._on_connection_disconnect(connection)

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)
        except MALFORMED as error:
            log.warning("something in a queue is no message, and is dropped: %.200r", error)
            raise Empty from None

    def _brpop_start(self, timeout: float | None = None) -> None:
        """kombu, which drops a connection that is silent for too long, would only pop again on another; but what the
        lost pop took is lost, and whoever uses this connection must know (see tasks.consumer).
        """
        if self._pop_lost:
            self._pop_lost = False
            raise ConnectionError("a pop was never answered")
        super()._brpop_start(timeout)


class SentinelChannel(Channel, redis.SentinelChannel):
    """The same, by way of sentinels."""


class Transport(redis.Transport):
    """redis://, rediss:// and unix sockets."""

    Channel = Channel
    connection_errors = _ERRORS


class SentinelTransport(redis.SentinelTransport):
    """sentinel://"""

    Channel = SentinelChannel
    connection_errors = _ERRORS


class Connection(KombuConnection):
    """A connection that is tried again every few seconds, however long it takes."""

    def _ensure_connection(self, *args: Any, **kwargs: Any) -> Any:
        ours = {"interval_start": 1.0, "interval_step": 1.0, "interval_max": INTERVAL_MAX_S}
        return super()._ensure_connection(*args, **ours | kwargs)


class Messaging(AMQP):
    """Celery's way to make connections."""

    Connection = Connection


def register() -> None:
    """Let kombu find these by the usual schemes."""
    TRANSPORT_ALIASES.update(
        redis="tasks.redis.transport:Transport",
        rediss="tasks.redis.transport:Transport",
        sentinel="tasks.redis.transport:SentinelTransport",
    )
