"""Every Redis key of ours, with its type and life. (Celery's own begin with the same prefix.)"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one cluster: several may share a Redis, each with a prefix of its own."""

    prefix: str

    def progress(self, scan_id: str) -> str:
        """Hash: of each shard of a running scan that is worked on, by number, what has been done of it, as JSON; and an
        `error` that keeps it from going on. Expires an hour after the last word.
        """
        return f"{self.prefix}progress:{scan_id}"

    def breaker(self, tenant_id: int) -> str:
        """Hash {version, document}: what failed lately of a tenant. Expires once nothing of it counts any more."""
        return f"{self.prefix}breaker:{tenant_id}"

    def breakers(self) -> str:
        """Sorted set, for ever: the tenants who may have a breaker's document, each with when that expires at the
        latest (seconds since the epoch, by Redis's clock).
        """
        return f"{self.prefix}breakers"

    def sending(self) -> str:
        """Hash {batches, shards, seconds}, for ever: what sending shards came to. It begins anew where it is lost."""
        return f"{self.prefix}sending"

    def watermark(self, tenant_id: int) -> str:
        """Hash {fence, started_at, files}: the last complete scan of a tenant. Expires 30 days after it."""
        return f"{self.prefix}watermark:{tenant_id}"

    def queue(self, name: str) -> str:
        """List: the messages of a queue of Celery's that nobody has taken yet."""
        return f"{self.prefix}{name}"

    def worker(self, name: str) -> str:
        """String: the slots of a worker that lives. Expires some seconds after its last word."""
        return f"{self.prefix}worker:{name}"

    def memory(self, worker: str) -> str:
        """String: how full the memory of a worker that lives is, as JSON. Expires some seconds after its last word."""
        return f"{self.prefix}worker-memory:{worker}"

    def workers(self) -> str:
        """Set, for ever: the names of workers that live, or did so a moment ago."""
        return f"{self.prefix}workers"

    def nudged(self) -> str:
        """String: a tick is asked for and has not begun. Expires after the time between two ticks."""
        return f"{self.prefix}nudged"

    def reaped(self) -> str:
        """String: what slipped by was looked for. Expires after the time between two ticks."""
        return f"{self.prefix}reaped"

    def webhook_failures(self, host: str) -> str:
        """String: how often in a row a webhook's host did not answer. Expires an hour after the last time."""
        return f"{self.prefix}webhook-failures:{host}"

    def webhook_open(self, host: str) -> str:
        """String: a webhook's host is left alone, or somebody tries it. Expires after that."""
        return f"{self.prefix}webhook-open:{host}"

    def of_tenant(self, tenant_id: int) -> tuple[str, ...]:
        """All that is kept of a tenant."""
        return self.breaker(tenant_id), self.watermark(tenant_id)

    def filled(self) -> str:
        """String, for ever: when Redis was last filled from the database, RFC 3339."""
        return f"{self.prefix}filled"

    def mark(self) -> str:
        """String, for ever: it is gone where Redis was emptied, or a worker lost its connection. See mark.py."""
        return f"{self.prefix}mark"
