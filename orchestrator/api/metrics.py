"""`GET /metrics`, for Prometheus."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request, Response

from orchestrator.api.auth import authenticated, require_admin
from orchestrator.metrics import Exporter


async def _admin(request: Request) -> None:
    """Raise a problem for whoever may not see the whole of the cluster. (Without any token all may.)"""
    require_admin(authenticated(request), "see the metrics of all tenants")


def router(exporter: Exporter) -> APIRouter:
    """The route. It is answered in a thread, since it may wait for a part that hangs."""
    found = APIRouter()

    @found.get("/metrics", response_class=Response, summary="Metrics of the cluster, for Prometheus",
               dependencies=[Depends(_admin)])  # fmt: skip
    def metrics(request: Request) -> Response:
        body, content_type = exporter.exposition(request.headers.get("accept", ""))
        # Not media_type: to that a second charset would be added.
        return Response(body, headers={"Content-Type": content_type})

    return found
