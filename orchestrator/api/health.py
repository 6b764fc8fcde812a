"""/livez, /readyz: no token is asked for, and nothing is told but whether this process can serve."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response

from db import clock
from orchestrator.api.hub import HUB
from orchestrator.api.models import Alive, Ready
from orchestrator.api.problems import problem_of
from orchestrator.api.service import Here, answer
from orchestrator.api.work import Desk

router = APIRouter(tags=["health"])
# Of its own: where all others wait for a database, this must say so.
probes = Desk(4, "probes")


@router.get("/livez", response_model=Alive)
async def livez() -> Response:
    """Does this process answer? Whatever it depends on."""
    return answer({"status": "alive"})


@router.get("/readyz", response_model=Ready,
            responses={503: {"model": Ready, "description": "not now"}})  # fmt: skip
async def readyz(service: Here) -> Response:
    """Can requests be served? Not without the database. Redis is told of: without it most can."""

    def database() -> None:
        with service.access.read(HUB) as connection:
            clock.now(connection)

    found = await asyncio.gather(
        _said(database), _said(lambda: service.redis.ask(lambda client: client.ping()))
    )  # fmt: skip
    status = "draining" if service.hub.is_closing else "ready" if found[0] == "ok" else "not ready"
    document = {"status": status, "database": found[0], "redis": found[1]}
    return answer(document) if status == "ready" else answer(document, 503, {"Retry-After": "1"})


async def _said(work: Any) -> str:
    try:
        await probes.do(work)
    except Exception as error:  # noqa: BLE001 - it is told
        return problem_of(error).detail
    return "ok"
