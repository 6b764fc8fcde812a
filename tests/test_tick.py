"""Ticks at once, and ticks that die half-way: each tenant is asked for once a slot, whoever does it."""

from collections import Counter
from collections.abc import Callable, Iterator

import pytest
import redis
from sqlalchemy import Engine, event, update

from db.clock import clock
from db.engine import writing
from db.tables import scans as scans_table
from db.tables import shards as shards_table
from db.tables import tenants as tenants_table
from orchestrator import tick as ticks
from orchestrator.dispatch import dispatch
from tasks import settings as all_settings
from tasks.app import App, make_app
from tasks.redis import presence
from tests.storage import add_tenant, at_once, end_scan, rows, start_scan

MANY = 30


@pytest.fixture
def app(engine: Engine, migrated_url: str, redis_url: str, redis_client: redis.Redis,
        monkeypatch: pytest.MonkeyPatch) -> Iterator[App]:  # fmt: skip
    """With many tenants that are due, and that were before; a tick takes some of them at a time."""
    monkeypatch.setattr(ticks, "DUE_AT_ONCE", 7)
    for number in range(MANY):
        add_tenant(engine, f"t{number}", interval_s=86_400)
    with writing(engine) as connection:
        connection.execute(update(tenants_table).values(next_scan_at=clock(-5.0)))
    app = make_app(all_settings.load({}, database_url=migrated_url, redis_url=redis_url))
    app.runtime.__dict__["engine"] = engine
    dispatch(app, engine, app.runtime.settings)  # finds Redis empty, and that is not what is meant here
    presence.tell(app.runtime.redis, app.runtime.keys, "somebody", MANY)
    yield app
    app.close()


def tick(app: App, engine: Engine) -> None:
    ticks.tick(app, engine, app.runtime.settings)


def each_asked_for_once(engine: Engine, client: redis.Redis) -> None:
    scans = rows(engine, scans_table)
    assert Counter(scan["tenant_id"] for scan in scans) == {tenant["id"]: 1 for tenant in rows(engine, tenants_table)}
    assert {(scan["state"], scan["fence"], scan["trigger"]) for scan in scans} == {("running", 1, "schedule")}
    shards = Counter((shard["number"], shard["state"]) for shard in rows(engine, shards_table))
    assert shards == {(0, "waiting"): MANY, (1, "ready"): MANY}
    assert client.llen("strandline:bulk") == MANY
    assert len({tenant["next_scan_at"] for tenant in rows(engine, tenants_table)}) == MANY, "each has a slot of its own"


def test_ten_ticks_at_once_ask_for_each_due_tenant_once(app: App, engine: Engine, redis_client: redis.Redis) -> None:
    done = at_once(*[lambda: tick(app, engine)] * 10)
    tick(app, engine)

    assert done == [None] * 10
    each_asked_for_once(engine, redis_client)


def test_a_tick_forgets_what_is_too_old(app: App, engine: Engine) -> None:
    tenant = add_tenant(engine, "old")
    _, newest = [end_scan(engine, start_scan(engine, tenant)) for _ in range(2)]

    ticks.tick(app, engine, app.runtime.settings.model_copy(update={"retention_days": 1e-9}))

    assert [scan["id"] for scan in rows(engine, scans_table) if scan["finished_at"] is not None] == [newest.id]


class Died(BaseException):
    """The process of a tick is no more."""


def dying(engine: Engine, at: int) -> Callable[[], None]:
    """Whoever commits for the so manieth time dies before it; a function that ends this."""
    left = [at]

    def die(_: object) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Died

    event.listen(engine, "commit", die)
    return lambda: event.remove(engine, "commit", die)


def test_a_tick_that_dies_at_any_commit_leaves_the_rest_to_the_next(
    app: App, engine: Engine, redis_client: redis.Redis
) -> None:
    for at in range(1, 12):  # some of them have less to do
        end = dying(engine, at)
        try:
            tick(app, engine)
        except Died:
            engine.dispose()
        finally:
            end()
    tick(app, engine)

    each_asked_for_once(engine, redis_client)


def test_slots_that_were_missed_are_not_made_up_for(app: App, engine: Engine) -> None:
    with writing(engine) as connection:
        connection.execute(update(tenants_table).values(next_scan_at=clock(-100 * 86_400.0)))

    for _ in range(3):
        tick(app, engine)

    assert len(rows(engine, scans_table)) == MANY
