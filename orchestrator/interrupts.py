"""Ctrl-C and TERM, which end a command in the same way: as KeyboardInterrupt, and not forgotten.

Python prints and forgets an exception that a signal raises within a finalizer or a weak reference's callback; a command
that waits asks `check` now and then, and so is interrupted all the same.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

_pending = False


def heed_term() -> None:
    """TERM ends this process where nothing else is set, also as the first one of a container: to that the kernel does
    not deliver it, and who waits for a database would stay until somebody kills it.
    """
    if os.getpid() == 1:
        signal.signal(signal.SIGTERM, lambda number, _: os._exit(128 + number))


def catch() -> None:
    """From now on both raise KeyboardInterrupt."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _arrived)


def _arrived(_number: int, _frame: FrameType | None) -> None:
    global _pending
    _pending = True
    raise KeyboardInterrupt


def check() -> None:
    """Raise KeyboardInterrupt where one arrived that nobody has taken."""
    if _pending:
        raise KeyboardInterrupt


def taken() -> None:
    """The one that arrived is being acted on."""
    global _pending
    _pending = False
