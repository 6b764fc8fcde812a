"""Every Redis key of ours, with its type and life. (Celery's own begin with the same prefix.)"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one cluster: several may share a Redis, each with a prefix of its own."""

    prefix: str

    def progress(self, scan_id: str) -> str:
        """Hash: what the workers of a running scan have done so far. Expires an hour after the last word."""
        return f"{self.prefix}progress:{scan_id}"

    def breaker(self, tenant_id: int) -> str:
        """Hash {version, document}: what failed lately of a tenant. Expires once nothing of it counts any more."""
        return f"{self.prefix}breaker:{tenant_id}"

    def watermark(self, tenant_id: int) -> str:
        """Hash {fence, started_at, files}: the last complete scan of a tenant. Expires 30 days after it."""
        return f"{self.prefix}watermark:{tenant_id}"

    def of_tenant(self, tenant_id: int) -> tuple[str, ...]:
        """All that is kept of a tenant."""
        return self.breaker(tenant_id), self.watermark(tenant_id)

    def filled(self) -> str:
        """String, for ever: when Redis was last filled from the database, RFC 3339."""
        return f"{self.prefix}filled"

    def queue(self, name: str) -> str:
        """List, Celery's own: the messages of a queue that nobody has taken."""
        return f"{self.prefix}{name}"

    def mark(self) -> str:
        """String, for ever: it is gone where Redis was emptied, or a worker lost its connection. See mark.py."""
        return f"{self.prefix}mark"
