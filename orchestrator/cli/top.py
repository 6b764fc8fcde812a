"""`top`: the cluster, live."""

from __future__ import annotations

import logging
import sys
import threading
import time

import click
from rich.console import Console
from rich.live import Live

from orchestrator.cli.common import (
    database,
    json_option,
    print_json,
    redis_url_of,
    refuse_unknown_state,
    settings_of,
    state_option,
)
from orchestrator.cli.screen import screen
from orchestrator.cli.terminal import ending, keys
from orchestrator.watcher import WORKERS_EVERY_S, Watcher

# A key, and another size of the terminal, are noticed within so long.
NOTICED_S = 0.1
# Where nobody looks at a terminal, nothing has to be cut.
WIDE = 1000


@click.command()
@click.option("--every", "every_s", type=click.FloatRange(0.1, 3600), default=1.0, show_default=True, metavar="S",
              help="Seconds between two looks.")  # fmt: skip
@click.option("--once", is_flag=True, help="One look, as plain text, also where stdout is no terminal.")
@state_option
@json_option
def top(every_s: float, once: bool, state: str | None, as_json: bool) -> None:
    """The cluster, live: running scans and how far they are, tenants whose index is older than their interval allows,
    backlog, workers. `q` or Ctrl-C ends it. With --json a document a look.

    \b
    Example: strandline top --every 5
    """
    settings = settings_of(state)
    refuse_unknown_state(settings)
    with database(settings) as engine:
        watcher = Watcher(settings, engine, lambda: redis_url_of(settings))
        console = Console(highlight=False, markup=False)
        if as_json:
            _documents(watcher, every_s, once)
        elif once or not console.is_terminal or console.is_dumb_terminal:
            _look(watcher)
            _print(watcher)
        else:
            _live(watcher, console, every_s)


def _look(watcher: Watcher) -> None:
    asking = threading.Thread(target=watcher.ask_workers, daemon=True)
    asking.start()
    watcher.look()
    asking.join()


def _print(watcher: Watcher) -> None:
    console = Console(highlight=False, markup=False, width=WIDE, color_system=None, force_terminal=False)
    with console.capture() as text:
        console.print(screen(watcher.latest, WIDE, None))
    for line in text.get().splitlines():
        click.echo(line.rstrip())


def _documents(watcher: Watcher, every_s: float, once: bool) -> None:
    asked_s = time.monotonic()
    _look(watcher)
    while True:
        print_json(watcher.latest.document())
        if once:
            return
        sys.stdout.flush()
        time.sleep(every_s)
        if time.monotonic() - asked_s < WORKERS_EVERY_S:
            watcher.look()
        else:
            asked_s = time.monotonic()
            _look(watcher)


def _live(watcher: Watcher, console: Console, every_s: float) -> None:
    """Until `q`, Ctrl-C or TERM, all of which are noticed here, so that the terminal is always put back."""
    logging.getLogger().addHandler(logging.NullHandler())  # what is wrong is on the screen: no line may break it
    with ending() as ended, keys() as pressed, Live(console=console, screen=True, auto_refresh=False) as display:
        watcher.begin(every_s)
        drawn: object = None
        key: bytes | None = b""
        while not ended.is_set() and key is not None and b"q" not in key.lower():
            look, size, silent_s = current = watcher.latest, console.size, watcher.silent_s
            if current != drawn:
                display.update(screen(look, size.width, size.height, silent_s), refresh=True)
                drawn = current
            key = pressed(NOTICED_S)
        watcher.end()
