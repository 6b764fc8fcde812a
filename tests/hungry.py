"""Workers born into a control group of memory, whose shards may leak or take much at once.

field.begin_worker("worker", 4, program(group, "Leaking"))
"""

import os
from pathlib import Path
from typing import Any, ClassVar

from tasks.pipeline import Pipeline
from tasks.write_back import Todo
from tests.cgroups import Group

MB = 1 << 20
LEAK = 5 * MB
HEAVY = 40 * MB
AT_ONCE = 2048 * MB


class Leaking(Pipeline):
    """A pipeline that keeps five megabytes of each folder, for as long as its process lives."""

    leaked: ClassVar[list[bytearray]] = []

    def _look(self, todo: Todo, *more: Any) -> None:
        self.leaked.append(bytearray(b"1" * LEAK))
        super()._look(todo, *more)


class Heavy(Pipeline):
    """A pipeline whose process has forty megabytes more than others."""

    kept: ClassVar[bytearray] = bytearray()

    def _look(self, todo: Todo, *more: Any) -> None:
        if not self.kept:
            self.kept.extend(b"1" * HEAVY)
        super()._look(todo, *more)


class Greedy(Pipeline):
    """A pipeline that takes two gigabytes at once for a folder of the name `greedy`."""

    def _look(self, todo: Todo, *more: Any) -> None:
        if todo.known.path.endswith(b"greedy"):
            self._eat()
        super()._look(todo, *more)

    def _eat(self) -> None:
        bytearray(b"1" * AT_ONCE)


class GreedyOnce(Greedy):
    """The same, the first time only."""

    def _eat(self) -> None:
        eaten = Path(os.environ["TMPDIR"], "eaten")
        if not eaten.exists():
            eaten.touch()
            super()._eat()


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
