"""Are traces wanted? A leaf, since it is asked before anything else is imported."""

from __future__ import annotations

import os
import sys

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
# redis-py imports these wherever they are installed: a third of its import, to measure for nobody.
_IMPORTED_BY_REDIS = ("opentelemetry.metrics", "opentelemetry.sdk.metrics")


def traces() -> bool:
    """Did somebody set where to?"""
    wanted = any(os.environ.get(name) for name in _ENDPOINTS)
    return wanted and os.environ.get("OTEL_SDK_DISABLED", "").lower() != "true"


def spare_redis() -> None:
    """Call before redis is imported: where no traces are wanted, it finds OpenTelemetry not installed."""
    if not traces():
        for name in _IMPORTED_BY_REDIS:
            sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # what import takes for "there is none"


def spare_no_others() -> None:
    """Call once redis is imported, where something that cannot do without them is next (FastAPI)."""
    for name in _IMPORTED_BY_REDIS:
        if name in sys.modules and sys.modules[name] is None:
            del sys.modules[name]
