"""The HTTP API for tests: a real server, in a thread of this process, on a database and a Redis that are given.

with serving(database_url, redis_url, STRANDLINE_API_RATE="5") as api:
    api.get("/v1/tenants").json()
    api.get("/v1/tenants", token="nobody's")
"""

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from sqlalchemy import Engine

from db import changes, schema
from db.engine import connect, writing
from orchestrator.api.app import make_api
from orchestrator.api.listening import listen
from orchestrator.api.serve import Server
from orchestrator.stack.embedded import url_of
from tasks import settings as all_settings
from tasks.app import make_app
from tests.servers import postgres_kinds
from tests.storage import add_tenant, directory, end_scan, file, start_scan, write_tree
from tests.waiting import wait_until

ADMIN, ONE, OTHER = "the admin's token", "one tenant's token", "another tenant's token"


def hashed(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


TOKENS = json.dumps({hashed(ADMIN): "admin", hashed(ONE): ["one", "removed"], hashed(OTHER): ["other"]})


@dataclass
class Api:
    """A server, and ways to ask it."""

    url: str
    app: FastAPI
    engine: Engine
    client: httpx.Client = field(default_factory=lambda: httpx.Client(timeout=20))

    def ask(self, method: str, path: str, token: str | None = ADMIN, **more: Any) -> httpx.Response:
        headers = ({"Authorization": f"Bearer {token}"} if token else {}) | more.pop("headers", {})
        return self.client.request(method, self.url + path, headers=headers, **more)

    def get(self, path: str, token: str | None = ADMIN, **more: Any) -> httpx.Response:
        return self.ask("GET", path, token, **more)

    def post(self, path: str, token: str | None = ADMIN, **more: Any) -> httpx.Response:
        return self.ask("POST", path, token, **more)

    @contextlib.contextmanager
    def events(self, path: str, token: str | None = ADMIN, last: str | None = None) -> Iterator["Events"]:
        headers = {"Accept": "text/event-stream"} | ({"Authorization": f"Bearer {token}"} if token else {})
        headers |= {"Last-Event-ID": last} if last else {}
        with (
            httpx.Client(timeout=30) as client,
            client.stream("GET", self.url + path, headers=headers) as response,
        ):
            assert response.status_code == 200, response.read()
            yield Events(response.iter_lines())


@dataclass
class Events:
    """A stream as it comes: (event, id, document)."""

    lines: Iterator[str]

    def __iter__(self) -> Iterator[tuple[str, str | None, Any]]:
        found: dict[str, str] = {}
        for line in self.lines:
            name, _, value = line.partition(": ")
            if line:
                found[name] = value
            elif "data" in found:
                yield found.get("event", ""), found.get("id"), json.loads(found["data"])
                found = {}
            else:
                found = {}

    def next(self) -> tuple[str, str | None, Any]:
        return next(iter(self))


@contextlib.contextmanager
def serving(database_url: str, redis_url: str, port: int = 0, **settings: str) -> Iterator[Api]:
    environment = {
        "STRANDLINE_DATABASE_URL": database_url, "STRANDLINE_REDIS_URL": redis_url,
        "STRANDLINE_API_TOKENS": TOKENS, "STRANDLINE_API_RATE": "100000",
    }  # fmt: skip
    chosen = all_settings.load(environment | settings)
    engine = connect(database_url)
    listening = listen("127.0.0.1", port, chosen.api_tokens)
    app = make_api(chosen, make_app(chosen))
    config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="on", ws="none", loop="asyncio",
                            timeout_graceful_shutdown=5)  # fmt: skip
    server = Server(config, app.state.service.hub)
    thread = threading.Thread(target=server.run, args=([listening],), name="api")
    thread.start()
    api = Api(url_of(listening), app, engine)
    try:
        wait_until(lambda: server.started, 20, "the API serves")
        yield api
    finally:
        api.client.close()
        server.should_exit = True
        thread.join(20)
        engine.dispose()
        assert not thread.is_alive(), "the API ends"


def migrated(url: str) -> str:
    engine = connect(url)
    schema.migrate(engine)
    engine.dispose()
    return url


def scanned(engine: Engine, name: str, files: int = 3) -> str:
    """A tenant with one scan that found some files; the scan's id."""
    tenant = add_tenant(engine, name)
    scan = start_scan(engine, tenant)
    names = [b"%03d \xff" % number if number == 1 else b"%03d" % number for number in range(files)]
    write_tree(engine, new_directories=[directory(tenant.id, tenant.id * 1000, b"", None, files=files)],
               files=[file(tenant.id, tenant.id * 1000, one) for one in names])  # fmt: skip
    with writing(engine) as connection:
        changes.write(connection, [
            (tenant.id, scan.fence, (1 << 32) + number, tenant.id * 1000, one, "added", one, "file", 1, bytes(32),
             "sha256", None, None)
            for number, one in enumerate(names)
        ])  # fmt: skip
    end_scan(engine, scan)
    return scan.id


@pytest.fixture(params=["sqlite", "postgres"])
def api(request: pytest.FixtureRequest, tmp_path: Path, redis_url: str) -> Iterator[Api]:
    """On each database, for a test alone."""
    if request.param == "sqlite":
        with serving(migrated(f"sqlite:///{tmp_path}/test.sqlite"), redis_url) as api:
            yield api
    else:
        servers_of = request.getfixturevalue("_postgres_servers")
        with servers_of(postgres_kinds()[-1]).database() as url, serving(migrated(url), redis_url) as api:
            yield api
