"""A container by podman that is this machine's own userland, of which nothing is kept, under a limit of its own.

with contained(1024) as (group, program):
    worker = cluster.begin("worker", "worker", program=program)
"""

import contextlib
import os
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

from tests import memory_group
from tests.cgroups import MOUNTED, Group
from tests.waiting import wait_until

# What runs where there is neither systemd nor a journal.
CONFIGURATION = """
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=20000:20000"]
"""


@contextlib.contextmanager
def contained(megabytes: int, executable: str) -> Iterator[tuple[Group, str]]:
    """The group in which the container will be, and Python that runs that program in it, on this machine's network,
    with its environment and its temporary folders (sockets and trees lie there, and an overlay would hide what they
    are).
    """
    name = f"strandline-test-{uuid.uuid4()}"
    with memory_group.limited_to(0) as group, tempfile.TemporaryDirectory() as folder:
        configuration = Path(folder) / "containers.conf"
        configuration.write_text(CONFIGURATION)
        volumes = [f"--volume={place}:{place}" for place in {"/tmp", tempfile.gettempdir()}]
        parent = group.path.relative_to(MOUNTED / "memory")
        command = [
            *("podman", "run", "--rm", "--name", name, "--network=host", "--env-host", *volumes),
            *(f"--memory={megabytes}m", f"--memory-swap={megabytes}m"),
            *(f"--cgroup-parent=/{parent}", "--rootfs", "/:O", executable),
        ]
        program = (
            f"import os, sys; os.environ['CONTAINERS_CONF'] = {str(configuration)!r}; "
            f"os.execvp('podman', [*{command!r}, *sys.argv[1:]])"
        )
        try:
            yield group, program
        finally:
            removing = ["podman", "rm", "--force", "--ignore", "--time=0", name]
            environment = {**os.environ, "CONTAINERS_CONF": str(configuration)}
            subprocess.run(removing, env=environment, check=True, stdout=subprocess.DEVNULL)
            wait_until(lambda: _removed(parent), memory_group.END_S, "the container's groups are left")


def _removed(parent: Path) -> bool:
    """Podman makes the group that it is given anew in all other hierarchies, and one below it for who looks after a
    container, and leaves them.
    """
    ours, keeper = MOUNTED / "memory" / parent, memory_group.KEEPER
    left = [*MOUNTED.glob(f"*/{parent}/{keeper}"), *(one for one in MOUNTED.glob(f"*/{parent}") if one != ours)]
    for folder in left:
        with contextlib.suppress(OSError):  # he has not ended yet
            folder.rmdir()
    return not any(folder.exists() for folder in left)
