"""Metrics: what a real run exposes, and that nothing which is away or hangs keeps a scrape waiting."""

import asyncio
import json
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import redis
import yaml
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import update

from compose import smoke
from db import tallies
from db.engine import connect, writing
from db.tables import tenants as tenants_table
from orchestrator import metrics
from orchestrator.api.metrics import router
from orchestrator.metrics import FRESH_S, WITHIN_S, Exporter
from tasks.core.breaker import Covers, Failed, Key, Limits, State
from tasks.redis import breaker
from tasks.redis.keys import Keys
from tests import trees
from tests.field import Field
from tests.field import field as field
from tests.trees import File, build
from tests.waiting import wait_until

FIELD = {"STRANDLINE_TICK_S": "0.2", "STRANDLINE_BREAKER_FAILURES": "1"}
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples(text: bytes) -> Samples:
    families = text_string_to_metric_families(text.decode())
    return {(one.name, tuple(sorted(one.labels.items()))): one.value for family in families for one in family.samples}


def value(found: Samples, name: str, **labels: str) -> float:
    return found[f"strandline_{name}", tuple(sorted(labels.items()))]


@pytest.fixture(scope="module")
def exporter(field: Field) -> Iterator[Exporter]:
    with field.redis() as client:
        yield Exporter(field.engine, client, Keys("strandline:"), late=20)


def scrape(exporter: Exporter) -> Samples:
    """Now, whatever was seen a moment ago."""
    for part in (exporter._database, exporter._redis):
        part._began_s = float("-inf")
    return samples(exporter.exposition()[0])


def test_a_real_run_is_told_in_numbers_that_agree_with_its_documents(field: Field, exporter: Exporter) -> None:
    before = scrape(exporter)
    name, root = field.tenant()
    first = field.scan(name)
    build(root + b"/0/new", File(b"new"))
    os.truncate(root + b"/1/1", 0)
    second = field.scan(name)

    found = scrape(exporter)

    def grown(metric: str, **labels: str) -> float:
        key = f"strandline_{metric}", tuple(sorted(labels.items()))
        return found[key] - before.get(key, 0)

    assert grown("scans_ended_total", strategy="full_initial", state="succeeded", tier="standard") == 1
    assert grown("scans_ended_total", strategy="incremental", state="succeeded", tier="standard") == 1
    assert grown("files_scanned_total", strategy="full_initial") == first["files"] == 25
    assert grown("files_scanned_total", strategy="incremental") == second["files"] == 26
    assert grown("directories_unchanged_total", strategy="incremental") == second["directories_unchanged"]
    for document, strategy in ((first, "full_initial"), (second, "incremental")):
        assert grown("files_hashed_total", strategy=strategy) == document["hashed_files"] > 0
        assert grown("hashed_bytes_total", strategy=strategy) == document["hashed_bytes"]
        assert grown("shard_attempts_total", strategy=strategy) == document["attempts"]
        assert grown("scan_duration_seconds_count", strategy=strategy) == 1
        assert grown("scan_duration_seconds_sum", strategy=strategy) == pytest.approx(document["duration_s"], abs=0.01)
        for kind in ("added", "modified", "deleted", "moved"):
            assert grown("files_changed_total", strategy=strategy, kind=kind) == document[kind]
    assert grown("scan_wait_seconds_count", tier="standard") == 2
    assert value(found, "tenants", tier="standard", state="enabled") >= 1
    assert value(found, "scans_open", tier="standard", state="running") == 0
    assert grown("shards_sent_total") >= 4 and value(found, "enqueue_seconds_count") >= 4
    assert all(value(found, "up", part=part) == 1 for part in ("database", "redis"))


def test_each_worker_tells_of_its_memory_and_its_slots(field: Field, exporter: Exporter) -> None:
    found = wait_until(
        lambda: (seen := scrape(exporter)).get(("strandline_workers", ())) and seen, 20, "the worker has told"
    )
    [worker] = {dict(labels)["worker"] for name, labels in found if name == "strandline_worker_slots"}

    assert worker.startswith("worker-") and value(found, "worker_slots", worker=worker) == 2
    assert value(found, "worker_memory_used_bytes", worker=worker) > 0
    assert value(found, "worker_memory_limit_bytes", worker=worker) > 64 << 20
    assert value(found, "worker_memory_level", worker=worker) in range(4)
    assert value(found, "worker_oom_kills_total", worker=worker) >= 0
    assert value(found, "worker_children", worker=worker) in (1, 2)


def test_breakers_are_counted_by_what_they_cover_until_nothing_of_them_counts(field: Field, exporter: Exporter) -> None:
    keys, limits = Keys("strandline:"), Limits(failures=0, window_s=0.2, open_s=0.3, tracked=100)
    with field.redis() as client:
        for tenant, key in ((501, breaker.ROOT), (501, Key(Covers.FILE, b"a")), (502, Key(Covers.FILE, b"b"))):
            breaker.change(
                client, keys, tenant, limits,
                lambda entries, now, key=key: breaker.breaker.failed(entries, [Failed(key, "denied")], 1, now, limits),
            )  # fmt: skip
        found = breaker.states(client, keys, 10)
        assert found.entries == {(Covers.DIRECTORY, State.OPEN): 1, (Covers.FILE, State.OPEN): 2}
        assert (found.roots, found.tenants, found.more) == ({State.OPEN: 1}, 2, False)
        assert breaker.states(client, keys, 1).more

        told = scrape(exporter)
        assert value(told, "breaker_roots", state="open") <= 1  # its half second may be over

        # Each look removes what was over as it began: where documents expire meanwhile, the next one does.
        wait_until(
            lambda: not breaker.states(client, keys, 10).tenants and not client.zcard(keys.breakers()),
            10, "the documents expire, and nothing is known of them",
        )  # fmt: skip


def test_the_tenants_that_are_behind_most_are_named_only_where_that_is_asked_for(
    field: Field, exporter: Exporter
) -> None:
    name, _ = field.tenant()
    with writing(field.engine) as connection:
        connection.execute(
            update(tenants_table).where(tenants_table.c.name == name).values(interval_s=1, next_scan_at=None)
        )
    lag = wait_until(
        lambda: scrape(exporter).get(("strandline_tenant_lag_seconds", (("tenant", name), ("tier", "standard")))),
        20, "it is late",
    )  # fmt: skip
    assert lag > 0

    with field.redis() as client:
        text, _ = Exporter(field.engine, client, Keys("strandline:")).exposition()
    assert not [one for one in samples(text) if one[0] == "strandline_tenant_lag_seconds"] and name.encode() not in text
    with writing(field.engine) as connection:
        connection.execute(update(tenants_table).where(tenants_table.c.name == name).values(interval_s=1_000_000))


def test_http_gives_it_in_the_form_that_is_asked_for(exporter: Exporter) -> None:
    app = FastAPI()
    app.state.tokens = {}
    app.include_router(router(exporter))

    async def get(**headers: str) -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here") as client:
            return await client.get("/metrics", headers=headers)

    plain = asyncio.run(get())
    other = asyncio.run(get(Accept="application/openmetrics-text; version=1.0.0"))

    assert plain.status_code == 200 and plain.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert other.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert other.text.endswith("# EOF\n") and "strandline_up" in plain.text


@pytest.mark.parametrize("accept", ["", "nonsense/*;q=x", "application/openmetrics-text", "text/plain; version=1.0.0"])
def test_every_name_has_help_and_a_unit_that_prometheus_knows(exporter: Exporter, accept: str) -> None:
    text = exporter.exposition(accept)[0].decode()

    described = {line.split()[2] for line in text.splitlines() if line.startswith("# HELP ")}
    typed = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE ")}
    assert described == typed and all(name.startswith("strandline_") for name in typed) and len(typed) > 30
    assert not [name for name in typed if name.endswith(("_ms", "_kb", "_mb", "_minutes"))]


# Dashboard and alerts

COMPOSE = Path(__file__).parent.parent / "compose"
RULES = {
    rule["alert"]: rule
    for group in yaml.safe_load((COMPOSE / "prometheus" / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]
}
DASHBOARD = json.loads((COMPOSE / "grafana" / "dashboards" / "strandline.json").read_text())
SUFFIXES = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"], "summary": ["", "_sum", "_count"]}
# Each API tells of the whole cluster, so that what two of them tell is to be taken once.
ONCE = re.compile(r"max without \(instance, pod\) \(((?:[^()]|\([^()]*\))*)\)")
# All that the rules which need no history are made of.
SIMPLE = re.compile(
    r"(?:(sum|max)(?: by \((\w+)\) )?\()?(strandline_\w+)(?:\{(\w+)(=~?)\"(.+)\"\})?\)? (==|>) ([\d.]+)"
)


def expressions() -> list[str]:
    panels = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]
    return [*panels, *(rule["expr"] for rule in RULES.values())]


def told_once(expression: str) -> str:
    """The expression for one API."""
    return ONCE.sub(r"\1", expression)


def fires(alert: str, found: Samples) -> bool:
    """Would this alert's expression, which needs no history, hold for these samples?"""
    parsed = SIMPLE.fullmatch(told_once(RULES[alert]["expr"]))
    assert parsed, f"{alert} is no simple comparison"
    how, by, name, label, match, wanted, comparison, bound = parsed.groups()
    groups: dict[str, list[float]] = {}
    for (sample, labels), number in found.items():
        told = dict(labels)
        fits = label is None or re.fullmatch(wanted if match == "=~" else re.escape(wanted), told.get(label, ""))
        if sample == name and fits:
            groups.setdefault("" if how and not by else told[by] if by else str(labels), []).append(number)
    values = [{"sum": sum, "max": max, None: max}[how](numbers) for numbers in groups.values()]
    return any(value == float(bound) if comparison == "==" else value > float(bound) for value in values)


def test_dashboard_and_alerts_ask_only_for_what_a_real_run_tells(exporter: Exporter) -> None:
    text = exporter.exposition()[0].decode()
    kinds = dict(line.split()[2:4] for line in text.splitlines() if line.startswith("# TYPE "))
    names = {name.removesuffix("_total") + end if kind == "counter" else name + end
             for name, kind in kinds.items() for end in SUFFIXES.get(kind, [""])}  # fmt: skip
    # (As they are declared: of what is not there just now, nothing is told.)
    labels = {family.name + end: set(family._labelnames) for family in exporter.collect()
              for end in SUFFIXES.get(family.type, [""])}  # fmt: skip

    asked = {name for expression in expressions() for name in re.findall(r"strandline_\w+", expression)}
    assert len(asked) > 35 and asked <= names, asked - names
    for expression in expressions():
        grouped = set(re.findall(r"\w+", " ".join(re.findall(r"by \(([^)]*)\)", expression)))) - {"le"}
        for name, selector in re.findall(r"(strandline_\w+)(\{[^}]*\})?", expression):
            matched = set(re.findall(r"(\w+)=~?\"", selector))
            assert grouped | matched - {"le"} <= labels[name], expression
    unasked = {name for name in kinds if not any(one.startswith(name.removesuffix("_total")) for one in asked)}
    assert unasked <= {"strandline_build_info", "strandline_tenants", "strandline_breaker_tenants",
                       "strandline_breaker_truncated", "strandline_worker_memory_working_set_bytes"}  # fmt: skip


def test_two_apis_that_tell_of_the_same_cluster_count_once() -> None:
    for expression in expressions():
        rest = ONCE.sub("", expression)
        assert not re.findall(
            r"(?<!max\()(?<!max by \(tier\) \()(?<!max by \(state\) \()strandline_(?!up\b)\w+", rest
        ), expression


def test_every_alert_says_what_is_wrong_and_how_urgent_that_is() -> None:
    for name, rule in RULES.items():
        assert name.startswith("Strandline") and rule["labels"]["severity"] in ("page", "ticket")
        assert len(rule["annotations"]["summary"].split()) >= 3 and len(rule["annotations"]["description"].split()) > 3
    assert len(RULES) == 15
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_an_alert_fires_on_what_it_is_about_and_not_before(field: Field, exporter: Exporter) -> None:
    name, root = field.tenant()
    field.scan(name)
    well = scrape(exporter)
    assert value(well, "scans_ended_total", strategy="full_initial", state="succeeded", tier="standard") >= 1
    about = [one for one, rule in RULES.items() if SIMPLE.fullmatch(told_once(rule["expr"]))]
    assert len(about) >= 9 and not [one for one in about if fires(one, well)]

    for entry in os.listdir(root):
        trees.remove(root + b"/" + entry)
    suspect = field.scan(name)
    assert suspect["state"] == "suspect" and fires("StrandlineSuspectScans", scrape(exporter))
    field.command("confirm", suspect["scan"])
    wait_until(lambda: not fires("StrandlineSuspectScans", scrape(exporter)), 30, "it was confirmed")

    os.rename(root, root + b" away")
    assert [field.scan(name)["state"] for _ in range(2)] == ["failed"] * 2
    broken = scrape(exporter)
    assert [one for one in about if fires(one, broken)] == ["StrandlineRootLeftAlone"]

    def failed(found: Samples) -> float:
        return sum(
            found[one] for one in found if one[0].endswith("scans_ended_total") and ("state", "failed") in one[1]
        )

    assert failed(broken) - failed(well) == 2

    with field.redis() as client:
        nobody = scrape(Exporter(field.engine, client, Keys("nobody:")))
    assert "StrandlineNoWorker" in [one for one in about if fires(one, nobody)]
    for part in ("database", "redis"):
        away = well | {("strandline_up", (("part", part),)): 0.0}
        assert fires(f"Strandline{part.capitalize()}Away", away)


# Logs of the same run


def test_each_shard_and_each_scan_says_one_line_that_a_machine_can_read(field: Field) -> None:
    name, _ = field.tenant()
    document = field.scan(name)

    def lines() -> list[dict]:
        written = field.process("worker").stderr.content.decode().splitlines()
        return [line for line in map(json.loads, written) if line.get("tenant") == name]

    said = wait_until(lambda: len(found := lines()) == 2 and found, 20, "a line for the shard and one for the scan")
    shard, scan = said
    assert (shard["event"], scan["event"]) == ("shard done", "scan succeeded")
    for line, number in ((shard, 1), (scan, 0)):
        ids = [line[field] for field in ("scan", "shard", "fence", "attempt")]
        assert ids == [document["scan"], number, document["fence"], 1]
    assert (shard["files"], shard["hashed_files"], shard["more_shards"]) == (25, document["hashed_files"], 0)
    for told in ("files", "added", "directories", "hashed_bytes", "strategy", "attempts"):
        assert scan[told] == document[told]


# What is away


class Hangs:
    """A server whose every call takes until it is let go."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.asked = 0

    def look(self) -> None:
        self.asked += 1
        self.over.wait(30)


def test_where_database_and_redis_are_away_that_is_what_is_told(tmp_path) -> None:
    engine = connect(f"sqlite:///{tmp_path}/no such folder/x.db")
    nowhere = redis.Redis.from_url(f"unix://{tmp_path}/none.sock")

    found = samples(Exporter(engine, nowhere, Keys("strandline:")).exposition()[0])

    assert {name for name, _ in found} == {"strandline_up", "strandline_look_seconds"}
    assert [value(found, "up", part=part) for part in ("database", "redis")] == [0, 0]


def test_what_hangs_is_asked_once_and_waited_for_no_longer_than_two_seconds(tmp_path) -> None:
    hangs = Hangs()
    exporter = Exporter(connect(f"sqlite:///{tmp_path}/x.db"), redis.Redis(port=1), Keys("strandline:"))
    exporter._database._look = exporter._redis._look = hangs.look
    try:
        for _ in range(2):
            began_s = time.monotonic()
            found = samples(exporter.exposition()[0])
            assert time.monotonic() - began_s < 2.0 and WITHIN_S < 2.0
            assert value(found, "up", part="database") == 0
        assert hangs.asked == 2, "once each: a thread for each scrape would pile up"
    finally:
        hangs.over.set()


def test_smoke_asks_again_where_a_part_is_left_out_and_says_which_if_it_stays_away(
    field: Field, exporter: Exporter, tmp_path, monkeypatch
) -> None:
    field.tenant()
    scrape(exporter)
    away = Exporter(connect(f"sqlite:///{tmp_path}/no such folder/x.db"), redis.Redis(port=1), Keys("strandline:"))
    told = [away, exporter]
    monkeypatch.setattr(smoke, "ask", lambda *_: told.pop(0).exposition()[0].decode())
    assert float(smoke.lag()) >= 0 and told == []

    told = [away]
    monkeypatch.setattr(smoke, "TOLD_S", 0)
    with pytest.raises(SystemExit, match=r"do not tell the lag.*strandline_up\{part=\"database\"\} 0\.0"):
        smoke.lag()


def test_two_scrapes_in_a_row_cost_one_look(tmp_path) -> None:
    now_s, looks = [100.0], []
    part = metrics.Part(lambda: looks.append(1) or len(looks), (), lambda: now_s[0])

    def ask() -> int:
        part.begin()
        return part.seen(now_s[0] + 5)

    assert [ask(), ask()] == [1, 1]
    now_s[0] += FRESH_S
    assert ask() == 2


def test_bins_are_given_as_prometheus_adds_them_up() -> None:
    from orchestrator.families import _histogram

    class Row:
        def __init__(self, took: int, scans: int, ms: int) -> None:
            self.strategy, self.took, self.scans, self.took_ms = "verify", took, scans, ms

    family = _histogram([Row(0, 2, 100), Row(3, 1, 4000), Row(10, 1, 20_000_000)], "x", "y", "took", "strategy")
    buckets = {one.labels["le"]: one.value for one in family.samples if one.name.endswith("_bucket")}

    assert buckets["0.1"] == 2 and buckets["1.0"] == 2 and buckets["5.0"] == 3 and buckets["+Inf"] == 4
    assert list(buckets) == [*map(str, tallies.BOUNDS_S), "+Inf"]
    assert [one.value for one in family.samples if one.name.endswith("_sum")] == [20_004.1]
