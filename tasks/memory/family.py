"""The processes of one worker."""

from __future__ import annotations

import os
from contextlib import suppress


def family() -> list[int]:
    """The process that this one was forked from, and all that it forked and that live: a worker and its pool. Where the
    kernel does not tell (CONFIG_PROC_CHILDREN), those two that are known.
    """
    main = os.getppid()
    with suppress(OSError), open(f"/proc/{main}/task/{main}/children", "rb") as file:
        return [main, *map(int, file.read().split())]
    return [main, os.getpid()]
