"""Traces, where OTEL_EXPORTER_OTLP_ENDPOINT is set; else nothing of OpenTelemetry is so much as imported.

A scan is one trace, whose id follows from the scan's own, so that whoever works on a shard knows it even where the
message that told of it was lost. Its root span is written by the finish, once it is known.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import os
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from celery import signals

from tasks import wanted

if TYPE_CHECKING:
    from opentelemetry.context import Context

    from tasks.sdk import Sdk

HEADER = "traceparent"
# What is not sent by then, as a process ends, is lost: nothing waits long for a collector.
ENDS_WITHIN_S = 2.0

_made: dict[int, Sdk] = {}  # by process: a fork needs its own


_ON = wanted.traces()


def _sdk() -> Sdk:
    from tasks.sdk import Sdk

    pid = os.getpid()
    if pid not in _made:
        _made.clear()
        _made[pid] = Sdk()
        atexit.register(end)
    return _made[pid]


def ids(scan_id: str) -> tuple[int, int]:
    """Of the trace of a scan, and of its root span. A hash, since samplers take the lower half of a trace's id for
    random, and a UUID has its variant there.
    """
    digest = hashlib.blake2b(scan_id.encode(), digest_size=24).digest()
    return int.from_bytes(digest[:16], "big"), int.from_bytes(digest[16:], "big")


def named(scan_id: str) -> dict[str, str]:
    """What each line of the log tells of it."""
    return {"trace": f"{ids(scan_id)[0]:032x}"} if _ON else {}


def headers(scan_id: str) -> dict[str, str]:
    """What a message of a scan carries, in the form of the W3C."""
    if not _ON:
        return {}
    trace_id, span_id = ids(scan_id)
    return {HEADER: f"00-{trace_id:032x}-{span_id:016x}-{_sdk().flags(trace_id):02x}"}


@contextlib.contextmanager
def span(
    name: str, scan_id: str | None = None, carried: Mapping[str, Any] | None = None, /, **attributes: str | int
) -> Iterator[None]:
    """What is done in this block: as a part of a scan, of what its message `carried`, or of the span that is open."""
    if not _ON:
        yield
        return
    sdk = _sdk()
    parent: Context | None = None
    if scan_id is not None:
        parent = sdk.carried(carried or {}) or sdk.part_of(*ids(scan_id))
    told = {f"strandline.{key}": value for key, value in attributes.items()}
    if scan_id is not None:
        told["strandline.scan"] = scan_id
    with sdk.tracer.start_as_current_span(name, context=parent, attributes=told):
        yield


def over(name: str, scan_id: str, since: float, **attributes: str | int) -> None:
    """A part of a scan that is over, and whose scan was not known before: it began at `since` (time.time())."""
    if _ON:
        sdk = _sdk()
        told = {f"strandline.{key}": value for key, value in attributes.items()} | {"strandline.scan": scan_id}
        begun = sdk.tracer.start_span(name, sdk.part_of(*ids(scan_id)), attributes=told, start_time=_ns(since))
        begun.end()


def scan_ended(scan_id: str, since: datetime, until: datetime, failed: bool, **attributes: str | int) -> None:
    """The root of a scan's trace: from being asked for to its end."""
    if _ON:
        told = {f"strandline.{key}": value for key, value in attributes.items()} | {"strandline.scan": scan_id}
        _sdk().root("scan", *ids(scan_id), _ns(since.timestamp()), _ns(until.timestamp()), told, failed)


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)


def now() -> float:
    """For `over`."""
    return time.time()


def end() -> None:
    """This process ends: what was traced is sent, within ENDS_WITHIN_S."""
    sdk = _made.get(os.getpid())
    if sdk is not None:
        sending = threading.Thread(target=sdk.flush, daemon=True)
        sending.start()
        sending.join(ENDS_WITHIN_S)


@signals.worker_process_shutdown.connect(weak=False)
def _child_ends(**_: object) -> None:
    end()
