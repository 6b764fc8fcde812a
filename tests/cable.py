"""A stretch of network between a client and a server, which can be cut as networks are: in silence."""

import contextlib
import ctypes
import socket
import struct
import threading
from typing import Self

_SO_ATTACH_FILTER, _SO_DETACH_FILTER = 26, 27
_DROP_ALL = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # one instruction: return 0 bytes


class Cable:
    """Listens on a free port of 127.0.0.1.

    `vanish` is a cable that was pulled: the kernel drops whatever comes from either side, and acknowledges nothing.
    `hang` is a host that has stopped: its kernel acknowledges what comes, and nobody reads it.
    """

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        self._flowing = threading.Event()
        self._flowing.set()

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._flowing.set()
        for one in self._open:
            with contextlib.suppress(OSError):
                one.close()

    def vanish(self) -> None:
        for one in [self._listener, *self._open]:
            _drop(one)

    def hang(self) -> None:
        self._flowing.clear()

    def back(self) -> None:
        """For new connections; those of before stay as they are."""
        with contextlib.suppress(FileNotFoundError):  # it only hung
            self._listener.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)
        self._flowing.set()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._target)
                self._open += [client, server]
                for source, sink in ((client, server), (server, client)):
                    threading.Thread(target=self._copy, args=(source, sink), daemon=True).start()

    def _copy(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while chunk := source.recv(65536):
                self._flowing.wait()
                sink.sendall(chunk)
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


def _drop(one: socket.socket) -> None:
    program = struct.pack("HxxxxxxQ", 1, ctypes.addressof(_DROP_ALL))
    with contextlib.suppress(OSError):  # closed meanwhile
        one.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
