"""What is refused before anybody looks at it: too large a body, too many requests, and on loopback what a page of
somebody else makes a browser send.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import anyio
from fastapi import Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.api.auth import authenticated
from orchestrator.api.problems import Problem
from orchestrator.api.tokens import Caller, is_loopback

# A bucket holds so many seconds' worth of requests.
BURST_S = 2.0
# Of a body that is refused so much is still taken in.
DISCARDED_BYTES = 8 << 20
DISCARDED_FOR_S = 1.5
BODIES = ("POST", "PUT", "PATCH")


class Buckets:
    """A bucket of requests a caller, which fills at a rate. Callers are as many as there are tokens."""

    def __init__(self, rate: float, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._most, self._clock_s = rate, max(1.0, rate * BURST_S), clock_s
        self._levels: dict[str, tuple[float, float]] = {}

    def take(self, caller: str) -> float:
        """Take a request out; 0, or in how many seconds there will be one."""
        now_s = self._clock_s()
        level, at_s = self._levels.get(caller, (self._most, now_s))
        level = min(self._most, level + (now_s - at_s) * self._rate)
        is_there = level >= 1.0
        self._levels[caller] = (level - 1.0 if is_there else level), now_s
        return 0.0 if is_there else (1.0 - level) / self._rate

    def require(self, caller: Caller) -> None:
        """Raise a problem (429) where there is none left."""
        wait_s = self.take(caller.name)
        if wait_s:
            raise Problem(
                429, f"more than {self._rate:g} requests a second", headers={"Retry-After": str(math.ceil(wait_s))}
            )


class Guard:
    """ASGI: refuses by the head of a request, and a body as soon as it is too long. `local`: nobody needs a token."""

    def __init__(self, app: ASGIApp, *, body_bytes: int, local: bool, host: str) -> None:
        self._app, self._body_bytes, self._local, self._host = app, body_bytes, local, host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, read, too_large = Headers(scope=scope), 0, False

        async def counted() -> Message:
            nonlocal read, too_large
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._body_bytes:
                too_large = True
                raise self._too_large()
            return message

        async def answered(message: Message) -> None:
            nonlocal too_large
            if too_large:
                too_large = False
                await _discard(receive)
            await send(message)

        try:
            self._check(scope, headers)
            await self._app(scope, counted, answered)
        except Problem as problem:
            if problem.status == 413:
                await _discard(receive)
            await problem.response()(scope, receive, send)

    def _check(self, scope: Scope, headers: Headers) -> None:
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self._body_bytes:
            raise self._too_large()
        has_body = length != "0" or "transfer-encoding" in headers
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if scope["method"] in BODIES and has_body and kind != "application/json":
            raise Problem(415, "a body must be application/json")
        if self._local:
            self._require_own(headers)

    def _too_large(self) -> Problem:
        return Problem(413, f"a body may have {self._body_bytes} bytes", headers={"Connection": "close"})

    def _require_own(self, headers: Headers) -> None:
        """A page of somebody else in a browser on this machine must not speak for its user: neither under a name that
        its owner lets point here, nor from its own origin.
        """
        host = _hostname(f"//{headers.get('host', '')}")
        if not (is_loopback(host) or host == self._host):
            raise Problem(421, "the Host header names another server; ask for localhost or 127.0.0.1")
        origin = headers.get("origin")
        if (origin is not None and urlsplit(origin).netloc != headers.get("host")) or headers.get(
            "sec-fetch-site", "none"
        ) == "cross-site":
            raise Problem(403, "a page of another origin may not ask this API")


async def _discard(receive: Receive) -> None:
    """Read what is still sent, up to a limit: who is cut off while he sends does not hear the answer."""
    read = 0
    with anyio.move_on_after(DISCARDED_FOR_S):
        while read < DISCARDED_BYTES:
            message = await receive()
            read += len(message.get("body", b""))
            if not message.get("more_body", False):
                return


def _hostname(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


async def admitted(request: Request) -> Caller:
    """Who asks, has not asked too often, and asks for nothing that there is not: for a route to depend on."""
    caller = authenticated(request)
    request.app.state.buckets.require(caller)
    _require_known_parameters(request)
    return caller


def _require_known_parameters(request: Request) -> None:
    """What is mistyped must not be passed over: `?sinse=` would be answered from the beginning."""
    # (What is read past FastAPI is at no route yet, and has no parameters.)
    route = request.scope.get("route")
    known = sorted(one.alias for one in route.dependant.query_params) if route is not None else []
    for name in request.query_params:
        if name not in known:
            there = f"there are {', '.join(known)}" if known else "there are none here"
            raise Problem(422, f"unknown parameter {name[:100]!r}; {there}", field=name[:100])
