"""The page at `/`: what a person wants to know at night, made here and shown as it is; its script only asks again."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from datetime import datetime
from importlib import resources
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response
from jinja2 import Environment, PackageLoader, StrictUndefined
from sqlalchemy import Connection

from db import glance, overview, progress
from db.clock import now
from orchestrator import asking
from orchestrator.amounts import human, span
from orchestrator.api.feed import explanation
from orchestrator.api.problems import Away, Problem
from orchestrator.api.service import Here, Service, exact, scan_of
from orchestrator.api.tokens import LOCAL, LONGEST, Caller, caller_of
from orchestrator.api.work import blocking, files
from orchestrator.progress import progress_in
from tasks.redis import presence

router = APIRouter(include_in_schema=False)
TENANTS, SCANS, SUSPECTS = 50, 20, 20
FOLDER = "page_files"
MEDIA_TYPES = {"page.css": "text/css", "page.js": "text/javascript"}
# Nothing from elsewhere, nothing inline, in nobody's frame.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # without one a browser does not say where a form comes from
    "Cache-Control": "no-store",
}
_templates = Environment(
    loader=PackageLoader("orchestrator.api", FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
    lstrip_blocks=True,
)  # fmt: skip
_templates.filters |= {"human": human, "span": span, "count": lambda number: "–" if number is None else f"{number:,}"}


async def _viewer(request: Request) -> Caller:
    """Who looks: a browser sends a token as the password of any user. Raises a problem (401)."""
    known: Mapping[str, Caller] = request.app.state.tokens
    if not known:
        return LOCAL
    caller = caller_of(_password(request.headers.get("authorization", "")), known)
    if caller is None:
        asks = {"WWW-Authenticate": 'Basic realm="Strandline: a token as password", charset="UTF-8"'}
        raise Problem(401, "a token that this API knows is needed, as password; the user does not matter", headers=asks)
    request.app.state.buckets.require(caller)
    return caller


def _password(authorization: str) -> str:
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() != "basic" or len(value) > 2 * LONGEST:
        return ""
    try:
        return base64.b64decode(value, validate=True).decode().partition(":")[2]
    except (binascii.Error, UnicodeDecodeError):
        return ""


Viewer = Annotated[Caller, Depends(_viewer)]
After = Annotated[str, Query(max_length=100)]


@router.get("/")
@blocking()
def page(service: Here, caller: Viewer, after: After = "") -> Response:
    """All of it."""
    return _shown("page.html", look=_look(service, caller, after))


@router.get("/live")
@blocking()
def live(service: Here, caller: Viewer, after: After = "") -> Response:
    """What changes by itself."""
    return _shown("live.html", look=_look(service, caller, after))


@router.get("/explained")
@blocking(files)
def explain(request: Request, service: Here, caller: Viewer, tenant: After = "") -> Response:
    """Why a path was or was not hashed, skipped or reported."""
    try:
        told = explanation(service, caller, tenant.strip(), exact(request, "path"))
    except Problem as problem:
        told = {"tenant": tenant, "path": "", "status": "not explained", "explanation": problem.detail}
    return _shown("explained.html", told=told)


@router.post("/confirm/{scan}")
@blocking()
def confirm(request: Request, service: Here, caller: Viewer, scan: str) -> Response:
    """The button of a suspect scan."""
    _require_own_form(request)

    def ask(connection: Connection) -> None:
        suspect, tenant = scan_of(connection, caller, scan)
        asking.confirm(connection, caller.name, suspect, tenant)

    service.access.write(caller, ask)
    service.redis.nudge()
    return Response(status_code=303, headers={"Location": "/#scans"})


@router.get("/files/{name}")
async def file(name: str) -> Response:
    """Style and script."""
    if name not in MEDIA_TYPES:
        raise Problem(404, f"there is no file {name!r}")
    content = (resources.files("orchestrator.api") / FOLDER / name).read_bytes()
    return Response(content, headers={**HEADERS, "Cache-Control": "max-age=300"}, media_type=MEDIA_TYPES[name])


def _require_own_form(request: Request) -> None:
    """Raise a problem (403) for what a page of somebody else made the browser send."""
    origin, host = request.headers.get("origin", ""), request.headers.get("host", "")
    if urlsplit(origin).netloc != host or request.headers.get("sec-fetch-site", "same-origin") != "same-origin":
        raise Problem(403, "this is for the page's own button")


def _look(service: Service, caller: Caller, after: str) -> dict[str, Any]:
    """What is to be seen, for whom; what Redis does not tell is left out, and said."""
    workers, trouble = _workers(service) if caller.is_admin else ([], None)
    with service.access.read(caller) as connection:
        running = progress.running(connection, SCANS, of=caller.tenants)
    told = service.redis.told([one.scan_id for one in running])
    with service.access.read(caller) as connection:
        moment, seen = now(connection), progress_in(connection, running, told)
        tenants = glance.tenants_after(connection, after, TENANTS, caller.tenants)
        return {
            "at": moment.strftime("%H:%M:%S UTC"),
            "trouble": trouble,
            "after": after,
            "counts": overview.counts(connection) if caller.is_admin else None,
            "suspects": [(one, _ago(moment, one.finished_at))
                         for one in glance.suspects(connection, SUSPECTS, caller.tenants)],
            "running": [(one, seen[one.scan_id]) for one in running],
            "tenants": [_tenant(one, moment) for one in tenants],
            "next": tenants[-1].tenant if len(tenants) == TENANTS else None,
            "workers": workers,
        }  # fmt: skip


def _tenant(one: glance.Glance, moment: datetime) -> dict[str, Any]:
    age_s = None if one.complete_at is None else (moment - one.complete_at).total_seconds()
    late = one.enabled and (age_s is None or age_s > one.interval_s)
    return {**one._asdict(), "age": "never" if age_s is None else f"{span(max(0.0, age_s))} ago", "late": late}


def _ago(moment: datetime, then: datetime) -> str:
    return f"{span(max(0.0, (moment - then).total_seconds()))} ago"


def _workers(service: Service) -> tuple[list[dict[str, Any]], str | None]:
    try:
        seen = service.redis.ask(lambda client: presence.seen(client, service.redis.keys))
    except Away as away:
        return [], away.detail
    return [{"name": name, "slots": slots, "memory": memory} for name, (slots, memory) in seen.items()], None


def _shown(template: str, **values: Any) -> Response:
    return Response(_templates.get_template(template).render(values), headers=HEADERS, media_type="text/html")
