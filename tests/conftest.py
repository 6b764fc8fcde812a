"""For all tests: real servers, started when a test first asks; what a test needs; a clean environment."""

import contextlib
import functools
import gc
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from hypothesis import settings as hypothesis_settings
from sqlalchemy import Engine

from db import schema
from db.engine import connect
from db.tables import metadata
from tests import aftermath, needs, scenarios_report, servers
from tests import field as fields
from tests.command import Command
from tests.servers import PostgresKind, PostgresServer, RedisServer
from tests.volumes import Volume, Volumes

# How long an example takes is the machine's doing: 200 ms, Hypothesis's own limit, were too few beside other work.
hypothesis_settings.register_profile("strandline", deadline=None)
hypothesis_settings.load_profile("strandline")

# mkfs and its like are in folders that not every user's PATH names.
os.environ["PATH"] += ":/usr/sbin:/sbin"
# A shell starts what it leaves in the background deaf to Ctrl-C, which all that is started here would be as well.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Until all tests are collected: see below.
gc.disable()
REQUIRE_ALL = os.environ.get("REQUIRE") == "all"
POSTGRES_KINDS = servers.postgres_kinds()
MAY_SKIP = "may be missing"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for some in terminalreporter.stats.values() for report in some]
    for line in [*scenarios_report.summary(scenarios_report.of_reports(reports)), *_tested_on()]:
        terminalreporter.write_line(line)


def _tested_on() -> list[str]:
    found = [servers.redis_version(), *(kind.described() for kind in POSTGRES_KINDS)]
    lines = ["servers: " + ", ".join(found), "not to be had here: " + ", ".join(needs.may_be_missing())]
    return [*lines, "every other skip is a failure (REQUIRE=all)"] if REQUIRE_ALL else lines


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """What is loaded by then stays: to look through it for garbage takes a second, which many tests let be done."""
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


# What a test needs


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("needs"):
        for what in marker.args:
            if reason := needs.missing(what):
                if what in needs.MAY_BE_MISSING:
                    item.user_properties.append((MAY_SKIP, what))
                pytest.skip(f"needs {what}: {reason}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item):
    """A test of a fault is over when all that was held is given back, and others are served."""
    if not item.get_closest_marker("fault"):
        return (yield)
    in_processes = item.get_closest_marker("chaos") or item.get_closest_marker("weather")
    with contextlib.nullcontext() if in_processes else aftermath.none_kept_here():
        result = yield
    for field in fields.OPEN:
        aftermath.check(field)
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    return _refuse_skip((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report():
    return _refuse_skip((yield))


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable():
    """What a test said goes to another process as UTF-8: names of files that are none ended that process."""
    return _as_utf8((yield))


def _as_utf8(told: Any) -> Any:
    if isinstance(told, str):
        return told.encode("utf-8", "backslashreplace").decode()
    if isinstance(told, dict):
        return {name: _as_utf8(value) for name, value in told.items()}
    return type(told)(map(_as_utf8, told)) if isinstance(told, (list, tuple)) else told


def _refuse_skip(report):
    """Under REQUIRE=all nothing is skipped in silence. An expected failure is reported as a skip too, but is none."""
    allowed = hasattr(report, "wasxfail") or any(name == MAY_SKIP for name, _ in getattr(report, "user_properties", []))
    if REQUIRE_ALL and report.skipped and not allowed:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{reason}\nREQUIRE=all: a skip is a failure"
    return report


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("STRANDLINE_")]:
        monkeypatch.delenv(name)


# File systems


@pytest.fixture(scope="session")
def volumes() -> Iterator[Volumes]:
    with Volumes() as folder:
        yield folder


@pytest.fixture
def mounted(volumes: Volumes) -> Iterator[Callable[..., Volume]]:
    """Mounts a file system of a kind until the end of the test. Needs root, mount and that kind."""
    with contextlib.ExitStack() as stack:
        yield lambda kind, **options: stack.enter_context(volumes.mounted(kind, **options))


# The command


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    """The command beside one stack for all tests of the file: each scan joins it."""
    command = Command(tmp_path_factory.mktemp("state"))
    with command.up():
        yield command


# Servers


@pytest.fixture(scope="session")
def server_folder() -> Iterator[Path]:
    with servers.server_folder() as folder:
        yield folder


def _subfolder(folder: Path) -> Path:
    path = Path(tempfile.mkdtemp(dir=folder))
    path.chmod(0o755)
    return path


@pytest.fixture
def own_folder(server_folder: Path) -> Path:
    """For a server of another kind."""
    return _subfolder(server_folder)


@pytest.fixture(scope="session")
def redis_server(server_folder: Path) -> Iterator[RedisServer]:
    """The session's Redis. A test that stops or fills its server wants `own_redis`."""
    with RedisServer(_subfolder(server_folder)) as server:
        yield server


@pytest.fixture(scope="session")
def redis_url(redis_server: RedisServer) -> str:
    return redis_server.url


@pytest.fixture
def redis_client(redis_url: str) -> Iterator[redis.Redis]:
    """A client of the session's Redis, which is empty before the test and after it."""
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
        yield client
        client.flushall()


@pytest.fixture(scope="session")
def own_redis(server_folder: Path) -> Callable[..., RedisServer]:
    """For a server to stop, kill and start again: `with own_redis("--appendonly", "yes") as server:`."""
    return lambda *options: RedisServer(_subfolder(server_folder), *options)


@pytest.fixture(scope="session")
def _postgres_servers(server_folder: Path) -> Iterator[Callable[[PostgresKind], PostgresServer]]:
    """The session's server of a kind, started at the first call."""
    with contextlib.ExitStack() as running:
        yield functools.cache(
            lambda kind: running.enter_context(PostgresServer(kind, _subfolder(server_folder))),
        )


@pytest.fixture(scope="session", params=POSTGRES_KINDS, ids=str)
def postgres_server(request: pytest.FixtureRequest, _postgres_servers) -> PostgresServer:
    return _postgres_servers(request.param)


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """A fresh, empty database."""
    with postgres_server.database() as url:
        yield url


@pytest.fixture
def newest_postgres_url(_postgres_servers) -> Iterator[str]:
    """A fresh, empty database of the newest PostgreSQL: for what takes long and is about processes."""
    with _postgres_servers(POSTGRES_KINDS[-1]).database() as url:
        yield url


@pytest.fixture(params=["sqlite", *POSTGRES_KINDS], ids=str)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A fresh, empty database of each sort that a store must pass the same tests on."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'test.sqlite'}"
    else:
        servers_of = request.getfixturevalue("_postgres_servers")  # not a parameter: sqlite needs no server
        with servers_of(request.param).database() as url:
            yield url


@pytest.fixture(scope="session")
def _migrated(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Per sort of database, one that was migrated once: a file to copy, a URL to use."""

    @functools.cache
    def sqlite_file() -> Path:
        path = tmp_path_factory.mktemp("migrated") / "template.sqlite"
        _migrate(f"sqlite:///{path}")
        return path

    @functools.cache
    def postgres_database(server: PostgresServer) -> str:
        server.execute("CREATE DATABASE migrated")
        _migrate(server.url("migrated"))
        return server.url("migrated")

    return lambda server=None: sqlite_file() if server is None else postgres_database(server)


def _migrate(url: str) -> None:
    engine = connect(url)
    schema.migrate(engine)
    engine.dispose()  # SQLite writes its log back into the file


@pytest.fixture(params=["sqlite", *POSTGRES_KINDS], ids=str)
def migrated_url(request: pytest.FixtureRequest, tmp_path: Path, _migrated) -> Iterator[str]:
    """A database of each sort with the newest schema and no row. A test that changes the schema wants `database_url`:
    on PostgreSQL this is one database, emptied after each test, since making one takes longer than most tests.
    """
    if request.param == "sqlite":
        yield f"sqlite:///{shutil.copy(_migrated(), tmp_path / 'test.sqlite')}"
    else:
        url = _migrated(request.getfixturevalue("_postgres_servers")(request.param))
        yield url
        _empty(url)


def _empty(url: str) -> None:
    """(By TRUNCATE: what is left of deleted rows, and of the planner's view of them, makes a later test slow.)"""
    names = ", ".join(table for table in metadata.tables if table not in ("id_blocks", "compatibility"))
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
        )
        connection.execute(f"TRUNCATE {names} RESTART IDENTITY")
        connection.execute("UPDATE id_blocks SET next = 1")


@pytest.fixture
def engine(migrated_url: str) -> Iterator[Engine]:
    """An engine on an empty, migrated database of each sort; enough connections for the threads of a test."""
    engine = connect(migrated_url, pool_size=16)
    yield engine
    engine.dispose()


@pytest.fixture(scope="session")
def own_postgres(server_folder: Path) -> Callable[..., PostgresServer]:
    """For a server to stop, kill and start again, of a given kind or the last: `with own_postgres() as server:`."""
    return lambda kind=POSTGRES_KINDS[-1], settings=(): PostgresServer(kind, _subfolder(server_folder), *settings)
