"""A database or a Redis that hangs, dies and comes back: an answer in two seconds, and back by itself."""

import contextlib
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from db.engine import connect
from tests.api import ADMIN, Api, migrated, scanned, serving
from tests.servers import PostgresServer, RedisServer, family
from tests.test_api_events import grow
from tests.waiting import wait_until

WITHIN_S = 2.0
BACK_WITHIN_S = 10


@dataclass
class Fragile:
    api: Api
    postgres: PostgresServer
    redis: RedisServer


@pytest.fixture(scope="module")
def fragile(own_postgres, server_folder: Path) -> Iterator[Fragile]:
    with (
        own_postgres() as postgres,
        RedisServer(Path(tempfile.mkdtemp(dir=server_folder))) as redis,
        postgres.database() as url,
        serving(migrated(url), redis.url) as api,
    ):
        scanned(api.engine, "one")
        api.engine.dispose()
        yield Fragile(api, postgres, redis)


@contextlib.contextmanager
def hung(pid: int) -> Iterator[None]:
    processes = family(pid)
    for process in processes:
        process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            with contextlib.suppress(Exception):
                process.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def dead(server: PostgresServer | RedisServer) -> Iterator[None]:
    server.kill()
    try:
        yield
    finally:
        server.start()


def asked(api: Api, method: str, path: str) -> tuple[int, float, httpx.Headers]:
    begun_s = time.monotonic()
    answer = api.ask(method, path)
    return answer.status_code, time.monotonic() - begun_s, answer.headers


ROUTES = [("GET", "/v1/tenants"), ("POST", "/v1/tenants/one/scans"), ("GET", "/v1/tenants/one/files"),
          ("DELETE", "/v1/tenants/two"), ("GET", "/readyz")]  # fmt: skip


def is_well(api: Api) -> bool:
    return all(asked(api, *route)[0] in (200, 202, 204, 404) for route in ROUTES)


@pytest.mark.parametrize("how", ["hung", "dead"])
def test_without_the_database_everybody_is_told_so_in_two_seconds_and_later_served(fragile: Fragile, how: str) -> None:
    assert wait_until(lambda: is_well(fragile.api), BACK_WITHIN_S, "it serves")
    broken = hung(fragile.postgres.pid) if how == "hung" else dead(fragile.postgres)
    with broken:
        for _ in range(2):  # at first nobody knows
            with ThreadPoolExecutor(40) as pool:
                answers = list(pool.map(lambda number: asked(fragile.api, *ROUTES[number % len(ROUTES)]), range(40)))
            assert {status for status, _, _ in answers} == {503}
            assert all(headers["retry-after"] for _, _, headers in answers)
            assert max(took_s for _, took_s, _ in answers) < WITHIN_S + 0.3, "of 40 who ask this process at once"
        assert asked(fragile.api, "GET", "/livez")[0] == 200
    wait_until(lambda: is_well(fragile.api), BACK_WITHIN_S, "it serves again, by itself")


@pytest.mark.parametrize("how", ["hung", "dead"])
def test_without_redis_scans_are_asked_for_all_the_same_and_the_breaker_is_away(fragile: Fragile, how: str) -> None:
    api = fragile.api
    broken = hung(fragile.redis.pid) if how == "hung" else dead(fragile.redis)
    with broken:
        for _ in range(3):
            status, took_s, headers = asked(api, "GET", "/v1/tenants/one/breaker")
            assert (status, headers["retry-after"]) == (503, "1") and took_s < WITHIN_S
            status, took_s, _ = asked(api, "POST", "/v1/tenants/one/scans")
            assert status in (200, 202) and took_s < WITHIN_S
        said = api.get("/readyz").json()
        assert said["status"] == "ready" and said["redis"] != "ok"
    wait_until(lambda: asked(api, "GET", "/v1/tenants/one/breaker")[0] == 200, BACK_WITHIN_S, "it is back")
    assert api.get("/readyz").json()["redis"] == "ok"


@dataclass
class Follower:
    """Follows a feed as an EventSource does: after each end it connects again, from the last id on."""

    url: str
    seen: list[tuple[str, str]] = field(default_factory=list)
    connections: int = 0
    over: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        while not self.over.is_set():
            with contextlib.suppress(httpx.HTTPError):
                self._read()
            self.over.wait(0.05)

    def _read(self) -> None:
        headers = {"Accept": "text/event-stream", "Authorization": f"Bearer {ADMIN}"}
        if self.seen:
            headers["Last-Event-ID"] = self.seen[-1][0]
        with httpx.Client(timeout=30) as client, client.stream("GET", self.url, headers=headers) as response:
            if response.status_code != 200:
                return
            self.connections += 1
            cursor = ""
            for line in response.iter_lines():
                if line.startswith("id: "):
                    cursor = line.removeprefix("id: ")
                elif line.startswith("data: "):
                    self.seen.append((cursor, line))
                if self.over.is_set():
                    return


@pytest.mark.chaos
def test_who_follows_the_feed_through_restarts_of_everything_misses_and_repeats_nothing(
    own_postgres, own_redis
) -> None:
    with own_postgres() as postgres, own_redis() as redis, postgres.database() as url:
        migrated(url)
        follower, port, told = None, 0, 0
        thread = None
        for turn in range(6):
            with serving(url, redis.url, port=port) as api:
                port = int(api.url.rpartition(":")[2])
                if follower is None:
                    scanned(api.engine, "fed", files=450)
                    told = 450
                    follower = Follower(f"{api.url}/v1/tenants/fed/changes")
                    thread = threading.Thread(target=follower.run)
                    thread.start()
                grow(api, "fed", *(b"turn %d, %d" % (turn, number) for number in range(250)))
                told += 250
                if turn % 3 == 1:
                    with dead(postgres) if turn == 1 else hung(postgres.pid), dead(redis):
                        wait_until(lambda: asked(api, "GET", "/v1/tenants")[0] == 503, 10, "it is away")
                    wait_until(lambda: asked(api, "GET", "/v1/tenants")[0] == 200, 10, "it is back")
                    engine = connect(url)  # the other's connections are gone
                    api.engine.dispose()
                    grow(api, "fed", b"after %d" % turn)
                    engine.dispose()
                    told += 1
                if turn % 2:
                    wait_until(lambda: len(follower.seen) >= told, 20, "all is told")  # noqa: B023
            # the API ends, in the middle of what it tells or not, and begins again
        with serving(url, redis.url, port=port) as api:
            wait_until(lambda: len(follower.seen) >= told, 20, "all is told")
            follower.over.set()
            grow(api, "fed", b"the last")
            thread.join(20)
            followed = [cursor for cursor, _ in follower.seen[:told]]
            read, since = [], None
            while len(read) < told:
                page = api.get("/v1/tenants/fed/changes", params={"since": since} if since else {}).json()
                read, since = read + [one["cursor"] for one in page["items"]], page["cursor"]

        assert followed == read[:told] and len(set(followed)) == told
        assert follower.connections > 5
