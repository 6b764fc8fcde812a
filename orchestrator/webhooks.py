"""Telling webhooks of ended scans: from the tick, through the queue, in the order of each tenant, at least once."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from datetime import timedelta

import redis
from celery import current_app, shared_task
from sqlalchemy import Engine

from db import clock, scans, tenants, webhooks
from db.engine import reading, write
from db.webhooks import Delivery, Webhook
from orchestrator.documents import scan_document, timestamp
from orchestrator.webhook_address import WITHIN_S, host_of
from tasks import outage
from tasks.app import BULK, LIVES_S, App, Runtime, nudge
from tasks.redis import presence
from tasks.redis.connection import BROKER_ERRORS
from tasks.redis.webhooks import Hosts

log = logging.getLogger(__name__)

# Of the slots that there are, so many at once: receivers that hang shall not keep scans waiting.
SHARE = 4
# One process goes on with a tenant for so long, as long as it is answered.
FOR_S = 10.0
# Nobody else is at it meanwhile, by the database's clock: that, the last request, and some time to spare.
CLAIMED_FOR_S = FOR_S + WITHIN_S + 20.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 10.0, 3600.0
# What could not be told for so long is dropped: whoever was away asks the feed.
KEPT_FOR = timedelta(days=7)


def pause_s(attempts: int) -> float:
    """How long to wait after so many attempts failed: twice as long each time, up to an hour."""
    return float(min(FIRST_PAUSE_S * 2 ** min(attempts, 20), LONGEST_PAUSE_S))


def send_due(app: App, engine: Engine) -> int:
    """Let webhooks be told of what is due; of how many tenants."""
    with reading(engine) as connection:
        if not webhooks.any_due(connection):  # as it mostly is: nothing is locked for that
            return 0
    runtime = app.runtime
    try:
        slots = presence.slots(runtime.redis, runtime.keys)
        due = write(engine, webhooks.claim_due, max(1, slots // SHARE), CLAIMED_FOR_S)
        for tenant_id in due:
            app.send_task("strandline.webhook", [tenant_id], queue=BULK, expires=LIVES_S, retry=False)
    except BROKER_ERRORS as error:
        runtime.outage.failed("no webhook is told", error)
        return 0
    return len(due)


@shared_task(name="strandline.webhook")
def tell(tenant_id: int) -> None:
    """Tell the webhook of a tenant what it is to be told, until it does not answer."""
    runtime: Runtime = current_app.runtime
    until_s = time.monotonic() + FOR_S
    with contextlib.suppress(outage.Away), outage.here.noted(runtime.engine):  # the claim runs out
        while time.monotonic() < until_s and _tell_first(runtime, tenant_id):
            pass
    nudge(current_app)


def _tell_first(runtime: Runtime, tenant_id: int) -> bool:
    """One delivery; was it taken?"""
    with reading(runtime.engine) as connection:
        delivery, webhook = webhooks.first(connection, tenant_id), webhooks.get(connection, tenant_id)
        if delivery is None or webhook is None:
            return False
        tenant, scan = tenants.by_id(connection, tenant_id), scans.get(connection, delivery.scan_id)
        assert tenant is not None and scan is not None  # the row goes with either
        document = {"type": "scan.ended", "timestamp": timestamp(scan.finished_at),
                    "data": scan_document(connection, scan, tenant.name)}  # fmt: skip
        moment = clock.now(connection)
    host = host_of(webhook.url)
    hosts = Hosts(runtime.redis, runtime.keys)
    open_s = _open_s(runtime, hosts, host)
    if open_s > 0:
        write(runtime.engine, webhooks.try_later, delivery.scan_id, open_s, tried=0)
        return False
    error = _error_of(webhook, delivery, json.dumps(document).encode(), runtime)
    with contextlib.suppress(redis.RedisError):
        hosts.answered(host) if error is None else hosts.failed(host)
    if error is None:
        write(runtime.engine, webhooks.told, delivery.scan_id)
        return True
    if moment - delivery.since > KEPT_FOR:
        log.error("tenant %s: its webhook is not told of scan %s any more: %s", tenant.name, scan.id, error)
        write(runtime.engine, webhooks.told, delivery.scan_id)
        return False
    after_s = pause_s(delivery.attempts)
    log.warning("tenant %s: its webhook at %s was not told of scan %s, again in %.0f s: %s",
                tenant.name, host, scan.id, after_s, error)  # fmt: skip
    write(runtime.engine, webhooks.try_later, delivery.scan_id, after_s)
    return False


def _open_s(runtime: Runtime, hosts: Hosts, host: str) -> float:
    """For how long the host is left alone; without Redis nobody knows."""
    try:
        return hosts.open_s(host)
    except redis.RedisError as error:
        runtime.outage.failed("webhooks are tried whatever failed before", error)
        return 0.0


def _error_of(webhook: Webhook, delivery: Delivery, body: bytes, runtime: Runtime) -> str | None:
    from orchestrator.webhook_request import Refused, post  # httpx takes a while to import, and most tell nobody

    try:
        post(webhook, delivery.scan_id, int(time.time()), body, private=runtime.settings.webhook_private)
    except Refused as refused:
        return str(refused)
    return None
