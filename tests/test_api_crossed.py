"""Tokens of two tenants crossed on every route: what is somebody else's is answered as what does not exist, by the same
statements.
"""

import re
from collections.abc import Iterator

import pytest
from sqlalchemy import event

from db.types import new_scan_id
from tests.api import ADMIN, ONE, OTHER, Api, migrated, scanned, serving
from tests.servers import postgres_kinds

# Of each route that needs a token: how it is asked for what is another's, and for what does not exist.
TENANT, SCAN = "tenant", "scan"
CASES: dict[tuple[str, str], tuple[str, dict]] = {
    ("GET", "/v1/tenants/{name}"): (TENANT, {}),
    ("PATCH", "/v1/tenants/{name}"): (TENANT, {"json": {"interval_s": 5}}),
    ("DELETE", "/v1/tenants/{name}"): (TENANT, {}),
    ("POST", "/v1/tenants/{name}/scans"): (TENANT, {"headers": {"Idempotency-Key": "k"}}),
    ("GET", "/v1/tenants/{name}/scans"): (TENANT, {}),
    ("GET", "/v1/tenants/{name}/changes"): (TENANT, {}),
    ("GET", "/v1/tenants/{name}/files"): (TENANT, {}),
    ("GET", "/v1/tenants/{name}/explain"): (TENANT, {"params": {"path": "a"}}),
    ("GET", "/v1/tenants/{name}/breaker"): (TENANT, {}),
    ("DELETE", "/v1/tenants/{name}/breaker"): (TENANT, {}),
    ("GET", "/v1/tenants/{name}/webhook"): (TENANT, {}),
    ("PUT", "/v1/tenants/{name}/webhook"): (TENANT, {"json": {"url": "https://x.example/"}}),
    ("DELETE", "/v1/tenants/{name}/webhook"): (TENANT, {}),
    ("GET", "/v1/scans/{scan}"): (SCAN, {}),
    ("GET", "/v1/scans/{scan}/events"): (SCAN, {}),
    ("POST", "/v1/scans/{scan}/cancel"): (SCAN, {}),
    ("POST", "/v1/scans/{scan}/confirm"): (SCAN, {}),
}
# These name nothing of anybody's: the list shows one's own alone (test_api), and to register is for admins.
OTHERS = {("GET", "/v1/tenants"), ("POST", "/v1/tenants")}
# These need no token, and tell nothing of any tenant.
OPEN = {("GET", path) for path in ("/livez", "/readyz", "/docs", "/openapi.json", "/files/{name}")}
# The page, for browsers: tests/test_page.py crosses these.
# And these are for admins alone.
ADMINS = {("GET", "/metrics")}
PAGE = {("GET", "/"), ("GET", "/live"), ("GET", "/explained"), ("POST", "/confirm/{scan}")}


@pytest.fixture(scope="module")
def api(_postgres_servers, redis_url: str) -> Iterator[Api]:
    with (
        _postgres_servers(postgres_kinds()[-1]).database() as url,
        serving(migrated(url), redis_url) as api,
    ):
        api.get("/v1/tenants")  # it has looked whether the database keeps tenants apart
        api.scan = scanned(api.engine, "one")
        scanned(api.engine, "other")
        yield api


def routes(api: Api) -> set[tuple[str, str]]:
    found = api.get("/openapi.json").json()["paths"]
    listed = {(method.upper(), path) for path, of in found.items() for method in of}
    plain = {(method, route.path) for route in _flat(api.app.routes) for method in (getattr(route, "methods", 0) or ())}
    return listed | {one for one in plain if one[0] != "HEAD"}


def _flat(routes: list) -> Iterator:
    for route in routes:
        inner = getattr(getattr(route, "original_router", route), "routes", None)
        yield from _flat(inner) if inner else [route]


def test_every_route_has_its_case(api: Api) -> None:
    assert routes(api) == set(CASES) | OTHERS | OPEN | PAGE | ADMINS


@pytest.mark.parametrize("route", CASES, ids=" ".join)
def test_what_is_anothers_is_answered_as_what_does_not_exist_by_the_same_statements(
    api: Api, route: tuple[str, str]
) -> None:
    method, path = route
    kind, how = CASES[route]
    foreign, nowhere = ("one", "two") if kind == TENANT else (api.scan, new_scan_id())

    answers, statements = [], []
    for name in (foreign, nowhere):
        with traced(api) as seen:
            answer = api.ask(method, path.replace("{name}", name).replace("{scan}", name), OTHER, **how)
        answers.append((answer.status_code, answer.text.replace(name, "·"), sorted(answer.headers.keys())))
        statements.append([statement.replace(name, "·") for statement in seen])

    assert answers[0] == answers[1] and answers[0][0] == 404
    assert statements[0] == statements[1] and statements[0], "the same is asked of the database"


@pytest.mark.parametrize("route", ADMINS, ids=" ".join)
def test_what_tells_of_all_tenants_is_for_admins(api: Api, route: tuple[str, str]) -> None:
    assert [api.ask(*route, token).status_code for token in (ADMIN, ONE, None)] == [200, 403, 401]


def test_its_own_is_answered(api: Api) -> None:
    for path in ("/v1/tenants/one", "/v1/tenants/one/scans", "/v1/tenants/one/files", f"/v1/scans/{api.scan}"):
        assert api.get(path, ONE).status_code == 200


class traced:
    """The statements that the API sends meanwhile."""

    def __init__(self, api: Api) -> None:
        self._engine = api.app.state.service.access._engine
        self._seen: list[str] = []

    def _note(self, _connection, _cursor, statement, *_: object) -> None:
        self._seen.append(re.sub(r"\s+", " ", statement))

    def __enter__(self) -> list[str]:
        event.listen(self._engine, "before_cursor_execute", self._note)
        return self._seen

    def __exit__(self, *_: object) -> None:
        event.remove(self._engine, "before_cursor_execute", self._note)
