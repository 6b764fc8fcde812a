"""The processes that containers run, for tests: a worker and beat on a database and a Redis that are given."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.command import STRANDLINE, Command
from tests.processes import Running, start

YEAR_S = 365 * 86_400


class Cluster(Command):
    """`strandline …` beside processes of its own; no state folder.

    with tests.cluster.running(tmp_path, database_url, redis_url, STRANDLINE_LEASE_S="2") as cluster:
        cluster.processes["worker"].send(signal.SIGKILL)
    """

    processes: dict[str, Running]

    def argv(self, *words: str | bytes) -> list[str | bytes]:
        return [STRANDLINE, *words]

    def begin(self, name: str, *words: str, program: str | None = None) -> Running:
        """Start a process of the cluster, to be found by that name; whoever calls it ends it. `program`: Python that
        changes something and then calls `orchestrator.cli.main`.
        """
        command = [STRANDLINE] if program is None else [sys.executable, "-c", program]
        self.processes[name] = start([*command, *words], env={**os.environ, **self.env})
        return self.processes[name]


@contextlib.contextmanager
def running(folder: Path, database_url: str, redis_url: str, *, workers: int = 1, children: int = 2,
            beats: int = 1, **settings: str) -> Iterator[Cluster]:  # fmt: skip
    """A migrated database, workers (worker, worker2, …) that are ready, and beats (beat, …). Tenants are scanned when
    they are asked for: the clock's turn of one that is made now hardly comes within the seconds of a test.
    """
    never = folder / "never made"
    env = {
        "STRANDLINE_DATABASE_URL": database_url, "STRANDLINE_REDIS_URL": redis_url,
        "STRANDLINE_STATE_DIR": str(never), "STRANDLINE_TICK_S": "0.5", "STRANDLINE_INTERVAL_S": str(YEAR_S),
        "TMPDIR": tempfile.mkdtemp(dir=folder, prefix="temporary-"),
    }  # fmt: skip
    cluster = Cluster(folder / "unused", env | settings)
    cluster.processes = {}
    cluster.starts_nothing = True
    done = cluster.run("migrate")
    assert done.returncode == 0, done.stderr
    try:
        for number in range(workers):
            cluster.begin(f"worker{number + 1 if number else ''}", "worker", "--workers", str(children))
        for number in range(beats):
            cluster.begin(f"beat{number + 1 if number else ''}", "beat")
        for name, process in cluster.processes.items():
            assert not name.startswith("worker") or process.stderr.wait_for(b"ready", 30), process.stderr.content
        yield cluster
    finally:
        for process in cluster.processes.values():
            process.close()
    assert not never.exists()
