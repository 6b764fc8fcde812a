"""What is sent, of what is ready: to a real broker, from a real database."""

from collections import Counter
from collections.abc import Iterator

import pytest
import redis
from sqlalchemy import Engine

from db.engine import writing
from db.tables import shards as shards_table
from db.tables import tenants as tenants_table
from orchestrator.dispatch import dispatch
from tasks import settings as all_settings
from tasks.app import App, make_app
from tests.storage import add_tenant, at_once, start_scan

WINDOW, SCAN_WINDOW = 12, 8


@pytest.fixture
def app(engine: Engine, migrated_url: str, redis_url: str, redis_client: redis.Redis) -> Iterator[App]:
    settings = all_settings.load(
        {}, database_url=migrated_url, redis_url=redis_url, window=WINDOW, scan_window=SCAN_WINDOW
    )
    app = make_app(settings)
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


def test_one_scan_with_many_shards_leaves_room_for_others(engine: Engine, app: App, redis_client: redis.Redis) -> None:
    start_scan(engine, add_tenant(engine, "huge"), shard_count=100)
    settings = app.runtime.settings

    assert dispatch(app, engine, settings) == SCAN_WINDOW
    for number in range(6):
        start_scan(engine, add_tenant(engine, f"small-{number}"), shard_count=1)
    assert dispatch(app, engine, settings) == WINDOW - SCAN_WINDOW
    assert dispatch(app, engine, settings) == 0, "there is no room"

    assert sent(engine) == {"huge": 8} | {f"small-{number}": 1 for number in range(4)}
    assert sum(redis_client.llen(f"strandline:{queue}") for queue in ("interactive", "bulk")) == WINDOW


def test_ten_dispatchers_at_once_do_not_send_more_than_the_windows(engine: Engine, app: App) -> None:
    for name in ("a", "b", "c"):
        start_scan(engine, add_tenant(engine, name), shard_count=20)

    done = at_once(*[lambda: dispatch(app, engine, app.runtime.settings)] * 10)

    assert sum(done) == WINDOW and sent(engine) == {"a": 4, "b": 4, "c": 4}
