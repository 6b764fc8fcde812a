"""/v1/tenants/{name}/breaker"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from sqlalchemy import Connection

from db import audit
from orchestrator.api.docs import problems
from orchestrator.api.models import BreakerEntry, Forgotten, Page
from orchestrator.api.problems import not_found
from orchestrator.api.service import Here, Who, answer, exact, tenant_of
from orchestrator.api.work import blocking
from orchestrator.documents import breaker_document
from tasks.redis import breaker
from tasks.scan_shard import limits_of

router = APIRouter(prefix="/v1/tenants/{name}/breaker", tags=["breaker"])


@router.get("", response_model=Page[BreakerEntry], responses=problems(404))
@blocking()
def list_entries(service: Here, caller: Who, name: str) -> Response:
    """What failed lately and, where it is open, is left alone."""
    with service.access.read(caller) as connection:
        tenant = tenant_of(connection, caller, name)
    entries, now = service.redis.ask(lambda client: breaker.read(client, service.redis.keys, tenant.id))
    found = sorted(entries.items(), key=lambda one: (one[0].path, one[0].covers))
    return answer({"items": [breaker_document(tenant.name, key, entry, now) for key, entry in found], "next": None})


@router.delete("", response_model=Forgotten, responses=problems(404))
@blocking()
def reset(
    request: Request,
    service: Here,
    caller: Who,
    name: str,
    path: Annotated[str | None, Query(max_length=16384, description="this alone; the root is the empty path")] = None,
) -> Response:
    """Let what is left alone (or one path of it) be tried again by the next scan."""
    wanted = None if path is None else exact(request, "path")
    with service.access.read(caller) as connection:
        tenant = tenant_of(connection, caller, name)
    limits = limits_of(service.settings, tenant)
    count = service.redis.ask(lambda client: breaker.reset(client, service.redis.keys, tenant.id, wanted, limits))
    if path is not None and not count:
        raise not_found("entry", path)

    def note(connection: Connection) -> None:
        audit.note(connection, caller.name, "breaker reset", tenant.name, path=wanted, entries=count)

    service.access.write(caller, note)
    return answer({"forgotten": count})
