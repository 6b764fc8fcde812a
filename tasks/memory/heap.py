"""The memory of this process alone."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress

_PAGE = os.sysconf("SC_PAGE_SIZE")
# Not every C library has it.
_malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)


def private() -> int:
    """Bytes that no file is behind, what is inherited by a fork as well; 0 where that cannot be read."""
    with suppress(OSError), open("/proc/self/statm", "rb") as file:
        _, resident, shared, *_ = file.read().split()
        return (int(resident) - int(shared)) * _PAGE
    return 0


def trim() -> None:
    """Give back what was freed, where the C library kept it."""
    if _malloc_trim is not None:
        _malloc_trim(0)
