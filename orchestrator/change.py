"""Adding, changing and removing a tenant, for the command and the API.

What a running scan goes by must not change under it, so it is cancelled and asked for anew.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection

from db import audit, scans, shards, tenants, webhooks
from db.tenants import ALGORITHMS, Tenant
from db.types import ScanState, Trigger, UsageError
from db.webhooks import Webhook
from orchestrator.roots import own_patterns
from orchestrator.webhook_address import checked_url, host_of, new_secret
from tasks.core.ignore import RulesError, RuleSet
from tasks.settings import Settings

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


def add_tenant(
    connection: Connection, by: str, name: str, root: bytes, given: Mapping[str, Any], settings: Settings
) -> Tenant:
    """Register a root (see roots.checked_root) with what was given of its policy. Raises UsageError."""
    defaults: dict[str, Any] = {"tier": "standard", "interval_s": settings.interval_s, "algorithm": ALGORITHMS[0]}
    ignore = own_patterns(root, settings) + list(given.get("ignore", ()))
    added = tenants.add(connection, name=name, root=root, **(defaults | dict(given) | {"ignore": ignore}))
    audit.note(connection, by, "tenant add", name, root=root, **given)
    return added


def set_tenant(connection: Connection, by: str, name: str, values: Mapping[str, Any], settings: Settings) -> Tenant:
    """Set columns of a tenant, as `change_tenant`; our own state folder stays left out. Raises UsageError."""
    known, given = tenants.get(connection, name), dict(values)
    if "ignore" in values or "root" in values:
        was, own = own_patterns(known.root, settings), own_patterns(values.get("root", known.root), settings)
        patterns = values.get("ignore", known.patterns)
        given["ignore"] = own + [one for one in patterns if one not in was + own]
    if "interval_s" in values:
        given["next_scan_at"] = None  # the tick finds its slot anew
    changed = change_tenant(connection, name, **given)
    audit.note(connection, by, "tenant set", name, **values)
    return changed


def remove_tenant(connection: Connection, by: str, name: str) -> int:
    """Forget a tenant: nobody finds anything of it from here on; its id. Raises Unknown."""
    known = tenants.get(connection, name).id
    tenants.remove(connection, known)
    audit.note(connection, by, "tenant remove", name)
    return known


def set_webhook(connection: Connection, by: str, name: str, url: str, settings: Settings) -> Webhook:
    """Tell the scans of a tenant that end from now on to an address; with a new secret. Raises UsageError."""
    webhook = Webhook(checked_url(url, private=settings.webhook_private), new_secret())
    webhooks.put(connection, tenants.get(connection, name).id, webhook)
    audit.note(connection, by, "webhook set", name, host=host_of(url))  # an address may hold a secret
    return webhook


def remove_webhook(connection: Connection, by: str, name: str) -> None:
    """Tell nobody any more. Raises Unknown."""
    webhooks.put(connection, tenants.get(connection, name).id, None)
    audit.note(connection, by, "webhook remove", name)


def checked_patterns(patterns: Sequence[str]) -> list[str]:
    """Ignore patterns that can be obeyed. Raises UsageError."""
    try:
        RuleSet.parse(os.fsencode("\n".join(patterns)), source=b"", base=b"")
    except (RulesError, UnicodeError) as error:
        raise UsageError(str(error), field="ignore") from error
    return list(patterns)
