"""Live progress on a terminal, and the summary of a scan."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from orchestrator.amounts import human
from orchestrator.cli.hints import typed
from orchestrator.progress import Progress


class Line:
    """One line on stderr that is written over: directories, files, bytes, rate, time left. Silent elsewhere."""

    def __init__(self) -> None:
        self.active = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"

    def show(self, seen: Progress) -> None:
        """Write the line anew."""
        if self.active:
            width = os.get_terminal_size(sys.stderr.fileno()).columns
            sys.stderr.write("\r" + progress_text(seen)[: width - 1] + "\x1b[K")
            sys.stderr.flush()

    def clear(self) -> None:
        """Take the line away."""
        if self.active:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def progress_text(seen: Progress) -> str:
    """How far a scan has come, on a line."""
    parts = [
        f"{seen.directories:,} directories", f"{seen.files:,} files", human(seen.bytes),
        f"{seen.hashed_files:,} hashed ({human(seen.hashed_bytes)})", f"{seen.files_per_s:,.0f} files/s",
    ]  # fmt: skip
    if seen.finishing:
        parts.append("finishing")
    elif seen.eta_s is not None:
        parts.append(f"about {seen.eta_s:.0f} s left")
    return " · ".join(parts)


@contextmanager
def progress_line() -> Iterator[Line]:
    """A line that is gone at the end."""
    line = Line()
    try:
        yield line
    finally:
        line.clear()


def summary(document: dict[str, Any]) -> None:
    """Say on stdout what a scan found."""
    d = document
    took = f" in {d['duration_s']:.2f} s" if d["duration_s"] is not None else ""
    click.echo(f"{d['tenant']}: {d['state']}{took} ({d['strategy']}: {d['reason']})")
    click.echo(
        f"  {d['files']:,} files, {human(d['bytes'])}, in {d['directories']:,} directories "
        f"({d['directories_unchanged']:,} unchanged)"
    )
    click.echo(
        f"  {d['added']:,} added, {d['modified']:,} modified, {d['deleted']:,} deleted, {d['moved']:,} moved; "
        f"{d['hashed_files']:,} hashed ({human(d['hashed_bytes'])})"
    )
    if d["error"]:
        click.echo(f"  {typed(d['error'])}")
    if d["silent_changes"]:
        click.echo(
            f"  {d['silent_changes']:,} of {d['verified_files']:,} verified files had changed under an equal stat"
        )
    for skip in d["skipped"][:10]:
        click.echo(f"  skipped {skip['path']!r}: {skip['reason']}")
    for error in d["errors"][:10]:
        click.echo(f"  could not {error['operation']} {error['path']!r}: {error['error']}")
    if d["errors_total"] > 10:
        click.echo(f"  … {d['errors_total']:,} errors in all; --json lists the first 100")
