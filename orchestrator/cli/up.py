"""`up`: the embedded stack until Ctrl-C."""

from __future__ import annotations

import sys
from typing import Any

import click

from db.engine import reading
from db.scans import Scan
from db.tenants import Tenant
from db.types import ScanState, UsageError
from orchestrator import interrupts
from orchestrator.api.listening import listen
from orchestrator.cli.common import path_bytes, settings_of, spoken, state_option
from orchestrator.cli.live import progress_line, summary
from orchestrator.cli.scan import CANCEL_WITHIN_S
from orchestrator.documents import scan_document
from orchestrator.roots import apart, checked_root
from orchestrator.session import Session
from orchestrator.stack import flower
from orchestrator.stack.embedded import Stack, default_workers, running_stack
from orchestrator.stack.state import StateFolder
from tasks import logs
from tasks.settings import source, without_passwords


@click.command()
@click.option("--dir", "paths", multiple=True, metavar="PATH", help="A folder to index; may be given several times.")
@click.option("--host", help="Address that the API and Flower listen on (default: STRANDLINE_API_HOST).")
@click.option("--port", type=click.IntRange(1, 65535), help="Port of the API (default: 8080, or any that is free).")
@click.option("--once", is_flag=True, help="Stop after one scan of each --dir.")
@click.option("--workers", type=click.IntRange(1, 256), help="Processes of the worker (default: one a processor).")
@state_option
def up(
    paths: tuple[str, ...], host: str | None, port: int | None, once: bool, workers: int | None, state: str | None
) -> None:
    """Run the embedded stack: broker, database, beat, worker, API and Flower, until Ctrl-C.

    \b
    Example: strandline up --dir ~/Documents --dir ~/Code
    """
    settings = settings_of(state, workers=workers, api_host=host, api_port=port)
    flower.check(settings, settings.api_host)
    roots = apart(checked_root(path_bytes(path), settings) for path in paths)
    if once and not roots:
        raise UsageError("--once needs a --dir to scan")
    folder = StateFolder(settings.state_dir)
    if not folder.lock(patience_s=0.5):
        running = folder.running()
        who = f" (process {running.pid})" if running is not None else ""
        raise UsageError(f"a stack runs already on {folder.path}{who}; stop it, or choose another --state")
    # (8080 is many a program's: where nobody asked for it, another will do.)
    asked_for = port is not None or source("api_port") != "default"
    listening = listen(settings.api_host, settings.api_port, settings.api_tokens, or_any=not asked_for)
    interrupts.catch()
    logs.configure(settings, "WARNING", for_people=True)
    with (
        listening,
        running_stack(
            settings, folder, workers=default_workers(settings), full=True, piped=True, host=settings.api_host,
            api=listening,
        ) as stack,
        spoken(stack.app.runtime.engine),
    ):  # fmt: skip
        sys.exit(_serve(stack, roots, once))


def _serve(stack: Stack, roots: list[bytes], once: bool) -> int:
    talking = Session(stack.app, stack.settings, stack.pump, patient=True)
    try:
        failed, found = False, talking.tenants_for(roots)
        _say(f"API:      {stack.api}")
        _say(f"Flower:   {stack.flower}")
        _say(f"Database: {without_passwords(stack.settings.database_url)}")
        for tenant in found:
            failed |= _first_scan(talking, tenant).state != ScanState.SUCCEEDED
        if once:
            stack.drain()
            return 1 if failed else 0
        _say("Scanning on schedule. Press Ctrl-C to stop.")
        while True:
            interrupts.check()
            stack.pump(0.5)
    except KeyboardInterrupt:
        interrupts.taken()
        _say("stopping: what runs is ended first; press Ctrl-C again to stop at once")
        stack.drain()
        return 0


def _first_scan(talking: Session, tenant: Tenant) -> Scan:
    scan_id = talking.ask(tenant)
    try:
        with progress_line() as line:
            ended = talking.wait(scan_id, line.show if line.active else None)
    except KeyboardInterrupt:
        interrupts.taken()
        talking.cancel_and_wait(scan_id, CANCEL_WITHIN_S)
        raise
    with reading(talking.engine) as connection:
        document: dict[str, Any] = scan_document(connection, ended, tenant.name)
    summary(document)
    return ended


def _say(text: str) -> None:
    click.echo(text)
    sys.stdout.flush()
