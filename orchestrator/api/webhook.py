"""/v1/tenants/{name}/webhook"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response
from sqlalchemy import Connection

from db import webhooks
from orchestrator import change
from orchestrator.api.docs import problems
from orchestrator.api.models import MadeWebhook, NewWebhook, WebhookDocument
from orchestrator.api.problems import Problem
from orchestrator.api.service import Here, Who, answer, tenant_of
from orchestrator.api.work import blocking
from orchestrator.documents import webhook_document

router = APIRouter(prefix="/v1/tenants/{name}/webhook", tags=["webhooks"])


@router.get("", response_model=WebhookDocument, responses=problems(404))
@blocking()
def show_webhook(service: Here, caller: Who, name: str) -> Response:
    """Where the tenant's ended scans are told, how many are still to be, and what was tried for the first of them."""
    with service.access.read(caller) as connection:
        tenant = tenant_of(connection, caller, name)
        webhook, waiting = webhooks.get(connection, tenant.id), webhooks.waiting(connection, tenant.id)
    if webhook is None:
        raise Problem(404, f"tenant {name!r} has no webhook")
    return answer(webhook_document(webhook, waiting))


@router.put("", response_model=MadeWebhook, responses=problems(404))
@blocking()
def set_webhook(service: Here, caller: Who, name: str, body: NewWebhook) -> Response:
    """Tell each scan that ends from now on to an address. The answer has the secret with which that is signed; it is
    a new one each time, and not shown again.
    """

    def write(connection: Connection) -> dict[str, Any]:
        tenant_of(connection, caller, name)
        webhook = change.set_webhook(connection, caller.name, name, body.url, service.settings)
        return webhook_document(webhook, webhooks.NOTHING, secret=True)

    return answer(service.access.write(caller, write))


@router.delete("", status_code=204, responses=problems(404))
@blocking()
def remove_webhook(service: Here, caller: Who, name: str) -> Response:
    """Tell nobody any more, also not what is still to be told."""

    def write(connection: Connection) -> None:
        tenant_of(connection, caller, name)
        change.remove_webhook(connection, caller.name, name)

    service.access.write(caller, write)
    return Response(status_code=204)
