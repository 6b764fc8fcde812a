"""Where the API listens; apart from its server, which takes a while to import."""

from __future__ import annotations

import socket

from db.types import UsageError
from orchestrator.api.tokens import parse_tokens, require_safe

BACKLOG = 2048


def listen(host: str, port: int, tokens: str, *, or_any: bool = False) -> socket.socket:
    """A socket that listens: whoever connects from here on waits until he is served. `tokens`: the setting.

    Raises UsageError where the port is taken (`or_any`: takes another), and where everybody on a network could do
    everything.
    """
    require_safe(host, parse_tokens(tokens))
    for one in (port, 0) if or_any else (port,):
        try:
            return _bound(host, one)
        except OSError as error:
            trouble = error
    raise UsageError(f"the API cannot listen on {host}:{port}: {trouble.strerror or trouble}") from trouble


def _bound(host: str, port: int) -> socket.socket:
    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    made = socket.socket(family, kind)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(BACKLOG)
    except OSError:
        made.close()
        raise
    return made
