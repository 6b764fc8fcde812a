"""OpenTelemetry itself, of one process. Imported by tasks/traces.py alone, and only where traces are wanted."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.trace import NonRecordingSpan, SpanContext, Status, StatusCode, TraceFlags
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

# Sooner than the five seconds that are usual: a process may be killed.
SENT_EVERY_MS = 1_000


class _Ids(RandomIdGenerator):
    """Random ones, but for the next span where it was told which."""

    def __init__(self) -> None:
        self.next: tuple[int, int] | None = None

    def generate_trace_id(self) -> int:
        return self.next[0] if self.next is not None else super().generate_trace_id()

    def generate_span_id(self) -> int:
        return self.next[1] if self.next is not None else super().generate_span_id()


class Sdk:
    """A provider with its exporter; what else is set by OTEL_… variables holds."""

    def __init__(self) -> None:
        named = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": "strandline"}
        # It sends in a thread, and waits for nobody as the process ends: that is up to traces.end.
        self._ids = _Ids()
        self._provider = TracerProvider(
            resource=Resource.create(named), id_generator=self._ids, shutdown_on_exit=False
        )  # fmt: skip
        delay_ms = int(os.environ.get("OTEL_BSP_SCHEDULE_DELAY") or SENT_EVERY_MS)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(), schedule_delay_millis=delay_ms))
        self.tracer = self._provider.get_tracer("strandline")

    def flags(self, trace_id: int) -> int:
        """Is that trace recorded? The same in each process, since its id alone decides."""
        decided = self._provider.sampler.should_sample(Context(), trace_id, "scan").decision
        return TraceFlags.SAMPLED if decided is Decision.RECORD_AND_SAMPLE else TraceFlags.DEFAULT

    def part_of(self, trace_id: int, span_id: int) -> Context:
        """A context within that span, which somebody else writes."""
        above = SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(self.flags(trace_id)))
        return trace.set_span_in_context(NonRecordingSpan(above), Context())

    def carried(self, headers: Mapping[str, Any]) -> Context | None:
        """The context that a message carries, if it does."""
        texts = {name: value for name, value in headers.items() if isinstance(value, str)}
        found = TraceContextTextMapPropagator().extract(texts, Context())
        return found if trace.get_current_span(found).get_span_context().is_valid else None

    def root(self, name: str, trace_id: int, span_id: int, since_ns: int, until_ns: int,
             attributes: Mapping[str, str | int], failed: bool) -> None:  # fmt: skip
        """A span with these ids and times."""
        self._ids.next = trace_id, span_id
        try:
            begun = self.tracer.start_span(name, Context(), attributes=attributes, start_time=since_ns)
        finally:
            self._ids.next = None
        if failed:
            begun.set_status(Status(StatusCode.ERROR))
        begun.end(until_ns)

    def flush(self) -> None:
        """Send what was not sent."""
        self._provider.force_flush()
