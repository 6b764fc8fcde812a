"""Changing a tenant: what a running scan goes by must not change under it, so it is cancelled and asked for anew."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection

from db import scans, shards, tenants
from db.tenants import Tenant
from db.types import ScanState, Trigger

# What a scan goes by; the rest is for the schedule and for the guard.
SCANNED_BY = ("root", "algorithm", "ignore", "gitignore", "cross_mounts", "large_file", "large_file_bytes")


def change_tenant(connection: Connection, name: str, **values: Any) -> Tenant:
    """Set columns of a tenant, see tenants.change; the tenant then. Raises UsageError."""
    before = tenants.get(connection, name)
    tenants.lock(connection, before.id)
    tenants.change(connection, before.id, **values)
    after = tenants.get(connection, name)
    if any(getattr(before, field) != getattr(after, field) for field in SCANNED_BY):
        scan, why = scans.running_of(connection, before.id), "the tenant was changed meanwhile"
        if scan is not None and shards.end_early(connection, scan.id, ScanState.CANCELLED, why):
            scans.request(connection, before.id, trigger=Trigger(scan.trigger), full=scan.full, verify=scan.verify)
    return after
