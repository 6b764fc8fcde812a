"""The stack of compose/compose.yaml in real containers, by podman, in namespaces of their own.

`make containers` makes the images, opens the namespaces (`.ci/apart`) and names the folder of images, so that nothing
here reaches, or is seen from, elsewhere. `python -m tests.containers` tries whether a container can be run at all.
"""

import contextlib
import functools
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from tests.servers import free_port
from tests.waiting import wait_until

TOP = Path(__file__).parent.parent
VARIABLE = "STRANDLINE_TEST_IMAGES"
IMAGES = Path(os.environ.get(VARIABLE, TOP / "build" / "images")).absolute()
IMAGE, FORMER, NEXT = (f"docker.io/library/strandline:{tag}" for tag in ("0.1.0", "former", "next"))
PODMAN = {
    "CONTAINERS_CONF": str(IMAGES / "containers.conf"),
    "CONTAINERS_STORAGE_CONF": str(IMAGES / "storage.conf"),
    "TMPDIR": str(IMAGES / "tmp"),
}
SOON_S = 90
OVER = ("succeeded", "partial", "suspect", "failed", "cancelled")


@dataclass
class Stack:
    """The very compose.yaml, in a folder of its own with secrets of its own; `data` is what tenants' folders are in."""

    folder: Path
    data: Path
    env: dict[str, str] = field(default_factory=dict)
    healthy_after_s: float = 0

    def __post_init__(self) -> None:
        shutil.copytree(TOP / "compose", self.folder, ignore=shutil.ignore_patterns("secrets", ".env"))
        self.env = {
            **os.environ,
            **PODMAN,
            "DOCKER_HOST": f"unix://{self.socket}",
            "COMPOSE": f"{IMAGES}/docker-compose",
            "STRANDLINE_DATA": str(self.data),
            "STRANDLINE_LOG_DRIVER": "k8s-file",  # podman's name for files that `logs` reads
            "STRANDLINE_API_ADDRESS": f"127.0.0.1:{free_port()}",
            "STRANDLINE_FLOWER_ADDRESS": f"127.0.0.1:{free_port()}",
        } | self.env

    @property
    def socket(self) -> Path:
        return self.folder / "podman.sock"

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
        self.compose(
            "up", "--detach", "--wait", "--wait-timeout", f"{2 * SOON_S}", "--no-build", "--pull", "never", *words
        )

    def ask(self, path: str) -> Any:
        """What podman's service answers: a command of podman's takes as much as what is waited for."""
        with contextlib.closing(_Local(self.socket)) as connection:
            connection.request("GET", f"/v4.0.0/libpod{path}")
            return json.loads(connection.getresponse().read())

    def containers(self, service: str) -> list[str]:
        """The names of the containers of a service that run."""
        running = self.ask("/containers/json")
        return sorted(one["Names"][0] for one in running if one["Labels"].get("com.docker.compose.service") == service)

    def inspect(self, container: str) -> dict[str, Any]:
        return dict(self.ask(f"/containers/{container}/json"))

    def execute(self, service: str, *words: str, **more: Any) -> str:
        """What a command says in a container of that service."""
        return self.podman("exec", self.containers(service)[0], *words, **more)

    def memory(self, container: str) -> tuple[int, int]:
        """The most that its control group held, in bytes, and how many processes were killed for want of it."""
        here = self.inspect(container)["State"]["CgroupPath"]
        group = Path(f"/sys/fs/cgroup/memory{here}")
        if group.exists():
            peak, events = group / "memory.max_usage_in_bytes", group / "memory.oom_control"
        else:
            group = Path(f"/sys/fs/cgroup{here}")
            peak, events = group / "memory.peak", group / "memory.events"
        killed = dict(line.split() for line in events.read_text().splitlines())["oom_kill"]
        return int(peak.read_text()) if peak.exists() else 0, int(killed)

    def strandline(self, *words: str) -> str:
        """A command in the API's container, as whoever operates it would give it."""
        return self.execute("api", "strandline", *words)

    @functools.cached_property
    def database(self) -> str:
        """Where it is reached from here, until it is started anew."""
        networks = self.inspect(self.containers("postgres")[0])["NetworkSettings"]["Networks"]
        password = (self.folder / "secrets" / "postgres_password").read_text().strip()
        address = networks["strandline_inside"]["IPAddress"]
        return f"host={address} user=strandline dbname=strandline password={password}"

    def sql(self, query: str) -> Any:
        """The one value that the database answers."""
        with psycopg.connect(self.database) as connection:
            [value] = connection.execute(query).fetchone() or [None]
        return value

    def documents(self, *words: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.strandline(*words, "--json").splitlines()]

    def scan(self, tenant: str, scan_id: str) -> dict[str, Any]:
        return next(one for one in self.documents("scans", tenant) if one["scan"] == scan_id)

    def ended(self, tenant: str, scan_id: str) -> dict[str, Any]:
        state = f"SELECT state FROM scans WHERE id = '{scan_id}'"
        wait_until(lambda: self.sql(state) in OVER, 3 * SOON_S, "the scan ends")
        return self.scan(tenant, scan_id)

    def smoke(self, root: str) -> str:
        return self.run(sys.executable, "smoke.py", root)


class _Local(http.client.HTTPConnection):
    """HTTP on a socket that has a path."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self._path))


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
        wait_until(stack.socket.exists, SOON_S, "podman serves")
        checks.start()
        yield
    finally:
        over.set()
        if checks.ident is not None:
            checks.join()
        process.send_signal(signal.SIGTERM)
        process.wait(SOON_S)


def _check_health(stack: Stack, over: threading.Event) -> None:
    """(Each check takes a fifth of a second of a processor: three seconds apart until one is healthy, and ten then.)"""
    due_s: dict[str, float] = {}
    while not over.wait(1):
        with contextlib.suppress(OSError, ValueError, http.client.HTTPException):
            for one in stack.ask("/containers/json"):
                if time.monotonic() >= due_s.setdefault(one["Id"], time.monotonic() + 1):
                    status = stack.ask(f"/containers/{one['Id']}/healthcheck").get("Status")
                    due_s[one["Id"]] = time.monotonic() + (10 if status == "healthy" else 3)


@contextlib.contextmanager
def running(stack: Stack) -> Iterator[Stack]:
    """The stack, once all of it is healthy; taken down with its volumes."""
    stack.run("./secrets.sh")
    _remove_all(stack)  # what a run that was killed has left
    with service(stack):
        try:
            began = time.monotonic()
            stack.up()
            stack.healthy_after_s = time.monotonic() - began
            yield stack
        finally:
            stack.compose("down", "--volumes", "--timeout", "30", check=False)
            _remove_all(stack)


def _remove_all(stack: Stack) -> None:
    stack.podman("rm", "--all", "--force", "--volumes", "--time", "0")
    stack.podman("volume", "prune", "--force")
    stack.podman("network", "prune", "--force")


if __name__ == "__main__":
    if VARIABLE not in os.environ:
        sys.exit("only `make containers` runs these")
    done = subprocess.run(["podman", "run", "--rm", "--net", "none", "--entrypoint", "true", IMAGE],
                          env={**os.environ, **PODMAN}, stdin=subprocess.DEVNULL)  # fmt: skip
    sys.exit(done.returncode)
