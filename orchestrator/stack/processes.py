"""Child processes that never outlive their parent, each in a session of its own so that Ctrl-C reaches only the parent.

The kernel kills a child when its parent dies (PR_SET_PDEATHSIG), by kill -9 too; grandchildren that lose their parent
come to us (PR_SET_CHILD_SUBREAPER) and are waited for.
"""

from __future__ import annotations

import ctypes
import logging
import os
import selectors
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn, TextIO

from tasks import logs, traces

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_SOONER = 300  # thousandths of all memory, which the kernel counts a process as larger
_INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(parent: int) -> None:
    """Be killed when the parent (given by its id) ends; at once where it has ended already."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def be_killed_first() -> None:
    """Where memory ends the kernel shall kill this process: its shard goes on elsewhere, while with the parent all that
    the worker holds would end.
    """
    with suppress(OSError), open("/proc/self/oom_score_adj", "r+") as score:
        higher = min(int(score.read()) + _SOONER, 1000)
        score.seek(0)
        score.write(str(higher))


def adopt_orphans() -> None:
    """Become the parent of grandchildren whose parent died."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


@dataclass(slots=True)
class Child:
    """A process that we started. `output` is its log, where that is ours to prefix."""

    name: str
    pid: int
    output: int | None
    status: int | None = None

    def alive(self) -> bool:
        """Does it still run? Reaps it where not."""
        if self.status is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:
                pid, status = self.pid, 0
            if pid:
                self.status = status
        return self.status is None

    def signal(self, number: int) -> None:
        """Send a signal to the process itself."""
        if self.alive():
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it and everything it started, now, and wait until nothing is left."""
        while True:
            try:
                os.killpg(self.pid, signal.SIGKILL)
                pid, status = os.waitpid(-self.pid, 0)
            except (ProcessLookupError, ChildProcessError):
                break
            if pid == self.pid:
                self.status = status


def fork(name: str, work: Callable[[], None], *, piped: bool) -> Child:
    """Run `work` in a child. With `piped` its output comes to us to be prefixed; else it goes where ours goes."""
    ends = os.pipe() if piped else None
    parent = os.getpid()
    sys.stdout.flush()
    sys.stderr.flush()
    # An interrupt in the hooks that Python runs at a fork would be printed and forgotten: it waits until after.
    signal.pthread_sigmask(signal.SIG_BLOCK, _INTERRUPTS)
    pid = os.fork()
    if pid == 0:
        _become_child(parent, ends)
        _run(name, work)
    child = _started(name, pid, ends)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _INTERRUPTS)
    return child


def spawn(name: str, command: Sequence[str], *, piped: bool) -> Child:
    """Run a program in a child."""
    return fork(name, lambda: os.execv(command[0], list(command)), piped=piped)


def _become_child(parent: int, ends: tuple[int, int] | None) -> None:
    os.setsid()
    die_with_parent(parent)
    for number in _INTERRUPTS:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _INTERRUPTS)
    silence = os.open(os.devnull, os.O_RDWR)
    os.dup2(silence, 0)
    output = 2 if ends is None else ends[1]
    os.dup2(output, 1)  # data goes to stdout, and a child has none
    os.dup2(output, 2)


def _run(name: str, work: Callable[[], None]) -> NoReturn:
    status = 1
    try:
        work()
        status = 0
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else 1
    except BaseException as error:  # noqa: BLE001 - the last frame of this process: said, and then it ends
        print(f"{name} failed: {error!r}", file=sys.stderr)  # noqa: T201
    finally:
        traces.end()
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _started(name: str, pid: int, ends: tuple[int, int] | None) -> Child:
    if ends is None:
        return Child(name, pid, None)
    os.close(ends[1])
    os.set_blocking(ends[0], False)
    return Child(name, pid, ends[0])


class Logs:
    """Copies the children's lines to a stream, but empty ones: each with the name of its process in front, or as JSON,
    each an object.
    """

    def __init__(self, stream: TextIO, as_json: bool) -> None:
        self._stream, self._as_json = stream, as_json
        # On a terminal a line of live progress may stand where the log goes on: it is written anew soon.
        self._clear = "\r\x1b[K" if stream.isatty() else ""
        self._selector = selectors.DefaultSelector()
        self._partial: dict[str, bytes] = {}

    def follow(self, child: Child) -> None:
        """Begin with a child whose output is piped."""
        if child.output is not None:
            self._selector.register(child.output, selectors.EVENT_READ, child)

    def pump(self, timeout_s: float) -> None:
        """Copy what there is; wait for it up to `timeout_s`."""
        if not self._selector.get_map():
            time.sleep(timeout_s)
            return
        for key, _ in self._selector.select(timeout_s):
            child: Child = key.data
            data = os.read(key.fd, 65536)
            if not data:
                self._selector.unregister(key.fd)
                os.close(key.fd)
                child.output = None
            self._write(child.name, data)

    def say(self, said: str) -> None:
        """A line of our own."""
        self._line("strandline", f"strandline: {said}", said)

    def _write(self, name: str, data: bytes) -> None:
        *lines, rest = (self._partial.get(name, b"") + data).split(b"\n")
        if not data and rest:
            lines, rest = [*lines, rest], b""
        self._partial[name] = rest
        for line in filter(bytes.strip, lines):
            said = line.decode("utf-8", "backslashreplace")
            self._line(name, f"{name:<7}| {said}", said)

    def _line(self, name: str, text: str, said: str) -> None:
        self._stream.write(f"{self._clear}{logs.as_object(said, name) if self._as_json else text}\n")
        self._stream.flush()
