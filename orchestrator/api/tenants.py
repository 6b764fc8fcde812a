"""/v1/tenants"""

from __future__ import annotations

import os
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import Response
from sqlalchemy import Connection

from db import tenants
from orchestrator import change
from orchestrator.api import patterns
from orchestrator.api.auth import require_admin
from orchestrator.api.docs import problems
from orchestrator.api.models import NewTenant, Page, TenantChange, TenantDocument
from orchestrator.api.problems import Problem
from orchestrator.api.service import Here, Who, answer, tenant_of
from orchestrator.api.work import blocking, files
from orchestrator.documents import tenant_document
from orchestrator.roots import checked_root

router = APIRouter(prefix="/v1/tenants", tags=["tenants"])


@router.get("", response_model=Page[TenantDocument], responses=problems())
@blocking()
def list_tenants(
    service: Here,
    caller: Who,
    after: Annotated[str, Query(max_length=100, pattern=patterns.NO_NUL, description="`next` of the page before")] = "",
    limit: Annotated[int, Query(ge=1, le=1000, description="at most so many")] = 100,
) -> Response:
    """Tenants by name."""
    with service.access.read(caller) as connection:
        found = tenants.page(connection, after, limit, caller.tenants)
    items = [tenant_document(one) for one in found]
    return answer({"items": items, "next": found[-1].name if len(found) == limit else None})


@router.post("", status_code=201, response_model=TenantDocument, responses=problems(409))
@blocking(files)
def add_tenant(service: Here, caller: Who, body: NewTenant) -> Response:
    """Register a folder; only with an admin's token."""
    require_admin(caller, "register tenants")
    given = _policy(body.given())
    name, root = given.pop("name"), _root(given.pop("root"), service)
    added = service.access.write(caller, change.add_tenant, caller.name, name, root, given, service.settings)
    return answer(tenant_document(added), 201, {"Location": f"/v1/tenants/{name}"})


@router.get("/{name}", response_model=TenantDocument, responses=problems(404))
@blocking()
def show_tenant(service: Here, caller: Who, name: str) -> Response:
    """What is known of a tenant, and what cannot be seen on its file system."""
    with service.access.read(caller) as connection:
        return answer(tenant_document(tenant_of(connection, caller, name)))


@router.patch("/{name}", response_model=TenantDocument, responses=problems(404, 409))
@blocking(files)
def change_tenant(service: Here, caller: Who, name: str, body: TenantChange) -> Response:
    """Change how a tenant is scanned. Its root and tier only with an admin's token."""
    given = _policy(body.given())

    def write(connection: Connection) -> dict[str, Any]:
        tenant_of(connection, caller, name)
        for field in ("root", "tier"):
            if field in given and not caller.is_admin:
                raise Problem(403, f"this token may not change the {field}", field=field)
        values = given | ({"root": root} if root is not None else {})
        if not values:
            raise Problem(422, "nothing to change: give at least one field")
        return tenant_document(change.set_tenant(connection, caller.name, name, values, service.settings))

    # Looked at only for an admin: others must not learn from here what lies on this machine.
    root = _root(given["root"], service) if "root" in given and caller.is_admin else None
    answered = service.access.write(caller, write)
    service.redis.nudge()
    return answer(answered)


@router.delete("/{name}", status_code=204, responses=problems(404))
@blocking()
def remove_tenant(service: Here, caller: Who, name: str) -> Response:
    """Forget a tenant, its index and its feed; its files are not touched. Only with an admin's token. Where that takes
    long the answer is 503, and it goes on; ask again.
    """

    def remove(connection: Connection) -> int:
        tenant_of(connection, caller, name)
        require_admin(caller, "remove tenants")
        return change.remove_tenant(connection, caller.name, name)

    with service.access.read(caller) as connection:  # in haste: does anybody answer?
        tenant_of(connection, caller, name)
    removed = service.access.write_patiently(caller, remove)
    service.redis.forget_tenant(removed)
    return Response(status_code=204)


def _policy(given: dict[str, Any]) -> dict[str, Any]:
    if "ignore" in given:
        given["ignore"] = change.checked_patterns(given["ignore"])
    return given


def _root(text: str, service: Here) -> bytes:
    try:
        path = os.fsencode(text)
    except UnicodeError:
        raise Problem(422, "root is no path", field="root") from None
    if not path.startswith(b"/"):
        raise Problem(422, "root must be an absolute path", field="root")
    return checked_root(path, service.settings)
