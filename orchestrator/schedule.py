"""When a tenant's next scan is due: a slot of its own, the same after every restart."""

from __future__ import annotations

import hashlib
import math
from datetime import datetime, timedelta

from db.clock import EPOCH

_MICROSECOND = timedelta(microseconds=1)


def next_slot(tenant_id: int, interval_s: int, now: datetime, stagger_window_s: float) -> datetime:
    """The tenant's first slot after `now`.

    Slots lie one interval apart, anchored to the epoch and shifted by a hash of the tenant, so that tenants are spread
    over the interval, and no other tenant's coming or going moves one. Where `stagger_window_s` is longer they are
    spread over as many whole intervals as it takes: over a part of one, some seconds would get twice the tenants.
    """
    # In whole microseconds, as a datetime has them: rounded fractions would give a slot as its own successor.
    interval = interval_s * 1_000_000
    spread = interval * max(1, math.ceil(stagger_window_s / interval_s))
    share = int.from_bytes(hashlib.blake2b(b"slot %d" % tenant_id, digest_size=8).digest(), "big")
    shift = spread * share >> 64
    slot = ((now - EPOCH) // _MICROSECOND - shift) // interval + 1
    return EPOCH + (slot * interval + shift) * _MICROSECOND
