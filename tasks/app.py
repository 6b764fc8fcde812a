"""The Celery app, and what its tasks work with: the composition root of every process that sends or takes messages.

Messages are JSON and hold ids only; the database tells the rest. Queues: `control` (short, keeps things moving),
`interactive` (somebody waits) and `bulk` (the schedule).
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable
from functools import cached_property

import redis
from celery import Celery, signals
from kombu.entity import Queue
from sqlalchemy import Engine

from db.engine import connect
from db.tree import Ids
from tasks.drain import Drain
from tasks.health import Health
from tasks.memory.board import Board
from tasks.memory.governor import Governor
from tasks.redis import transport
from tasks.redis.connection import BROKER_ERRORS, BROKER_TIMEOUT_S, Address, close_inherited
from tasks.redis.keys import Keys
from tasks.redis.outage import Outage
from tasks.settings import Settings

log = logging.getLogger(__name__)

CONTROL, INTERACTIVE, BULK = QUEUES = ("control", "interactive", "bulk")
# A message that nobody took for so long, by the database's clock, is taken for lost: the shard is sent again.
EXPIRES_S = 60.0
# Its own `expires`, against what would lie for ever, is written by one machine's clock and read by another's, and those
# may differ by hours: a worker whose clock was ahead would drop all that it took.
LIVES_S = EXPIRES_S + 2 * 3600
# A child that has not started by then is killed. Celery's four seconds are few where all children start at once, on a
# machine that has much else to do.
CHILD_STARTS_S = 60.0
# A batch of rows waits in lists: a young collection for each 700 of them finds nothing. With 20,000 it takes no less
# time, and each child some megabytes more.
YOUNG_OBJECTS = 7_000


class Runtime:
    """Connections of one process, opened when first used: a forked child must not share its parent's."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.clock_ns: Callable[[], int] = time.time_ns
        self.clock_s: Callable[[], float] = time.monotonic
        self.keys = Keys(settings.redis_prefix)
        self.outage = Outage(time.monotonic)
        self.drain = Drain()
        self.health = Health(settings.health_dir)
        self.board = Board()
        self.schema_until_s = 0.0  # until then the schema is known to be one that we may use

    @cached_property
    def engine(self) -> Engine:
        """The database."""
        return connect(self.settings.database_url)

    @cached_property
    def redis(self) -> redis.Redis:
        """Coordination; nothing waits long for it."""
        return Address.of(self.settings).client()

    @cached_property
    def governor(self) -> Governor:
        """What is done about memory."""
        return Governor(self.settings)

    @cached_property
    def ids(self) -> Ids:
        """Ids for new directories."""
        return Ids(self.engine)

    def hands_on(self) -> bool:
        """Shall this process end its shard where it is, for want of memory?"""
        return self.board.asked() or self.governor.hands_on

    def forked(self) -> None:
        """Forget what was inherited by a fork, without closing what the parent still uses."""
        if "engine" in self.__dict__:
            self.engine.dispose(close=False)
        for name in ("engine", "redis", "ids", "governor"):
            self.__dict__.pop(name, None)


class App(Celery):
    """Celery with the runtime of its process."""

    runtime: Runtime


def make_app(settings: Settings) -> App:
    """The app of this process. It opens no connection. Raises UsageError where the address of Redis cannot be used."""
    address = Address.of(settings)
    transport.register()
    app = App("strandline", broker=address.broker_url, amqp=transport.Messaging, set_as_current=True)
    app.runtime = Runtime(settings)
    app.conf.update(
        include=("tasks.scan_shard", "tasks.finish", "orchestrator.control", "orchestrator.webhooks"),
        task_serializer="json",
        accept_content=["json"],
        result_backend=None,
        task_ignore_result=True,
        task_queues=[Queue(name) for name in QUEUES],  # type: ignore[no-untyped-call]
        task_default_queue=CONTROL,
        task_acks_late=True,  # only saves time: what is lost is sent again from the database
        worker_prefetch_multiplier=0,  # so many for each child there is: none, since there may be more children at once
        worker_disable_prefetch=True,  # a message waits where every worker can take it
        worker_proc_alive_timeout=CHILD_STARTS_S,
        worker_enable_remote_control=True,
        worker_hijack_root_logger=True,
        worker_consumer="tasks.consumer:Consumer",
        worker_autoscaler="tasks.memory.autoscaler:Autoscaler",
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,  # for ever: a worker that gives up helps nobody
        broker_connection_timeout=BROKER_TIMEOUT_S,
        broker_use_ssl=address.broker_tls,
        broker_transport_options=address.broker_options(settings.redis_prefix),
        beat_schedule={
            "tick": {
                "task": "strandline.tick",
                "schedule": settings.tick_s,
                "options": {"queue": CONTROL, "expires": LIVES_S, "retry": False},
            }
        },
        timezone="UTC",
        enable_utc=True,
    )
    return app


def nudge(app: Celery) -> None:
    """Ask for a tick now, since there may be something to send; without a broker beat's next one does it.

    One that is asked for and has not begun will see what this one would.
    """
    runtime: Runtime = app.runtime
    if runtime.outage.paused:
        return
    try:
        if not runtime.redis.set(runtime.keys.nudged(), "1", nx=True, px=round(runtime.settings.tick_s * 1000)):
            return
        app.send_task("strandline.tick", queue=CONTROL, expires=LIVES_S, retry=False)
    except BROKER_ERRORS as error:
        runtime.outage.failed("no tick could be sent", error)
    else:
        runtime.outage.over()


@signals.worker_process_init.connect(weak=False)
def _child_started(**_: object) -> None:
    from celery import current_app

    close_inherited()
    # What is loaded by now stays: looking through it for garbage cost a first scan three hundredths of its time.
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS)
    runtime = getattr(current_app, "runtime", None)
    if runtime is not None:
        runtime.forked()
