"""What follows from deaths: a shard whose holders die goes on carefully, and what they died of is left alone.

A careful shard commits the name of each entry before it touches it. So a second death at the same entry convicts that
entry, which goes into quarantine, and the rest of the shard goes on. (As in the design; the "poison pill" of queues.)
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from db import quarantine, scans, shards
from db.engine import write
from db.scans import Scan
from db.shards import FINISH, Lease
from db.types import LeaseLost
from tasks.app import Runtime
from tasks.lease import Holder

log = logging.getLogger(__name__)

# From so many deaths in a row on, entries are named before they are touched.
CAREFUL_FROM = 2
# So many deaths at one entry put it into quarantine.
CONVICTED_FROM = 2
# And after so many without any progress, whatever was convicted, the shard itself is left alone.
DEATHS_AT_MOST = 10
# A place that hung, or failed in a way nobody foresaw, is tried again after so long; one that killed is not before
# somebody releases it.
HUNG_FOR_S = 3600.0


def is_careful(lease: Lease) -> bool:
    """Shall entries be named before they are touched?"""
    return lease.deaths >= CAREFUL_FROM or lease.suspect is not None


def convict(runtime: Runtime, lease: Lease, scan: Scan) -> bool:
    """Put what killed its holders into quarantine, if that is known by now. True where the shard is over with that."""
    if lease.deaths < DEATHS_AT_MOST:
        convicted = lease.suspect is not None and lease.suspect_deaths >= CONVICTED_FROM
        return convicted and _convict_entry(runtime, lease, scan, lease.suspect or b"")
    error = lease.error or "nobody knows of what"
    log.error("shard %d of scan %s is left alone: %d holders died, %s", lease.number, scan.id, lease.deaths, error)
    write(runtime.engine, _give_up, lease, f"{lease.deaths} holders died: {error}")
    return True


def _give_up(connection: Connection, lease: Lease, error: str) -> None:
    scans.lock(connection, lease.scan_id)
    scans.note_error(connection, lease.scan_id, f"shard {lease.number} is left alone: {error}")
    shards.quarantine(connection, lease, error)
    quarantine.acquit(connection, lease.tenant_id, lease.fence)  # the error is met everywhere
    shards.ready_finish(connection, lease.scan_id)


def _convict_entry(runtime: Runtime, lease: Lease, scan: Scan, path: bytes) -> bool:
    hung = lease.error
    reason = f"{hung or 'whoever looked at it died'}, {lease.suspect_deaths} times"
    log.error("tenant %d: %r is in quarantine: %s", lease.tenant_id, os.fsdecode(path), reason)
    if not path:  # without its root there is nothing to scan
        write(runtime.engine, shards.fail, lease, f"the root: {reason}")
        return True
    write(runtime.engine, _leave_alone, lease, path, reason, HUNG_FOR_S if hung else None)
    return False


def _leave_alone(connection: Connection, lease: Lease, path: bytes, reason: str, for_s: float | None) -> None:
    shards.clear(connection, lease)
    quarantine.add(connection, lease.tenant_id, path, reason, fence=lease.fence, for_s=for_s)


def when_stalled(runtime: Runtime, holder: Holder) -> Callable[[], None]:
    """What is done with a process that hangs: say at what, let another take over at once, and end."""

    def end() -> None:
        lease, at = holder.lease, holder.at
        where = "the database" if at is None else f"{os.fsdecode(at)!r}" if at else "the root"
        error = f"no answer from {where} for {runtime.settings.stall_s:g} s"
        log.error("shard %d of scan %s: %s; this process ends", lease.number, lease.scan_id, error)
        try:
            if at == b"":
                write(runtime.engine, shards.fail, lease, error)
            if at != b"" or lease.number == FINISH:
                write(runtime.engine, shards.abandon, lease, at or None, error)
        except LeaseLost as lost:  # it was stopped: to a process that wakes, every call seems to have hung
            log.warning("%s", lost)
        except DBAPIError as failure:
            log.error("nobody could be told of it: %s", failure.orig)
        finally:
            os.kill(os.getpid(), signal.SIGKILL)

    return end
