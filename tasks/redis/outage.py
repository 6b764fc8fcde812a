"""Is Redis there? Said once when it goes and once when it is back, and not tried in the middle of work meanwhile."""

from __future__ import annotations

import logging
from collections.abc import Callable

log = logging.getLogger(__name__)

# A scan asks four times a second: with a hung server it would do nothing but wait for timeouts.
PAUSE_S = 10.0


class Outage:
    """What one process knows of Redis. `clock_s` is a monotonic clock; `pause_s`: see `paused`."""

    def __init__(self, clock_s: Callable[[], float], pause_s: float = PAUSE_S) -> None:
        self._clock_s, self._pause_s = clock_s, pause_s
        self._since_s: float | None = None
        self._tried_s = 0.0

    @property
    def paused(self) -> bool:
        """It failed a moment ago: what can be done without is not tried."""
        return self._since_s is not None and self._clock_s() - self._tried_s < self._pause_s

    def failed(self, what: str, error: BaseException) -> None:
        """Note a failure; `what` could not be done is said if it is the first of this outage."""
        self._tried_s = self._clock_s()
        if self._since_s is None:
            self._since_s = self._tried_s
            log.warning("%s, Redis does not do as asked: %s", what, error)

    def over(self) -> None:
        """Note a success."""
        if self._since_s is not None:
            log.warning("Redis is well again after %.0f s", self._clock_s() - self._since_s)
            self._since_s = None
