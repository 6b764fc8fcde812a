"""`breaker`, `quarantine`: what is not touched, since it failed too often or ended whoever touched it."""

from __future__ import annotations

from typing import Any

import click
from sqlalchemy import Connection

from db import audit, tenants
from db import quarantine as all_quarantined
from db.audit import CLI
from db.engine import reading, write
from db.tenants import Tenant
from db.types import UsageError
from orchestrator.cli.common import (
    coordination,
    database,
    escaped,
    json_option,
    path_bytes,
    print_json,
    refuse_unknown_state,
    settings_of,
    shown,
    state_option,
)
from orchestrator.documents import breaker_document, quarantine_document
from tasks.redis import breaker as all_breakers
from tasks.scan_shard import limits_of


@click.group()
def breaker() -> None:
    """What failed lately, and what is left alone for that.

    \b
    Example: strandline breaker list notes
    """


@breaker.command("list")
@click.argument("name", required=False)
@state_option
@json_option
def list_breakers(name: str | None, state: str | None, as_json: bool) -> None:
    """The entries of tenant NAME, or of all: open ones are left alone until the time that is shown.

    \b
    Example: strandline breaker list notes --json
    """
    settings = settings_of(state)
    refuse_unknown_state(settings)
    with database(settings) as engine, reading(engine) as connection:
        known = tenants.list_all(connection) if name is None else [tenants.get(connection, name)]
    with coordination(settings) as (client, keys):
        for tenant in known:
            entries, now = all_breakers.read(client, keys, tenant.id)
            for key, entry in sorted(entries.items(), key=lambda one: one[0].path):
                document = breaker_document(tenant.name, key, entry, now)
                if as_json:
                    print_json(document)
                else:
                    until = f" until {document['open_until']}" if document["state"] == "open" else ""
                    what = f"{document['covers']} {escaped(key.path)!r}"
                    click.echo(f"{tenant.name}  {document['state']}{until}  {what}: {shown(entry.error)}")


@breaker.command()
@click.argument("name")
@click.argument("path", required=False)
@state_option
def reset(name: str, path: str | None, state: str | None) -> None:
    """Let PATH of tenant NAME (or all of it) be tried again by the next scan. The root is the path "".

    \b
    Example: strandline breaker reset notes letters/draft.md
    """
    settings = settings_of(state)
    refuse_unknown_state(settings)
    with database(settings) as engine:
        with reading(engine) as connection:
            tenant = tenants.get(connection, name)
        given = None if path is None else relative(tenant, path)
        with coordination(settings) as (client, keys):
            count = all_breakers.reset(client, keys, tenant.id, given, limits_of(settings, tenant))
        if count:
            write(engine, _note_reset, name, given, count)
    if path is not None and not count:
        raise UsageError(f"the breaker of tenant {name!r} has no entry {path!r}; `strandline breaker list {name}`")
    click.echo(f"{count} entries of {name} are forgotten")


@click.group()
def quarantine() -> None:
    """What is not touched any more, since whoever did so died.

    \b
    Example: strandline quarantine list notes
    """


@quarantine.command("list")
@click.argument("name", required=False)
@state_option
@json_option
def list_quarantined(name: str | None, state: str | None, as_json: bool) -> None:
    """What is in quarantine of tenant NAME, or of all.

    \b
    Example: strandline quarantine list notes --json
    """
    settings = settings_of(state)
    refuse_unknown_state(settings)
    with database(settings) as engine, reading(engine) as connection:
        if name is None:
            found = all_quarantined.listed_of_all(connection)
        else:
            found = all_quarantined.listed(connection, tenants.get(connection, name).id)
    for one in found:
        document: dict[str, Any] = quarantine_document(one)
        if as_json:
            print_json(document)
        else:
            until = f" until {document['until']}" if one.until is not None else ""
            click.echo(f"{one.tenant}  since {document['since']}{until}  {escaped(one.path)}: {shown(one.reason)}")


@quarantine.command()
@click.argument("name")
@click.argument("path", required=False)
@click.option("--all", "everything", is_flag=True, help="Release all of the tenant.")
@state_option
def release(name: str, path: str | None, everything: bool, state: str | None) -> None:
    """Let PATH of tenant NAME be touched again by the next scan.

    \b
    Example: strandline quarantine release notes letters/draft.md
    """
    if (path is None) != everything:
        raise UsageError("give either a PATH or --all")
    settings = settings_of(state)
    refuse_unknown_state(settings)
    with database(settings) as engine:
        with reading(engine) as connection:
            tenant = tenants.get(connection, name)
        given = None if path is None else relative(tenant, path)
        count = write(engine, _release, tenant, given)
    if path is not None and not count:
        raise UsageError(f"{path!r} of tenant {name!r} is not in quarantine; `strandline quarantine list {name}`")
    click.echo(f"{count} of {name} released")


def _note_reset(connection: Connection, name: str, path: bytes | None, entries: int) -> None:
    audit.note(connection, CLI, "breaker reset", name, path=path, entries=entries)


def _release(connection: Connection, tenant: Tenant, path: bytes | None) -> int:
    count = all_quarantined.release(connection, tenant.id, path)
    if count:
        audit.note(connection, CLI, "quarantine release", tenant.name, path=path, entries=count)
    return count


def relative(tenant: Tenant, path: str) -> bytes:
    """A path as it is recorded, from one that is relative to the root or absolute."""
    given = path_bytes(path)
    if given == tenant.root:
        return b""
    return given.removeprefix(tenant.root.rstrip(b"/") + b"/")
