"""Old and new side by side, for one release."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from db import schema
from db.engine import writing
from tasks import release
from tasks.scan_shard import scan_shard
from tests import aftermath, invariants
from tests import field as fields
from tests.cluster import Cluster
from tests.in_process import InProcess, ready
from tests.needs import FORMER
from tests.processes import Running, start
from tests.test_dying import engine as engine  # one database for the file
from tests.test_dying import place as place
from tests.trees import Dir, File, build

TOP = Path(__file__).parent.parent
OLD_SCHEMA = "0004"


# A message, a schema


def send(scan_id: object, number: object, version: object = release.VERSION) -> None:
    """As a worker that gets such a message."""
    scan_shard.apply(args=[scan_id, number], headers={"strandline_version": version}, throw=True)


@pytest.mark.parametrize("version", [release.VERSION + 1, "x", None])
def test_a_message_of_a_later_release_is_put_back(place, version: object) -> None:
    scanned: InProcess = place()
    [shard] = ready(scanned.engine)

    send(shard.scan_id, shard.number, version)

    assert ready(scanned.engine) == [], "it waits a little"
    with writing(scanned.engine) as connection:
        connection.exec_driver_sql("UPDATE shards SET not_before = 0")
    assert scanned.carry_on() and scanned.document()["attempts"] == scanned.document()["shards"]


def test_a_message_of_the_release_before_is_taken(place) -> None:
    scanned: InProcess = place()
    [shard] = ready(scanned.engine)

    scan_shard.apply(args=[shard.scan_id, shard.number], throw=True)

    assert scanned.carry_on() and scanned.document()["attempts"] == scanned.document()["shards"]


@pytest.mark.parametrize(
    ("scan_id", "number"),
    [("no id", 1), (7, 1), (None, None), ("0" * 36, 1), ("01a1fe10-7f36-7bf1-930d-64e01096fc6e", -1),
     ("01a1fe10-7f36-7bf1-930d-64e01096fc6e", 1 << 40), ("01a1fe10-7f36-7bf1-930d-64e01096fc6e", True),
     ("01a1fe10-7f36-7bf1-930d-64e01096fc6e", "1"), ("01a1fe10-7f36-7bf1-930d-64e01096fc6e", 1),
     ({"a": 1}, [2])],
)  # fmt: skip
@pytest.mark.fault(8, "messages that nobody sent")
def test_a_message_that_names_no_shard_means_nothing(place, scan_id: object, number: object) -> None:
    scanned: InProcess = place()

    send(scan_id, number)

    assert scanned.carry_on() and scanned.document()["attempts"] == scanned.document()["shards"]


def set_schema(engine: Engine, version: str, least: str) -> None:
    with writing(engine) as connection:
        connection.exec_driver_sql(f"UPDATE alembic_version SET version_num = '{version}'")
        connection.exec_driver_sql(f"UPDATE compatibility SET least = '{least}'")


@pytest.fixture
def as_it_was(engine: Engine) -> Iterator[None]:
    yield
    set_schema(engine, schema.HEAD, OLD_SCHEMA)


def test_a_worker_goes_on_with_a_schema_that_it_may_use(place, as_it_was: None) -> None:
    scanned: InProcess = place()
    set_schema(scanned.engine, "9999", schema.HEAD)

    schema.require_current(scanned.engine)
    assert not schema.migrate(scanned.engine)

    assert scanned.carry_on() and scanned.document()["state"] == "succeeded"


def test_a_worker_gives_everything_back_where_the_schema_is_too_new(
    place, as_it_was: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.trouble.SENT_AGAIN_AFTER_S", 0.0)
    again: list[object] = []
    monkeypatch.setattr("celery.app.task.Task.apply_async", lambda _, args, **__: again.append(args))
    scanned: InProcess = place()
    [shard] = ready(scanned.engine)
    set_schema(scanned.engine, "9999", "9999")
    scanned._app.runtime.schema_until_s = 0.0

    send(shard.scan_id, shard.number)

    assert again == [[shard.scan_id, shard.number]]
    with writing(scanned.engine) as connection:
        assert connection.exec_driver_sql("SELECT max(attempt) FROM shards WHERE state = 'ready'").scalar() == 0


# Two releases, each with its processes


@pytest.fixture(scope="module")
def former(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The code of the release before."""
    folder = tmp_path_factory.mktemp("former")
    packed = subprocess.run(["git", "-C", str(TOP), "archive", FORMER], capture_output=True, check=True).stdout
    subprocess.run(["tar", "-x", "-C", folder], input=packed, check=True)
    return folder


def begin(former: Path, cluster: Cluster, *words: str) -> Running:
    """Start a command of the release before."""
    main = "import sys; from orchestrator.cli import main; sys.argv[0] = 'strandline'; main()"
    env = {**os.environ, **cluster.env, "PYTHONPATH": str(former)}
    process = start([sys.executable, "-c", main, *words], env=env)
    cluster.processes[f"former {words[0]}"] = process
    return process


@pytest.mark.chaos
@pytest.mark.needs("history")
@pytest.mark.fault(
    21, "a worker and a beat of the release before, on the schema of this one, beside a worker of this one"
)
def test_workers_of_two_releases_carry_on_one_scan(
    newest_postgres_url: str, own_redis, former: Path, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    build(os.fsencode(root), Dir({b"%d" % d: Dir({b"%d" % n: File(b"%d" % n) for n in range(40)}) for d in range(40)}))
    with own_redis() as broker:
        env = {
            "STRANDLINE_DATABASE_URL": newest_postgres_url, "STRANDLINE_REDIS_URL": broker.url,
            "STRANDLINE_STATE_DIR": str(tmp_path / "unused"), "STRANDLINE_TICK_S": "0.5",
            "STRANDLINE_SHARD_ENTRIES": "100", "TMPDIR": tempfile.mkdtemp(dir=tmp_path),
        }  # fmt: skip
        cluster = Cluster(tmp_path / "unused", env)
        cluster.processes = {}
        try:
            assert begin(former, cluster, "migrate").wait(60).returncode == 0
            old = begin(former, cluster, "worker", "--workers", "1")
            assert old.stderr.wait_for(b"ready", 60), old.stderr.content
            begin(former, cluster, "beat")
            assert cluster.run("migrate").stdout.startswith(f"schema {schema.HEAD}")  # while the old worker runs
            assert cluster.run("tenant", "add", "t", str(root), "--interval", "3600").returncode == 0

            [first] = cluster.json("enqueue", "t", "--wait")  # by old ones alone

            new = cluster.begin("worker", "worker", "--workers", "1")
            assert new.stderr.wait_for(b"ready", 60), new.stderr.content
            with fields.on(cluster, broker, tmp_path) as field:  # from now on, what both hold is usual
                for number in range(200):
                    build(os.fsencode(root / str(number % 40) / f"new {number}"), File(b"new"))
                [second] = cluster.json("enqueue", "t", "--full", "--wait")
                old.close()
                [third] = cluster.json("enqueue", "t", "--full", "--wait")  # by new ones alone
                aftermath.check(field)
                invariants.check(field.engine, {"t": os.fsencode(root)})
        finally:
            for process in cluster.processes.values():
                process.close()
    assert [one["state"] for one in (first, second, third)] == ["succeeded"] * 3
    assert (first["added"], second["added"], third["added"]) == (1600, 200, 0)


def test_the_old_schema_is_the_one_before() -> None:
    assert schema.KNOWN[-2] == OLD_SCHEMA
