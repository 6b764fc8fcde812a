"""Traces: one of each scan, seen by a receiver as a collector is, and nothing of it where nobody asked."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from db.types import new_scan_id
from tasks import traces, wanted
from tests.command import Command
from tests.trees import Dir, File, build
from tests.waiting import wait_until

if TYPE_CHECKING:
    from tasks.sdk import Sdk


class Receiver(ThreadingHTTPServer):
    """A collector of spans on loopback."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.spans: list = []
        self.services: set[str] = set()

    @property
    def env(self) -> dict[str, str]:
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self.server_port}"}

    def of(self, scan_id: str) -> dict[str, list]:
        """The spans of a scan's trace, by name."""
        trace_id = traces.ids(scan_id)[0].to_bytes(16, "big")
        found: dict[str, list] = {}
        for span in list(self.spans):
            if span.trace_id == trace_id:
                found.setdefault(span.name, []).append(span)
        return found


class _Answer(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert self.path == "/v1/traces"
        told = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["Content-Length"])))
        for resource in told.resource_spans:
            self.server.services |= {
                one.value.string_value for one in resource.resource.attributes if one.key == "service.name"
            }
            for scope in resource.scope_spans:
                self.server.spans += scope.spans
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def sdk(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Sdk]]:
    """Makes OpenTelemetry's, which a command that was run in this process has hidden; ended with the test."""
    for name in [name for name, found in sys.modules.items() if found is None and name.startswith("opentele")]:
        monkeypatch.delitem(sys.modules, name)
    for name, value in receiver.env.items():
        monkeypatch.setenv(name, value)
    made: list[Sdk] = []

    def make() -> Sdk:
        made.append(importlib.import_module("tasks.sdk").Sdk())
        return made[-1]

    yield make
    for one in made:
        one._provider.shutdown()


def attributes(span) -> dict[str, object]:
    return {
        one.key.removeprefix("strandline."): one.value.string_value or one.value.int_value for one in span.attributes
    }


def test_a_scan_is_one_trace_from_being_asked_for_to_its_end(receiver: Receiver, tmp_path: Path) -> None:
    build(os.fsencode(tmp_path / "notes"), Dir({b"%d" % n: File(b"%d" % n) for n in range(5)}))
    command = Command(tmp_path / "state", receiver.env)
    with command.up():
        command.starts_nothing = False  # it is asked for by a process of its own, which traces that
        scan_id = command.scan(tmp_path / "notes")["scan"]
        names = {"scan", "request", "shard", "finish", "flush"}
        seen = wait_until(
            lambda: (found := receiver.of(scan_id)).keys() >= names and found, 30, "all of its spans were sent"
        )
        wait_until(lambda: any(one.name == "tick" for one in receiver.spans), 30, "beat's ticks are traced, too")

    [root], [request], [shard], [finish] = (seen[name] for name in ("scan", "request", "shard", "finish"))
    assert root.span_id == traces.ids(scan_id)[1].to_bytes(8, "big") and not root.parent_span_id
    assert {one.parent_span_id for one in (request, shard, finish)} == {root.span_id}
    assert {one.parent_span_id for one in seen["flush"]} <= {shard.span_id, finish.span_id}
    for part in (shard, finish):
        assert root.start_time_unix_nano <= part.start_time_unix_nano < part.end_time_unix_nano
    told = attributes(root)
    assert (told["tenant"], told["state"], told["files"], told["scan"]) == ("notes", "succeeded", 5, scan_id)
    assert attributes(shard) == {"tenant": "notes", "scan": scan_id, "shard": 1, "fence": 1, "attempt": 1}
    assert receiver.services == {"strandline"}


def test_where_nobody_asked_nothing_of_it_is_imported() -> None:
    program = (
        "import sys; from tasks import wanted; wanted.spare_redis();"  # as `main` does
        "import orchestrator.cli, tasks.scan_shard, tasks.finish, orchestrator.session;"
        "from tasks import traces\n"
        "with traces.span('shard', 'x', {}, tenant='t'): assert traces.headers('x') == traces.named('x') == {}\n"
        "traces.over('request', 'x', 0.0); traces.end()\n"
        "print([name for name, found in sys.modules.items() if found and name.startswith(('tasks.sdk', 'opentele'))])"
    )
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://h:1", "OTEL_SDK_DISABLED": "true"}
    done = subprocess.run([sys.executable, "-c", program], env=os.environ | env, capture_output=True, text=True)

    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize(
    ("env", "are"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://h:1"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://h:1"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://h:1", "OTEL_SDK_DISABLED": "true"}, False),
    ],
)
def test_who_names_an_endpoint_wants_traces(env: dict[str, str], are: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)

    assert wanted.traces() == are


def test_what_is_off_costs_next_to_nothing() -> None:
    assert not traces._ON
    began_s = time.process_time()
    for _ in range(10_000):
        with traces.span("flush"):
            pass

    assert time.process_time() - began_s < 0.5, "a flush takes milliseconds"


@pytest.mark.parametrize("sampler", ["parentbased_traceidratio", "traceidratio"])
def test_of_a_sampled_part_of_all_scans_each_is_traced_whole_or_not_at_all(
    sdk: Callable[[], Sdk], sampler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.5")
    one, other = sdk(), sdk()
    sampled = []
    for _ in range(200):
        trace_id, span_id = traces.ids(new_scan_id())
        assert one.flags(trace_id) == other.flags(trace_id)
        with one.tracer.start_as_current_span("shard", one.part_of(trace_id, span_id)) as span:
            assert span.get_span_context().trace_flags == one.flags(trace_id)
        sampled.append(one.flags(trace_id))

    assert 40 < sum(sampled) < 160


def test_a_message_that_carries_nonsense_is_taken_all_the_same(sdk: Callable[[], Sdk]) -> None:
    made, (trace_id, span_id) = sdk(), traces.ids(new_scan_id())
    for headers in ({}, {"traceparent": "nonsense"}, {"traceparent": 5, "strandline_version": 1}):
        assert made.carried(headers) is None
    assert made.carried({"traceparent": f"00-{trace_id:032x}-{span_id:016x}-01"}) is not None


def test_a_collector_that_is_away_holds_no_end_up(sdk: Callable[[], Sdk], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr(traces, "_ON", True)
    monkeypatch.setattr(traces, "ENDS_WITHIN_S", 0.2)
    monkeypatch.setitem(traces._made, os.getpid(), sdk())
    with traces.span("shard", new_scan_id(), {}, tenant="notes"):
        pass

    began_s = time.monotonic()
    traces.end()

    assert time.monotonic() - began_s < 2
