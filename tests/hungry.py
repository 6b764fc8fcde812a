"""Workers born into a control group of memory, whose shards may leak or take much at once.

field.begin_worker("worker", 4, program(group, "Leaking"))
"""

import os
from pathlib import Path
from typing import ClassVar

from tasks.pipeline import Pipeline
from tasks.write_back import Todo
from tests.cgroups import Group

MB = 1 << 20
LEAK = 5 * MB
ATE_AT_ONCE = 2048 * MB


class Leaking(Pipeline):
    """A pipeline that keeps five megabytes of each directory, for as long as its process lives."""

    leaked: ClassVar[list[bytearray]] = []

    def _visit(self, todo: Todo, *more: object) -> None:
        self.leaked.append(bytearray(os.urandom(1) * LEAK))
        super()._visit(todo, *more)


class Greedy(Pipeline):
    """A pipeline that takes two gigabytes for each directory of the name `greedy`."""

    def _visit(self, todo: Todo, *more: object) -> None:
        taken = bytearray(b"1" * ATE_AT_ONCE) if todo.known.path.endswith(b"greedy") else b""
        super()._visit(todo, *more)
        del taken


class GreedyOnce(Greedy):
    """The same, but once only: a file of the name `eaten` in the group's absence is left in the temporary folder."""

    def _visit(self, todo: Todo, *more: object) -> None:
        eaten = Path(os.environ["TMPDIR"], "eaten")
        if todo.known.path.endswith(b"greedy") and not eaten.exists():
            eaten.touch()
            super()._visit(todo, *more)
        else:
            Pipeline._visit(self, todo, *more)


def program(group: Group, pipeline: str = "Pipeline") -> str:
    """A command whose processes are in that group from their beginning, and that uses this pipeline."""
    return f"""
open({str(group.path / "cgroup.procs")!r}, "w").write("0")
from orchestrator.cli import main
from tests import hungry
import tasks.scan_shard
tasks.scan_shard.Pipeline = hungry.{pipeline}
main()
"""
