"""kombu's Redis transport, for which a server that cannot be written to is one that is not there.

As kombu has it, an answer such as READONLY or OOM is an error of one command: a worker's loop logs it and pops again at
once, thousands of times a second, loses what it popped but could not note as unacknowledged, and dies where a queue
cannot be declared. Here every such answer breaks the connection, and a connection is only made once a write has
succeeded; so a worker waits for a server that is well, saying so, as it does for one that is down.
"""

from __future__ import annotations

from typing import Any

from celery.app.amqp import AMQP
from kombu.connection import Connection as KombuConnection
from kombu.transport import TRANSPORT_ALIASES, redis, virtual

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


class _Writing:
    """A channel that begins by writing something."""

    QoS = QoS

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        try:
            with self.conn_or_acquire() as client:  # type: ignore[attr-defined]
                client.set("writable", "1", ex=WRITABLE_S)
        except BaseException:
            self.close()  # type: ignore[attr-defined]
            raise


class Channel(_Writing, redis.Channel):
    pass


class SentinelChannel(_Writing, redis.SentinelChannel):
    pass


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
        return super()._ensure_connection(*args, **ours | kwargs)  # type: ignore[no-untyped-call]


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
