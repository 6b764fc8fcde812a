"""What `top` shows, laid out for a terminal of any size: narrow ones lose columns, low ones lose rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.amounts import human, span
from orchestrator.cli.common import shown
from orchestrator.watcher import Look

GAP = 2
# A name is cut before a column is left out, but not further than this.
LEAST_NAME = 12


class Column(NamedTuple):
    """A column: its title, how soon it is left out (the highest first), and its cells."""

    title: str
    rank: int
    cells: Sequence[str]

    @property
    def width(self) -> int:
        """Of the widest cell."""
        return max(map(cell_len, (self.title, *self.cells)))


class Section(NamedTuple):
    """A table whose first column is of names, and how many rows there would be."""

    columns: Sequence[Column]
    rows: int
    total: int


def screen(look: Look, width: int, height: int | None, silent_s: int = 0) -> Group:
    """All of it; `height` None: as many rows as there are. `silent_s`: so long nothing new was heard."""
    header = [Text(line, no_wrap=True, overflow="ellipsis") for line in _header(look, silent_s)]
    header += [
        Text(f"{name}: {shown(said)}", style="bold red", no_wrap=True, overflow="ellipsis")
        for name, said in look.trouble.items()
    ]
    sections = [one for one in (_scans(look), _late(look), _workers(look)) if one.rows]
    rows = [one.rows for one in sections]
    if height is not None:  # of each section a blank line, the titles, and perhaps a line on what is left out
        rows = shares(height - len(header) - 3 * len(sections), rows)
    parts: list[RenderableType] = [*header]
    for section, count in zip(sections, rows, strict=True):
        if count:
            parts += ["", _table(section, count, width)]
            if section.total > count:
                parts.append(Text(f"… {section.total - count:,} more", style="dim", no_wrap=True, overflow="ellipsis"))
    return Group(*parts)


def shares(room: int, wanted: Sequence[int]) -> list[int]:
    """Rows for each section: whoever wants few gets them, the others as many as one another."""
    given = [0] * len(wanted)
    while room > 0 and (short := [i for i, want in enumerate(wanted) if given[i] < want]):
        for i in short[:room]:
            given[i] += 1
        room -= min(room, len(short))
    return given


def fitting(columns: Sequence[Column], width: int) -> list[tuple[Column, int]]:
    """The columns that there is room for, each with its width; the first gets what is left."""
    name, *others = columns
    least = min(name.width, LEAST_NAME)
    kept = sorted(others, key=lambda one: one.rank)
    while kept and least + sum(GAP + one.width for one in kept) > width:
        kept.pop()
    left = width - sum(GAP + one.width for one in kept)
    return [(name, max(1, min(name.width, left)))] + [(one, one.width) for one in others if one in kept]


def _table(section: Section, count: int, width: int) -> Table:
    table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style="bold", collapse_padding=True)
    kept = fitting(section.columns, width)
    for number, (column, cells) in enumerate(kept):
        table.add_column(column.title, width=cells, no_wrap=True, overflow="ellipsis",
                         justify="left" if number == 0 else "right")  # fmt: skip
    for row in range(count):
        table.add_row(*(Text(column.cells[row]) for column, _ in kept))
    return table


def _header(look: Look, silent_s: int) -> list[str]:
    at = "no answer yet" if look.at is None else f"{look.at.astimezone():%H:%M:%S}"
    lines = [f"strandline  {at}" + (f"; the database has not answered for {span(silent_s)}" if silent_s else "")]
    if look.counts is not None:
        c, backlog = look.counts, look.counts.backlog
        lines += [
            f"tenants {c.tenants:,}, {c.late_total:,} late, {c.paused:,} paused, {c.suspect:,} suspect",
            f"scans   {c.running:,} running, {c.queued:,} queued; {c.quarantined:,} entries in quarantine",
            f"shards  {backlog['ready']:,} ready, {backlog['leased']:,} leased, {backlog['waiting']:,} waiting",
        ]
    if look.workers is None:
        return [*lines, "workers …"]
    processes, busy = (sum(getattr(one, name) or 0 for one in look.workers) for name in ("processes", "busy"))
    return [*lines, f"workers {len(look.workers):,}; processes {processes:,}, {busy:,} busy"]


def _scans(look: Look) -> Section:
    rows = look.scans
    columns = [
        Column("RUNNING", 0, [shown(one.tenant) for one, _ in rows]),
        Column("TIER", 9, [one.tier for one, _ in rows]),
        Column("STRATEGY", 8, [one.strategy for one, _ in rows]),
        Column("AGE", 4, [span(one.age_s) for one, _ in rows]),
        Column("FILES", 1, [f"{seen.files:,}" for _, seen in rows]),
        Column("FILES/S", 3, [f"{seen.files_per_s:,.0f}" for _, seen in rows]),
        Column("BYTES", 7, [human(seen.bytes) for _, seen in rows]),
        Column("HASHED", 6, [human(seen.hashed_bytes) for _, seen in rows]),
        Column("SHARDS", 2, [f"{seen.shards_done:,}/{seen.shards:,}" for _, seen in rows]),
        Column("LEFT", 5, ["end" if seen.finishing else span(seen.eta_s) for _, seen in rows]),
    ]
    return Section(columns, len(rows), max(len(rows), look.counts.running if look.counts is not None else 0))


def _late(look: Look) -> Section:
    rows, now = look.late, look.at
    seen = [one.watermark_started_at for one in rows]
    ages = ["never" if at is None or now is None else span(max(0.0, (now - at).total_seconds())) for at in seen]
    columns = [
        Column("LATE", 0, [shown(one.tenant) for one in rows]),
        Column("TIER", 4, [one.tier for one in rows]),
        Column("EVERY", 3, [span(one.interval_s) for one in rows]),
        Column("COMPLETE SCAN", 2, ages),  # how long ago the last one began
        Column("LATE BY", 1, [span(one.late_s) for one in rows]),
    ]
    return Section(columns, len(rows), max(len(rows), look.counts.late_total if look.counts is not None else 0))


def _workers(look: Look) -> Section:
    rows = look.workers or ()
    columns = [
        Column("WORKER", 0, [shown(one.name) for one in rows]),
        Column("PROCESSES", 1, [_or_dash(one.processes) for one in rows]),
        Column("BUSY", 2, [_or_dash(one.busy) for one in rows]),
        Column("PID", 3, [_or_dash(one.pid) for one in rows]),
    ]
    return Section(columns, len(rows), len(rows))


def _or_dash(number: int | None) -> str:
    return "-" if number is None else str(number)
