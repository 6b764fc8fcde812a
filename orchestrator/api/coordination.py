"""What the API asks of Redis: nobody waits long for it, and most can do without."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import redis

from orchestrator.api.problems import Away
from tasks.app import App, nudge
from tasks.redis import progress as live
from tasks.redis.connection import Address
from tasks.redis.outage import Outage
from tasks.redis.progress import Told

log = logging.getLogger(__name__)

T = TypeVar("T")

TIMEOUT_S = 0.5
# After a failure Redis is left alone for so long.
PAUSE_S = 1.0
# Hundreds may ask within a second, and one nudge does for all.
NUDGED_EVERY_S = 0.25


class Coordination:
    """Redis as requests see it, and a thread for what they need not wait for."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._client = Address.of(app.runtime.settings).client(TIMEOUT_S)
        self._outage = Outage(time.monotonic, PAUSE_S)
        self._later = ThreadPoolExecutor(1, thread_name_prefix="errands")
        self._is_nudging = False
        self.keys = app.runtime.keys

    def ask(self, work: Callable[[redis.Redis], T]) -> T:
        """What `work(client)` answers. Raises Away."""
        if self._outage.paused:
            raise Away("Redis does not do as asked")
        try:
            answer = work(self._client)
        except redis.RedisError as error:
            self._outage.failed("a request cannot be served in full", error)
            raise Away("Redis does not do as asked") from error
        self._outage.over()
        return answer

    def told(self, scan_ids: Sequence[str]) -> Mapping[str, Mapping[int, Told]]:
        """What is told of the progress of scans; nothing, where Redis is away."""
        if not scan_ids:
            return {}
        try:
            return self.ask(lambda client: live.read(client, self.keys, scan_ids))
        except Away:
            return {}

    def nudge(self) -> None:
        """Ask for a tick, since there is something to start; beat's next one will do, too. Returns at once."""
        if not self._is_nudging:
            self._is_nudging = True
            self._later.submit(self._nudge)

    def _nudge(self) -> None:
        self._is_nudging = False  # first: what is asked for from here on may come too late for this one
        nudge(self._app)
        time.sleep(NUDGED_EVERY_S)

    def close(self) -> None:
        """Close what is idle, and end the thread once it has done its errands."""
        self._later.shutdown(wait=False)
        self._client.close()

    def forget_tenant(self, tenant_id: int) -> None:
        """Delete what is kept of a tenant; where that fails it goes by itself in time. Returns at once."""
        self._later.submit(self._forget, tenant_id)

    def _forget(self, tenant_id: int) -> None:
        try:
            self.ask(lambda client: client.delete(*self.keys.of_tenant(tenant_id)))
        except Away:
            log.info("Redis still holds something of tenant %d, which was removed", tenant_id)
