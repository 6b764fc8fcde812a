"""`tenant …`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import click

from db import glance, tenants
from db.audit import CLI
from db.engine import patient, reading, write
from db.tenants import ALGORITHMS, LARGE_FILE, TIERS
from db.types import StrandlineError, UsageError
from orchestrator import removal
from orchestrator.change import add_tenant, checked_patterns, remove_tenant, set_tenant
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
from orchestrator.documents import tenant_document
from orchestrator.roots import checked_root

SIZE = click.IntRange(0, 2**63 - 1)


@click.group()
def tenant() -> None:
    """Tenants: whose folder is scanned, where and how often.

    \b
    Example: strandline tenant add notes /srv/notes --interval 600
    """


def _policy(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--algorithm", help=f"Hash of contents: {', '.join(ALGORITHMS)}."),
        click.option("--interval", "interval_s", type=int, metavar="S", help="Seconds between scans."),
        click.option("--tier", help=f"Class of the tenant: {', '.join(TIERS)}."),
        click.option(
            "--ignore",
            multiple=True,
            metavar="PATTERN",
            help="Leave out what matches, as in .gitignore; "
            "may be given again; replaces those before, '' for none. Weaker than any .strandlineignore file.",
        ),
        click.option("--gitignore/--no-gitignore", default=None, help="Obey .gitignore files too."),
        click.option("--cross-mounts/--no-cross-mounts", default=None, help="Enter file systems mounted below."),
        click.option("--large-file", help=f"How large files are digested: {', '.join(LARGE_FILE)}."),
        click.option(
            "--large-file-bytes", type=SIZE, metavar="N", help="From so many bytes (131072 or more) a file is large."
        ),
        click.option(
            "--deletion-limit", type=int, metavar="PERCENT", help="Past it deletions must be confirmed (1 to 100)."
        ),
    ):
        command = option(command)
    return command


def _given(policy: dict[str, Any]) -> dict[str, Any]:
    """The options that were given. Raises UsageError."""
    policy["ignore"] = list(policy["ignore"]) or None
    given = {key: value for key, value in policy.items() if value is not None}
    if "ignore" in given:
        given["ignore"] = checked_patterns(given["ignore"])
    return given


@tenant.command()
@click.argument("name")
@click.argument("root")
@_policy
@state_option
@json_option
def add(name: str, root: str, state: str | None, as_json: bool, **policy: Any) -> None:
    """Register the folder ROOT as tenant NAME; it is scanned on schedule, for the first time within an interval, in a
    slot of its own. `strandline enqueue NAME` asks for a scan now.

    \b
    Example: strandline tenant add notes /srv/notes --tier priority
    """
    settings = settings_of(state)
    tenants.check_name(name)
    given = _given(policy)
    checked = checked_root(path_bytes(root), settings)
    with database(settings) as engine:
        added = write(engine, add_tenant, CLI, name, checked, given, settings)
    _show(tenant_document(added), as_json)


@tenant.command("list")
@state_option
@json_option
def list_(state: str | None, as_json: bool) -> None:
    """All tenants, by name.

    \b
    Example: strandline tenant list --json
    """
    settings = settings_of(state)
    refuse_unknown_state(settings)
    with database(settings) as engine, reading(engine) as connection:
        found = tenants.list_all(connection)
        doubted = {one.tenant for one in glance.suspects(connection, len(found), None)}
    for one in found:
        if as_json:
            print_json(tenant_document(one))
        else:
            state_ = ("" if one.enabled else "  paused") + ("  suspect" if one.name in doubted else "")
            click.echo(f"{one.name}  {escaped(one.root)}  every {one.interval_s} s  {one.tier}{state_}")


@tenant.command()
@click.argument("name")
@state_option
@json_option
def show(name: str, state: str | None, as_json: bool) -> None:
    """What is known of tenant NAME, and what cannot be seen on its file system.

    \b
    Example: strandline tenant show notes
    """
    settings = settings_of(state)
    refuse_unknown_state(settings)
    with database(settings) as engine, reading(engine) as connection:
        document = tenant_document(tenants.get(connection, name))
    _show(document, as_json)


@tenant.command("set")
@click.argument("name")
@click.option("--root", metavar="PATH", help="The folder is at another place now.")
@_policy
@state_option
@json_option
def set_(name: str, root: str | None, state: str | None, as_json: bool, **policy: Any) -> None:
    """Change how tenant NAME is scanned; a scan that runs is cancelled for that, and another asked for. Another
    algorithm hashes everything again.

    \b
    Example: strandline tenant set notes --interval 60
    """
    values = _given(policy)
    if root is not None:
        values["root"] = checked_root(path_bytes(root), settings_of(state))
    if not values:
        raise UsageError("nothing to set: give at least one option; --help shows them")
    _show(_change(name, state, **values), as_json)


@tenant.command()
@click.argument("name")
@state_option
def pause(name: str, state: str | None) -> None:
    """Schedule no more scans of tenant NAME; what is asked for is still done.

    \b
    Example: strandline tenant pause notes
    """
    _change(name, state, enabled=False)
    click.echo(f"{name} is paused")


@tenant.command()
@click.argument("name")
@state_option
def resume(name: str, state: str | None) -> None:
    """Schedule scans of tenant NAME again.

    \b
    Example: strandline tenant resume notes
    """
    _change(name, state, enabled=True)
    click.echo(f"{name} is scanned on schedule")


@tenant.command()
@click.argument("name")
@state_option
def remove(name: str, state: str | None) -> None:
    """Forget tenant NAME, its index and its feed. Its files are not touched.

    \b
    Example: strandline tenant remove notes
    """
    settings = settings_of(state)
    refuse_unknown_state(settings)
    with database(settings) as engine:
        removed = write(patient(engine), remove_tenant, CLI, name)
        removal.finish(engine, removed)
    # Ids are given out again by SQLite. Where no Redis is to be had, all that it keeps goes by itself in time.
    with contextlib.suppress(StrandlineError), coordination(settings) as (client, keys):
        client.delete(*keys.of_tenant(removed))
    click.echo(f"{name} is forgotten")


def _change(name: str, state: str | None, **values: Any) -> dict[str, Any]:
    settings = settings_of(state)
    refuse_unknown_state(settings)

    with database(settings) as engine:
        return tenant_document(write(engine, set_tenant, CLI, name, values, settings))


def _show(document: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(document)
        return
    for key, value in document.items():
        if isinstance(value, list):
            value = " ".join(map(repr, value)) or None
        if isinstance(value, dict):
            value = ", ".join(f"{name} {one}" for name, one in value.items())
        click.echo(f"{key:<18}{'-' if value is None else shown(str(value))}")
