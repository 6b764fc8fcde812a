"""Commands that are spoken of, as they have to be typed: with the --state that the one which speaks was given."""

from __future__ import annotations

import re
import shlex

import click

# In quotes, or where a scan asks to be confirmed. (`migrate` has no --state.)
_COMMAND = re.compile(r"(?<=`)strandline (?!migrate)[^`]+(?=`)|\bstrandline confirm [0-9a-f-]{36}\b")
_state: str | None = None


def given(_context: click.Context, _option: click.Parameter, state: str | None) -> str | None:
    """What --state says, which is remembered."""
    global _state
    _state = state
    return state


def typed(text: str) -> str:
    """Text whose commands can be typed as they stand."""
    state = _state
    return text if state is None else _COMMAND.sub(lambda found: f"{found[0]} --state {shlex.quote(state)}", text)
