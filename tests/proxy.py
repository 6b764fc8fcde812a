"""Something between a client and a server that a test can cut: it accepts and holds connections, and forwards nothing.

with Proxy(server.port) as proxy:  # or Proxy(server.port, tls=context): TLS in front of a server that has none
    url = f"redis://127.0.0.1:{proxy.port}/0"
    proxy.cut()
    proxy.mend()
"""

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Coroutine
from types import TracebackType
from typing import Self

ASKED, ANSWERED = "asked", "answered"


class Proxy:
    """Runs in a thread of its own until the end of the block."""

    def __init__(self, target: int, tls: ssl.SSLContext | None = None) -> None:
        self._target, self._tls = target, tls
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy")
        self._cut: frozenset[str] = frozenset()
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0

    def __enter__(self) -> Self:
        self._thread.start()
        self._run(self._listen())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Coroutine[None, None, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    def cut(self, *ways: str) -> None:
        """From now on nothing gets through, or nothing of what is asked or answered; it is lost."""
        self._cut = frozenset(ways or (ASKED, ANSWERED))

    def mend(self) -> None:
        """Forward again, on connections of which nothing was lost; others stay dead, as behind a firewall that forgot
        them.
        """
        self._cut = frozenset()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        self._tasks.add(task)
        with contextlib.suppress(OSError, asyncio.CancelledError), contextlib.closing(writer):
            onward, back = await asyncio.open_connection("127.0.0.1", self._target)
            with contextlib.closing(back):
                dead: set[str] = set()
                ways = [asyncio.ensure_future(self._forward(ASKED, reader, back, dead)),
                        asyncio.ensure_future(self._forward(ANSWERED, onward, writer, dead))]  # fmt: skip
                try:
                    await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for way in ways:
                        way.cancel()
        self._tasks.discard(task)

    async def _forward(
        self, way: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, dead: set[str]
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if way in self._cut:
                    dead.add(way)
                if way not in dead:
                    writer.write(data)
                    await writer.drain()
