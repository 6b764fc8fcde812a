"""Which files a scan verifies besides those that changed: a share, so that all have their turn within some days."""

from __future__ import annotations

from datetime import datetime

from db.tenants import Tenant
from db.types import HASHES
from tasks.core.profile import profile_named
from tasks.settings import Settings

_DAY_S = 86_400
# A turn is at least such a part of the whole (of 30 days, 43 minutes): most scans verify nothing, and open no file.
_SMALLEST_TURN = 1 / 1000


def period_s(tenant: Tenant, settings: Settings) -> float:
    """Within how many seconds each file is read again: sooner where stat does not show all, or once did not."""
    trusted = profile_named(tenant.filesystem or "").ctime and tenant.silent_changes == 0
    return _DAY_S * (settings.verify_days if trusted else settings.verify_days_untrusted)


def share(tenant: Tenant, now: datetime, size: int, settings: Settings) -> tuple[int, int]:
    """The places, of 2³² in a ring, whose turn it is now: from, and to before. `size`: bytes of all the tenant's files.

    As much as the time since the last turn asks for, and at most `verify_bytes` of content.
    """
    if tenant.verify_at is None:
        return tenant.verify_place, tenant.verify_place
    elapsed_s = max(0.0, (now - tenant.verify_at).total_seconds())
    part = elapsed_s / period_s(tenant, settings)
    if part < _SMALLEST_TURN:
        return tenant.verify_place, tenant.verify_place
    part = min(1.0, part, settings.verify_bytes / max(size, 1))
    return tenant.verify_place, tenant.verify_place + int(part * HASHES)
