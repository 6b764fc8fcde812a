"""Every error as application/problem+json (RFC 9457), those of the framework too."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from redis import RedisError
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException

from db.failures import Failure, failure_of
from db.types import Conflict, CursorLost, DatabaseError, StrandlineError, Unknown, UsageError
from orchestrator.api import patterns

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 1


class Problem(Exception):
    """An answer that is an error: a status, a sentence, and for bad input the field."""

    def __init__(self, status: int, detail: str, *, field: str | None = None,
                 errors: list[dict[str, str]] | None = None,
                 headers: Mapping[str, str] | None = None) -> None:  # fmt: skip
        super().__init__(detail)
        self.status, self.detail, self.field, self.errors = status, detail, field, errors
        self.headers = dict(headers or {})
        if status in (429, 503):
            self.headers.setdefault("Retry-After", str(RETRY_AFTER_S))

    def document(self) -> dict[str, Any]:
        """As it is sent."""
        title = HTTPStatus(self.status).phrase
        found: dict[str, Any] = {
            "type": "about:blank", "title": title, "status": self.status, "detail": self.detail,
        }  # fmt: skip
        if self.field is not None:
            found["field"] = self.field
        if self.errors:
            found["errors"] = self.errors
        return found

    def response(self) -> Response:
        """The answer."""
        return Response(json.dumps(self.document(), ensure_ascii=False).encode("utf-8", "replace"), self.status,
                        self.headers, MEDIA_TYPE)  # fmt: skip


class Away(Problem):
    """Something that this depends on does not do as asked now (503)."""

    def __init__(self, detail: str) -> None:
        super().__init__(503, detail)


def not_found(what: str, name: str) -> Problem:
    """There is none, or it is somebody else's: nobody can tell which."""
    return Problem(404, f"there is no {what} {name!r}")


def problem_of(error: Exception) -> Problem:
    """What an error of ours or of a driver means to whoever asked."""
    match error:
        case Problem():
            return error
        case Unknown():
            return Problem(404, str(error).partition(";")[0])
        case Conflict():
            return Problem(409, str(error), field=error.field)
        case UsageError():
            return Problem(422, str(error), field=error.field)
        case CursorLost():
            return Problem(410, str(error))
        case DatabaseError():
            return Away("the database cannot be used now")
        case PoolTimeout():
            return Away("the database does not keep up")
        case RedisError():
            return Away("Redis does not do as asked")
        case DBAPIError() if failure_of(error) is not Failure.OURS:
            return Away("the database does not do as asked")
        case StrandlineError():
            return Problem(409, str(error))
    log.error("an answer failed", exc_info=error)
    return Problem(500, "something is wrong in here; the log of the API says what")


def install(api: FastAPI) -> None:
    """Answer all errors of an app so."""

    async def answer(_request: Request, error: Exception) -> Response:
        return problem_of(error).response()

    async def of_framework(_request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if isinstance(error.__cause__, Problem):  # raised while the body was read
            return error.__cause__.response()
        return Problem(error.status_code, str(error.detail), headers=error.headers).response()

    async def of_input(_request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return invalid(error).response()

    for kind in (Problem, StrandlineError, DBAPIError, PoolTimeout, RedisError, Exception):
        api.add_exception_handler(kind, answer)
    api.add_exception_handler(HTTPException, of_framework)
    api.add_exception_handler(RequestValidationError, of_input)


def invalid(error: RequestValidationError) -> Problem:
    """Which fields cannot be used, and why; the values themselves are not sent back."""
    found = [{"field": _field(one["loc"]), "detail": _in_words(one)} for one in error.errors()]
    first = found[0]
    return Problem(422, f"{first['field']}: {first['detail']}", field=first["field"], errors=found)


def _in_words(error: Mapping[str, Any]) -> str:
    """An expression is for programs."""
    return patterns.IN_WORDS.get(error.get("ctx", {}).get("pattern"), str(error["msg"]))


def _field(location: tuple[int | str, ...]) -> str:
    """The name, without the word for where it stands (body, query, path, header)."""
    named = [str(part) for part in location[1:]] if len(location) > 1 else [str(location[0])]
    return ".".join(named)
