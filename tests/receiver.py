"""A receiver of webhooks on loopback, which answers as it is told and remembers what it was sent."""

import contextlib
import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Received:
    headers: Mapping[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def scan(self) -> dict:
        return json.loads(self.body)["data"]


@dataclass
class Receiver:
    url: str
    status: int = 204  # of its answers
    hangs: bool = False
    received: list[Received] = field(default_factory=list)  # answered or not
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def taken(self) -> list[str]:
        """The ids of what it took."""
        return [one.id for one in self.received if one.headers["answered"].startswith("2")]


@contextlib.contextmanager
def receiver() -> Iterator[Receiver]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            said = {name.lower(): value for name, value in self.headers.items()}
            its.received.append(Received({**said, "answered": str(its.status)}, body))
            if its.hangs:
                its.ended.wait(60)
            self.send_response(its.status)
            self.send_header("location", "http://127.0.0.1:1/elsewhere")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nobody reads it."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    its = Receiver(f"http://127.0.0.1:{server.server_address[1]}/hook?a=b")
    thread = threading.Thread(target=server.serve_forever, args=[0.05], daemon=True)
    thread.start()
    try:
        yield its
    finally:
        its.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()
