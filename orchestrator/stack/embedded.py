"""The embedded stack: broker, worker, and with `up` beat and Flower, under one parent that they never outlive."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator

from celery.utils.sysinfo import cpu_budget
from sqlalchemy import Engine

from db import schema, shards
from db.engine import connect, write
from db.types import StrandlineError
from orchestrator.refill import refill
from orchestrator.stack import broker, flower, processes, roles
from orchestrator.stack.processes import Child, Logs
from orchestrator.stack.state import Running, StateFolder
from tasks.app import App, make_app
from tasks.redis import policy
from tasks.redis.connection import Address, unix_url
from tasks.redis.keys import Keys
from tasks.settings import Settings

log = logging.getLogger(__name__)

DRAINS_WITHIN_S = 20.0
RESTART_AFTER_S = 1.0
# How long a Redis that is configured may take to answer.
BROKER_WITHIN_S = 10.0
FLOWER_PORT = 5555


class Stack:
    """What runs under this process. `piped`: logs come through us, prefixed."""

    def __init__(self, settings: Settings, state: StateFolder, *, piped: bool) -> None:
        self._socket = state.socket("broker.sock")
        self._own_broker = not settings.redis_url
        self.settings = settings.model_copy(
            update={
                "database_url": settings.database_url or state.database_url,
                "redis_url": settings.redis_url or unix_url(str(self._socket)),
                "log_format": "text" if settings.log_format == "auto" else settings.log_format,
            }
        )
        self._state = state
        self._piped = piped
        self._children: dict[str, Child] = {}
        self._starters: dict[str, Callable[[], Child]] = {}
        self._restart_at: dict[str, float] = {}
        self._logs = Logs(sys.stderr, self.settings.log_format == "json")
        self.app: App = make_app(self.settings)
        self.flower: str | None = None
        self.api: str | None = None

    def start(self, *, workers: int, full: bool, host: str = "127.0.0.1", api: socket.socket | None = None) -> None:
        """Start everything; `full`: with beat and Flower; `api`: a socket on which the API is to be served. Raises
        StrandlineError.
        """
        processes.adopt_orphans()
        if self._own_broker:
            self._starters["broker"] = lambda: broker.start(self._socket, piped=self._piped)
            self._start("broker")
        roles.preload()
        self._prepare_database()
        if self._own_broker:
            broker.wait(self._socket, self._children["broker"])
            self._fill_broker()
        address = Address.of(self.settings)
        with address.client() as client:
            policy.await_fit(client, address, BROKER_WITHIN_S)
        ours = "INFO" if full else None
        self._role(
            "worker", lambda: roles.worker(self.app, processes=workers, serving=full, level="WARNING", ours=ours)
        )  # fmt: skip
        if full:
            port = free_port(host, FLOWER_PORT)
            self.flower = f"http://{host}:{port}/{self.settings.flower_url_prefix.strip('/')}".rstrip("/")
            self._role("beat", lambda: roles.beat(self.app, level="WARNING"))
            self._role("flower", lambda: flower.run(self.app, host=host, port=port))
        if api is not None:
            self.api = url_of(api)
            self._role("api", lambda: roles.api(self.app, api, level="WARNING"))
        self._state.announce(
            Running(os.getpid(), self.settings.database_url, self.settings.redis_url, self.flower, self.api)
        )

    def _prepare_database(self) -> None:
        # Closed again before anything is forked: neither SQLite nor libpq survives a fork.
        engine = connect(self.settings.database_url)
        try:
            schema.migrate(engine)
            self._give_back_shards(engine)
        finally:
            engine.dispose()

    def _fill_broker(self) -> None:
        # It keeps nothing on disk. Closed again, as the database is.
        engine, client = connect(self.settings.database_url), Address.of(self.settings).client()
        try:
            refill(client, Keys(self.settings.redis_prefix), engine, expected=True)
        finally:
            engine.dispose()
            client.close()

    @staticmethod
    def _give_back_shards(engine: Engine) -> None:
        """No worker is alive: nobody holds a shard. (Others may share a PostgreSQL; there the leases run out.)"""
        if engine.dialect.name == "sqlite":
            write(engine, shards.release_all)

    def _role(self, name: str, work: Callable[[], None]) -> None:
        self._starters[name] = lambda: processes.fork(name, work, piped=self._piped)
        self._start(name)

    def _start(self, name: str) -> None:
        child = self._starters[name]()
        self._children[name] = child
        self._logs.follow(child)

    def pump(self, timeout_s: float) -> None:
        """Pass on logs for up to `timeout_s`, and start again what has died."""
        self._logs.pump(timeout_s)
        now = time.monotonic()
        for name, child in list(self._children.items()):
            if child.alive():
                continue
            if name not in self._restart_at:
                self._logs.say(f"{name} ended (status {child.status}), starting it again")
                self._restart_at[name] = now + RESTART_AFTER_S
            elif now >= self._restart_at[name]:
                del self._restart_at[name]
                child.kill()  # what it may have left behind
                if name == "worker":
                    self._give_back_shards(self.app.runtime.engine)
                self._start(name)

    def drain(self) -> None:
        """Let the worker end what it holds, for DRAINS_WITHIN_S at most, and stop everything."""
        if "beat" in self._children:
            self._children["beat"].kill()
        if "flower" in self._children:
            self._children["flower"].signal(signal.SIGTERM)  # it keeps what it saw, while the others end
        ending = [self._children[name] for name in ("api", "worker") if name in self._children]
        for child in ending:
            child.signal(signal.SIGTERM)
        deadline = time.monotonic() + DRAINS_WITHIN_S
        while any(child.alive() for child in ending) and time.monotonic() < deadline:
            self._logs.pump(0.05)
        self.stop()

    def stop(self) -> None:
        """End every process of ours, now. Whatever a worker held is offered again by the next stack."""
        for name in ("beat", "flower", "api", "worker", "broker"):
            if name in self._children:
                self._children.pop(name).kill()
        self._socket.unlink(missing_ok=True)
        if self._socket.parent != self._state.path:
            with contextlib.suppress(OSError):
                self._socket.parent.rmdir()
        self._state.unlock()


def url_of(listening: socket.socket) -> str:
    """The address of a server that listens there."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def free_port(host: str, preferred: int) -> int:
    """The preferred port where it is free, else any."""
    for port in (preferred, 0):
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise StrandlineError(f"no port is free on {host}")


@contextlib.contextmanager
def running_stack(settings: Settings, state: StateFolder, *, workers: int, full: bool, piped: bool,
                  host: str = "127.0.0.1", api: socket.socket | None = None) -> Iterator[Stack]:  # fmt: skip
    """A stack on a state folder whose lock we hold; stopped at the end, however that comes."""
    stack = Stack(settings, state, piped=piped)
    try:
        stack.start(workers=workers, full=full, host=host, api=api)
        yield stack
    finally:
        stack.stop()


def joined(settings: Settings, running: Running) -> Settings:
    """The settings for talking to a stack that already runs."""
    return settings.model_copy(update={"database_url": running.database_url, "redis_url": running.redis_url})


def default_workers(settings: Settings) -> int:
    """Processes of one worker: as set, else one for each processor that this process may run on, and has the time of by
    its control groups; no more than files may be open at once, since each has one open while it hashes.
    """
    wanted, most = settings.workers or cpu_budget().count, settings.hash_concurrency
    if wanted > most:
        log.warning("%d processes instead of %d: STRANDLINE_HASH_CONCURRENCY allows no more open files", most, wanted)
    return min(wanted, most)
