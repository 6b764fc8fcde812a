"""The stack of compose/compose.yaml in real containers, by podman, in network and mount namespaces of their own.

STRANDLINE_TEST_IMAGES names the folder that `.ci/images` made. Who runs this is in those namespaces already
(`make containers`), so that nothing here reaches, or is seen from, elsewhere.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.servers import free_port
from tests.waiting import wait_until

TOP = Path(__file__).parent.parent
VARIABLE = "STRANDLINE_TEST_IMAGES"
SOON_S = 90


def images() -> Path:
    """Where `.ci/images` put what it made."""
    return Path(os.environ.get(VARIABLE, TOP / "build" / "images")).absolute()


@dataclass
class Stack:
    """The very compose.yaml, in a folder of its own with secrets of its own; `data` is what tenants' folders are in."""

    folder: Path
    data: Path
    env: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shutil.copytree(TOP / "compose", self.folder, ignore=shutil.ignore_patterns("secrets", ".env"))
        self.env = {
            **os.environ,
            "CONTAINERS_CONF": str(images() / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(images() / "storage.conf"),
            "DOCKER_HOST": f"unix://{self.folder}/podman.sock",
            "COMPOSE": f"{images()}/docker-compose",
            "STRANDLINE_DATA": str(self.data),
            "STRANDLINE_LOG_DRIVER": "k8s-file",  # podman's name for files that `logs` reads
            "STRANDLINE_API_ADDRESS": f"127.0.0.1:{free_port()}",
            "STRANDLINE_FLOWER_ADDRESS": f"127.0.0.1:{free_port()}",
        } | self.env

    def run(self, *words: str, timeout_s: float = 300, check: bool = True) -> str:
        """What a command printed, with this stack's environment."""
        done = subprocess.run(
            words, env=self.env, cwd=self.folder, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=timeout_s, errors="replace",
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{words}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def compose(self, *words: str, **more: Any) -> str:
        return self.run(self.env["COMPOSE"], "-f", "compose.yaml", *words, **more)

    def podman(self, *words: str, **more: Any) -> str:
        return self.run("podman", *words, **more)

    def up(self, *words: str) -> None:
        self.compose("up", "--detach", "--wait", "--no-build", "--pull", "never", *words)

    def containers(self, service: str) -> list[str]:
        """The names of the containers of a service that run."""
        name = f"label=com.docker.compose.service={service}"
        return sorted(self.podman("ps", "--filter", name, "--format", "{{.Names}}").split())

    def inspect(self, container: str) -> dict[str, Any]:
        [found] = json.loads(self.podman("inspect", container))
        return found

    def strandline(self, *words: str, **more: Any) -> str:
        """A command in the API's container, as whoever operates it would give it."""
        return self.compose("exec", "-T", "api", "strandline", *words, **more)

    def sql(self, query: str) -> str:
        """What the database answers, a column a line."""
        return self.compose("exec", "-T", "postgres", "psql", "-U", "strandline", "-tAc", query).strip()

    def documents(self, *words: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.strandline(*words, "--json").splitlines()]

    def scan(self, tenant: str, scan_id: str) -> dict[str, Any]:
        return next(one for one in self.documents("scans", tenant) if one["scan"] == scan_id)

    def ended(self, tenant: str, scan_id: str) -> dict[str, Any]:
        over = ("succeeded", "partial", "suspect", "failed", "cancelled")
        wait_until(lambda: self.scan(tenant, scan_id)["state"] in over, 3 * SOON_S, "the scan ends")
        return self.scan(tenant, scan_id)

    def smoke(self, root: str) -> str:
        return self.run(sys.executable, "smoke.py", root)


@contextlib.contextmanager
def service(stack: Stack) -> Iterator[None]:
    """Podman's service, which Compose talks to. Health checks are made here, as systemd's timers would elsewhere."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with open(stack.folder / "podman.txt", "wb") as log:
        words = ["podman", "system", "service", "--time=0", stack.env["DOCKER_HOST"]]
        process = subprocess.Popen(words, env=stack.env, stdout=log, stderr=log)
    over = threading.Event()
    checks = threading.Thread(target=_check_health, args=(stack, over), daemon=True)
    try:
        wait_until((stack.folder / "podman.sock").exists, SOON_S, "podman serves")
        checks.start()
        yield
    finally:
        over.set()
        if checks.ident is not None:
            checks.join()
        process.send_signal(signal.SIGTERM)
        process.wait(SOON_S)


def _check_health(stack: Stack, over: threading.Event) -> None:
    while not over.wait(2):
        for name in stack.podman("ps", "--format", "{{.Names}}", check=False).split():
            stack.podman("healthcheck", "run", name, check=False)


@contextlib.contextmanager
def running(stack: Stack) -> Iterator[Stack]:
    """The stack, once all of it is healthy; taken down with its volumes."""
    stack.run("./secrets.sh")
    with service(stack):
        try:
            stack.up()
            yield stack
        finally:
            stack.compose("down", "--volumes", "--timeout", "30", check=False)
            stack.podman("rm", "--all", "--force", "--volumes", check=False)
