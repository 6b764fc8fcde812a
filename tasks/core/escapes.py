"""Text that may come from anybody's file names, for a terminal or a log."""

from __future__ import annotations


def shown(text: str) -> str:
    """Text on one line: what cannot be printed, control characters say, as escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
