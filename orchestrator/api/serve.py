"""The server of the API: uvicorn, which ends within seconds however many read events from it."""

from __future__ import annotations

import contextlib
import gc
import resource
import signal
import socket

import uvicorn

from orchestrator.api.app import make_api
from orchestrator.api.hub import Hub
from orchestrator.api.listening import BACKLOG
from tasks.app import YOUNG_OBJECTS, App
from tasks.settings import Settings

# What was asked before TERM is answered within so long.
ENDS_WITHIN_S = 5
# Between two requests of a connection; longer than the minute after which many a proxy in front closes one.
KEPT_OPEN_S = 75


class Server(uvicorn.Server):
    """Lets the readers of events end before it waits for connections to be closed."""

    def __init__(self, config: uvicorn.Config, hub: Hub) -> None:
        super().__init__(config)
        self._hub = hub

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """After TERM: accept no more, and end what is under way."""
        self._hub.close()
        await super().shutdown(sockets)


def serve(settings: Settings, app: App, listening: socket.socket, *, level: str) -> None:
    """Serve until TERM."""
    with contextlib.suppress(ValueError, OSError):  # a reader of events is a descriptor
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    api = make_api(settings, app)
    # What is loaded stays: looking through it for garbage would keep all who ask waiting for a tenth of a second.
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS)
    config = uvicorn.Config(
        api, log_config=None, log_level=level.lower(), access_log=False, server_header=False,
        timeout_keep_alive=KEPT_OPEN_S, timeout_graceful_shutdown=ENDS_WITHIN_S, backlog=BACKLOG,
        proxy_headers=False, lifespan="on", ws="none", loop="uvloop", http="httptools",
    )  # fmt: skip
    # It raises the signal again once it has ended, for who handled it before: that would be the end of the process.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    Server(config, api.state.service.hub).run([listening])
