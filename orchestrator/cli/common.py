"""What commands share: options, the way to the database, printing."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click
import redis
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from db import schema
from db.engine import connect
from db.types import StrandlineError, UsageError
from orchestrator.cli.hints import given
from orchestrator.progress import Reader
from orchestrator.stack.state import StateFolder, refusal
from tasks import settings as all_settings
from tasks.core.escapes import shown as shown
from tasks.redis.connection import Address
from tasks.redis.keys import Keys
from tasks.settings import Settings

Command = Callable[..., Any]


def state_option(command: Command) -> Command:
    """--state DIR"""
    return click.option("--state", metavar="DIR", callback=given, help="Folder of the embedded stack.")(command)


def json_option(command: Command) -> Command:
    """--json"""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON: a document, or an object a line.")(command)


def settings_of(state: str | None, **given: Any) -> Settings:
    """The settings of a command: its options, then the environment, then the defaults."""
    return all_settings.load(state_dir=state, **given)


@contextmanager
def database(settings: Settings) -> Iterator[Engine]:
    """The database that a command talks to, its schema checked."""
    url = settings.database_url
    if not url:
        state = StateFolder(settings.state_dir)
        running = state.running()
        url = running.database_url if running is not None else state.database_url
    engine = connect(url)
    try:
        if engine.dialect.name == "sqlite":
            schema.migrate(engine)
        else:
            schema.require_current(engine)
        with spoken(engine):
            yield engine
    finally:
        engine.dispose()


@contextmanager
def coordination(settings: Settings) -> Iterator[tuple[redis.Redis, Keys]]:
    """The Redis that a command talks to. Raises UsageError where there is none, StrandlineError where it fails."""
    url = redis_url_of(settings)
    if url is None:
        raise UsageError("no stack runs, and the breaker of an embedded one ends with it; see --state")
    client = Address.of(settings.model_copy(update={"redis_url": url})).client()
    try:
        yield client, Keys(settings.redis_prefix)
    except redis.RedisError as error:
        raise StrandlineError(f"Redis does not do as asked: {error}; see STRANDLINE_REDIS_URL") from error
    finally:
        client.close()


def redis_url_of(settings: Settings) -> str | None:
    """The Redis that is configured, or that of the stack that runs, if one does."""
    if settings.redis_url:
        return settings.redis_url
    running = StateFolder(settings.state_dir).running()
    return None if running is None else running.redis_url


@contextmanager
def progress_reader(settings: Settings, engine: Engine) -> Iterator[Reader]:
    """A reader of the progress of running scans; where no Redis is to be had, of what the database knows of it."""
    url = redis_url_of(settings)
    client = Address.of(settings.model_copy(update={"redis_url": url})).client() if url else None
    try:
        yield Reader(engine, client, Keys(settings.redis_prefix))
    finally:
        if client is not None:
            client.close()


@contextmanager
def spoken(engine: Engine) -> Iterator[None]:
    """The driver's errors become sentences."""
    try:
        yield
    except DBAPIError as error:
        raise schema.unusable(engine, error) from error


def print_json(document: Any) -> None:
    """One JSON document on a line of its own."""
    sys.stdout.write(json.dumps(document, ensure_ascii=False) + "\n")


def escaped(path: bytes) -> str:
    """A path for a terminal: control characters and bytes that are not UTF-8 as escapes."""
    return shown(path.decode("utf-8", "backslashreplace"))


def path_bytes(path: str) -> bytes:
    """The exact bytes of an argument."""
    return path.encode(sys.getfilesystemencoding(), "surrogateescape")


def refuse_unknown_state(settings: Settings) -> None:
    """A command that only reads must not make an empty state folder for a mistyped --state."""
    from pathlib import Path

    if settings.database_url:
        return
    folder = Path(settings.state_dir)
    try:
        is_known = (folder / "strandline.db").exists()
    except OSError as error:  # as of another user's
        raise UsageError(refusal(folder, error)) from error
    if not is_known:
        raise UsageError(f"nothing was ever scanned into {settings.state_dir}; see --state")
