"""What a worker's main process does whenever it has connected to the broker."""

from __future__ import annotations

from typing import Any

import redis
from celery import bootsteps

from tasks.redis import mark


class Doubt(bootsteps.StartStopStep):
    """Doubts what is under way: a message that was being handed over when the connection broke is lost."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def start(self, consumer: Any) -> None:
        """Connected, for the first time or again."""
        runtime = consumer.app.runtime
        try:
            mark.wipe(runtime.redis, runtime.keys)
        except redis.RedisError as error:
            runtime.outage.failed("what was lost with the connection is waited for", error)
        else:
            runtime.outage.over()
