"""The documents of the contract: a scan, a change, a file. The CLI prints them, and the API answers with them."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection

from db import changes, named, scan_notes
from db.changes import Change
from db.glance import Suspect
from db.indexed import IndexedFile
from db.progress import Running
from db.quarantine import Quarantined
from db.scans import Scan
from db.tenants import Tenant
from db.types import ENDED, ScanState
from db.webhooks import Waiting, Webhook
from orchestrator.progress import Progress
from tasks.core.breaker import Entry, Key
from tasks.core.profile import profile_named

LISTED_ERRORS = 100


def timestamp(value: datetime | None) -> str | None:
    """RFC 3339, UTC, with microseconds."""
    return None if value is None else value.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def text_of(field: str, value: bytes | None) -> dict[str, str | None]:
    """A path as text; one that is not UTF-8 carries its exact bytes as `<field>_b64` as well."""
    if value is None:
        return {field: None}
    try:
        return {field: value.decode()}
    except UnicodeDecodeError:
        return {field: value.decode("utf-8", "replace"), f"{field}_b64": base64.b64encode(value).decode()}


def tenant_document(tenant: Tenant) -> dict[str, Any]:
    """A tenant."""
    return {
        "name": tenant.name,
        **text_of("root", tenant.root),
        "tier": tenant.tier,
        "interval_s": tenant.interval_s,
        "algorithm": tenant.algorithm,
        "ignore": tenant.patterns,
        "gitignore": tenant.gitignore,
        "cross_mounts": tenant.cross_mounts,
        "large_file": tenant.large_file,
        "large_file_bytes": tenant.large_file_bytes,
        "deletion_limit": tenant.deletion_limit,
        "enabled": tenant.enabled,
        "created_at": timestamp(tenant.created_at),
        "next_scan_at": timestamp(tenant.next_scan_at),
        "fence": tenant.fence,
        "watermark": {
            "fence": tenant.watermark_fence,
            "started_at": timestamp(tenant.watermark_started_at),
            "files": tenant.watermark_files,
        }
        if tenant.watermark_fence is not None
        else None,
        "filesystem": tenant.filesystem,
        "cannot_see": profile_named(tenant.filesystem).cannot_see if tenant.filesystem is not None else None,
        "verified_until": timestamp(tenant.verify_at),
        "silent_changes": tenant.silent_changes,
    }


COUNTERS = ("directories", "directories_unchanged", "files", "bytes", "other", "added", "modified", "deleted", "moved",
            "unchanged", "hashed_files", "hashed_bytes", "verified_files", "silent_changes")  # fmt: skip


def scan_document(connection: Connection, scan: Scan, tenant: str) -> dict[str, Any]:
    """A scan, with the first of its errors and, once it has ended, the cursor behind its changes."""
    ended = scan.state in ENDED
    # (Of one that runs the totals are not yet added up.)
    has_notes = scan.errors_total or scan.skipped_total or scan.state == ScanState.RUNNING
    errors = scan_notes.errors_of(connection, scan.id, LISTED_ERRORS) if has_notes else []
    skipped = scan_notes.skipped_of(connection, scan.id, LISTED_ERRORS) if has_notes else []
    cursor = changes.make_cursor(scan.fence, changes.BEHIND, scan.id) if ended and scan.fence is not None else None
    duration = (scan.finished_at - scan.started_at).total_seconds() if scan.finished_at and scan.started_at else None
    return {
        "tenant": tenant,
        "scan": scan.id,
        "fence": scan.fence,
        "strategy": scan.strategy,
        "reason": scan.reason,
        "trigger": scan.trigger,
        **_asked_for(named.load(scan.paths)),
        "state": scan.state,
        "error": scan.error,
        "requested_at": timestamp(scan.requested_at),
        "started_at": timestamp(scan.started_at),
        "finished_at": timestamp(scan.finished_at),
        "duration_s": duration,
        **{name: getattr(scan, name) for name in COUNTERS},
        "skipped": [{**text_of("path", path), "reason": reason} for path, reason in skipped],
        "skipped_total": scan.skipped_total,
        "errors": [{**text_of("path", path), "error": error, "operation": op} for path, op, error in errors],
        "errors_total": scan.errors_total,
        "shards": scan.shards,
        "attempts": scan.attempts,
        "peak_memory_bytes": scan.peak_memory_bytes,
        "cursor": cursor,
    }


def _asked_for(paths: Sequence[bytes]) -> dict[str, Any]:
    if not paths:
        return {}
    return {"paths": [text_of("path", path) for path in paths[:LISTED_ERRORS]], "paths_total": len(paths)}


def webhook_document(webhook: Webhook, waiting: Waiting, *, secret: bool = False) -> dict[str, Any]:
    """A webhook, and what is still to be told to it."""
    return {
        "url": webhook.url,
        "waiting": waiting.scans,
        "waiting_since": timestamp(waiting.since),
        "failed_attempts": waiting.attempts,
        "next_attempt_at": timestamp(waiting.next_at),
        **({"secret": webhook.secret} if secret else {}),
    }


def running_document(running: Running, progress: Progress) -> dict[str, Any]:
    """A running scan at a glance."""
    return {
        "tenant": running.tenant,
        "scan": running.scan_id,
        "tier": running.tier,
        "trigger": running.trigger,
        "strategy": running.strategy,
        "started_at": timestamp(running.started_at),
        "age_s": round(running.age_s, 1),
        "progress": progress.document(),
    }


def suspect_document(one: Suspect) -> dict[str, Any]:
    """A scan that waits to be confirmed, at a glance."""
    finished_at = timestamp(one.finished_at)
    return {"tenant": one.tenant, "scan": one.scan_id, "finished_at": finished_at, "doubt": one.doubt}


def change_document(change: Change) -> dict[str, Any]:
    """A change: the whole new state of its path."""
    document: dict[str, Any] = {"cursor": change.cursor, "kind": change.kind, **text_of("path", change.path)}
    if change.old_path is not None:
        document |= text_of("old_path", change.old_path)
    document |= {"type": change.type, "size": change.size}
    document |= _content(change.digest, change.algorithm, change.target)
    if change.reason is not None:
        document["reason"] = change.reason
    return document | {"fence": change.fence, "scan": change.scan, "at": timestamp(change.at)}


def file_document(file: IndexedFile) -> dict[str, Any]:
    """An object of the index."""
    return {
        **text_of("path", file.path),
        "type": file.type,
        "size": file.size,
        "mtime_ns": file.mtime_ns,
        **_content(file.digest, file.algorithm, file.target),
        "changed_in": file.changed,
    }


def _content(digest: bytes | None, algorithm: str | None, target: bytes | None) -> dict[str, Any]:
    if target is not None:
        return text_of("target", target)
    return {"digest": None if digest is None else digest.hex(), "algorithm": algorithm}


def breaker_document(tenant: str, key: Key, entry: Entry, now: float) -> dict[str, Any]:
    """An entry of the breaker at a time of Redis's clock."""
    return {
        "tenant": tenant,
        **text_of("path", key.path),
        "covers": str(key.covers),
        "state": str(entry.state(now)),
        "failures": len(entry.failures),
        "failed_at": _moment(entry.failed_at),
        "open_until": _moment(entry.open_until),
        "error": entry.error,
    }


def quarantine_document(one: Quarantined) -> dict[str, Any]:
    """An entry in quarantine."""
    return {
        "tenant": one.tenant,
        **text_of("path", one.path),
        "reason": one.reason,
        "since": timestamp(one.since),
        "until": timestamp(one.until),
        "fence": one.fence,
    }


def _moment(seconds: float | None) -> str | None:
    return None if seconds is None else timestamp(datetime.fromtimestamp(seconds, UTC))
