"""The HTTP API on PostgreSQL and SQLite: what each call answers, and what is refused."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from db import audit, scans, tenants
from db.engine import reading, writing
from db.tables import idempotency
from db.types import ScanState, UsageError
from orchestrator.api.limits import Buckets
from orchestrator.api.listening import listen
from orchestrator.api.tokens import caller_of, parse_tokens
from tests.api import ADMIN, ONE, Api, hashed, migrated, scanned, serving
from tests.servers import postgres_kinds
from tests.storage import add_tenant, end_scan, rows, run_scan, start_scan


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def api(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[Api]:
    folder = tmp_path_factory.mktemp("api")
    (folder / "roots").mkdir()
    settings = {"STRANDLINE_ROOTS": str(folder / "roots"), "STRANDLINE_STATE_DIR": str(folder / "state")}
    if request.param == "sqlite":
        with serving(migrated(f"sqlite:///{folder}/test.sqlite"), redis_url, **settings) as api:
            yield api
    else:
        servers_of = request.getfixturevalue("_postgres_servers")
        with (
            servers_of(postgres_kinds()[-1]).database() as url,
            serving(migrated(url), redis_url, **settings) as api,
        ):
            yield api


@pytest.fixture
def tenant(api: Api, request: pytest.FixtureRequest) -> str:
    """A tenant of the test's own."""
    return add_tenant(api.engine, f"t{abs(hash(request.node.nodeid))}").name


def roots(api: Api) -> Path:
    return Path(api.app.state.service.settings.roots)


def problem(answer: Any, status: int, field: str | None = None) -> dict:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    document = answer.json()
    assert document["status"] == status and document["title"] and document["detail"]
    assert document.get("field") == field, document
    return document


def logged(api: Api, tenant: str) -> list[tuple[str, str]]:
    with reading(api.engine) as connection:
        return [(one.caller, one.action) for one in reversed(audit.newest_of(connection, tenant, 100))]


# Tenants


def test_a_tenant_is_registered_shown_changed_and_removed(api: Api) -> None:
    (roots(api) / "new").mkdir()
    made = api.post("/v1/tenants", json={"name": "new", "root": str(roots(api) / "new"), "interval_s": 60})

    assert made.status_code == 201 and made.headers["location"] == "/v1/tenants/new"
    assert made.json() == api.get("/v1/tenants/new").json()
    assert (made.json()["interval_s"], made.json()["tier"]) == (60, "standard")

    changed = api.ask("PATCH", "/v1/tenants/new", json={"enabled": False, "ignore": ["*.log"], "tier": "background"})
    assert changed.status_code == 200
    assert {"enabled": False, "ignore": ["*.log"], "tier": "background"}.items() <= changed.json().items()

    assert api.ask("DELETE", "/v1/tenants/new").status_code == 204
    problem(api.get("/v1/tenants/new"), 404)
    admin = hashed(ADMIN)[:12]
    assert logged(api, "new") == [(admin, "tenant add"), (admin, "tenant set"), (admin, "tenant remove")]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"name": "..", "root": "/srv"}, "name"),
        ({"name": "x"}, "root"),
        ({"name": "x", "root": "relative"}, "root"),
        ({"name": "x", "root": "/etc"}, "root"),
        ({"name": "x", "root": "/nowhere"}, "root"),
        ({"name": "x", "root": "/\ud800"}, "root"),
        ({"name": "x", "root": "/srv", "tier": "best"}, "tier"),
        ({"name": "x", "root": "/srv", "interval_s": 0}, "interval_s"),
        ({"name": "x", "root": "/srv", "large_file": "skip", "large_file_bytes": 1}, "large_file_bytes"),
        ({"name": "x", "root": "/srv", "ignore": ["a\nb"]}, "ignore.0"),
        ({"name": "x", "root": "/srv", "colour": "red"}, "colour"),
    ],
)
def test_bad_input_is_refused_with_the_field_that_cannot_be_used(api: Api, body: dict, field: str) -> None:
    sent = json.dumps(body)  # as ASCII, with a lone surrogate as an escape
    problem(api.post("/v1/tenants", content=sent, headers={"Content-Type": "application/json"}), 422, field)


def test_what_is_there_already_is_a_conflict(api: Api) -> None:
    for name in ("a", "b", "b/inner"):
        (roots(api) / name).mkdir()
    assert api.post("/v1/tenants", json={"name": "taken", "root": str(roots(api) / "a")}).status_code == 201

    problem(api.post("/v1/tenants", json={"name": "taken", "root": str(roots(api) / "b")}), 409, "name")
    problem(api.post("/v1/tenants", json={"name": "inside", "root": str(roots(api) / "a")}), 409, "root")


def test_tenants_are_listed_in_pages_and_to_each_token_only_its_own(api: Api) -> None:
    for name in ("one", "other", "page-1", "page-2", "page-3"):
        add_tenant(api.engine, name)
    seen, after = [], ""
    while after is not None:
        page = api.get("/v1/tenants", params={"after": after, "limit": 2}).json()
        seen, after = seen + [one["name"] for one in page["items"]], page["next"]

    assert seen == sorted(set(seen)) and {"one", "other", "page-1", "page-2", "page-3"} <= set(seen)
    assert [one["name"] for one in api.get("/v1/tenants", token=ONE).json()["items"]] == ["one"]


def test_a_tenants_token_may_change_its_schedule_and_neither_root_nor_tier_nor_be_rid_of_it(api: Api) -> None:
    name = "removed"
    add_tenant(api.engine, name)

    assert api.ask("PATCH", f"/v1/tenants/{name}", ONE, json={"interval_s": 70}).json()["interval_s"] == 70
    problem(api.ask("PATCH", f"/v1/tenants/{name}", ONE, json={"tier": "priority"}), 403, "tier")
    problem(api.ask("PATCH", f"/v1/tenants/{name}", ONE, json={"root": "/etc"}), 403, "root")
    problem(api.ask("DELETE", f"/v1/tenants/{name}", ONE), 403)
    problem(api.post("/v1/tenants", ONE, json={"name": "x", "root": "/srv"}), 403)


# Scans


def test_a_scan_is_asked_for_joined_while_it_waits_and_not_once_it_runs(api: Api, tenant: str) -> None:
    first = api.post(f"/v1/tenants/{tenant}/scans")
    joined = api.post(f"/v1/tenants/{tenant}/scans", json={"paths": [], "full": True})

    assert (first.status_code, joined.status_code) == (202, 200)
    assert first.json()["scan"] == joined.json()["scan"] and first.json()["state"] == "queued"
    assert first.headers["location"] == f"/v1/scans/{first.json()['scan']}"
    with writing(api.engine) as connection:
        queued = scans.get(connection, first.json()["scan"])
        assert queued.full, "it is widened"
        run_scan(connection, queued, ["{}"])

    behind = api.post(f"/v1/tenants/{tenant}/scans")
    assert behind.status_code == 202 and behind.json()["scan"] != first.json()["scan"]
    running = api.get(f"/v1/scans/{first.json()['scan']}").json()
    assert running["state"] == "running" and running["progress"]["shards"] == 2
    listed = api.get(f"/v1/tenants/{tenant}/scans").json()["items"]
    assert [one["scan"] for one in listed] == [behind.json()["scan"], running["scan"]]
    assert listed[1]["progress"]["shards"] == 2


@pytest.mark.parametrize("key", ["", "x" * 256, "\x80"])
def test_a_key_that_cannot_be_one_is_refused_by_name(api: Api, key: str) -> None:
    answer = api.post("/v1/tenants/one/scans", headers={"Idempotency-Key": key.encode("latin-1")})

    assert (answer.status_code, answer.json()["field"].lower()) == (422, "idempotency-key")
    assert "printable ASCII" in answer.json()["detail"]


def test_what_is_allowed_is_said_in_words(api: Api) -> None:
    for body, field, words in (
        ({"name": "..", "root": "/srv"}, "name", "letters, digits"),
        ({"name": "x", "root": "/srv", "ignore": ["a\nb"]}, "ignore.0", "line feed"),
    ):
        said = problem(api.post("/v1/tenants", json=body), 422, field)
        assert words in said["detail"] and "^" not in said["detail"]


@pytest.mark.parametrize(
    ("method", "path", "there"),
    [
        ("GET", "/v1/tenants", "after, limit"), ("POST", "/v1/tenants", ""), ("GET", "/v1/tenants/{}", ""),
        ("POST", "/v1/tenants/{}/scans", ""), ("GET", "/v1/tenants/{}/scans", "after, limit"),
        ("GET", "/v1/tenants/{}/changes", "limit, since"), ("GET", "/v1/tenants/{}/files", "after, limit, prefix"),
    ],
)  # fmt: skip
def test_a_parameter_that_is_mistyped_is_not_passed_over(
    api: Api, tenant: str, method: str, path: str, there: str
) -> None:
    said = problem(api.ask(method, path.format(tenant), params={"sinse": "x"}), 422, "sinse")
    assert said["detail"] == f"unknown parameter 'sinse'; there are {there or 'none here'}"


def test_no_route_passes_an_unknown_parameter_over(api: Api) -> None:
    calls = [(method, path) for path, of in api.get("/openapi.json").json()["paths"].items() for method in of]
    named = {"name": "nobody", "scan": "0", "path": "x"}
    for method, path in calls:
        if path.startswith("/v1/"):
            problem(api.ask(method.upper(), path.format(**named), params={"colour": "red"}), 422, "colour")
    events = api.ask("GET", "/v1/tenants/x/changes", params={"sinse": ""}, headers={"Accept": "text/event-stream"})
    problem(events, 422, "sinse")


def test_the_same_key_gives_the_same_scan_and_another_request_may_not_use_it(api: Api, tenant: str) -> None:
    def ask(**how: Any) -> Any:
        return api.post(f"/v1/tenants/{tenant}/scans", headers={"Idempotency-Key": f"key {tenant}"}, **how)

    first = ask(json={"full": True})
    assert first.status_code == 202, first.text
    with writing(api.engine) as connection:
        scans.cancel_queued(connection, first.json()["scan"])
    again = ask(json={"full": True})

    assert (again.status_code, again.json()["scan"]) == (202, first.json()["scan"])
    assert again.json()["state"] == "cancelled"
    problem(ask(json={"full": False}), 422, "Idempotency-Key")
    other = api.post("/v1/tenants/removed/scans", ONE, headers={"Idempotency-Key": f"key {tenant}"})
    assert other.status_code in (202, 404), "another token's keys are its own"
    assert len(rows(api.engine, idempotency, caller=hashed(ADMIN)[:12], key=f"key {tenant}")) == 1
    assert logged(api, tenant).count((hashed(ADMIN)[:12], "scan")) == 1


def test_a_scan_of_some_paths_says_which_and_only_paths_below_the_root_are_taken(api: Api, tenant: str) -> None:
    scans = f"/v1/tenants/{tenant}/scans"

    assert api.post(scans, json={"paths": ["letters"]}).json()["paths"] == [{"path": "letters"}]

    problem(api.post(scans, json={"paths": ["../x"]}), 422, "paths")
    problem(api.post(scans, json={"paths": ["letters"], "verify": True}), 422, "verify")


def test_a_scan_is_cancelled_once_and_only_a_suspect_one_is_confirmed(api: Api, tenant: str) -> None:
    scan = api.post(f"/v1/tenants/{tenant}/scans").json()["scan"]

    assert api.post(f"/v1/scans/{scan}/cancel").json()["state"] == "cancelled"
    problem(api.post(f"/v1/scans/{scan}/cancel"), 409)
    problem(api.post(f"/v1/scans/{scan}/confirm"), 409)
    with reading(api.engine) as connection:
        known = tenants.get(connection, tenant)
    suspect = end_scan(api.engine, start_scan(api.engine, known), ScanState.SUSPECT)
    confirmed = api.post(f"/v1/scans/{suspect.id}/confirm")
    assert confirmed.status_code == 202 and confirmed.json()["scan"] != suspect.id
    assert [action for _, action in logged(api, tenant)] == ["scan", "cancel", "confirm"]


def test_scans_are_listed_newest_first_in_pages(api: Api, tenant: str) -> None:
    with reading(api.engine) as connection:
        known = tenants.get(connection, tenant)
    made = [end_scan(api.engine, start_scan(api.engine, known)).id for _ in range(5)]
    seen, after = [], {}
    while after is not None:
        page = api.get(f"/v1/tenants/{tenant}/scans", params={"limit": 2} | after).json()
        seen += [one["scan"] for one in page["items"]]
        after = {"after": page["next"]} if page["next"] else None

    assert seen == made[::-1]


# Feed and index


def test_the_feed_and_the_index_are_read_in_pages_that_neither_skip_nor_repeat(api: Api, tenant: str) -> None:
    scan = scanned(api.engine, f"{tenant}-full", files=7)
    path = f"/v1/tenants/{tenant}-full"
    fed, since = [], {}
    while True:
        page = api.get(f"{path}/changes", params={"limit": 3} | since).json()
        fed += page["items"]
        since = {"since": page["cursor"]}
        if page["next"] is None:
            break
    first = api.get(f"{path}/files", params={"limit": 3}).json()
    listed, after = first["items"], first["next"]
    while after is not None:
        page = api.get(f"{path}/files", params={"limit": 3, "after": after}).json()
        assert "cursor" not in page
        listed, after = listed + page["items"], page["next"]

    assert len(fed) == len(listed) == 7
    exact = [one.get("path_b64", one["path"]) for one in listed]
    assert exact == [one.get("path_b64", one["path"]) for one in fed] and len(set(exact)) == 7
    assert first["cursor"] == api.get(f"/v1/scans/{scan}").json()["cursor"]
    assert api.get(f"{path}/changes", params={"since": first["cursor"]}).json()["items"] == []
    odd = api.get(f"{path}/files?prefix=001%20%FF").json()["items"]
    assert [one["path_b64"] for one in odd] == ["MDAxIP8="], "a prefix is bytes"


def test_a_cursor_that_cannot_be_honoured_is_gone_and_a_place_that_is_none_is_bad_input(api: Api, tenant: str) -> None:
    problem(api.get(f"/v1/tenants/{tenant}/changes", params={"since": "nonsense"}), 410)
    problem(api.get(f"/v1/tenants/{tenant}/files", params={"after": "bm9uc2Vuc2U"}), 422, "after")
    problem(api.get(f"/v1/tenants/{tenant}/changes", params={"limit": 0}), 422, "limit")


def test_a_path_is_explained_and_the_breaker_is_listed_and_reset(api: Api, tenant: str) -> None:
    explained = api.get(f"/v1/tenants/{tenant}/explain", params={"path": "a"}).json()

    assert (explained["tenant"], explained["path"], explained["status"]) == (tenant, "a", "unknown")
    assert api.get(f"/v1/tenants/{tenant}/breaker").json() == {"items": [], "next": None}
    assert api.ask("DELETE", f"/v1/tenants/{tenant}/breaker").json() == {"forgotten": 0}
    problem(api.ask("DELETE", f"/v1/tenants/{tenant}/breaker?path=x"), 404)


# Refusals


def test_every_refusal_of_the_framework_is_a_problem(api: Api) -> None:
    problem(api.get("/v1/nothing"), 404)
    assert problem(api.ask("PUT", "/livez"), 405) and api.ask("PUT", "/livez").headers["allow"] == "GET"
    said = {"Content-Type": "application/json"}
    problem(api.post("/v1/tenants", content=b"{", headers=said), 422, "1")
    problem(api.post("/v1/tenants", content=b"x=1", headers={"Content-Type": "text/plain"}), 415)
    problem(api.post("/v1/tenants", content=b" " * (2 << 20), headers=said), 413)
    problem(api.post("/v1/tenants", content=iter([b" " * (1 << 20)] * 2), headers=said), 413)


@pytest.mark.parametrize("token", [None, "", "nobody's", ADMIN.upper(), hashed(ADMIN)])
def test_without_a_token_that_is_known_nothing_is_told(api: Api, token: str | None) -> None:
    answer = api.get("/v1/tenants", token)

    problem(answer, 401)
    assert answer.headers["www-authenticate"] == "Bearer"


def test_probes_and_pages_need_no_token_and_load_nothing_from_elsewhere(api: Api) -> None:
    assert api.get("/livez", None).json() == {"status": "alive"}
    assert api.get("/readyz", None).json() == {"status": "ready", "database": "ok", "redis": "ok"}
    page = api.get("/docs", None).text
    assert "POST</b> <code>/v1/tenants/{name}/scans" in page and "&quot;full&quot;" in page
    assert "<script" not in page and not re.search(r"(src|href|url)\W{1,2}http", page), "all that it needs is in it"


def test_a_bucket_lets_through_what_the_rate_allows_and_says_when_to_come_again() -> None:
    now = [0.0]
    buckets = Buckets(2.0, lambda: now[0])

    assert [buckets.take("a") for _ in range(4)] == [0.0] * 4, "a burst of two seconds"
    assert buckets.take("a") == 0.5 and buckets.take("b") == 0.0
    now[0] = 0.5
    assert buckets.take("a") == 0.0 and buckets.take("a") > 0


# Without a token


def test_too_many_requests_are_refused_and_a_browser_may_not_be_made_to_ask(tmp_path: Path, redis_url: str) -> None:
    url = migrated(f"sqlite:///{tmp_path}/test.sqlite")
    with serving(url, redis_url, STRANDLINE_API_TOKENS="", STRANDLINE_API_RATE="1") as api:
        assert api.get("/v1/tenants", None).status_code == 200, "everybody on this machine is an admin"
        problem(api.get("/livez", None, headers={"Host": "rebound.example"}), 421)
        problem(api.post("/v1/tenants", None, headers={"Origin": "http://evil.example"}), 403)
        answers = [api.get("/v1/tenants", None) for _ in range(3)]

    problem(answers[-1], 429)
    assert answers[-1].headers["retry-after"] == "1"


@pytest.mark.parametrize(
    "text",
    ["x", "[]", "{}", '{"x": "admin"}', json.dumps({hashed("a"): "root"}), json.dumps({hashed("a"): []}),
     json.dumps({hashed("a"): ["a/b"]})],
)  # fmt: skip
def test_tokens_that_cannot_be_used_are_refused_by_name_and_not_shown(text: str) -> None:
    with pytest.raises(UsageError, match=r"^STRANDLINE_API_TOKENS cannot be used: ") as caught:
        parse_tokens(text)

    assert hashed("a") not in str(caught.value)


def test_a_token_is_found_by_its_hash() -> None:
    known = parse_tokens(json.dumps({hashed("a"): "admin", hashed("b").upper(): ["one"]}))

    assert caller_of("a", known).is_admin and caller_of("b", known).tenants == {"one"}
    assert caller_of("c", known) is None and caller_of("", known) is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_without_tokens_another_host_than_loopback_is_refused_by_name(host: str) -> None:
    with pytest.raises(UsageError, match=rf"STRANDLINE_API_TOKENS.*'{host}'"):
        listen(host, 0, "")


def test_a_webhook_is_set_shown_and_removed_and_its_secret_is_told_once(api: Api, tenant: str) -> None:
    hook = f"/v1/tenants/{tenant}/webhook"
    problem(api.get(hook), 404)
    for url in ("ftp://x", "http://u:p@x/", "http://", "http://127.0.0.1/", "https://localhost/"):
        problem(api.ask("PUT", hook, json={"url": url}), 422, "url")

    made = api.ask("PUT", hook, json={"url": "https://x.example/hook"}).json()

    assert made["secret"].startswith("whsec_")
    assert api.get(hook).json() == {key: value for key, value in made.items() if key != "secret"}
    assert (made["url"], made["waiting"], made["failed_attempts"]) == ("https://x.example/hook", 0, 0)
    assert "whsec_" in api.get("/docs").text
    assert api.ask("DELETE", hook).status_code == 204
    problem(api.get(hook), 404)
    assert [action for _, action in logged(api, tenant)] == ["webhook set", "webhook remove"]
