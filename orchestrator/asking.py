"""Asking for scans, cancelling and confirming them: each one transaction, for the command and the API."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import Connection

from db import audit, idempotency, scans, shards
from db.idempotency import Answered
from db.scans import Scan
from db.tenants import Known, Tenant
from db.types import Conflict, ScanState, StrandlineError, Trigger, UsageError


class Key(NamedTuple):
    """Under which a caller asks, so that asking again gives the same scan; and what was asked for."""

    key: str
    fingerprint: bytes


class AskedBefore(StrandlineError):
    """Something was asked under the same key already: undo everything, and see what that gave."""


class Asked(NamedTuple):
    """What is asked of a tenant: as scans.request, and under which key."""

    tenant: Tenant | Known
    full: bool = False
    verify: bool = False
    paths: Sequence[bytes] = ()
    key: Key | None = None


def ask(connection: Connection, by: str, asked: Asked) -> Scan:
    """A scan for a tenant; see ask_all."""
    [(scan, _)] = ask_all(connection, by, [asked])
    return scan


def ask_all(connection: Connection, by: str, some: Sequence[Asked]) -> list[tuple[Scan, bool]]:
    """A scan for each, as scans.request; and whether it is new. Raises AskedBefore: nearly every key is new, and
    looking for it first would cost each request a statement.
    """
    found = [_ask(connection, by, asked) for asked in some]
    notes = [
        (asked.tenant.name, {"scan": scan.id, "full": asked.full, "verify": asked.verify}
         | ({"paths": len(asked.paths)} if asked.paths else {}))
        for asked, (scan, _) in zip(some, found, strict=True)
    ]  # fmt: skip
    audit.note_all(connection, by, "scan", notes)
    return found


def _ask(connection: Connection, by: str, asked: Asked) -> tuple[Scan, bool]:
    if asked.paths and asked.verify:
        raise UsageError("paths and verify exclude each other: give one of them", field="verify")
    scan, is_new = scans.request(connection, asked.tenant.id, trigger=Trigger.REQUEST, full=asked.full,
                                 verify=asked.verify, paths=asked.paths)  # fmt: skip
    if asked.key is not None:
        answered = Answered(asked.tenant.id, scan.id, asked.key.fingerprint, is_new)
        if not idempotency.keep(connection, by, asked.key.key, answered):
            raise AskedBefore
    return scan, is_new


def asked_before(connection: Connection, by: str, tenant: Known, key: Key) -> tuple[Scan, bool]:
    """The scan that asking under this key gave; and whether it was new. Raises UsageError for a key that was used for
    another request.
    """
    known = idempotency.find(connection, by, key.key)
    found = None if known is None else scans.get(connection, known.scan_id)
    if known is None or found is None or (known.tenant_id, known.fingerprint) != (tenant.id, key.fingerprint):
        raise UsageError("this key was used for another request less than a day ago", field="Idempotency-Key")
    return found, known.is_new


def cancel(connection: Connection, by: str, scan_id: str, tenant: str) -> bool:
    """Let a queued or running scan end cancelled; False where it has ended already, or is about to."""
    ended = scans.cancel_queued(connection, scan_id) or shards.end_early(
        connection, scan_id, ScanState.CANCELLED, "cancelled"
    )
    if ended:
        audit.note(connection, by, "cancel", tenant, scan=scan_id)
    return ended


def confirm(connection: Connection, by: str, suspect: Scan, tenant: str) -> tuple[Scan, bool]:
    """A scan that deletes what was gone by a suspect one; and whether it is new. Raises Conflict."""
    if suspect.state != ScanState.SUSPECT:
        raise Conflict(
            f"scan {suspect.id} cannot be confirmed: only a suspect scan can, and this one is {suspect.state}"
        )
    asked = scans.request(connection, suspect.tenant_id, trigger=Trigger.REQUEST, confirms=suspect.fence)
    audit.note(connection, by, "confirm", tenant, scan=suspect.id)
    return asked
