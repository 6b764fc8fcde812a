"""What is sent, of what is ready: to a real broker, from a real database."""

import base64
import json
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
import redis
from sqlalchemy import Connection, Engine, func, select

from db.engine import writing
from db.scans import Scan
from db.tables import shards as shards_table
from db.tables import tenants as tenants_table
from orchestrator import tick as ticks
from orchestrator.beat import UNREAD, Scheduler
from orchestrator.dispatch import dispatch
from tasks import release
from tasks import settings as all_settings
from tasks.app import LIVES_S, App, make_app, nudge
from tasks.redis import presence
from tests.storage import add_tenant, at_once, start_scan

WINDOW, SCAN_WINDOW = 12, 8


@pytest.fixture
def app(engine: Engine, migrated_url: str, redis_url: str, redis_client: redis.Redis) -> Iterator[App]:
    settings = all_settings.load(
        {}, database_url=migrated_url, redis_url=redis_url, window=WINDOW, scan_window=SCAN_WINDOW
    )
    app = make_app(settings)
    presence.tell(app.runtime.redis, app.runtime.keys, "somebody", WINDOW)
    app.runtime.__dict__["engine"] = engine
    dispatch(app, engine, settings)  # finds Redis empty, and that is not what is meant here
    yield app
    app.close()


def sent(engine: Engine) -> Counter[str]:
    """How many shards of each tenant are on their way."""
    query = (
        shards_table.select()
        .join(tenants_table, tenants_table.c.id == shards_table.c.tenant_id)
        .with_only_columns(tenants_table.c.name)
        .where(shards_table.c.sent_until.is_not(None))
    )
    with writing(engine) as connection:
        return Counter(connection.execute(query).scalars())


def with_some_done(engine: Engine, scan: Scan, number: int) -> None:
    """So many of its shards, the last, are done."""
    s = shards_table.c
    with writing(engine) as connection:
        last = shards_table.update().where(s.scan_id == scan.id, s.number > scan_shards(connection, scan) - number)
        connection.execute(last.values(state="done"))


def scan_shards(connection: Connection, scan: Scan) -> int:
    s = shards_table.c
    return connection.execute(select(func.max(s.number)).where(s.scan_id == scan.id)).scalar_one()


def unread(client: redis.Redis) -> int:
    return sum(client.llen(f"strandline:{queue}") for queue in ("interactive", "bulk"))


def test_one_scan_with_many_shards_leaves_room_for_others(engine: Engine, app: App, redis_client: redis.Redis) -> None:
    huge = start_scan(engine, add_tenant(engine, "huge"), shard_count=120)
    with_some_done(engine, huge, 20)
    settings = app.runtime.settings

    assert dispatch(app, engine, settings) == SCAN_WINDOW
    for number in range(6):
        start_scan(engine, add_tenant(engine, f"small-{number}"), shard_count=1)
    assert dispatch(app, engine, settings) == WINDOW - SCAN_WINDOW
    assert dispatch(app, engine, settings) == 0, "there is no room"

    assert sent(engine) == {"huge": 8} | {f"small-{number}": 1 for number in range(4)}
    assert unread(redis_client) == WINDOW


def test_ten_dispatchers_at_once_do_not_send_more_than_the_windows(engine: Engine, app: App) -> None:
    for name in ("a", "b", "c"):
        with_some_done(engine, start_scan(engine, add_tenant(engine, name), shard_count=40), 20)

    done = at_once(*[lambda: dispatch(app, engine, app.runtime.settings)] * 10)

    assert sum(done) == WINDOW and sent(engine) == {"a": 4, "b": 4, "c": 4}


def test_as_many_are_sent_as_the_workers_that_live_can_do_and_as_many_again(
    engine: Engine, app: App, redis_client: redis.Redis
) -> None:
    settings, runtime = app.runtime.settings.model_copy(update={"window": 1000, "scan_window": 1000}), app.runtime
    with_some_done(engine, start_scan(engine, add_tenant(engine, "huge"), shard_count=1000), 500)
    presence.tell(runtime.redis, runtime.keys, "somebody", 3)
    presence.tell(runtime.redis, runtime.keys, "another", 4)
    presence.tell(runtime.redis, runtime.keys, "a third", 5)
    presence.leave(runtime.redis, runtime.keys, "another")

    assert dispatch(app, engine, settings) == 2 * (3 + 5)
    assert redis_client.smembers("strandline:workers") == {b"somebody", b"a third"}, "who is gone is forgotten"


def test_as_a_worker_has_room_for_fewer_children_fewer_are_sent(
    engine: Engine, app: App, redis_client: redis.Redis
) -> None:
    runtime = app.runtime
    with_some_done(engine, start_scan(engine, add_tenant(engine, "huge"), shard_count=100), 50)
    for slots in (2, 3):  # its memory leaves room for two children, and then for one more
        presence.tell(runtime.redis, runtime.keys, "somebody", slots)
        dispatch(app, engine, runtime.settings)
        assert sent(engine) == {"huge": 2 * slots}


def test_a_message_goes_to_its_shard_s_queue_holds_ids_alone_and_expires(
    engine: Engine, app: App, redis_client: redis.Redis
) -> None:
    scans = {queue: start_scan(engine, add_tenant(engine, queue)) for queue in ("interactive", "bulk")}
    with writing(engine) as connection:
        urgent = shards_table.update().where(shards_table.c.scan_id == scans["interactive"].id)
        connection.execute(urgent.values(queue="interactive"))

    dispatch(app, engine, app.runtime.settings)

    for queue, scan in scans.items():
        [message] = [json.loads(one) for one in redis_client.lrange(f"strandline:{queue}", 0, -1)]
        headers, (args, kwargs, _) = message["headers"], json.loads(base64.b64decode(message["body"]))
        assert (headers["task"], args, kwargs) == ("strandline.scan_shard", [scan.id, 1], {}), queue
        left_s = (datetime.fromisoformat(headers["expires"]) - datetime.now(UTC)).total_seconds()
        assert LIVES_S - 60 < left_s <= LIVES_S and headers["strandline_version"] == release.VERSION


def test_what_nobody_takes_does_not_pile_up(engine: Engine, app: App, redis_client: redis.Redis) -> None:
    """Messages that have expired lie where they are until somebody takes them, and drops them."""
    with_some_done(engine, start_scan(engine, add_tenant(engine, "huge"), shard_count=100), 20)

    for _ in range(5):
        dispatch(app, engine, app.runtime.settings)
        with writing(engine) as connection:  # a minute later
            connection.execute(shards_table.update().values(sent_until=None))

    assert unread(redis_client) <= WINDOW


def test_who_wants_a_tick_while_one_is_asked_for_asks_for_no_other(
    engine: Engine, app: App, redis_client: redis.Redis
) -> None:
    for _ in range(5):
        nudge(app)
    assert redis_client.llen("strandline:control") == 1

    ticks.tick(app, engine, app.runtime.settings)
    nudge(app)
    assert redis_client.llen("strandline:control") == 2, "that one may have seen less"


def test_beat_sends_no_more_ticks_than_a_few_while_nobody_takes_them(app: App, redis_client: redis.Redis) -> None:
    scheduler = Scheduler(app=app, lazy=True)
    scheduler.merge_inplace(app.conf.beat_schedule)
    [entry] = scheduler.schedule.values()

    for _ in range(3 * UNREAD):
        scheduler.apply_entry(entry)
    assert redis_client.llen("strandline:control") == UNREAD

    redis_client.rpop("strandline:control")
    scheduler.apply_entry(entry)
    assert redis_client.llen("strandline:control") == UNREAD
