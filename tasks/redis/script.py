"""The Lua scripts of this package: each is a file beside the module that calls it, which says its keys and answers."""

from __future__ import annotations

from pathlib import Path


def script(name: str) -> str:
    """The text of a script of this package."""
    return (Path(__file__).parent / f"{name}.lua").read_text()
