"""The memory of this process alone."""

from __future__ import annotations

import ctypes
import os

_PAGE = os.sysconf("SC_PAGE_SIZE")
# Not every C library has it.
_malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)


def private() -> int:
    """Bytes that no file is behind and no other process has written. What is inherited by a fork counts as well."""
    with open("/proc/self/statm", "rb") as file:
        _, resident, shared, *_ = file.read().split()
    return (int(resident) - int(shared)) * _PAGE


def trim() -> None:
    """Give back what was freed, where the C library kept it."""
    if _malloc_trim is not None:
        _malloc_trim(0)
