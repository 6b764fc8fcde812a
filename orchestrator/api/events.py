"""Server-sent events: a tenant's feed, and a scan's progress, each until its reader goes or there is no more."""

from __future__ import annotations

import asyncio
import functools
import json
import random
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import anyio
from sqlalchemy import Connection
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from db import changes, scans
from db.types import ENDED, Unknown
from orchestrator.api.access import Access
from orchestrator.api.hub import EVERY_S, Hub
from orchestrator.api.problems import Problem, problem_of
from orchestrator.api.tokens import Caller
from orchestrator.api.work import streams
from orchestrator.documents import change_document

HEARTBEAT_S = 15.0
# A reader who takes nothing for so long is gone.
TAKEN_WITHIN_S = 60.0
PAGE = 200
MEDIA_TYPE = "text/event-stream"
_HEARTBEAT = b": still here\n\n"


class Pages:
    """Pages of feeds, ready to be sent. Whoever asks for one that is being read gets the same."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._reading: dict[tuple[int, str | None], asyncio.Task[Page]] = {}

    async def after(self, tenant: str, tenant_id: int, cursor: str | None) -> Page:
        """The changes after a cursor; empty where there are none yet. Raises CursorLost and what a database raises."""
        key = tenant_id, cursor
        task = self._reading.get(key)
        if task is None:
            read = functools.partial(self._read, tenant, tenant_id, cursor)
            task = self._reading[key] = asyncio.ensure_future(streams.do(read))
            task.add_done_callback(lambda _: self._reading.pop(key, None))
        return await asyncio.shield(task)

    def _read(self, tenant: str, tenant_id: int, cursor: str | None) -> Page:
        with self._access.read(Caller("feed", frozenset({tenant}))) as connection:
            return page(connection, tenant, tenant_id, cursor)


class Page(NamedTuple):
    """Some events, the place behind them, and up to which fence there are no more (None: there may be)."""

    sent: bytes
    cursor: str | None
    up_to: int | None


def page(connection: Connection, tenant: str, tenant_id: int, cursor: str | None) -> Page:
    """The changes after a cursor, and where that ends. Raises CursorLost, Unknown."""
    visible = scans.visible_fences(connection, [tenant_id]).get(tenant_id)
    if visible is None:
        raise Unknown(f"there is no tenant {tenant!r}")
    found = changes.page(connection, tenant_id, cursor, PAGE, visible)
    sent = b"".join(event("change", change_document(one), one.cursor) for one in found.changes)
    return Page(sent, found.behind, None if found.more else visible)


def _quiet_s() -> float:
    """How long a stream is quiet. Readers who came together, as after a restart, are not all told at one moment."""
    return HEARTBEAT_S * random.uniform(2 / 3, 1)


def event(name: str, document: Any, id_: str | None = None) -> bytes:
    """One event as it is sent."""
    head = "" if id_ is None else f"id: {id_}\n"
    return f"{head}event: {name}\ndata: {json.dumps(document, ensure_ascii=False)}\n\n".encode()


async def feed(hub: Hub, pages: Pages, tenant: str, tenant_id: int, first: Page) -> AsyncIterator[bytes]:
    """A page of changes that was read, those after it, and those that come, as they become visible."""
    yield b"retry: 1000\n\n" + first.sent
    cursor, up_to = first.cursor, first.up_to
    with hub.feed(tenant_id) as topic:
        while not (hub.is_closing or topic.is_gone):
            changed, latest = topic.changed, topic.latest
            # (A look at all feeds may be older than what this one's reader has read.)
            if up_to is not None and latest in (None, up_to):
                if not await hub.wait(changed, _quiet_s()):
                    yield _HEARTBEAT
                continue
            try:
                sent, cursor, up_to = await pages.after(tenant, tenant_id, cursor)
            except Exception as error:  # noqa: BLE001 - its reader is told, or waits until the database is back
                problem = problem_of(error)
                if problem.status != 503:
                    yield event("problem", problem.document())
                    return
                await hub.wait(changed, EVERY_S)
                continue
            if sent:
                yield sent
            elif latest != up_to and not await hub.wait(changed, _quiet_s()):
                yield _HEARTBEAT
        if topic.is_gone:
            yield event("problem", Problem(404, f"there is no tenant {tenant!r}").document())


async def scan(hub: Hub, scan_id: str, document: Any) -> AsyncIterator[bytes]:
    """A scan's document now and at each change of its state, in between its progress. `document()` reads it."""
    yield b"retry: 1000\n\n"
    with hub.scan(scan_id) as topic:
        state = None
        while not (hub.is_closing or topic.is_gone):
            changed = topic.changed
            if topic.latest is None or topic.latest[0] != state:
                try:
                    found = await streams.do(document)
                except Exception as error:  # noqa: BLE001 - as above
                    problem = problem_of(error)
                    if problem.status != 503:
                        yield event("problem", problem.document())
                        return
                    await hub.wait(asyncio.Event(), EVERY_S)
                    continue
                if found["state"] != state:
                    yield event("scan", found)
                state = found["state"]
                if state in ENDED:
                    return
            elif topic.latest[1] is not None:
                yield event("progress", topic.latest[1])
            if not await hub.wait(changed, _quiet_s()):
                yield _HEARTBEAT


class EventStream(Response):
    """Sends what comes until its reader is gone, who is given up where he takes nothing for TAKEN_WITHIN_S."""

    media_type = MEDIA_TYPE

    def __init__(self, events: AsyncIterator[bytes]) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One reader."""
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async with anyio.create_task_group() as both:

            async def until_gone() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                both.cancel_scope.cancel()

            both.start_soon(until_gone)
            await self._send(send)
            both.cancel_scope.cancel()

    async def _send(self, send: Send) -> None:
        try:
            async for chunk in self._events:
                with anyio.fail_after(TAKEN_WITHIN_S):
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except TimeoutError:
            return
        finally:
            with anyio.CancelScope(shield=True):
                await self._events.aclose()  # type: ignore[attr-defined]
