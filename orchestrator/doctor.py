"""Is all that a cluster stands on as it must be? Each check is a sentence, and none of them changes anything."""

from __future__ import annotations

import os
import platform
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import redis
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from db import row_security, schema, tenants
from db.clock import now
from db.engine import connect, reading
from db.types import StrandlineError, UsageError
from orchestrator.amounts import human
from orchestrator.roots import checked_root
from tasks.memory.gauge import Gauge
from tasks.redis import policy
from tasks.redis.connection import Address
from tasks.settings import Settings

OK, WARNING, FAILED = "ok", "warning", "failed"
# Leases, slots and racy files are judged by clocks that may differ by so much.
SKEW_S = 2.0
# A root on a mount that hangs keeps whoever looks; nobody waits longer for all of them.
ROOTS_WITHIN_S = 5.0
ROOTS_AT_ONCE = 16
# Of roots that are not well so many are named.
ROOTS_NAMED = 20


@dataclass(frozen=True, slots=True)
class Finding:
    """What was checked, how it is (ok, warning or failed), and why in words."""

    check: str
    state: str
    detail: str


def examine(settings: Settings, database_url: str, redis_url: str | None) -> Iterator[Finding]:
    """All checks of this machine with these settings, one after the other. Addresses are empty or None where a stack
    brings what they are of when it starts.
    """
    yield Finding("python", OK, f"{platform.python_version()} on {platform.system()} {platform.release()}")
    roots: list[tuple[str, bytes]] = []
    yield from _database(database_url, roots)
    yield from _redis(settings, redis_url)
    yield from _allowed(settings)
    yield from _roots(settings, roots)
    yield _memory(settings)


def _database(url: str, roots: list[tuple[str, bytes]]) -> Iterator[Finding]:
    path = url.removeprefix("sqlite:///")
    if not url or (path != url and not Path(path).exists()):
        yield Finding("database", OK, "none yet: the first scan makes one in the state folder")
        return
    engine = connect(url, hurried=True)
    try:
        schema.require_current(engine)
        yield from _open_database(engine, roots)
    except DBAPIError as error:
        yield Finding("database", FAILED, str(schema.unusable(engine, error)))
    except StrandlineError as error:
        yield Finding("database", FAILED, str(error))
    finally:
        engine.dispose()


def _open_database(engine: Engine, roots: list[tuple[str, bytes]]) -> Iterator[Finding]:
    with reading(engine) as connection:
        before, moment, after = time.time(), now(connection).timestamp(), time.time()
        roots += [(tenant.name, tenant.root) for tenant in tenants.list_all(connection)]
        version = ".".join(map(str, engine.dialect.server_version_info or ()))
        where, kind = schema.where(engine), engine.dialect.name
        yield Finding(
            "database",
            OK,
            f"{kind} {version} at {where}, schema {schema.HEAD}, answers in {(after - before) * 1000:.1f} ms",
        )
        if kind == "postgresql" and not row_security.is_usable(connection):
            yield Finding("database", WARNING, f"row-level security is off: there is no role {row_security.ROLE} that "
                          "this user may take on; see `strandline migrate`")  # fmt: skip
        yield _skew("database", moment, before, after)


def _skew(whose: str, moment: float, before: float, after: float) -> Finding:
    """The clock of a server, that told a moment between two of ours."""
    off = max(before - moment, moment - after, 0.0)
    state = OK if off < SKEW_S else WARNING
    return Finding("clock", state, f"that of the {whose} and ours differ by {off:.1f} s" + (
        "" if state == OK else ": let both follow the same time (NTP)"
    ))  # fmt: skip


def _redis(settings: Settings, url: str | None) -> Iterator[Finding]:
    if url is None:
        yield Finding("redis", OK, "none runs: the embedded stack brings its own")
        return
    try:
        address = Address.of(settings.model_copy(update={"redis_url": url}))
        with address.client() as client:
            began = time.perf_counter()
            policy.check(client, address)
            took_ms = (time.perf_counter() - began) * 1000
            found: Any = client.info("server")
            version = found.get("valkey_version") or found.get("redis_version")
            yield Finding("redis", OK, f"{version} at {address}, keeps what it is given, answers in {took_ms:.1f} ms")
            before = time.time()
            told: Any = client.time()
            yield _skew("Redis", told[0] + told[1] / 1e6, before, time.time())
    except (StrandlineError, redis.RedisError) as error:
        yield Finding("redis", FAILED, str(error))


def _allowed(settings: Settings) -> Iterator[Finding]:
    folders = [folder for folder in settings.roots.split(":") if folder]
    for folder, why in _looked_at({folder: partial(_require_folder, folder) for folder in folders}):
        if why is not None:
            yield Finding("roots", FAILED, f"STRANDLINE_ROOTS names {folder}: {why}")


def _require_folder(path: str) -> None:
    if not os.path.isdir(path):
        raise UsageError("that is no folder here")


def _roots(settings: Settings, roots: Sequence[tuple[str, bytes]]) -> Iterator[Finding]:
    well, wrong = 0, 0
    for name, why in _looked_at({name: partial(checked_root, root, settings) for name, root in roots}):
        well, wrong = well + (why is None), wrong + (why is not None)
        if why is not None and wrong <= ROOTS_NAMED:
            yield Finding("roots", FAILED, f"{name}: {why}")
    if wrong > ROOTS_NAMED:
        yield Finding("roots", FAILED, f"and {wrong - ROOTS_NAMED} more")
    yield Finding("roots", OK, f"{well} of {len(roots)} can be read by this user on this machine")


def _looked_at(checks: Mapping[str, Callable[[], object]]) -> Iterator[tuple[str, str | None]]:
    """Each with what is wrong with it, if anything; by threads, which a dead mount may keep for ever."""
    todo: queue.SimpleQueue[tuple[str, Callable[[], object]]] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[str, str | None]] = queue.SimpleQueue()
    for one in checks.items():
        todo.put(one)

    def look() -> None:
        while True:
            try:
                name, check = todo.get_nowait()
            except queue.Empty:
                return
            try:
                check()
            except StrandlineError as error:
                done.put((name, str(error)))
            else:
                done.put((name, None))

    for _ in range(min(ROOTS_AT_ONCE, len(checks))):
        threading.Thread(target=look, daemon=True).start()
    waiting, deadline = dict.fromkeys(checks), time.monotonic() + ROOTS_WITHIN_S
    while waiting:
        try:
            name, why = done.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            break
        del waiting[name]
        yield name, why
    yield from ((name, f"it was not looked at within {ROOTS_WITHIN_S:.0f} s: a mount hangs") for name in waiting)


def _memory(settings: Settings) -> Finding:
    reading_ = Gauge(settings.memory_limit_mb << 20).read()
    detail = (
        f"{human(reading_.used)} of {human(reading_.limit)} used, by {reading_.limited_by}; "
        f"profile {settings.memory_profile}"
    )
    if settings.memory_governor == "off":
        return Finding("memory", WARNING, f"{detail}; the governor is off (STRANDLINE_MEMORY_GOVERNOR)")
    return Finding("memory", OK, detail)
