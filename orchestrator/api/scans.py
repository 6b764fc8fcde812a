"""/v1/scans, /v1/tenants/{name}/scans"""

from __future__ import annotations

import functools
import hashlib
import uuid
from typing import Annotated, Any

from fastapi import APIRouter, Body, Header, Query
from fastapi.responses import Response
from sqlalchemy import Connection

from db import progress, scans
from db.scans import Scan
from db.types import ScanState
from orchestrator import asking
from orchestrator.api import events, patterns
from orchestrator.api.docs import events as events_content
from orchestrator.api.docs import problems
from orchestrator.api.enqueue import Asked
from orchestrator.api.models import Page, ScanDocument, ScanRequest
from orchestrator.api.problems import Problem
from orchestrator.api.service import Here, Who, answer, encoded, scan_of, tenant_of
from orchestrator.api.work import blocking, database
from orchestrator.documents import scan_document
from orchestrator.progress import progress_in

router = APIRouter(prefix="/v1", tags=["scans"])
_JOINED: dict[int | str, dict[str, Any]] = {
    200: {"model": ScanDocument, "description": "the one that is queued already, widened"}
}


@router.post("/tenants/{name}/scans", status_code=202, response_model=ScanDocument,
             responses={**_JOINED, **problems(404, 409)})  # fmt: skip
async def request_scan(
    service: Here,
    caller: Who,
    name: str,
    body: Annotated[ScanRequest | None, Body()] = None,
    idempotency_key: Annotated[
        str | None,
        Header(pattern=patterns.KEY, description="asking again with the same key within a day gives the same scan"),
    ] = None,
) -> Response:
    """Ask for a scan: a new one, or the one that is queued already, widened. One that runs is not joined."""
    wanted = body or ScanRequest(paths=[], full=False, verify=False)
    key = None
    if idempotency_key is not None:
        key = asking.Key(idempotency_key, hashlib.blake2b(wanted.model_dump_json().encode(), digest_size=16).digest())
    return _accepted(*await service.enqueuing.do(Asked(caller, name, wanted, key)))


def _accepted(scan: Scan, is_new: bool, sent: bytes) -> Response:
    headers = {"Location": f"/v1/scans/{scan.id}"}
    return Response(sent, 202 if is_new else 200, headers, "application/json")


@router.get("/tenants/{name}/scans", response_model=Page[ScanDocument], responses=problems(404))
@blocking()
def list_scans(
    service: Here,
    caller: Who,
    name: str,
    after: Annotated[uuid.UUID | None, Query(description="`next` of the page before")] = None,
    limit: Annotated[int, Query(ge=1, le=100, description="at most so many")] = 20,
) -> Response:
    """A tenant's scans, newest first, with the progress of the one that runs."""
    with service.access.read(caller) as connection:
        tenant = tenant_of(connection, caller, name)
        found = scans.of_tenant(connection, tenant.id, limit, None if after is None else str(after))
        items = [scan_document(connection, scan, tenant.name) for scan in found]
    moving = [one["scan"] for one in items if one["state"] == ScanState.RUNNING]
    if moving:
        told = service.redis.told(moving)
        with service.access.read(caller) as connection:
            seen = progress_in(connection, progress.running(connection, 1, moving[0]), told)
        items = [one | {"progress": seen[one["scan"]].document()} if one["scan"] in seen else one for one in items]
    return answer({"items": items, "next": items[-1]["scan"] if len(items) == limit else None})


@router.get("/scans/{scan}", response_model=ScanDocument, responses=problems(404))
@blocking()
def show_scan(service: Here, caller: Who, scan: str) -> Response:
    """A scan, with its progress while it runs."""
    return answer(service.scan(caller, scan))


@router.get("/scans/{scan}/events", response_class=Response,
            responses={200: {"description": "until the scan has ended",
                             "content": events_content("scan", "progress", "problem")}, **problems(404)})  # fmt: skip
async def follow_scan(service: Here, caller: Who, scan: str) -> Response:
    """The scan's document now and whenever its state changes, its progress in between, as server-sent events."""
    service.hub.require_room()
    read = functools.partial(service.scan, caller, scan)
    known = (await database.do(read))["scan"]
    return events.EventStream(events.scan(service.hub, known, read))


@router.post("/scans/{scan}/cancel", status_code=202, response_model=ScanDocument, responses=problems(404, 409))
@blocking()
def cancel_scan(service: Here, caller: Who, scan: str) -> Response:
    """Stop a queued or running scan: what it found is published, nothing is deleted."""

    def cancel(connection: Connection) -> str:
        found, tenant = scan_of(connection, caller, scan)
        if not asking.cancel(connection, caller.name, found.id, tenant):
            raise Problem(409, f"scan {found.id} has ended, or is ending already")
        return found.id

    cancelled = service.access.write(caller, cancel)
    service.redis.nudge()
    return answer(service.scan(caller, cancelled), 202)


@router.post("/scans/{scan}/confirm", status_code=202, response_model=ScanDocument,
             responses={**_JOINED, **problems(404, 409)})  # fmt: skip
@blocking()
def confirm_scan(service: Here, caller: Who, scan: str) -> Response:
    """Ask for a scan that lets the deletions of a suspect one through: what was gone by then and still is."""

    def confirm(connection: Connection) -> tuple[Scan, bool, bytes]:
        suspect, tenant = scan_of(connection, caller, scan)
        asked, is_new = asking.confirm(connection, caller.name, suspect, tenant)
        return asked, is_new, encoded(scan_document(connection, asked, tenant))

    asked, is_new, sent = service.access.write(caller, confirm)
    service.redis.nudge()
    return _accepted(asked, is_new, sent)
