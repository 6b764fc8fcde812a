"""Who sends a request."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import Request

from orchestrator.api.problems import Problem
from orchestrator.api.tokens import LOCAL, LONGEST, Caller, caller_of


def authenticated(request: Request) -> Caller:
    """Who sends a request. Raises a problem (401)."""
    known: Mapping[str, Caller] = request.app.state.tokens
    if not known:
        return LOCAL
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    caller = caller_of(token.strip(), known) if scheme.lower() == "bearer" and len(token) <= LONGEST else None
    if caller is None:
        raise Problem(401, "a bearer token is needed that this API knows", headers={"WWW-Authenticate": "Bearer"})
    return caller


def require_admin(caller: Caller, what: str) -> None:
    """Raise a problem (403) for anybody else; it tells nothing of what there is."""
    if not caller.is_admin:
        raise Problem(403, f"this token may not {what}")
