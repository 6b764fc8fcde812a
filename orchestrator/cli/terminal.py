"""Keys of a terminal as they are pressed, and the terminal as it was at the end."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import threading
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def keys() -> Iterator[Callable[[float], bytes | None]]:
    """A function that waits at most so many seconds for keys, and gives those that were pressed; None: there will be
    no more. Where stdin is no terminal it only waits.
    """
    fd = sys.stdin.fileno()
    if not os.isatty(fd):
        yield lambda seconds: bytes(select.select([], [], [], seconds)[0])
        return
    before = termios.tcgetattr(fd)
    try:
        tty.setcbreak(fd)
        changed = termios.tcgetattr(fd)
        changed[6][termios.VSUSP] = b"\0"  # stopped, it would leave the terminal as it is now
        termios.tcsetattr(fd, termios.TCSANOW, changed)
        yield lambda seconds: _pressed(fd, seconds)
    finally:
        termios.tcsetattr(fd, termios.TCSAFLUSH, before)


def _pressed(fd: int, seconds: float) -> bytes | None:
    if not select.select([fd], [], [], seconds)[0]:
        return b""
    try:
        return os.read(fd, 64) or None
    except OSError:  # it was hung up
        return None


@contextmanager
def ending() -> Iterator[threading.Event]:
    """An event that Ctrl-C and TERM set, in place of what they do else: nothing is broken off in the middle."""
    ended = threading.Event()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, lambda *_: ended.set()) for number in numbers]
    try:
        yield ended
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
