"""`scans`, `changes`, `files`."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any

import click
from sqlalchemy import Engine

from db import changes as feed
from db import indexed, tenants
from db import scans as all_scans
from db.engine import reading
from db.types import ScanState, StrandlineError
from orchestrator.cli.common import (
    coordination,
    database,
    escaped,
    json_option,
    path_bytes,
    print_json,
    progress_reader,
    refuse_unknown_state,
    settings_of,
    shown,
    state_option,
)
from orchestrator.cli.hints import typed
from orchestrator.cli.live import progress_text
from orchestrator.documents import change_document, file_document, scan_document

PAGE = 1000
LIMIT = click.IntRange(1, 2**31 - 1)
FOLLOW_EVERY_S = 1.0


@click.command()
@click.argument("name")
@click.option("--limit", type=LIMIT, default=20, show_default=True, help="How many.")
@state_option
@json_option
def scans(name: str, limit: int, state: str | None, as_json: bool) -> None:
    """The scans of tenant NAME, newest first.

    \b
    Example: strandline scans notes --limit 3
    """
    settings = settings_of(state)
    refuse_unknown_state(settings)
    with database(settings) as engine:
        with reading(engine) as connection:
            found = all_scans.of_tenant(connection, tenants.get(connection, name).id, limit)
            documents = [scan_document(connection, scan, name) for scan in found]
        with progress_reader(settings, engine) as reader:
            progress = {scan.id: reader.of_scan(scan.id) for scan in found if scan.state == ScanState.RUNNING}
    for d in documents:
        seen = progress.get(d["scan"])
        if as_json:
            print_json(d if seen is None else d | {"progress": seen.document()})
        elif seen is not None:
            click.echo(f"{d['scan']}  {d['started_at']}  {d['state']:<9}  {d['strategy']:<14}  {progress_text(seen)}")
        else:
            click.echo(
                f"{d['scan']}  {d['started_at'] or d['requested_at']}  {d['state']:<9}  {d['strategy'] or '-':<14}"
                f"  {d['files']:,} files  +{d['added']:,} ~{d['modified']:,} -{d['deleted']:,} >{d['moved']:,}"
            )
            if d["error"]:
                click.echo(f"    {typed(d['error'])}")


@click.command()
@click.argument("name")
@click.option("--since", metavar="CURSOR", help="Begin after this cursor (default: at the beginning).")
@click.option("--follow", is_flag=True, help="Wait for what comes, until Ctrl-C.")
@click.option("--limit", type=LIMIT, help="At most so many.")
@state_option
@json_option
def changes(name: str, since: str | None, follow: bool, limit: int | None, state: str | None, as_json: bool) -> None:
    """The change feed of tenant NAME, oldest first. Applied in order to an empty map it gives the index.

    \b
    Example: strandline changes notes --since "$CURSOR" --json
    """
    settings = settings_of(state)
    refuse_unknown_state(settings)
    with database(settings) as engine:
        for change in _changes(engine, name, since, follow, limit):
            if as_json:
                print_json(change_document(change))
            else:
                old = f"{escaped(change.old_path)} → " if change.old_path is not None else ""
                click.echo(f"{change.kind:<9} {old}{escaped(change.path)}")
            if follow:
                sys.stdout.flush()


def _changes(engine: Engine, name: str, cursor: str | None, follow: bool, limit: int | None) -> Iterator[feed.Change]:
    with reading(engine) as connection:
        tenant = tenants.get(connection, name)
    left = limit
    while left is None or left > 0:
        with reading(engine) as connection:
            page = feed.page(connection, tenant.id, cursor, PAGE if left is None else min(PAGE, left))
        yield from page.changes
        cursor, left = page.behind, None if left is None else left - len(page.changes)
        if page.more:
            continue
        if not follow:
            return
        time.sleep(FOLLOW_EVERY_S)


@click.command()
@click.argument("name")
@click.option("--prefix", metavar="P", default="", help="Only paths that begin with this.")
@state_option
@json_option
def files(name: str, prefix: str, state: str | None, as_json: bool) -> None:
    """The index of tenant NAME: one object a file or symlink.

    \b
    Example: strandline files notes --prefix letters/ --json
    """
    settings = settings_of(state)
    refuse_unknown_state(settings)
    with database(settings) as engine:
        for file in _files(engine, name, path_bytes(prefix)):
            document: dict[str, Any] = file_document(file)
            if as_json:
                print_json(document)
            else:
                content = f"→ {escaped(file.target)}" if file.target is not None else document["digest"]
                click.echo(f"{content}  {file.size:>12,}  {escaped(file.path)}")


def _files(engine: Engine, name: str, prefix: bytes) -> Iterator[indexed.IndexedFile]:
    with reading(engine) as connection:
        tenant = tenants.get(connection, name)
    place: tuple[bytes, int, bytes] | None = None
    while True:
        with reading(engine) as connection:
            page = indexed.page(connection, tenant.id, prefix=prefix, after=place, limit=PAGE)
        yield from page
        if len(page) < PAGE:
            return
        place = page[-1].place


@click.command()
@click.argument("name")
@click.argument("path")
@state_option
@json_option
def explain(name: str, path: str, state: str | None, as_json: bool) -> None:
    """Why PATH of tenant NAME was or was not hashed, skipped or reported. PATH is relative to the root, or absolute.

    \b
    Example: strandline explain notes letters/draft.md
    """
    from orchestrator.explain import explain as explained
    from tasks.redis import breaker

    settings = settings_of(state)
    refuse_unknown_state(settings)
    with database(settings) as engine:
        with reading(engine) as connection:
            tenant = tenants.get(connection, name)
        failing: Any = {}, 0.0
        with contextlib.suppress(StrandlineError), coordination(settings) as (client, keys):
            failing = breaker.read(client, keys, tenant.id)
        with reading(engine) as connection:
            document = explained(connection, tenant, path_bytes(path), *failing)
    if as_json:
        print_json(document)
    else:
        click.echo(f"{escaped(path_bytes(path))}: {document['status']}")
        click.echo(f"  {shown(typed(document['explanation']))}")
