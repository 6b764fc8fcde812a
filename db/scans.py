"""Scans: asked for, started, cancelled, finished."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    RowMapping,
    and_,
    exists,
    func,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.sql.dml import ReturningInsert

from db import named, tallies, webhooks
from db.bulk import inserting, merge, set_values
from db.clock import clock
from db.tables import changes, directories, said, scans, shards, tenants, vanished
from db.types import SETTLED_SHARDS, Kind, ScanState, ShardState, Strategy, Trigger, UsageError, new_scan_id


@dataclass(frozen=True, slots=True)
class Scan:
    """A row of `scans`; the meaning of each field is said there."""

    id: str
    tenant_id: int
    fence: int | None
    strategy: str | None
    reason: str | None
    trigger: str
    full: bool
    verify: bool
    paths: str | None
    confirms: int | None
    state: str
    verdict: str | None
    doubt: str | None
    ending: str | None
    error: str | None
    requested_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    directories: int
    directories_unchanged: int
    files: int
    bytes: int
    other: int
    added: int
    modified: int
    deleted: int
    moved: int
    unchanged: int
    hashed_files: int
    hashed_bytes: int
    verified_files: int
    silent_changes: int
    verify_from: int
    verify_to: int
    skipped_total: int
    errors_total: int
    shards: int
    attempts: int
    peak_memory_bytes: int

    @property
    def judged_fence(self) -> int | None:
        """What was gone by this fence is judged: by its own, unless it carries out what was confirmed earlier."""
        return self.fence if self.confirms is None else self.confirms


_COLUMNS = [scans.c[name] for name in Scan.__slots__]


def _scan(row: RowMapping | dict[str, Any]) -> Scan:
    return Scan(**row)


def get(connection: Connection, scan_id: str) -> Scan | None:
    """The scan of that id, if there is one."""
    row = connection.execute(select(*_COLUMNS).where(scans.c.id == scan_id)).mappings().first()
    return None if row is None else _scan(row)


def lock(connection: Connection, scan_id: str) -> Scan | None:
    """The scan, its row held until the transaction ends. After the tenant, before a shard."""
    row = connection.execute(select(*_COLUMNS).where(scans.c.id == scan_id).with_for_update()).mappings().first()
    return None if row is None else _scan(row)


def lock_startable(connection: Connection, tenant_ids: Sequence[int]) -> Sequence[Scan]:
    """The queued scans of these tenants, but for those that have one running; locked. After the tenants."""
    columns = [scans.c[name] for name in _ASKED]
    query = select(*columns).where(scans.c.tenant_id.in_(tenant_ids), *is_startable()).order_by(scans.c.id)
    return [_queued(row) for row in connection.execute(query.with_for_update())]


def with_tenant(connection: Connection, scan_id: str) -> tuple[Scan, str] | None:
    """The scan of that id and its tenant's name, if there is one."""
    query = select(*_COLUMNS, tenants.c.name.label("tenant_name")).join(tenants, tenants.c.id == scans.c.tenant_id)
    row = connection.execute(query.where(scans.c.id == scan_id)).mappings().first()
    return None if row is None else (_scan({name: row[name] for name in Scan.__slots__}), row["tenant_name"])


def of_tenant(connection: Connection, tenant_id: int, limit: int, after: str | None = None) -> Sequence[Scan]:
    """A tenant's scans, newest first; those behind the scan `after`."""
    s = scans.c
    query = select(*_COLUMNS).where(s.tenant_id == tenant_id).order_by(s.requested_at.desc(), s.id)
    if after is not None:
        last = scans.alias()
        at = select(last.c.requested_at).where(last.c.tenant_id == tenant_id, last.c.id == after).scalar_subquery()
        query = query.where(or_(s.requested_at < at, and_(s.requested_at == at, s.id > after)))
    return [_scan(row) for row in connection.execute(query.limit(limit)).mappings()]


def in_state(connection: Connection, state: ScanState) -> Sequence[Scan]:
    """All tenants' scans in a state, in the order in which they were asked for."""
    query = select(*_COLUMNS).where(scans.c.state == said(state)).order_by(scans.c.requested_at)
    return [_scan(row) for row in connection.execute(query).mappings()]


def running_of(connection: Connection, tenant_id: int) -> Scan | None:
    """The scan of a tenant that runs, if one does."""
    query = select(*_COLUMNS).where(scans.c.tenant_id == tenant_id, scans.c.state == ScanState.RUNNING)
    row = connection.execute(query).mappings().first()
    return None if row is None else _scan(row)


def request_scheduled(connection: Connection, tenant_ids: Sequence[int]) -> None:
    """Ask for a scan of each by the schedule, where none is queued: one that is will do, of the whole tree."""
    whole = "ON CONFLICT (tenant_id) WHERE state = 'queued' DO UPDATE SET paths = NULL WHERE scans.paths IS NOT NULL"
    asked = [(new_scan_id(), tenant_id, Trigger.SCHEDULE, ScanState.QUEUED) for tenant_id in tenant_ids]
    merge(connection, scans, ("id", "tenant_id", "trigger", "state"), asked, whole, {"requested_at": clock()})


def request(connection: Connection, tenant_id: int, *, trigger: Trigger, full: bool = False, verify: bool = False,
            confirms: int | None = None, paths: Sequence[bytes] = ()) -> tuple[Scan, bool]:  # fmt: skip
    """Ask for a scan: the tenant's queued one, widened, or a new one. Returns it, and whether it is new. `paths`: only
    these, relative to the root, with all below them.

    A running scan is never joined: what it has passed already would be missed.
    """
    wanted = named.dump(paths) if paths and not verify and confirms is None else None
    values = {"id": new_scan_id(), "tenant_id": tenant_id, "trigger": trigger, "full": full, "verify": verify,
              "confirms": confirms, "paths": wanted, "state": ScanState.QUEUED}  # fmt: skip
    try:
        row = connection.execute(_queueing(connection.dialect.name), values).one()
    except IntegrityError:
        raise UsageError(f"no scan could be queued for tenant {tenant_id}: was it removed just now?") from None
    scan = _queued(row)
    if scan.id == values["id"]:
        return scan, True
    wider = named.widened(scan.paths, wanted)
    if wider != scan.paths:
        connection.execute(update(scans).where(scans.c.id == scan.id).values(paths=wider))
    return replace(scan, paths=wider), False


# Nothing else is known of a scan that is queued: to hear of 30 columns that they are empty takes as long as to ask.
_ASKED = ("id", "tenant_id", "trigger", "full", "verify", "paths", "confirms", "state", "requested_at")
_NOTHING_YET = {name: None if scans.c[name].nullable else 0 for name in Scan.__slots__}


def _queued(row: Sequence[Any]) -> Scan:
    return Scan(**_NOTHING_YET | dict(zip(_ASKED, row, strict=True)))


@functools.cache
def _queueing(dialect: str) -> ReturningInsert[Any]:
    """A new scan, or all but the paths of the queued one widened, whose row is locked then. (Made once: to put it
    together takes longer than to execute it.)
    """
    greatest = func.max if dialect == "sqlite" else func.greatest
    known, new = scans.c, inserting(dialect, scans).values(requested_at=clock())
    asked = new.excluded
    wider = {
        "full": known.full | asked.full,
        "verify": known.verify | asked.verify,
        "confirms": func.coalesce(greatest(known.confirms, asked.confirms), known.confirms, asked.confirms),
    }
    return new.on_conflict_do_update(
        index_elements=[known.tenant_id], index_where=text("state = 'queued'"), set_=wider
    ).returning(*(known[name] for name in _ASKED))


def is_startable() -> tuple[ColumnElement[bool], ...]:
    """Queued, and of a tenant that has none running."""
    running = scans.alias()
    has_one = select(running.c.id).where(
        running.c.tenant_id == scans.c.tenant_id, running.c.state == said(ScanState.RUNNING)
    )
    return scans.c.state == said(ScanState.QUEUED), ~has_one.exists()


def with_nothing_left(connection: Connection) -> Sequence[str]:
    """Running scans whose finish waits although all other shards are settled."""
    finish, other = shards.alias(), shards.alias()
    is_open = select(other.c.number).where(
        other.c.scan_id == finish.c.scan_id, other.c.number != 0, other.c.state.not_in(SETTLED_SHARDS)
    )
    query = (
        select(finish.c.scan_id)
        .join(scans, scans.c.id == finish.c.scan_id)
        .where(scans.c.state == said(ScanState.RUNNING), finish.c.number == 0, finish.c.state == ShardState.WAITING)
        .where(~is_open.exists())
    )
    return [str(row.scan_id) for row in connection.execute(query)]


@dataclass(frozen=True, slots=True)
class Beginning:
    """What a scan is given at its start; `verified`: whose turn it is to be verified, see orchestrator/verification."""

    scan_id: str
    fence: int
    strategy: Strategy
    reason: str
    verified: tuple[int, int] = (0, 0)


def set_running(connection: Connection, begun: Sequence[Beginning]) -> None:
    """Queued → running. The caller holds the locks of the scans, and of their tenants."""
    columns = ("fence", "strategy", "reason", "verify_from", "verify_to", "state")
    rows = [(one.fence, one.strategy, one.reason, *one.verified, ScanState.RUNNING, one.scan_id) for one in begun]
    set_values(connection, scans, columns, ["id"], rows, {"started_at": clock()}, "scans.state = 'queued'")


def cancel_queued(connection: Connection, scan_id: str) -> bool:
    """Queued → cancelled. False where it is no longer queued."""
    query = (
        update(scans)
        .where(scans.c.id == scan_id, scans.c.state == ScanState.QUEUED)
        .values(state=ScanState.CANCELLED, finished_at=clock())
    )
    if connection.execute(query).rowcount != 1:
        return False
    scan = get(connection, scan_id)
    assert scan is not None
    tier = select(tenants.c.tier).where(tenants.c.id == scan.tenant_id)
    webhooks.scan_ended(connection, scan.tenant_id, scan_id)
    tallies.add(connection, scan, str(connection.execute(tier).scalar_one()))
    return True


def store_verdict(connection: Connection, scan_id: str, verdict: str, doubt: str | None = None) -> None:
    """Write finish's decision on deletions (delete | keep, with the doubt that made it so) before anything is done
    by it. The first one stands.
    """
    query = update(scans).where(scans.c.id == scan_id, scans.c.verdict.is_(None))
    connection.execute(query.values(verdict=verdict, doubt=doubt))


def known_files(connection: Connection, scan: Scan) -> int:
    """Files that the directories of the index hold, as last listed, without those that this fence added."""
    d, c = directories.c, changes.c
    held = select(func.coalesce(func.sum(d.files), 0)).where(d.tenant_id == scan.tenant_id)
    held = held.where(~exists().where(vanished.c.scan_id == scan.id, vanished.c.directory_id == d.id))
    added = select(func.count()).where(c.tenant_id == scan.tenant_id, c.fence == scan.fence, c.kind == Kind.ADDED)
    return int(connection.execute(held).scalar_one()) - int(connection.execute(added).scalar_one())


def decide_ending(connection: Connection, scan_id: str, ending: ScanState, error: str | None) -> bool:
    """A running scan shall end cancelled or failed, without deletions; False: not running, or too late, since its
    finish has a verdict and may have deleted already. The first one stands.
    """
    in_time = or_(scans.c.verdict.is_(None), scans.c.ending.is_not(None))
    query = (
        update(scans)
        .where(scans.c.id == scan_id, scans.c.state == ScanState.RUNNING, in_time)
        .values(ending=func.coalesce(scans.c.ending, ending), error=func.coalesce(scans.c.error, error),
                verdict=func.coalesce(scans.c.verdict, "keep"))
    )  # fmt: skip
    return connection.execute(query).rowcount == 1


def note_error(connection: Connection, scan_id: str, error: str) -> None:
    """What a person should read beside the scan's state; the first one stands."""
    query = update(scans).where(scans.c.id == scan_id, scans.c.error.is_(None))
    connection.execute(query.values(error=error))


def give_up(connection: Connection, scan_id: str, error: str) -> None:
    """A running scan ends failed, whatever was decided of it: its finish does not come to an end."""
    query = update(scans).where(scans.c.id == scan_id, scans.c.state == ScanState.RUNNING, scans.c.ending.is_(None))
    connection.execute(
        query.values(ending=ScanState.FAILED, error=error, verdict=func.coalesce(scans.c.verdict, "keep"))
    )


def publish(connection: Connection, scan: Scan, state: ScanState) -> None:
    """Running → ended, with its totals as the tables tell them. This alone makes its changes visible."""
    values: dict[str, Any] = {**_index_totals(connection, scan), **_shard_totals(connection, scan)}
    values |= _change_totals(connection, scan)
    values["unchanged"] = max(0, values["files"] - values["added"] - values["modified"] - values["moved"])
    query = update(scans).where(scans.c.id == scan.id, scans.c.state == ScanState.RUNNING)
    error = scan.error
    if state == ScanState.SUSPECT:
        error = f"{scan.doubt}; nothing was deleted. If that is right: strandline confirm {scan.id}"
    connection.execute(query.values(state=state, error=error, finished_at=clock(), **values))
    webhooks.scan_ended(connection, scan.tenant_id, scan.id)


def _index_totals(connection: Connection, scan: Scan) -> dict[str, int]:
    d = directories.c
    query = select(
        func.count(),
        func.coalesce(func.sum(d.files), 0),
        func.coalesce(func.sum(d.bytes), 0),
    ).where(d.tenant_id == scan.tenant_id)
    count, files, size = connection.execute(query).one()
    return {"directories": int(count), "files": int(files), "bytes": int(size)}


def _change_totals(connection: Connection, scan: Scan) -> dict[str, int]:
    query = select(changes.c.kind, func.count()).where(
        changes.c.tenant_id == scan.tenant_id, changes.c.fence == scan.fence
    )
    counted = {kind: int(count) for kind, count in connection.execute(query.group_by(changes.c.kind))}
    return {str(kind): counted.get(kind, 0) for kind in Kind}


def _shard_totals(connection: Connection, scan: Scan) -> dict[str, int]:
    s = shards.c
    summed = ("hashed_files", "hashed_bytes", "verified_files", "silent_changes", "skipped_total", "other",
              "errors_total", "directories_unchanged")  # fmt: skip
    query = select(
        *(func.coalesce(func.sum(s[name]), 0) for name in summed),
        func.coalesce(func.sum(s.attempt), 0),
        func.count(),
        func.max(s.peak_memory_bytes),
    ).where(s.scan_id == scan.id)
    *sums, attempts, count, peak = connection.execute(query).one()
    totals = {name: int(value) for name, value in zip(summed, sums, strict=True)}
    return totals | {"attempts": int(attempts), "shards": int(count), "peak_memory_bytes": int(peak or 0)}


def last_visible_fence(connection: Connection, tenant_id: int) -> int:
    """Changes up to this fence can be seen: all before the running scan's, else all."""
    running = select(scans.c.fence - 1).where(scans.c.tenant_id == tenant_id, scans.c.state == ScanState.RUNNING)
    # One statement: between two, a scan could start, and its fence be taken for one that has ended.
    query = select(func.coalesce(running.scalar_subquery(), tenants.c.fence)).where(tenants.c.id == tenant_id)
    return int(connection.execute(query).scalar_one())


def visible_fences(connection: Connection, tenant_ids: Sequence[int]) -> dict[int, int]:
    """The same of many, by tenant; of those that are gone, nothing."""
    running = scans.alias()
    query = (
        select(tenants.c.id, func.coalesce(running.c.fence - 1, tenants.c.fence))
        .outerjoin(running, and_(running.c.tenant_id == tenants.c.id, running.c.state == said(ScanState.RUNNING)))
        .where(tenants.c.id.in_(tenant_ids))
    )
    return {row[0]: int(row[1]) for row in connection.execute(query)}


def states(connection: Connection, scan_ids: Sequence[str]) -> dict[str, str]:
    """The states of these scans; of those that are gone, nothing."""
    query = select(scans.c.id, scans.c.state).where(scans.c.id.in_(scan_ids))
    return {row.id: row.state for row in connection.execute(query)}
