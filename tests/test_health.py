"""A worker and a beat tell by the ages of two files whether they live and take work."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from db.types import UsageError
from tasks.health import TOUCHED_EVERY_S, Health
from tests import cluster as clusters
from tests.cluster import Cluster
from tests.processes import Running
from tests.servers import RedisServer
from tests.waiting import wait_until

YOUNG_S = 3 * TOUCHED_EVERY_S
SOON_S = 60


@pytest.fixture
def broker(own_redis: Callable[..., RedisServer]) -> Iterator[RedisServer]:
    with own_redis() as server:
        yield server


@pytest.fixture
def cluster(newest_postgres_url: str, broker: RedisServer, tmp_path: Path) -> Iterator[Cluster]:
    with clusters.running(tmp_path, newest_postgres_url, broker.url, workers=0, beats=0) as cluster:
        yield cluster


@pytest.fixture(params=["worker", "beat"])
def process(request: pytest.FixtureRequest, cluster: Cluster, folder: Path) -> Running:
    cluster.env |= {"STRANDLINE_HEALTH_DIR": str(folder)}
    return cluster.begin(request.param, request.param)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "health"
    folder.mkdir()
    (folder / "ready").touch()  # by one that died
    return folder


def touched(path: Path) -> Callable[[], bool]:
    """Is it touched from now on? (By the clock of files, which is behind the other.)"""
    before = path.stat().st_mtime_ns if path.exists() else 0
    return lambda: path.exists() and path.stat().st_mtime_ns > before


def test_it_lives_and_takes_work_until_it_is_told_to_end(process: Running, folder: Path) -> None:
    wait_until((folder / "alive").exists, SOON_S, "it lives")
    os.utime(folder / "alive", (0, 0))
    wait_until(touched(folder / "ready"), SOON_S, "it takes work")
    wait_until(touched(folder / "alive"), YOUNG_S, "and lives on")
    wait_until(touched(folder / "ready"), YOUNG_S, "and takes work on")

    process.send(signal.SIGTERM)
    process.wait(SOON_S)

    assert not (folder / "ready").exists()


def test_it_lives_and_takes_no_work_while_redis_is_away(process: Running, folder: Path, broker: RedisServer) -> None:
    wait_until(lambda: (folder / "ready").exists() and (folder / "alive").exists(), SOON_S, "it takes work")
    wait_until(touched(folder / "ready"), SOON_S, "its own")

    broker.stop()
    wait_until(lambda: not (folder / "ready").exists(), SOON_S, "it takes none")
    for _ in range(3):
        wait_until(touched(folder / "alive"), YOUNG_S, "it lives on")
    assert not (folder / "ready").exists()

    broker.start()
    wait_until((folder / "ready").exists, SOON_S, "it takes work again")


def test_it_lives_while_it_waits_for_redis_to_come(cluster: Cluster, folder: Path, broker: RedisServer) -> None:
    broker.stop()
    cluster.env |= {"STRANDLINE_HEALTH_DIR": str(folder)}
    cluster.begin("worker", "worker")
    wait_until((folder / "alive").exists, SOON_S, "it lives")
    for _ in range(3):
        wait_until(touched(folder / "alive"), YOUNG_S, "it lives on")

    assert not (folder / "ready").exists()


def test_one_whose_main_loop_hangs_is_not_touched(process: Running, folder: Path) -> None:
    wait_until(touched(folder / "alive"), SOON_S, "it lives")
    process.send(signal.SIGSTOP)
    still = touched(folder / "alive")
    time.sleep(1.5 * TOUCHED_EVERY_S)  # what must not happen cannot be waited for

    assert not still()
    process.send(signal.SIGCONT)
    wait_until(still, YOUNG_S, "it lives again")


def test_a_folder_that_cannot_be_written_to_is_refused_by_name(cluster: Cluster, tmp_path: Path) -> None:
    cluster.env |= {"STRANDLINE_HEALTH_DIR": str(tmp_path / "none")}
    done = cluster.run("beat")

    assert done.returncode == 2
    assert f"STRANDLINE_HEALTH_DIR='{tmp_path}/none' cannot be written to: No such file or directory" in done.stderr


def test_who_is_given_no_folder_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    health = Health("")
    for tell in (health.begin, health.alive, health.ready, health.busy):
        tell()

    assert not list(tmp_path.iterdir())


def test_a_folder_that_goes_is_said_once_and_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    health = Health(str(tmp_path / "folder"))
    with pytest.raises(UsageError):
        health.begin()
    for tell in (health.alive, health.ready, health.busy, health.alive):
        tell()

    assert len(caplog.records) == 1 and "alive cannot be touched" in caplog.text
