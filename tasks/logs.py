"""Logs of every process: structlog over the standard library, so that ours, Celery's and all others' look alike.

JSON is one object a line; text is for people. Both show names with control characters escaped, hide what looks like a
password or a token, and leave out what repeats (tasks/repeats.py). Within a task each line tells its tenant, scan,
shard, fence and attempt.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable, MutableMapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, TextIO

from celery import signals

from tasks.core.escapes import shown
from tasks.repeats import Repeats
from tasks.settings import Settings
from tasks.structured import EventDict, Processor, ProcessorFormatter, WrappedLogger, structlog

OURS = ("db", "tasks", "orchestrator")
_FIRST = ("timestamp", "level", "logger", "event")
_EXCEPTION = "exception"
# In an address; then in a header; then beside a name that tells what it is.
_SECRETS = (
    (re.compile(r"(://[^\s/?#;@:]*):[^\s;]*@"), r"\1:***@"),
    (re.compile(r"(?i)\b(bearer|authorization['\"]?\s*[:=]\s*['\"]?basic)\s+[\w.~+/=-]{4,}"), r"\1 ***"),
    (
        re.compile(r"(?i)((?:password|passwd|secret|token|api_?key|cookie)['\"]?\s*[:=]\s*['\"]?)[^\s'\",;&}]+"),
        r"\1***",
    ),
)


def without_secrets(text: str) -> str:
    """Text with `***` where a password or a token stands, as far as one can tell."""
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text


def clean(text: str) -> str:
    """Text for a line of a log: no secrets, nothing that cannot be printed."""
    return shown(without_secrets(text))


def _cleaned(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float)):
        return value
    return clean(value if isinstance(value, str) else os.fsdecode(value) if isinstance(value, bytes) else repr(value))


def _clean(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    exception = event.pop(_EXCEPTION, None)
    found: EventDict = {clean(name): _cleaned(value) for name, value in event.items()}
    if exception is not None:
        found[_EXCEPTION] = "\n".join(map(clean, str(exception).splitlines()))
    return found


def _process(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    event["pid"] = os.getpid()
    return event


def _as_json(_logger: WrappedLogger, _method: str, event: MutableMapping[str, Any]) -> str:
    first = {name: event.pop(name) for name in _FIRST if name in event}
    return json.dumps(first | dict(event), ensure_ascii=False)


def _as_text(_logger: WrappedLogger, _method: str, event: MutableMapping[str, Any]) -> str:
    """`12:00:00.000 warning what happened  [tasks.finish] tenant=notes scan=…`, and below it the traceback. Counts that
    are nought are left out: a person looks for those that are not.
    """
    stamp, level, logger, said = (event.pop(name, "") for name in _FIRST)
    exception = event.pop(_EXCEPTION, None)
    event.pop("pid", None)
    more = "".join(f" {name}={value}" for name, value in event.items() if value or value is False)
    line = f"{str(stamp)[11:23]} {level:<7} {said}  [{logger}]{more}"
    return line if exception is None else f"{line}\n{exception}"


def as_object(line: str, name: str) -> str:
    """A line of the process `name` for a log in JSON: what is an object already stays, all else becomes one."""
    with suppress(ValueError, RecursionError):
        if isinstance(json.loads(line), dict):
            return line
    at = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    told = {"timestamp": at, "level": "warning", "logger": name, "event": clean(line)}
    return json.dumps(told, ensure_ascii=False)


_SHARED: list[Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]

# Whatever structlog is told goes to the standard library, which says nothing where nobody has configured it.
structlog.configure(
    processors=[
        structlog.stdlib.filter_by_level, *_SHARED, structlog.stdlib.PositionalArgumentsFormatter(),
        ProcessorFormatter.wrap_for_formatter,
    ],
    wrapper_class=structlog.stdlib.BoundLogger,
    logger_factory=structlog.stdlib.LoggerFactory(),
    cache_logger_on_first_use=False,
)  # fmt: skip


def formatter(text: bool) -> logging.Formatter:
    """From a record to a line."""
    return ProcessorFormatter(
        foreign_pre_chain=_SHARED,
        processors=[
            ProcessorFormatter.remove_processors_meta, _process, structlog.processors.format_exc_info, _clean,
            _as_text if text else _as_json,
        ],
    )  # fmt: skip


Key = tuple[str, int, str, int, type | None]  # logger, level, event before its values are put in, line, error


class Handler(logging.StreamHandler[TextIO]):
    """Writes to a stream, warnings and errors no more often than tasks/repeats.py says. `clock_s` is monotonic."""

    def __init__(self, stream: TextIO, clock_s: Callable[[], float] = time.monotonic) -> None:
        super().__init__(stream)
        self._clock_s = clock_s
        self._repeats: Repeats[Key] = Repeats(self._tell)

    def emit(self, record: logging.LogRecord) -> None:
        """Called with the lock held, which a fork takes along as free."""
        now_s = self._clock_s()
        if record.levelno < logging.WARNING:
            self._repeats.look(now_s)
        elif not self._repeats.admits(_key(record), now_s):
            return
        super().emit(record)

    def close(self) -> None:
        """Say what is left to be said."""
        with self.lock:  # type: ignore[union-attr]
            self._repeats.end()
        super().close()

    def forked(self) -> None:
        """What the parent left out, the parent will say."""
        self._repeats = Repeats(self._tell)

    def _tell(self, key: Key, left_out: int) -> None:
        name, level, event, line, _ = key
        told = f"{left_out} more of this within a minute were left out: {event}"
        super().emit(logging.LogRecord(name, level, __file__, line, told, None, None))


def _key(record: logging.LogRecord) -> Key:
    event = record.msg.get("event") if isinstance(record.msg, dict) else record.msg
    return record.name, record.levelno, str(event), record.lineno, record.exc_info[0] if record.exc_info else None


def configure(settings: Settings, level: str, *, ours: str | None = None, for_people: bool = False) -> None:
    """From now on this process logs to stderr: what is at least of that level, of ours of the level `ours`. Celery
    leaves it as it is. `for_people`: somebody reads it, though it may be no terminal.
    """
    root = logging.getLogger()
    for handler in root.handlers[:]:
        root.removeHandler(handler)
    handler = Handler(sys.stderr)
    text = settings.log_format == "text" or (settings.log_format == "auto" and (for_people or sys.stderr.isatty()))
    handler.setFormatter(formatter(text))
    root.addHandler(handler)
    root.setLevel(level)
    for name in OURS:
        logging.getLogger(name).setLevel(ours or level)
    logging.getLogger("multiprocessing").setLevel(logging.ERROR)
    logging.captureWarnings(True)
    signals.setup_logging.connect(_stay, weak=False)
    os.register_at_fork(after_in_child=handler.forked)


def _stay(**_: object) -> None:
    """Whoever listens to this signal has configured logging; Celery then does not."""


bound = structlog.contextvars.bound_contextvars
