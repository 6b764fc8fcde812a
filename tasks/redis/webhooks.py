"""The breaker of webhooks, by host: one that does not answer is left alone for a while, and then asked by one alone."""

from __future__ import annotations

from dataclasses import dataclass

import redis

from tasks.redis.keys import Keys

# After more failures in a row, …
FAILURES = 3
# … so long nobody asks; then one does, who has so long for it.
OPEN_S, PROBE_S = 60, 30
# Failures are forgotten after so long without another.
REMEMBERED_S = 3600


@dataclass(frozen=True, slots=True)
class Hosts:
    """What is known of hosts. All methods raise RedisError."""

    client: redis.Redis
    keys: Keys

    def open_s(self, host: str) -> float:
        """Seconds for which a host is to be left alone; 0: it may be asked, by who is told so."""
        failures = self.client.get(self.keys.webhook_failures(host))
        if failures is None or int(failures) <= FAILURES:
            return 0.0
        waiting = self.keys.webhook_open(host)
        if self.client.set(waiting, "probe", nx=True, ex=PROBE_S):
            return 0.0
        return max(1.0, float(self.client.ttl(waiting)))

    def failed(self, host: str) -> None:
        """It did not answer, or not well."""
        with self.client.pipeline() as pipeline:
            pipeline.incr(self.keys.webhook_failures(host))
            pipeline.expire(self.keys.webhook_failures(host), REMEMBERED_S)
            if int(pipeline.execute()[0]) > FAILURES:
                self.client.set(self.keys.webhook_open(host), "open", ex=OPEN_S)

    def answered(self, host: str) -> None:
        """It is well."""
        self.client.delete(self.keys.webhook_failures(host), self.keys.webhook_open(host))
