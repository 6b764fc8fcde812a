"""Why a path was or was not hashed, skipped or reported: from what is recorded, and from the rule files as they are."""

from __future__ import annotations

import os
from types import MappingProxyType
from typing import Any

from sqlalchemy import Connection, RowMapping

from db import explanations, quarantine
from db.scan_notes import LEFT_OUT, QUARANTINE
from db.tenants import Tenant
from db.types import FileType, Unsettled
from orchestrator.documents import text_of
from orchestrator.roots import below
from tasks.core.breaker import Covers, Entries, Key, ancestors
from tasks.core.compare import TAKEN_OVER
from tasks.core.filesystem import Ignored, Missing, OtherMount, Shadowed, Unreadable, kind_of
from tasks.core.ignore import Rule
from tasks.core.profile import Profile, profile_named
from tasks.core.walk import Tree
from tasks.redis.breaker import until
from tasks.scan_shard import rule_sources

_UNSETTLED = {
    Unsettled.RACY: "it was touched so near to the scan that a later write could leave the same stamps",
    Unsettled.UNSTABLE: "it moved while it was read, at every try",
    Unsettled.FAILED: "it could not be read",
    Unsettled.FSYNC_BUDGET: "it is fresh, and the shard had flushed as many files as it may",
}


def explain(connection: Connection, tenant: Tenant, path: bytes, failing: Entries = MappingProxyType({}),
            now: float = 0.0) -> dict[str, Any]:  # fmt: skip
    """One word (`status`) and a sentence for a path, relative to the root or absolute. `failing`: the breaker's entries
    at the time `now`, where they are known.
    """
    relative = below(tenant.root, path)
    if relative is None:
        root = os.fsdecode(tenant.root)
        return _told(tenant, path, "outside", f"it is not under the tenant's root, {root!r}, and is never looked at")
    status, sentence = _status(connection, tenant, relative)
    sentence += _breaker(failing, now, relative, status)
    try:
        Tree(tenant.root).close()
    except Unreadable as error:
        return _told(tenant, relative, "unknown", f"from here the root could not be opened: {error.error}; {sentence}")
    return _told(tenant, relative, status, sentence)


def _told(tenant: Tenant, path: bytes, status: str, sentence: str) -> dict[str, Any]:
    return {"tenant": tenant.name, **text_of("path", path), "status": status, "explanation": sentence}


def _status(connection: Connection, tenant: Tenant, path: bytes) -> tuple[str, str]:
    folder, _, name = path.rpartition(b"/")
    above = explanations.directory(connection, tenant.id, folder)
    row = explanations.file(connection, tenant.id, above["id"], name) if above is not None and path else None
    itself = explanations.directory(connection, tenant.id, path)
    sources = rule_sources(tenant)
    quarantined = quarantine.reasons(connection, tenant.id)
    trouble = explanations.trouble(connection, tenant.id, path, sources.names)
    rule, live = _look(tenant, path)
    if rule is not None:
        return "ignored", _ignored(rule, path)
    for place in (path, *ancestors(path)):
        if place in quarantined:
            return "quarantined", (
                f"{_at(place, path)}in quarantine: {quarantined[place]}; "
                f"`strandline quarantine release {tenant.name} …` lets it be looked at again"
            )
    if trouble is not None and trouble.operation == QUARANTINE:
        return "released", f"{_at(trouble.path, path)}it was {trouble.error}; the next scan looks at it again"
    if trouble is not None and trouble.operation in LEFT_OUT:
        return "skipped", f"{_at(trouble.path, path)}{trouble.error}"
    if trouble is not None:
        ever = itself is not None or (row is not None and (row["digest"] is not None or row["target"] is not None))
        known = "what is recorded stays as it was" if ever else "nothing is recorded"
        where = _at(trouble.path, path)
        return "unknown", (
            f"{where}could not {trouble.operation} since scan number {trouble.since}: {trouble.error}; {known}"
        )
    if (row is not None and row["gone"] is None) or itself is not None:
        gone = explanations.gone_above(connection, tenant.id, path)
        if gone is not None:
            return "pending deletion", _pending("a directory", gone)
    if row is not None:
        return _file(row, profile_named(tenant.filesystem or ""))
    return live if itself is None else _directory(itself)


def _look(tenant: Tenant, path: bytes) -> tuple[Rule | None, tuple[str, str]]:
    """The rule that leaves the path or a directory above it out, if any; and what to say where nothing is recorded."""
    parts = path.split(b"/") if path else []
    try:
        with Tree(tenant.root, cross_mounts=tenant.cross_mounts, rule_sources=rule_sources(tenant)) as root:
            for depth in range(1, len(parts) + 1):
                fd = root.directory(b"/".join(parts[: depth - 1]))
                part = b"/".join(parts[:depth])
                rule = root.rules.decide(part, kind_of(fd, parts[depth - 1]) == "directory")
                if rule is not None and rule.ignores:
                    return rule, ("", "")
            return None, _describe(kind_of(root.directory(b"/".join(parts[:-1])), parts[-1]) if parts else "directory")
    except (Missing, Shadowed, Ignored, OtherMount):
        return None, ("absent", "nothing is recorded of it, and it is not there")
    except Unreadable as error:
        return None, ("unknown", f"nothing is recorded of it, and it cannot be looked at from here: {error.error}")


def _breaker(failing: Entries, now: float, path: bytes, status: str) -> str:
    """What the breaker says of a path: of itself, of a directory above it that is not entered, of files that fail."""
    keys = [Key(Covers.FILE, path), *(Key(Covers.DIRECTORY, place) for place in (path, *ancestors(path)))]
    if status in (Unsettled.FAILED, "unknown", "skipped"):
        keys += [Key(Covers.FILES, place) for place in ancestors(path)]
    for key in keys:
        entry = failing.get(key)
        if entry is not None and entry.open_until is not None:
            where = f" for the {key.covers} {os.fsdecode(key.path)!r}" if key.path != path else ""
            return f"; the breaker is {entry.state(now)}{where} until {until(entry.open_until)}, then it is probed"
    return ""


def _describe(kind: str | None) -> tuple[str, str]:
    if kind is None:
        return "absent", "nothing is recorded of it, and it is not there"
    if kind in ("file", "symlink", "directory"):
        return "new", f"a {kind} of which nothing is recorded yet: no scan has come by since it is there"
    return "special", f"a {kind}: counted as `other`, never opened and not indexed"


def _pending(what: str, row: RowMapping) -> str:
    where = f"{what} {os.fsdecode(row['path'])!r}" if "path" in row else what
    since = f"missing since scan number {row['gone']} ({row['gone_reason']})"
    return f"{where} is {since}, and is deleted with all below it once a scan may do so"


def _at(place: bytes, path: bytes) -> str:
    return "" if place == path else f"at {os.fsdecode(place)!r}: "


def _ignored(rule: Rule, path: bytes) -> str:
    source = f"line {rule.line} of {os.fsdecode(rule.source)!r}" if rule.source else "a pattern of the tenant"
    return f"left out by {source}: {os.fsdecode(rule.pattern)}"


def _file(row: RowMapping, profile: Profile) -> tuple[str, str]:
    if row["gone"] is not None:
        return "pending deletion", _pending("it", row)
    if row["type"] == FileType.SYMLINK:
        target = os.fsdecode(row["target"])
        return "symlink", f"a symlink to {target!r}, as scan number {row['changed']} found it; never followed"
    if row["unsettled"] is not None:
        known = "its last digest is kept" if row["digest"] is not None else "it was never read, and is not in the feed"
        reason = _UNSETTLED[Unsettled(row["unsettled"])]
        return str(row["unsettled"]), f"{reason}; {known}, and the next scan looks again"
    return _settled(row, profile)


def _settled(row: RowMapping, profile: Profile) -> tuple[str, str]:
    fields = ["size", "mtime"] + ["ctime"] * profile.ctime + ["inode"] * profile.inode
    if row["hashed_because"] == TAKEN_OVER:
        hashed = "not hashed then: its folder was renamed, and its digest taken over"
    elif row["hashed"] is None:
        hashed = f"hashed in scan number {row['changed']}, which added it"
    else:
        hashed = f"hashed last in scan number {row['hashed']} because of: {_because(row['hashed_because'])}"
    sentence = f"changed last in scan number {row['changed']}; {hashed}; since then equal by {', '.join(fields)}"
    if profile.cannot_see is not None:
        sentence += f"; {profile.cannot_see}"
    return "unchanged", sentence


def _because(moved: str) -> str:
    """The fields of stat that moved; in place of a reason to look again, what that means."""
    return ", ".join(_UNSETTLED[Unsettled(one)] if one in set(Unsettled) else one for one in moved.split(", "))


def _directory(row: RowMapping) -> tuple[str, str]:
    if row["listed"] is None:
        return "directory", f"a directory found by scan number {row['born']}, not listed yet"
    sentence = f"a directory of {row['files']:,} files, as scan number {row['listed']} recorded them"
    if row["fingerprint"] is None and row["ranges"] is None:
        sentence += "; something in it waits for another look"
    return "directory", sentence
