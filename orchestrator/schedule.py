"""When a tenant's next scan is due: a slot of its own, the same after every restart."""

from __future__ import annotations

import hashlib
import math
from datetime import datetime, timedelta

from db.clock import EPOCH

_MICROSECOND = timedelta(microseconds=1)
# A slot is moved by up to such a part of the interval, …
JITTER = 0.1
# … and not by more.
JITTER_S = 60.0


def next_slot(tenant_id: int, interval_s: int, now: datetime, stagger_window_s: float) -> datetime:
    """The tenant's first slot after `now`.

    Slots lie one interval apart, anchored to the epoch and shifted by a hash of the tenant, so that tenants are spread
    over the interval, and no other tenant's coming or going moves one. Where `stagger_window_s` is longer they are
    spread over as many whole intervals as it takes: over a part of one, some seconds would get twice the tenants.
    Each slot has a jitter of its own, so that two tenants that meet once do not meet every time.
    """
    # In whole microseconds, as a datetime has them: rounded fractions would give a slot as its own successor.
    interval = interval_s * 1_000_000
    spread = interval * max(1, math.ceil(stagger_window_s / interval_s))
    shift = _share(spread, b"slot %d" % tenant_id)
    instant = (now - EPOCH) // _MICROSECOND
    number = (instant - shift) // interval
    if _slot(tenant_id, number, interval, shift) <= instant:
        number += 1
    return EPOCH + _slot(tenant_id, number, interval, shift) * _MICROSECOND


def _slot(tenant_id: int, number: int, interval: int, shift: int) -> int:
    jitter = min(int(interval * JITTER), int(JITTER_S * 1_000_000))
    return number * interval + shift + _share(jitter, b"jitter %d %d" % (tenant_id, number))


def _share(of: int, name: bytes) -> int:
    """A part of it that is the name's own: of many names, all parts are as frequent."""
    return of * int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big") >> 64
