"""What a request has at hand, and how it finds a tenant or a scan that its caller may see."""

from __future__ import annotations

import json
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import unquote_to_bytes

from fastapi import Depends, Request
from fastapi.responses import Response
from sqlalchemy import Connection

from db import progress, scans, tenants
from db.scans import Scan
from db.tenants import NAME, Known, Tenant
from db.types import ScanState
from orchestrator.api.access import Access
from orchestrator.api.coordination import Coordination
from orchestrator.api.hub import Hub
from orchestrator.api.limits import admitted
from orchestrator.api.problems import not_found
from orchestrator.api.tokens import Caller
from orchestrator.api.work import Together
from orchestrator.documents import scan_document
from orchestrator.progress import progress_in
from tasks.settings import Settings

if TYPE_CHECKING:  # which asks by what is below
    from orchestrator.api.enqueue import Asked, Enqueued


@dataclass(frozen=True, slots=True)
class Service:
    """All that one API process works with."""

    settings: Settings
    access: Access
    redis: Coordination
    hub: Hub
    enqueuing: Together[Asked, Enqueued]

    def scan(self, caller: Caller, scan_id: str) -> dict[str, Any]:
        """A scan's document, with its progress while it runs. Raises a problem (404)."""
        told = self.redis.told([scan_id]) if _is_id(scan_id) else {}
        with self.access.read(caller) as connection:
            scan, tenant = scan_of(connection, caller, scan_id)
            document = scan_document(connection, scan, tenant)
            if scan.state != ScanState.RUNNING:
                return document
            running = progress.running(connection, 1, scan.id)
            found = progress_in(connection, running, told).get(scan.id)
        return document if found is None else document | {"progress": found.document()}


async def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


Here = Annotated[Service, Depends(_service)]
Who = Annotated[Caller, Depends(admitted)]


def tenant_of(connection: Connection, caller: Caller, name: str) -> Tenant:
    """The tenant of that name. Raises a problem (404), the same for one that is somebody else's."""
    found = tenants.by_name(connection, name) if NAME.fullmatch(name) else None
    if found is None or not caller.sees(name):
        raise not_found("tenant", name)
    return found


def known_of(connection: Connection, caller: Caller, names: Collection[str]) -> Mapping[str, Known]:
    """As much of these tenants as most requests need, in half the time. Raises the same."""
    possible = [name for name in names if NAME.fullmatch(name)]
    found = tenants.known(connection, possible) if possible else {}
    for name in names:
        if name not in found or not caller.sees(name):
            raise not_found("tenant", name)
    return found


def scan_of(connection: Connection, caller: Caller, scan_id: str) -> tuple[Scan, str]:
    """The scan of that id, and its tenant's name. Raises a problem (404), the same for one that is somebody else's."""
    found = scans.with_tenant(connection, str(uuid.UUID(scan_id))) if _is_id(scan_id) else None
    if found is None or not caller.sees(found[1]):
        raise not_found("scan", scan_id)
    return found


def _is_id(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text.lower()
    except ValueError:
        return False


def answer(document: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A document as it is: it was made by us, and is not looked through again."""
    return Response(encoded(document), status, headers, "application/json")


def encoded(document: Any) -> bytes:
    """A document as it is sent."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def exact(request: Request, name: str) -> bytes:
    """The bytes of a parameter of the query: a path need not be UTF-8. Empty where there is none."""
    found = b""
    for part in request.scope["query_string"].replace(b"+", b" ").split(b"&"):
        key, _, value = part.partition(b"=")
        if unquote_to_bytes(key) == name.encode():
            found = unquote_to_bytes(value)
    return found
