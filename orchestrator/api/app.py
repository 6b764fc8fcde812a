"""The API of one process, put together."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI
from fastapi.responses import HTMLResponse

from db.engine import connect
from orchestrator.api import breaker, docs, feed, health, metrics, page, problems, scans, tenants, webhook
from orchestrator.api.access import Access
from orchestrator.api.coordination import Coordination
from orchestrator.api.direct import Direct
from orchestrator.api.enqueue import Enqueuing
from orchestrator.api.events import Pages
from orchestrator.api.hub import Hub
from orchestrator.api.limits import Buckets, Guard
from orchestrator.api.service import Service
from orchestrator.api.tokens import parse_tokens
from orchestrator.api.work import Together
from orchestrator.metrics import Exporter
from tasks.app import App
from tasks.redis.connection import Address
from tasks.settings import Settings

ROUTERS = (tenants.router, scans.router, feed.router, breaker.router, webhook.router, health.router, page.router)
ABOUT = (
    "Strandline keeps an exact, live index of many tenants' file trees, and publishes what changed as a feed that "
    "misses nothing. Ask with `Authorization: Bearer TOKEN`, where tokens are configured."
)


def make_api(settings: Settings, app: App) -> FastAPI:
    """The API on a database and a Redis that are configured. Raises UsageError for tokens that cannot be used."""
    tokens = parse_tokens(settings.api_tokens)
    access, redis = Access(settings.database_url), Coordination(app)
    watched = connect(settings.database_url)  # of its own: a scrape neither waits for requests nor keeps them waiting
    exporter_client = Address.of(settings).client()
    exporter = Exporter(watched, exporter_client, app.runtime.keys, settings.metrics_tenants)
    hub = Hub(access, redis, settings.api_streams)
    enqueuing = Together(Enqueuing(access, redis).ask_all, lambda one: one.caller)

    @contextlib.asynccontextmanager
    async def lifespan(_api: FastAPI) -> AsyncIterator[None]:
        looking = asyncio.create_task(hub.run())
        try:
            yield
        finally:
            hub.close()
            looking.cancel()
            access.close()
            redis.close()
            watched.dispose()
            exporter_client.close()

    api = FastAPI(
        title="Strandline", description=ABOUT, lifespan=lifespan, docs_url=None, redoc_url=None,
        redirect_slashes=False,
    )  # fmt: skip
    api.state.tokens, api.state.buckets = tokens, Buckets(settings.api_rate)
    api.state.service, api.state.pages = Service(settings, access, redis, hub, enqueuing), Pages(access)
    api.add_middleware(Direct)
    api.add_middleware(
        Guard, body_bytes=settings.api_body_bytes, local=not tokens, host=settings.api_host
    )  # fmt: skip
    problems.install(api)
    for router in (*ROUTERS, metrics.router(exporter)):
        api.include_router(router)
    _document(api)
    return api


def _document(api: FastAPI) -> None:
    def openapi() -> dict[str, Any]:
        return docs.document(api)

    api.openapi = openapi  # type: ignore[method-assign]

    @api.get("/docs", include_in_schema=False, response_class=HTMLResponse)
    async def documented() -> HTMLResponse:
        return HTMLResponse(docs.page(api))
