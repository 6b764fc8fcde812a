"""What a rehearsal did to shards and pods, as the database and the pods themselves tell it; and what does not hold."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from db.engine import write
from tests import invariants
from tests.field import Field
from tests.journal import doubled, invented, missed
from tests.pods import Pod
from tests.rehearsal_load import Load
from tests.storm_report import seen

# What is put back is sent by the next tick, what a dead pod held is missed after its lease: 8 s, two ticks, and a busy
# machine. Where all slots are taken it waits for the pod that comes.
AGAIN_WITHIN_S = 10.0
AFTER_DEATH_WITHIN_S = 15.0

NOTED = (
    "CREATE TABLE moves (scan_id uuid, number integer, was text, state text, attempt integer, deaths integer, "
    "at timestamptz)",
    """CREATE FUNCTION note_move() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
       INSERT INTO moves VALUES (NEW.scan_id, NEW.number, OLD.state, NEW.state, NEW.attempt, NEW.deaths,
                                 clock_timestamp());
       RETURN NULL; END $$""",
    """CREATE TRIGGER each_move AFTER UPDATE ON shards FOR EACH ROW
       WHEN (NEW.state != OLD.state OR NEW.attempt != OLD.attempt) EXECUTE FUNCTION note_move()""",
)
# Put back, by who ends; and taken from who is dead.
LEFT = """
SELECT m.scan_id, m.number, m.attempt, m.deaths, m.state, extract(epoch FROM m.at)::float AS at,
       (SELECT extract(epoch FROM min(n.at))::float FROM moves n
        WHERE n.scan_id = m.scan_id AND n.number = m.number AND n.attempt > m.attempt) AS again
FROM moves m WHERE m.was = 'leased' AND m.state IN ('ready', 'leased')
  AND m.at BETWEEN to_timestamp(:since) AND to_timestamp(:until) ORDER BY m.at
"""


def note_moves(field: Field) -> None:
    """From now on the database notes when a shard is taken, is put back or ends."""
    for statement in NOTED:
        write(field.engine, lambda connection, statement=statement: connection.exec_driver_sql(statement))


def now_s(field: Field) -> float:
    return float(field.rows("SELECT extract(epoch FROM clock_timestamp())::float AS now")[0].now)


def left(field: Field, since_s: float, until_s: float) -> tuple[list, list]:
    """Shards that were put back, and those that were taken from the dead."""
    found = field.rows(LEFT, since=since_s, until=until_s)
    return [one for one in found if one.state == "ready"], [one for one in found if one.state == "leased"]


@dataclass
class Row:
    """A scene."""

    scene: str
    took_s: float
    begun: Sequence[Pod]
    ended: Sequence[Pod]
    again_s: Sequence[float] = ()  # from when a shard was put back until another had it
    after_death_s: Sequence[float] = ()  # from the kill of a pod until another had what it held

    @property
    def ready_s(self) -> list[float]:
        return [pod.ready_after_s for pod in self.begun if pod.ready_after_s is not None]

    def too_late(self) -> Iterator[str]:
        """Shards that waited for longer than they need to."""
        new_pod_s = max(self.ready_s, default=0.0)
        for what, values, most_s in (
            ("that was put back", self.again_s, AGAIN_WITHIN_S),
            ("of a dead pod", self.after_death_s, AFTER_DEATH_WITHIN_S),
        ):
            if values and max(values) > most_s + new_pod_s:
                yield f"{self.scene}: a shard {what} was taken after {max(values):.1f} s"

    def cells(self) -> list[str]:
        gone = [pod.gone_after_s for pod in self.ended if pod.gone_after_s is not None]
        pods, killed = f"+{len(self.begun)} -{len(self.ended)}", sum(pod.killed for pod in self.ended)
        return [
            self.scene, f"{self.took_s:.1f}", pods, _span(self.ready_s), _span(gone),
            str(killed), str(len(self.again_s)), _span(self.again_s), str(len(self.after_death_s)),
            _span(self.after_death_s),
        ]  # fmt: skip


HEAD = ["scene", "s", "pods", "s to ready", "s to go", "killed", "put back", "s till taken", "of dead", "s till taken"]


def _span(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.1f}, most {max(values):.1f}" if values else "-"


def table(rows: Iterable[Row]) -> str:
    lines = [HEAD, *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEAD))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def said(pod: Pod) -> Iterator[dict[str, Any]]:
    """Each line of its log."""
    for line in pod.log.splitlines():
        if line.startswith(b"{"):
            yield json.loads(line)


def put_back_by(pod: Pod) -> list[tuple[str, int, int]]:
    """Scan, number and attempt of each shard that it put back since it was to end."""
    return [
        (line["scan"], line["shard"], line["attempt"]) for line in said(pod) if line["event"] == "shard put back"
    ]  # fmt: skip


def lost(load: Load) -> list[str]:
    """All that is missed, invented or doubled; the trees hold still and were scanned."""
    found = []
    for name, writer in load.writers.items():
        its = seen(load.field, name)
        found += [f"missed of {name}: {one}" for one in missed(writer.journal, its.index)]
        found += [f"invented of {name}: {one}" for one in invented(writer.journal, its.feed, its.spans)]
        found += [f"doubled of {name}: {one}" for one in doubled(writer.journal, its.feed, its.spans)]
    removed = {path for writer in load.writers.values() for path in writer.journal.removed()}
    try:
        invariants.check(load.field.engine, load.roots, removed, restless=True)
    except AssertionError as error:
        found.append(f"{error}")
    return found
