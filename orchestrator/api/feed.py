"""/v1/tenants/{name}/changes, /files, /explain"""

from __future__ import annotations

import base64
import binascii
import json
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import Response

from db import changes, indexed
from orchestrator.api import events
from orchestrator.api.docs import events as events_content
from orchestrator.api.docs import problems
from orchestrator.api.models import BIGGEST, ChangesPage, Explanation, FilesPage
from orchestrator.api.problems import Away, Problem
from orchestrator.api.service import Here, Service, Who, answer, exact, tenant_of
from orchestrator.api.tokens import Caller
from orchestrator.api.work import blocking, database, files
from orchestrator.documents import change_document, file_document
from orchestrator.explain import explain
from tasks.redis import breaker

router = APIRouter(prefix="/v1/tenants/{name}", tags=["feed and index"])
Cursor = Annotated[str | None, Query(max_length=1000, description="begin after this cursor; none: at the beginning")]
Limit = Annotated[int, Query(ge=1, le=5000, description="at most so many")]


@router.get("/changes", response_model=ChangesPage,
            responses={200: {"content": events_content("change", "problem")}, **problems(404, 410)})  # fmt: skip
async def read_changes(
    request: Request,
    service: Here,
    caller: Who,
    name: str,
    since: Cursor = None,
    limit: Limit = 1000,
    last_event_id: Annotated[str | None, Header(max_length=1000, description="as `since`, of a stream")] = None,
) -> Response:
    """The change feed, oldest first; with `Accept: text/event-stream` what comes, too, as it comes, each with its
    cursor as id.
    """
    streamed = events.MEDIA_TYPE in request.headers.get("accept", "")
    if streamed:
        service.hub.require_room()
    cursor = (last_event_id or since if streamed else since) or None

    def read() -> dict[str, object]:
        with service.access.read(caller) as connection:
            found = changes.page(connection, tenant_of(connection, caller, name).id, cursor, limit)
        items = [change_document(one) for one in found.changes]
        return {"items": items, "next": found.behind if found.more else None, "cursor": found.behind}

    def begin() -> tuple[int, events.Page]:
        with service.access.read(caller) as connection:
            tenant = tenant_of(connection, caller, name)
            return tenant.id, events.page(connection, tenant.name, tenant.id, cursor)

    if not streamed:
        return answer(await database.do(read))
    tenant_id, first = await database.do(begin)
    pages: events.Pages = request.app.state.pages
    return events.EventStream(events.feed(service.hub, pages, name, tenant_id, first))


@router.get("/files", response_model=FilesPage, responses=problems(404))
@blocking()
def list_files(
    request: Request,
    service: Here,
    caller: Who,
    name: str,
    prefix: Annotated[str, Query(max_length=8192, description="only paths that begin so; bytes as %XX")] = "",
    after: Annotated[str | None, Query(max_length=4096, description="`next` of the page before")] = None,
    limit: Limit = 1000,
) -> Response:
    """The index: one object a file or symlink. The first page has the cursor of the feed to follow from."""
    place = None if after is None else _place(after)
    with service.access.read(caller) as connection:
        tenant = tenant_of(connection, caller, name)
        # First: what becomes visible in between is then told again, not missed.
        first = {"cursor": changes.end_cursor(connection, tenant.id)} if place is None else {}
        found = indexed.page(connection, tenant.id, prefix=exact(request, "prefix"), after=place, limit=limit)
    items = [file_document(one) for one in found]
    return answer({"items": items, "next": _key(found[-1].place) if len(found) == limit else None, **first})


@router.get("/explain", response_model=Explanation, responses=problems(404))
@blocking(files)
def explain_path(
    request: Request,
    service: Here,
    caller: Who,
    name: str,
    path: Annotated[str, Query(max_length=16384, description="below the root, or absolute; bytes as %XX")],
) -> Response:
    """Why a path was or was not hashed, skipped or reported."""
    return answer(explanation(service, caller, name, exact(request, "path")))


def explanation(service: Service, caller: Caller, name: str, path: bytes) -> dict[str, Any]:
    """The document of an explanation. Raises a problem."""
    if b"\0" in path:
        raise Problem(422, "path holds a NUL", field="path")
    with service.access.read(caller) as connection:
        tenant = tenant_of(connection, caller, name)
    try:
        failing = service.redis.ask(lambda client: breaker.read(client, service.redis.keys, tenant.id))
    except Away:
        failing = {}, 0.0
    with service.access.read(caller) as connection:
        return explain(connection, tenant, path, *failing)


def _key(place: tuple[bytes, int, bytes]) -> str:
    """A place in the index, opaque."""
    parts = [place[0].decode("latin-1"), place[1], place[2].decode("latin-1")]
    return base64.urlsafe_b64encode(json.dumps(parts, ensure_ascii=False).encode("latin-1")).decode().rstrip("=")


def _place(key: str) -> tuple[bytes, int, bytes]:
    try:
        text = base64.b64decode(key.encode() + b"=" * (-len(key) % 4), altchars=b"-_", validate=True)
        order, directory, name = json.loads(text.decode("latin-1"))
        if type(directory) is not int or not 0 <= directory <= BIGGEST:
            raise ValueError("no id")
        return order.encode("latin-1"), directory, name.encode("latin-1")
    except (ValueError, TypeError, AttributeError, binascii.Error, RecursionError):
        raise Problem(422, "after is no `next` of this list", field="after") from None
