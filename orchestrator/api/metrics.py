"""`GET /metrics`, for Prometheus."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from orchestrator.metrics import Exporter


def router(exporter: Exporter) -> APIRouter:
    """The route. It is answered in a thread, since it may wait for a part that hangs."""
    found = APIRouter()

    @found.get("/metrics", response_class=Response, summary="Metrics of the cluster, for Prometheus")
    def metrics(request: Request) -> Response:
        body, content_type = exporter.exposition(request.headers.get("accept", ""))
        # Not media_type: to that a second charset would be added.
        return Response(body, headers={"Content-Type": content_type})

    return found
