"""Row-level security: under the API's role a forgotten WHERE shows nothing of others, and writes nothing of theirs."""

from collections.abc import Iterator

import pytest
from sqlalchemy import func, select, text, update
from sqlalchemy.exc import DBAPIError

from db import row_security, schema
from db.engine import connect, reading, writing
from db.tables import files, metadata, scans, tenants
from orchestrator.api.access import Access
from orchestrator.api.tokens import LOCAL, Caller
from tests.api import ONE, OTHER, Api, migrated, scanned, serving
from tests.servers import postgres_kinds

MINE = Caller("me", frozenset({"one"}))


@pytest.fixture(scope="module", params=postgres_kinds(), ids=str)
def api(request: pytest.FixtureRequest, _postgres_servers, redis_url: str) -> Iterator[Api]:
    with _postgres_servers(request.param).database() as url, serving(migrated(url), redis_url) as api:
        for name in ("one", "other"):
            api.scan = scanned(api.engine, name)
        yield api


def access(api: Api) -> Access:
    return api.app.state.service.access


def test_every_table_that_tells_of_tenants_has_a_policy(api: Api) -> None:
    with reading(api.engine) as connection:
        found = set(connection.execute(text(
            "SELECT c.relname FROM pg_class c JOIN pg_policy p ON p.polrelid = c.oid WHERE c.relrowsecurity"
        )).scalars())  # fmt: skip

    assert found == set(metadata.tables) - set(row_security.SHARED)


def test_a_forgotten_where_shows_and_writes_nothing_of_others(api: Api) -> None:
    with access(api).read(MINE) as connection:
        assert connection.execute(select(tenants.c.name)).scalars().all() == ["one"]
        assert connection.execute(select(func.count()).select_from(files)).scalar() == 3
        assert connection.exec_driver_sql("SELECT count(*) FROM changes").scalar() == 3
    touched = access(api).write(MINE, lambda connection: connection.execute(update(scans).values(error="x")).rowcount)
    assert touched == 1
    with access(api).read(LOCAL) as connection:
        assert connection.execute(select(func.count()).select_from(files)).scalar() == 6

    with pytest.raises(DBAPIError, match="row-level security"):
        access(api).write(
            MINE, lambda connection: connection.execute(text("UPDATE scans SET tenant_id = tenant_id + 1000"))
        )


def test_nobody_is_narrowed_after_a_transaction(api: Api) -> None:
    for _ in range(3):
        with access(api).read(Caller("nobody", frozenset({"nobody"}))) as connection:
            assert connection.execute(select(tenants.c.name)).scalars().all() == []
        with reading(access(api)._engine) as connection:
            assert len(connection.execute(select(tenants.c.name)).scalars().all()) == 2


def test_a_route_that_forgot_whom_it_serves_answers_as_ever(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Caller, "sees", lambda *_: True)  # the check that each route relies on

    assert api.get("/v1/tenants/other", ONE).status_code == 404
    assert api.get(f"/v1/scans/{api.scan}", ONE).status_code == 404
    assert [one["name"] for one in api.get("/v1/tenants", ONE).json()["items"]] == ["one"]
    assert api.get(f"/v1/scans/{api.scan}", OTHER).status_code == 200


def test_a_user_who_may_make_no_role_is_told_and_served(own_postgres, caplog: pytest.LogCaptureFixture) -> None:
    with own_postgres() as server:
        server.execute("CREATE ROLE app LOGIN")
        server.execute("CREATE DATABASE plain OWNER app")
        url = server.url("plain", "app")
        engine = connect(url)
        assert schema.migrate(engine)
        with writing(engine) as connection:
            assert not row_security.prepare(connection)
        reached = Access(url)
        for _ in range(2):
            with reached.read(MINE) as connection:
                assert connection.execute(select(func.count()).select_from(tenants)).scalar() == 0
        assert caplog.text.count("row-level security is off") == 1

        server.execute("CREATE ROLE strandline_api NOLOGIN")
        server.execute("GRANT strandline_api TO app WITH ADMIN OPTION")
        with writing(engine) as connection:
            assert row_security.prepare(connection)
        reached.close()
        engine.dispose()
