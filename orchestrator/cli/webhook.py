"""`webhook …`."""

from __future__ import annotations

from typing import Any

import click

from db import tenants, webhooks
from db.audit import CLI
from db.engine import reading, write
from db.types import UsageError
from orchestrator import change
from orchestrator.cli.common import database, json_option, print_json, refuse_unknown_state, settings_of, state_option
from orchestrator.documents import webhook_document


@click.group()
def webhook() -> None:
    """Webhooks: who is told of a tenant's ended scans. Requests are signed as Standard Webhooks has it.

    \b
    Example: strandline webhook set notes https://example.com/hook
    """


@webhook.command("set")
@click.argument("name")
@click.argument("url")
@state_option
@json_option
def set_(name: str, url: str, state: str | None, as_json: bool) -> None:
    """Tell each scan of tenant NAME that ends from now on to URL. The secret that signs is a new one, shown once.

    \b
    Example: strandline webhook set notes https://example.com/hook
    """
    settings = settings_of(state)
    refuse_unknown_state(settings)
    with database(settings) as engine:
        made = write(engine, change.set_webhook, CLI, name, url, settings)
    _show(webhook_document(made, webhooks.NOTHING, secret=True), as_json)


@webhook.command()
@click.argument("name")
@state_option
@json_option
def show(name: str, state: str | None, as_json: bool) -> None:
    """Who is told of tenant NAME, how many ended scans still are to be, and what was tried for the first of them.

    \b
    Example: strandline webhook show notes
    """
    settings = settings_of(state)
    refuse_unknown_state(settings)
    with database(settings) as engine, reading(engine) as connection:
        tenant = tenants.get(connection, name)
        found, waiting = webhooks.get(connection, tenant.id), webhooks.waiting(connection, tenant.id)
    if found is None:
        raise UsageError(f"tenant {name!r} has no webhook; `strandline webhook set` gives it one")
    _show(webhook_document(found, waiting), as_json)


@webhook.command()
@click.argument("name")
@state_option
def remove(name: str, state: str | None) -> None:
    """Tell nobody of tenant NAME any more, also not what is still to be told.

    \b
    Example: strandline webhook remove notes
    """
    settings = settings_of(state)
    refuse_unknown_state(settings)
    with database(settings) as engine:
        write(engine, change.remove_webhook, CLI, name)
    click.echo(f"nobody is told of {name}")


def _show(document: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(document)
        return
    for key, value in document.items():
        click.echo(f"{key:<17}{'-' if value is None else value}")
