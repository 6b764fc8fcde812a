"""The route that is asked most, past FastAPI: what that does for each request costs a fifth of the whole."""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import StringConstraints, TypeAdapter, ValidationError
from starlette.types import ASGIApp, Receive, Scope, Send

from orchestrator.api import patterns
from orchestrator.api.limits import admitted
from orchestrator.api.models import ScanRequest
from orchestrator.api.problems import Problem, invalid, problem_of
from orchestrator.api.scans import request_scan

_PATH = re.compile(r"/v1/tenants/([^/]+)/scans")
_KEY = TypeAdapter(Annotated[str, StringConstraints(pattern=patterns.KEY)])
_BODY = TypeAdapter(ScanRequest | None)


class Direct:
    """ASGI: reads the requests for scans itself, as FastAPI would, which documents them; passes on all others."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        asked = _PATH.fullmatch(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if asked is None:
            await self._app(scope, receive, send)
            return
        try:
            response = await _read_and_ask(Request(scope, receive), asked[1])
        except Exception as error:  # noqa: BLE001 - each error is an answer
            response = problem_of(error).response()
        await response(scope, receive, send)


async def _read_and_ask(request: Request, name: str) -> Response:
    caller, service, sent = await admitted(request), request.app.state.service, await request.body()
    try:
        body = _BODY.validate_json(sent) if sent else None
    except ValidationError as error:
        raise _invalid("body", error) from None
    key = request.headers.get("idempotency-key")
    try:
        key = None if key is None else _KEY.validate_python(key)
    except ValidationError as error:
        raise _invalid("header", error, "idempotency-key") from None
    return await request_scan(service, caller, name, body, key)


def _invalid(where: str, error: ValidationError, *field: str) -> Problem:
    """The same as from FastAPI."""
    found = error.errors(include_url=False, include_input=False)
    return invalid(RequestValidationError([one | {"loc": (where, *field, *one["loc"])} for one in found]))
