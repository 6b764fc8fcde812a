"""Webhooks: who is told of an ended scan, what, in which order, and what a receiver that is away costs."""

import base64
import hashlib
import hmac
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, text

from db import scans, webhooks
from db.engine import reading, write, writing
from db.tables import deliveries
from db.types import Trigger, UsageError
from db.webhooks import Webhook
from orchestrator import webhook_request
from orchestrator import webhooks as telling
from orchestrator.documents import webhook_document
from orchestrator.webhook_address import checked_url, host_of, is_public, new_secret
from orchestrator.webhook_request import Refused, post, signature
from tasks.redis import webhooks as hosts
from tests import field as fields
from tests.command import Command
from tests.receiver import Receiver, receiver
from tests.storage import add_tenant, remove_tenant, rows
from tests.test_interleavings import Make, World
from tests.test_interleavings import world as world  # the fixture
from tests.trees import Dir, File, build
from tests.waiting import wait_until

SECRET = new_secret()


@pytest.fixture
def its() -> Iterator[Receiver]:
    with receiver() as found:
        yield found


# A request


def test_it_is_signed_as_standard_webhooks_say() -> None:
    key = base64.b64decode(SECRET.removeprefix("whsec_"))
    expected = base64.b64encode(hmac.digest(key, b"the-id.1700000000.{}", hashlib.sha256)).decode()

    assert signature(SECRET, "the-id", 1700000000, b"{}") == f"v1,{expected}"
    assert len(key) == 24 and new_secret() != SECRET


@pytest.mark.parametrize(
    ("address", "public"),
    [("93.184.216.34", True), ("2606:2800:220:1::", True), ("127.0.0.1", False), ("10.1.2.3", False), ("::1", False),
     ("192.168.0.1", False), ("169.254.169.254", False), ("100.64.0.1", False), ("0.0.0.0", False),
     ("fe80::1%eth0", False),
     ("fd00::1", False), ("::ffff:127.0.0.1", False), ("::ffff:93.184.216.34", True), ("224.0.0.1", False),
     ("2002:7f00:1::", False)],
)  # fmt: skip
def test_a_public_address_is_one_that_nobody_here_has(address: str, public: bool) -> None:
    assert is_public(address) == public


def test_private_addresses_are_refused_unless_allowed_also_behind_a_name(its: Receiver) -> None:
    webhook = Webhook(its.url.replace("127.0.0.1", "localhost"), SECRET)

    with pytest.raises(Refused, match=r"localhost is (127.0.0.1|::1), which is no public address"):
        post(webhook, "id", 1, b"{}", private=False)
    assert its.received == []

    post(Webhook(its.url, SECRET), "id", 1, b"{}", private=True)
    assert its.received[0].headers["host"] == its.url.split("/")[2]


def test_nothing_but_a_2xx_is_taken_and_no_redirect_is_followed(its: Receiver) -> None:
    for its.status in (302, 410, 500):
        with pytest.raises(Refused, match=f"it answered {its.status}"):
            post(Webhook(its.url, SECRET), "id", 1, b"{}", private=True)
    assert len(its.received) == 3


def test_who_hangs_is_not_waited_for(its: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook_request, "WITHIN_S", 0.3)
    its.hangs = True

    with pytest.raises(Refused, match="no answer within"):
        post(Webhook(its.url, SECRET), "id", 1, b"{}", private=True)


def test_who_is_not_there_is_said_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]

    with pytest.raises(Refused, match=r"[Cc]onnect"):
        post(Webhook(f"http://127.0.0.1:{port}/", SECRET), "id", 1, b"{}", private=True)


@pytest.mark.parametrize(
    "url", ["", "x", "ftp://a/", "http://", "http://a:b@c/", "http://a\n/", "http://[::1", "file:///etc/passwd"]
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="webhook"):
        checked_url(url, private=True)


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "hook.localhost", "10.1.2.3:8080", "[::1]", "[::ffff:10.0.0.1]", "169.254.169.254"],
)
def test_an_address_that_would_be_refused_later_is_refused_at_once(host: str) -> None:
    url = f"http://{host}/hook"
    with pytest.raises(UsageError, match=r"no public address.*STRANDLINE_WEBHOOK_PRIVATE=true"):
        checked_url(url, private=False)
    assert checked_url(url, private=True) == url


def test_a_name_and_a_public_address_are_taken() -> None:
    for url in ("https://example.com/hook", "https://93.184.216.34/", "https://localhost.example.com/"):
        assert checked_url(url, private=False) == url


@given(st.integers(0, 10_000))
def test_pauses_double_up_to_an_hour(attempts: int) -> None:
    assert telling.pause_s(attempts) == min(10 * 2**attempts, 3600)


# What is to be told, on each database


def ended(engine: Engine, tenant_id: int) -> str:
    """A scan that was cancelled before it began."""
    with writing(engine) as connection:
        scan, _ = scans.request(connection, tenant_id, trigger=Trigger.REQUEST)
        assert scans.cancel_queued(connection, scan.id)
    return scan.id


def test_only_so_many_are_told_at_once_and_of_each_tenant_the_first(engine: Engine) -> None:
    tenants = [add_tenant(engine, f"t{n}") for n in range(4)]
    for tenant in tenants[:3]:
        write(engine, webhooks.put, tenant.id, Webhook("http://x/", SECRET))
    first = {tenant.id: ended(engine, tenant.id) for tenant in tenants}
    for tenant in tenants:
        ended(engine, tenant.id)
    assert write(engine, lambda connection: webhooks.any_due(connection))

    some = write(engine, webhooks.claim_due, 2, 60.0)
    more = write(engine, webhooks.claim_due, 3, 60.0)

    assert len(some) == 2 and len(more) == 1, "not more than three in all, and nobody twice"
    assert set(some) | set(more) == {tenant.id for tenant in tenants[:3]}, "who has no webhook is told nothing"
    with reading(engine) as connection:
        assert all(webhooks.first(connection, one).scan_id == first[one] for one in some)
    write(engine, webhooks.told, first[some[0]])
    assert write(engine, webhooks.claim_due, 3, 60.0) == [some[0]], "its next one"

    write(engine, webhooks.put, tenants[0].id, None)
    remove_tenant(engine, tenants[1].id)
    assert {row["tenant_id"] for row in rows(engine, deliveries)} == {tenants[2].id}


# From a scan to the receiver


@pytest.fixture
def it(world: Make, its: Receiver) -> World:
    made = world(Dir({b"f": File(b"f")}), webhook_private=True)
    write(made.engine, webhooks.put, made.tenant_id, Webhook(its.url, SECRET))
    made.app.runtime.redis.flushall()
    return made


def tell(it: World) -> None:
    """What the tick and a worker do, as far as something is due."""
    for tenant_id in write(it.engine, webhooks.claim_due, 4, 60.0):
        telling.tell(tenant_id)


def let_pass(it: World, seconds: float) -> None:
    """For deliveries, and for the breaker of hosts."""
    with writing(it.engine) as connection:
        connection.execute(text("UPDATE deliveries SET next_at = next_at - :us, claimed_until = NULL"),
                           {"us": int(seconds * 1e6)})  # fmt: skip
    redis, keys = it.app.runtime.redis, it.app.runtime.keys
    for key in redis.scan_iter(keys.webhook_open("*")):
        left = redis.ttl(key) - seconds
        redis.expire(key, int(left)) if left > 0 else redis.delete(key)


def test_it_is_told_what_the_scan_found_and_by_whom(it: World, its: Receiver) -> None:
    scan = it.scan()
    tell(it)

    [one] = its.received
    key = base64.b64decode(SECRET.removeprefix("whsec_"))
    signed = f"{one.id}.{one.headers['webhook-timestamp']}.".encode() + one.body
    assert one.headers["webhook-signature"] == "v1," + base64.b64encode(hmac.digest(key, signed, "sha256")).decode()
    assert (one.id, one.scan["scan"], one.scan["state"], one.scan["added"]) == (scan.id, scan.id, "succeeded", 1)
    assert json.loads(one.body)["type"] == "scan.ended" and one.scan["cursor"]
    tell(it)
    assert len(its.received) == 1


def test_after_an_hour_away_all_is_told_in_order_and_no_id_is_new(it: World, its: Receiver) -> None:
    its.status = 503
    ids = [it.scan().id]
    tell(it)
    waited_s = 0
    while waited_s < 3600:
        let_pass(it, 60)
        waited_s += 60
        if waited_s % 900 == 0:
            ids.append(it.scan().id)
        tell(it)
    tried = len(its.received)
    with reading(it.engine) as connection:
        tenant_id = scans.get(connection, ids[0]).tenant_id
        shown = webhook_document(Webhook(its.url, SECRET), webhooks.waiting(connection, tenant_id))
    assert (shown["waiting"], shown["failed_attempts"]) == (len(ids), tried)
    assert shown["waiting_since"] < shown["next_attempt_at"]
    assert 5 < tried < 15, "less and less often"
    assert {one.id for one in its.received} == {ids[0]}, "in order"

    its.status = 200
    let_pass(it, 3600)
    tell(it)

    assert its.taken == ids
    assert rows(it.engine, deliveries) == []


def test_a_host_that_does_not_answer_is_left_alone_and_then_asked_by_one(it: World, its: Receiver) -> None:
    its.status = 500
    it.scan()
    for _ in range(10):
        let_pass(it, 0.0)
        with writing(it.engine) as connection:
            connection.execute(text("UPDATE deliveries SET next_at = 0"))
        tell(it)
    assert len(its.received) == hosts.FAILURES + 1

    found = hosts.Hosts(it.app.runtime.redis, it.app.runtime.keys)
    let_pass(it, hosts.OPEN_S)
    assert [found.open_s(host_of(its.url)) > 0 for _ in range(3)] == [False, True, True]


def test_what_nobody_takes_for_a_week_is_dropped(it: World, its: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    its.status = 500
    it.scan()
    with writing(it.engine) as connection:
        connection.execute(text("UPDATE deliveries SET since = 0"))
    tell(it)

    assert "is not told of scan" in caplog.text and rows(it.engine, deliveries) == []
    assert SECRET not in caplog.text


def test_a_cluster_tells_it_by_itself(newest_postgres_url: str, own_redis, tmp_path: Path, its: Receiver) -> None:
    settings = {"STRANDLINE_WEBHOOK_PRIVATE": "true"}
    with own_redis() as broker, fields.running(tmp_path, newest_postgres_url, broker, **settings) as field:
        name, root = field.tenant()
        tenant_id = field.rows("SELECT id FROM tenants")[0].id
        write(field.engine, webhooks.put, tenant_id, Webhook(its.url, SECRET))
        first = field.scan(name)
        build(root + b"/new", File(b"new"))
        second = field.scan(name)

        wait_until(lambda: len(its.taken) == 2, 30, "the receiver is told")
        assert its.taken == [first["scan"], second["scan"]]
        assert its.received[1].scan["added"] == 1


def test_the_command_sets_shows_and_removes_one(cli: Command, tmp_path: Path) -> None:
    build(os.fsencode(tmp_path / "hooked"), Dir({b"f": File(b"f")}))
    cli.scan(tmp_path / "hooked")

    [made] = cli.json("webhook", "set", "hooked", "https://x.example/hook")

    assert made["url"] == "https://x.example/hook" and made["secret"].startswith("whsec_")
    assert cli.json("webhook", "show", "hooked") == [{key: made[key] for key in made if key != "secret"}]
    assert cli.run("webhook", "remove", "hooked").returncode == 0
    refused = cli.run("webhook", "show", "hooked")
    assert refused.returncode == 2 and "'hooked' has no webhook" in refused.stderr
    assert cli.run("webhook", "set", "hooked", "ftp://x").returncode == 2
    private = cli.run("webhook", "set", "hooked", "http://127.0.0.1:1/")
    assert private.returncode == 2 and "STRANDLINE_WEBHOOK_PRIVATE" in private.stderr
