"""Server-sent events: the feed as it grows, a scan as it goes, one look for all who read, and an end that is clean."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import event

from db import changes, scans, tenants
from db.engine import reading, writing
from db.types import ScanState, Trigger
from orchestrator.api import events
from tests.api import ADMIN, OTHER, Api, migrated, scanned, serving
from tests.storage import add_tenant, claimed, end_scan, remove_tenant, run_scan, start_scan
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[Api]:
    url = migrated(f"sqlite:///{tmp_path_factory.mktemp('api')}/test.sqlite")
    with serving(url, redis_url) as api:
        yield api


def grow(api: Api, name: str, *paths: bytes) -> None:
    """A scan of a tenant that finds these."""
    with reading(api.engine) as connection:
        tenant = tenants.get(connection, name)
    scan = start_scan(api.engine, tenant)
    with writing(api.engine) as connection:
        changes.write(connection, [
            (tenant.id, scan.fence, (1 << 32) + number, 7, one, "added", one, "file", 1, bytes(32), "sha256",
             None, None)
            for number, one in enumerate(paths)
        ])  # fmt: skip
    end_scan(api.engine, scan)


def test_the_feed_is_followed_from_any_event_on_and_neither_skips_nor_repeats(api: Api) -> None:
    scanned(api.engine, "followed", files=450)  # more than two pages
    path = "/v1/tenants/followed/changes"
    with api.events(path) as stream:
        first = [stream.next() for _ in range(450)]
        grow(api, "followed", b"later")
        later = stream.next()
    assert [name for name, _, _ in first] == ["change"] * 450
    assert [one for _, one, _ in first] == [document["cursor"] for _, _, document in first]
    assert later[2]["path"] == "later"

    with api.events(path, last=first[298][1]) as stream:
        again = [stream.next() for _ in range(152)]
    assert again == [*first[299:], later]
    with api.events(f"{path}?since={later[1]}") as stream:
        grow(api, "followed", b"news")
        assert stream.next()[2]["path"] == "news"


def test_a_lost_cursor_is_said_before_the_stream_begins_and_a_removed_tenant_ends_it(api: Api) -> None:
    scanned(api.engine, "leaving", files=1)
    lost = api.get("/v1/tenants/leaving/changes", headers={"Accept": "text/event-stream", "Last-Event-ID": "x"})
    assert lost.status_code == 410 and lost.headers["content-type"] == "application/problem+json"

    with api.events("/v1/tenants/leaving/changes") as stream:
        stream.next()
        with reading(api.engine) as connection:
            known = tenants.get(connection, "leaving").id
        remove_tenant(api.engine, known)
        name, _, problem = stream.next()
        assert (name, problem["status"]) == ("problem", 404)
        assert list(stream) == []


def test_a_scan_is_followed_from_the_queue_to_its_end(api: Api) -> None:
    tenant = add_tenant(api.engine, "scanned")
    with writing(api.engine) as connection:
        queued, _ = scans.request(connection, tenant.id, trigger=Trigger.REQUEST)
    with api.events(f"/v1/scans/{queued.id}/events") as stream:
        seen = [stream.next()]
        with writing(api.engine) as connection:
            running = run_scan(connection, queued, ["{}"])
        seen += [stream.next()]
        claimed(api.engine, running)
        seen += [next(one for one in stream if one[2].get("shards_leased"))]
        end_scan(api.engine, running, ScanState.PARTIAL)
        seen += [one for one in stream if one[0] == "scan"]

    assert [(name, document.get("state")) for name, _, document in seen] == [
        ("scan", "queued"), ("scan", "running"), ("progress", None), ("scan", "partial")
    ]  # fmt: skip
    assert seen[2][2]["shards"] == 2


def test_a_scan_that_has_ended_is_told_at_once(api: Api) -> None:
    scan = scanned(api.engine, "ended")

    with api.events(f"/v1/scans/{scan}/events") as stream:
        assert [(name, document["state"]) for name, _, document in stream] == [("scan", "succeeded")]


def test_a_quiet_stream_says_now_and_then_that_it_is_there(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    add_tenant(api.engine, "quiet")
    monkeypatch.setattr(events, "HEARTBEAT_S", 0.2)

    with api.events("/v1/tenants/quiet/changes") as stream:
        lines = [next(stream.lines) for _ in range(6)]

    assert lines == ["retry: 1000", "", ": still here", "", ": still here", ""]


def test_streams_that_began_together_are_not_told_together_that_nothing_is_new(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_tenant(api.engine, "calm")
    monkeypatch.setattr(events, "HEARTBEAT_S", 3.0)
    readers, begun, told_s = 20, threading.Barrier(20), []

    def read() -> None:
        with api.events("/v1/tenants/calm/changes") as stream:
            begun.wait(20)
            while next(stream.lines) != ": still here":
                pass
            told_s.append(time.monotonic())

    threads = [threading.Thread(target=read) for _ in range(readers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)

    assert len(told_s) == readers and max(told_s) - min(told_s) > 0.3, "of a second over which they are spread"


def test_all_readers_share_one_look_and_one_reading(api: Api) -> None:
    add_tenant(api.engine, "popular")
    readers, paths = 40, []
    engine = api.app.state.service.access._engine
    statements: list[str] = []

    def read() -> None:
        with api.events("/v1/tenants/popular/changes") as stream:
            paths.append(stream.next()[2]["path"])

    threads = [threading.Thread(target=read) for _ in range(readers)]
    for thread in threads:
        thread.start()
    hub = api.app.state.service.hub
    wait_until(lambda: hub._readers == readers, 20, "all read")
    topic = next(iter(hub._feeds.values()))
    wait_until(lambda: topic.latest is not None, 20, "the first look")
    note = lambda *given: statements.append(given[2])  # noqa: E731
    event.listen(engine, "before_cursor_execute", note)
    grow(api, "popular", b"one")
    for thread in threads:
        thread.join(20)
    event.remove(engine, "before_cursor_execute", note)

    assert paths == ["one"] * readers
    assert sum("FROM changes" in one for one in statements) <= 4, "each page is read once for all"
    assert len(statements) < readers
    wait_until(lambda: hub._readers == 0 and not hub._feeds, 20, "nobody is forgotten")


def test_another_tenants_feed_is_not_there(api: Api) -> None:
    answer = api.get("/v1/tenants/followed/changes", OTHER, headers={"Accept": "text/event-stream"})

    assert answer.status_code == 404


def test_a_server_that_is_told_to_end_ends_its_streams_and_is_gone_in_seconds(tmp_path: Path, redis_url: str) -> None:
    url = migrated(f"sqlite:///{tmp_path}/test.sqlite")
    ended: list[list] = []
    with serving(url, redis_url, STRANDLINE_API_STREAMS="1") as api:
        scanned(api.engine, "one", files=1)

        def read() -> None:
            with api.events("/v1/tenants/one/changes") as stream:
                ended.append(list(stream))

        thread = threading.Thread(target=read)
        thread.start()
        wait_until(lambda: api.app.state.service.hub._readers == 1, 20, "it reads")
        full = api.get("/v1/tenants/one/changes", ADMIN, headers={"Accept": "text/event-stream"})
        assert full.status_code == 503 and full.headers["retry-after"] == "1"
        at_s = time.monotonic()
    thread.join(20)

    assert time.monotonic() - at_s < 4
    assert [len(one) for one in ended] == [1], "it ended in order, after what there was"
