"""`doctor`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import click

from orchestrator.cli.common import json_option, print_json, redis_url_of, settings_of, state_option
from orchestrator.stack.state import StateFolder


@click.command()
@state_option
@json_option
def doctor(state: str | None, as_json: bool) -> None:
    """Check what Strandline stands on: Python, database, Redis, clocks, roots, memory. Exits with 1 if anything failed.

    \b
    Example: strandline doctor
    """
    from orchestrator.doctor import FAILED, examine

    settings = settings_of(state)
    # (Whoever only looks makes no folder.)
    folder = StateFolder(settings.state_dir) if Path(settings.state_dir).exists() else None
    database_url = settings.database_url or (folder.database_url if folder else "")
    redis_url = redis_url_of(settings) if settings.redis_url or folder else None
    failed = False
    for finding in examine(settings, database_url, redis_url):
        failed |= finding.state == FAILED
        if as_json:
            print_json(asdict(finding))
        else:
            click.echo(f"{finding.state:<8} {finding.check:<9} {finding.detail}")
    if failed:
        sys.exit(1)
