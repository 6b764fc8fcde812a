"""The command `strandline`. Each command is imported when it is used: `--help` must not wait for Celery."""

from __future__ import annotations

import importlib
import os
import sys
from importlib.metadata import version

import click

from db.types import StrandlineError
from orchestrator import interrupts
from orchestrator.cli.hints import typed
from tasks import wanted
from tasks.loading import all_stays

# command → (module, function); the order is that of --help.
COMMANDS = {
    "scan": ("scan", "scan", "Scan one folder to the end, on the embedded stack or the one that runs."),
    "up": ("up", "up", "Run the embedded stack: broker, database, beat, worker, API and Flower in one."),
    "tenant": ("tenant", "tenant", "Add, list, show, set, pause, resume and remove tenants."),
    "enqueue": ("scan", "enqueue", "Ask the running cluster for a scan."),
    "scans": ("feed", "scans", "A tenant's scans, newest first."),
    "cancel": ("scan", "cancel", "Stop a queued or running scan."),
    "confirm": ("scan", "confirm", "Let the deletions of a suspect scan through."),
    "changes": ("feed", "changes", "The change feed."),
    "files": ("feed", "files", "The index: one object a file."),
    "explain": ("feed", "explain", "Why a path was or was not hashed, skipped or reported."),
    "webhook": ("webhook", "webhook", "Who is told of a tenant's ended scans: set, show, remove."),
    "breaker": ("left_alone", "breaker", "What failed lately and is left alone for that; reset it."),
    "quarantine": ("left_alone", "quarantine", "What is not touched since whoever did so died; release it."),
    "audit": ("audit", "audit", "Who changed or asked for what."),
    "status": ("cluster", "status", "The cluster at a glance: scans, backlog, workers."),
    "top": ("top", "top", "The cluster live: tenants, scans, backlog, workers."),
    "config": ("cluster", "config", "Settings: name, value, default and where it came from."),
    "doctor": ("doctor", "doctor", "Check Python, database, Redis, clocks, roots and memory."),
    "worker": ("processes", "worker", "Run a worker (what a container runs)."),
    "beat": ("processes", "beat", "Run beat (what a container runs)."),
    "api": ("processes", "api", "Run the HTTP API (what a container runs)."),
    "flower": ("processes", "flower", "Run Flower (what a container runs)."),
    "migrate": ("processes", "migrate", "Bring the database's schema up to date."),
}


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module, function, _ = COMMANDS[name]
        with all_stays():
            command: click.Command = getattr(importlib.import_module(f"orchestrator.cli.{module}"), function)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_) for name, (_, _, help_) in COMMANDS.items()])


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("strandline"), prog_name="strandline")
def group() -> None:
    """An exact, live index of many tenants' file trees, with a change feed that misses nothing.

    \b
    Example: strandline scan ~/Documents
    """


def main() -> None:
    """Run a command; its exit status is 0 done, 1 done with something wrong, 2 wrong usage, 130 interrupted."""
    interrupts.heed_term()
    wanted.spare_redis()
    try:
        group(prog_name="strandline", standalone_mode=False)
        if sys.stdout is not None:  # as after `>&-`
            sys.stdout.flush()
    except StrandlineError as error:
        click.echo(f"strandline: {typed(str(error))}", err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("strandline: interrupted", err=True)
        sys.exit(130)
    except UnicodeEncodeError as error:
        click.echo(f"strandline: {error.object!r} is not UTF-8, as all but a path must be", err=True)
        sys.exit(2)
    except BrokenPipeError:  # who read this has had enough, as `| head` does
        _forget_output()
    except OSError as error:
        _forget_output()
        click.echo(f"strandline: {error}", err=True)
        sys.exit(2)


def _forget_output() -> None:
    """What is still buffered for stdout goes nowhere, and so cannot fail again when Python ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
