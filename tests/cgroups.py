"""Control groups of version 1, made for a test: a limit on what some processes may use together.

with limited("pids", processes.alive()) as group:
    group.write("pids.max", "5")
"""

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

MOUNTED = Path("/sys/fs/cgroup")


def own(controller: str) -> Path:
    """The group in which this process is."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            return MOUNTED / controller / path.lstrip("/")
    raise OSError(f"no {controller} group of version 1")


@dataclass(frozen=True)
class Group:
    """A folder of the kernel's, and what it says."""

    path: Path

    def write(self, name: str, value: object) -> None:
        (self.path / name).write_text(f"{value}\n")

    def read(self, name: str) -> str:
        return (self.path / name).read_text().strip()


@contextlib.contextmanager
def limited(controller: str, pids: Iterable[int] = ()) -> Iterator[Group]:
    """A group below our own with these processes, and all that they start; at the end they are back in ours."""
    above = own(controller)
    group = Group(Path(tempfile.mkdtemp(prefix="strandline-test-", dir=above)))
    try:
        for pid in pids:
            group.write("cgroup.procs", pid)
        yield group
    finally:
        for pid in group.read("cgroup.procs").split():
            with contextlib.suppress(ProcessLookupError):
                Group(above).write("cgroup.procs", pid)
        os.rmdir(group.path)


if __name__ == "__main__":  # a trial, see tests.needs
    import sys

    with limited(sys.argv[1]):
        pass
