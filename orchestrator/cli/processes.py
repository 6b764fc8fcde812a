"""`worker`, `beat`, `api`, `flower`, `migrate`: what containers run, on a configured database and Redis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from db import row_security, schema
from db.engine import connect, write
from db.types import UsageError
from orchestrator.api.listening import listen
from orchestrator.cli.common import settings_of
from orchestrator.stack import flower as stack_flower
from orchestrator.stack import roles
from orchestrator.stack.embedded import default_workers, url_of
from tasks.app import QUEUES, App, make_app
from tasks.redis import policy
from tasks.redis.connection import Address
from tasks.settings import Settings

LEVELS = click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"])


def _cluster(**given: Any) -> Settings:
    settings = settings_of(None, **given)
    missing = [
        f"STRANDLINE_{name.upper()}" for name in ("database_url", "redis_url") if not getattr(settings, name)
    ]  # fmt: skip
    if missing:
        raise UsageError(f"{' and '.join(missing)} must be set for this command; `strandline up` needs neither")
    return settings


def _app(settings: Settings) -> App:
    """The app, once Redis answers and may be used; that is waited for, as Celery would."""
    address, app = Address.of(settings), make_app(settings)
    app.runtime.health.begin()
    with address.client() as client:
        policy.await_fit(client, address, meanwhile=app.runtime.health.alive)
    return app


def _require_schema(settings: Settings, meanwhile: Callable[[], None] | None = None) -> None:
    """`meanwhile`: what to do while a database that is away is waited for; none: it is not."""
    engine = connect(settings.database_url)
    try:
        if meanwhile is not None:
            schema.await_answer(engine, meanwhile)
        schema.require_current(engine)
    finally:
        engine.dispose()


@click.command()
@click.option("--workers", type=click.IntRange(1, 256), help="Processes of the pool (default: one a processor).")
@click.option("--queues", help=f"Queues to take from, separated by commas (default: {','.join(QUEUES)}).")
@click.option("--level", type=LEVELS, default="INFO", show_default=True, help="Least level that is logged.")
def worker(workers: int | None, queues: str | None, level: str) -> None:
    """Run a worker until TERM.

    \b
    Example: strandline worker --workers 4 --queues control,bulk
    """
    settings = _cluster(workers=workers)
    unknown = [name for name in (queues or "").split(",") if name and name not in QUEUES]
    if unknown:
        raise UsageError(f"unknown queue {unknown[0]!r}: use {', '.join(QUEUES)}")
    app = _app(settings)
    _require_schema(settings, meanwhile=app.runtime.health.alive)
    roles.preload()
    roles.worker(app, processes=default_workers(settings), serving=True, level=level, queues=queues)


@click.command()
@click.option("--level", type=LEVELS, default="INFO", show_default=True, help="Least level that is logged.")
def beat(level: str) -> None:
    """Run beat, which sends a tick every STRANDLINE_TICK_S seconds, until TERM.

    \b
    Example: strandline beat
    """
    roles.beat(_app(_cluster()), level=level)


@click.command()
@click.option("--host", help="Address to listen on (default: STRANDLINE_API_HOST).")
@click.option("--port", type=click.IntRange(1, 65535), help="Port to listen on (default: STRANDLINE_API_PORT).")
@click.option("--level", type=LEVELS, default="INFO", show_default=True, help="Least level that is logged.")
def api(host: str | None, port: int | None, level: str) -> None:
    """Run the HTTP API until TERM. It starts without Redis, and refuses another schema than its own.

    \b
    Example: strandline api --port 8080
    """
    settings = _cluster(api_host=host, api_port=port)
    _require_schema(settings)
    listening = listen(settings.api_host, settings.api_port, settings.api_tokens)
    click.echo(f"API: {url_of(listening)}", err=True)
    roles.api(make_app(settings), listening, level=level)


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(1, 65535), default=5555, show_default=True, help="Port to listen on.")
def flower(host: str, port: int) -> None:
    """Run Flower until TERM. Who may see it, and whether it only shows, say STRANDLINE_FLOWER_… variables.

    \b
    Example: STRANDLINE_FLOWER_AUTH=ops:password strandline flower --host 0.0.0.0
    """
    settings = _cluster()
    stack_flower.check(settings, host)
    stack_flower.store(settings)
    stack_flower.run(_app(settings), host=host, port=port)


@click.command()
@click.option("--wait", is_flag=True, help="Change nothing: wait until another `migrate` has done it, then exit 0.")
def migrate(wait: bool) -> None:
    """Bring the schema of STRANDLINE_DATABASE_URL up to date; does nothing where it is.

    \b
    Example: STRANDLINE_DATABASE_URL=postgresql+psycopg://… strandline migrate
    """
    settings = settings_of(None)
    if not settings.database_url:
        raise UsageError("STRANDLINE_DATABASE_URL must be set for this command; `strandline up` migrates its own")
    engine = connect(settings.database_url)
    try:
        if wait:
            schema.await_current(engine, lambda why: click.echo(f"waiting: {why}", err=True))
            return
        changed = schema.migrate(engine)
        if engine.dialect.name == "postgresql" and not write(engine, row_security.prepare):
            click.echo(
                f"row-level security is off: this user may not make the role {row_security.ROLE}, and has none; let an "
                f"administrator say CREATE ROLE {row_security.ROLE} NOLOGIN, grant it to this user, and migrate again",
                err=True,
            )
    finally:
        engine.dispose()
    click.echo(f"schema {schema.HEAD}: {'brought up to date' if changed else 'up to date already'}")
