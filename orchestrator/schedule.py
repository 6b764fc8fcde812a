"""When a tenant's next scan is due: a slot of its own, the same after every restart."""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta

from db.clock import EPOCH


def next_slot(tenant_id: int, interval_s: int, now: datetime, stagger_window_s: float) -> datetime:
    """The tenant's first slot after `now`.

    Slots lie one interval apart, anchored to the epoch and shifted by a hash of the tenant, so that tenants are spread
    over the interval (never over less than `stagger_window_s`), and no other tenant's coming or going moves one.
    """
    spread_s = max(float(interval_s), stagger_window_s)
    share = int.from_bytes(hashlib.blake2b(b"slot %d" % tenant_id, digest_size=8).digest(), "big") / 2**64
    since = (now - EPOCH).total_seconds() - share * spread_s
    slots = since // interval_s + 1
    return EPOCH + timedelta(seconds=slots * interval_s + share * spread_s)
