"""A worker and a beat tell by the ages of two files whether they live and take work."""

import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from db.types import UsageError
from tasks.health import TOUCHED_EVERY_S, Health
from tests import cluster as clusters
from tests.cluster import Cluster
from tests.processes import Running
from tests.servers import PostgresKind, PostgresServer, RedisServer, postgres_kinds
from tests.waiting import wait_until

YOUNG_S = 3 * TOUCHED_EVERY_S
SOON_S = 60
ServersOf = Callable[[PostgresKind], PostgresServer]


@pytest.fixture(scope="module")
def broker(server_folder: Path) -> Iterator[RedisServer]:
    with RedisServer(Path(tempfile.mkdtemp(dir=server_folder))) as server:
        yield server


@pytest.fixture(scope="module")
def cluster(
    _postgres_servers: ServersOf, broker: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    with (
        _postgres_servers(postgres_kinds()[-1]).database() as url,
        clusters.running(tmp_path_factory.mktemp("cluster"), url, broker.url, workers=0, beats=0) as cluster,
    ):
        yield cluster


@dataclass
class Probed:
    """A process, and the folder where it tells."""

    process: Running
    folder: Path


@pytest.fixture(scope="module", params=["worker", "beat"])
def probed(
    request: pytest.FixtureRequest, cluster: Cluster, broker: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Probed]:
    """One that is started before there is a Redis."""
    folder = tmp_path_factory.mktemp("health")
    (folder / "ready").touch()  # by one that died
    cluster.env |= {"STRANDLINE_HEALTH_DIR": str(folder)}
    broker.stop()
    with cluster.begin(request.param, request.param) as process:
        yield Probed(process, folder)


def touched(path: Path) -> Callable[[], bool]:
    """Is it touched from now on? (By the clock of files, which is behind the other.)"""
    before = path.stat().st_mtime_ns if path.exists() else 0
    return lambda: path.exists() and path.stat().st_mtime_ns > before


@pytest.mark.long
@pytest.mark.chaos
def test_it_lives_and_takes_work_from_when_redis_comes_until_it_is_told_to_end(
    probed: Probed, broker: RedisServer
) -> None:
    alive, ready = probed.folder / "alive", probed.folder / "ready"
    wait_until(alive.exists, SOON_S, "it lives")
    for _ in range(3):
        wait_until(touched(alive), YOUNG_S, "it lives on, and waits")
    assert not ready.exists()

    broker.start()
    wait_until(ready.exists, SOON_S, "it takes work")
    for told in (ready, alive, ready):
        wait_until(touched(told), YOUNG_S, "it lives and takes work on")

    broker.stop()
    wait_until(lambda: not ready.exists(), SOON_S, "it takes none")
    for _ in range(3):
        wait_until(touched(alive), YOUNG_S, "it lives on")
    assert not ready.exists()

    broker.start()
    wait_until(ready.exists, SOON_S, "it takes work again")

    probed.process.send(signal.SIGSTOP)
    still = touched(alive)
    time.sleep(1.5 * TOUCHED_EVERY_S)  # what must not happen cannot be waited for
    assert not still(), "its main loop hangs"
    probed.process.send(signal.SIGCONT)
    wait_until(still, YOUNG_S, "it lives again")

    probed.process.send(signal.SIGTERM)
    probed.process.wait(SOON_S)
    assert not ready.exists()


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
