"""`scan`, `enqueue`, `cancel`, `confirm`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from db import scans, tenants
from db.engine import reading
from db.types import ScanState, StrandlineError, UsageError
from orchestrator import interrupts
from orchestrator.cli.common import (
    json_option,
    path_bytes,
    print_json,
    refuse_unknown_state,
    settings_of,
    spoken,
    state_option,
)
from orchestrator.cli.live import progress_line, summary
from orchestrator.documents import scan_document
from orchestrator.roots import checked_root, named_paths
from orchestrator.session import Session
from orchestrator.stack.embedded import default_workers, joined, running_stack
from orchestrator.stack.state import Running, StateFolder
from tasks.app import make_app
from tasks.settings import Settings

# After Ctrl-C: how long the scan may take to end as cancelled, before everything is killed.
CANCEL_WITHIN_S = 2.0
JOIN_WITHIN_S = 15.0


@click.command()
@click.argument("path")
@click.option("--tenant", "name", help="Name of the tenant (default: the one with this root, or a new one).")
@click.option("--full", is_flag=True, help="Trust no fingerprint: compare every row.")
@click.option("--verify", is_flag=True, help="Trust no stat: read every file again.")
@click.option("--algorithm", help="Hash for a new tenant: sha256 (default) or blake3.")
@click.option("--workers", type=click.IntRange(1, 256), help="Processes of the worker (default: one a processor).")
@state_option
@json_option
def scan(path: str, name: str | None, full: bool, verify: bool, algorithm: str | None, workers: int | None,
         state: str | None, as_json: bool) -> None:  # fmt: skip
    """Scan one folder to the end.

    Its state (database, lock) is kept in --state; beside a running stack that one is used.

    \b
    Example: strandline scan ~/Documents --json
    """
    from db.tenants import check_algorithm, check_name

    settings = settings_of(state, workers=workers)
    root = checked_root(path_bytes(path), settings)
    if name is not None:
        check_name(name)
    if algorithm is not None:
        check_algorithm(algorithm)

    def ask(talking: Session) -> str:
        return talking.ask(talking.tenant_for(root, name, algorithm), full=full, verify=verify)

    sys.exit(exit_code(_to_end(settings, ask, as_json)))


@click.command()
@click.argument("name")
@click.option(
    "--path", "paths", multiple=True, metavar="SUB", help="Only this path below the root; may be given again."
)
@click.option("--full", is_flag=True, help="Trust no fingerprint: compare every row.")
@click.option("--verify", is_flag=True, help="Trust no stat: read every file again, of the whole tree.")
@click.option("--wait", is_flag=True, help="Return when the scan has ended.")
@state_option
@json_option
def enqueue(
    name: str, paths: tuple[str, ...], full: bool, verify: bool, wait: bool, state: str | None, as_json: bool
) -> None:
    """Ask the running cluster for a scan of tenant NAME.

    \b
    Example: strandline enqueue notes --path letters/draft.md --wait
    """

    def ask(talking: Session) -> str:
        with reading(talking.engine) as connection:
            tenant = tenants.get(connection, name)
        named = named_paths(tenant.root, map(path_bytes, paths))
        return talking.ask(tenant, full=full, verify=verify, paths=named)

    settings = settings_of(state)
    if wait:
        sys.exit(exit_code(_to_end(settings, ask, as_json)))
    with asking(settings) as talking:
        document = _document(talking, ask(talking))
    if as_json:
        print_json(document)
    else:
        click.echo(f"{name}: scan {document['scan']} is {document['state']}")


@click.command()
@click.argument("scan_id", metavar="SCAN")
@state_option
def cancel(scan_id: str, state: str | None) -> None:
    """Stop a queued or running scan: what it found is published, nothing is deleted.

    \b
    Example: strandline cancel 01a1fd78-1b1d-71bb-b400-3cb0c6523ae5
    """
    scan_id = _checked(scan_id)
    with asking(settings_of(state)) as talking:
        if not talking.cancel(scan_id):
            raise UsageError(f"there is no queued or running scan {scan_id}, or it is ending already")
        click.echo(f"scan {scan_id} is being cancelled")


@click.command()
@click.argument("scan_id", metavar="SCAN")
@state_option
@json_option
def confirm(scan_id: str, state: str | None, as_json: bool) -> None:
    """Let the deletions of a suspect scan through: what was gone by then and is still missing goes, nothing later.

    \b
    Example: strandline confirm 01a1fd78-1b1d-71bb-b400-3cb0c6523ae5
    """
    scan_id = _checked(scan_id)
    settings = settings_of(state)
    refuse_unknown_state(settings)
    sys.exit(exit_code(_to_end(settings, lambda talking: talking.confirm(scan_id), as_json)))


def _checked(scan_id: str) -> str:
    """The id, as it is stored. Raises UsageError."""
    import uuid

    try:
        return str(uuid.UUID(scan_id))
    except ValueError as error:
        raise UsageError(f"{scan_id!r} is no scan's id; `strandline scans NAME` shows them") from error


def _to_end(settings: Settings, ask: Callable[[Session], str], as_json: bool) -> dict[str, Any]:
    """Ask for a scan, wait for its end, and say what it found. Where the stack that we joined stops meanwhile, we
    become the stack ourselves and carry the scan on.
    """
    interrupts.catch()
    scan_id: str | None = None
    while True:
        with session(settings) as talking:
            try:
                if scan_id is None:
                    scan_id = ask(talking)
                    _tell_of_another(talking, scan_id)
                talking.tick()
                _follow(talking, scan_id)
            except StackGone:
                continue
            document = _document(talking, scan_id)
            if as_json:
                print_json(document)
            else:
                summary(document)
            sys.stdout.flush()  # before the stack is stopped: who reads this need not wait for that
            return document


def _tell_of_another(talking: Session, scan_id: str) -> None:
    with reading(talking.engine) as connection:
        scan = scans.get(connection, scan_id)
        if scan is not None and scan.state == ScanState.QUEUED and scans.running_of(connection, scan.tenant_id):
            click.echo("a scan of this tenant that is under way, or was cut off, is ended first", err=True)


def _follow(talking: Session, scan_id: str) -> None:
    """Wait with progress on the terminal. Interrupted, the scan is cancelled before that goes on."""
    try:
        with progress_line() as line:
            talking.wait(scan_id, line.show if line.active else None)
    except KeyboardInterrupt:
        interrupts.taken()
        talking.cancel_and_wait(scan_id, CANCEL_WITHIN_S)
        raise


def _document(talking: Session, scan_id: str) -> dict[str, Any]:
    with reading(talking.engine) as connection:
        scan = scans.get(connection, scan_id)
        tenant = tenants.by_id(connection, scan.tenant_id) if scan is not None else None
        if scan is None or tenant is None:
            raise StrandlineError(f"scan {scan_id} is gone: its tenant was removed")
        return scan_document(connection, scan, tenant.name)


def exit_code(document: dict[str, Any]) -> int:
    """0 where a scan succeeded, else 1."""
    return 0 if document["state"] == ScanState.SUCCEEDED else 1


@contextmanager
def session(settings: Settings) -> Iterator[Session]:
    """A session on the cluster that is configured, the stack that runs, or one of our own for as long as this takes."""
    if settings.database_url and settings.redis_url:
        with asking(settings) as talking:
            yield talking
        return
    state = StateFolder(settings.state_dir)
    if not state.lock():
        running = _await_running(state)
        if running is not None:
            with asking(joined(settings, running), lambda seconds: _pause(seconds, state)) as talking:
                yield talking
            return
    workers = default_workers(settings)
    with running_stack(settings, state, workers=workers, full=False, piped=False) as stack:
        talking = Session(stack.app, stack.settings, stack.pump)
        with spoken(talking.engine):
            yield talking


def _await_running(state: StateFolder) -> Running | None:
    """The stack that runs, once it is ready; None where it has ended meanwhile and the folder is ours now."""
    deadline = time.monotonic() + JOIN_WITHIN_S
    while time.monotonic() < deadline:
        running = state.running()
        if running is not None:
            return running
        if state.lock():
            return None
        time.sleep(0.05)
    raise StrandlineError(f"a stack is starting or stopping on {state.path}, and did not get ready; try again")


class StackGone(Exception):
    """The stack that this command had joined has ended."""


def _pause(seconds: float, state: StateFolder) -> None:
    time.sleep(seconds)
    if state.running() is None:
        raise StackGone


@contextmanager
def asking(settings: Settings, pump: Callable[[float], None] = time.sleep) -> Iterator[Session]:
    """A session that starts nothing: on the cluster that is configured, or the stack that runs on the state folder."""
    from db import schema

    if not (settings.database_url and settings.redis_url):
        state = StateFolder(settings.state_dir)
        running = state.running()
        if running is None:
            raise UsageError(
                f"no stack runs on {state.path}: start one with `strandline up`, use `strandline scan PATH`, "
                "or set STRANDLINE_DATABASE_URL and STRANDLINE_REDIS_URL"
            )
        settings = joined(settings, running)
    app = make_app(settings)
    engine = app.runtime.engine
    schema.require_current(engine)
    try:
        with spoken(engine):
            yield Session(app, settings, pump)
    finally:
        engine.dispose()
