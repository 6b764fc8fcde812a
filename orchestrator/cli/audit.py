"""`audit`."""

from __future__ import annotations

import click

from db import audit as log
from db.engine import reading
from orchestrator.cli.common import (
    database,
    json_option,
    print_json,
    refuse_unknown_state,
    settings_of,
    shown,
    state_option,
)
from orchestrator.documents import timestamp


@click.command()
@click.argument("name", required=False)
@click.option("--limit", type=click.IntRange(1, 100_000), default=50, show_default=True, help="How many.")
@state_option
@json_option
def audit(name: str | None, limit: int, state: str | None, as_json: bool) -> None:
    """Who changed or asked for what of tenant NAME, or of all, newest first. `cli` is a command, `local` the API
    without tokens; a token is told by the beginning of its SHA-256.

    \b
    Example: strandline audit notes --limit 5
    """
    settings = settings_of(state)
    refuse_unknown_state(settings)
    with database(settings) as engine, reading(engine) as connection:
        found = log.newest(connection, limit) if name is None else log.newest_of(connection, name, limit)
    for one in found:
        if as_json:
            print_json({"at": timestamp(one.at), "by": one.caller, "action": one.action, "tenant": one.tenant,
                        **one.details})  # fmt: skip
        else:
            details = " ".join(f"{key}={value}" for key, value in one.details.items())
            click.echo(f"{timestamp(one.at)}  {one.caller:<12}  {one.action}  {one.tenant or '-'}  {shown(details)}")
