"""Waiting for something to become true, in place of sleeping and hoping."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(condition: Callable[[], T], deadline_s: float, what: str) -> T:
    """Return the first true answer of `condition`; past the deadline, fail and say what did not happen."""
    deadline = time.monotonic() + deadline_s
    pause = 0.001
    while not (answer := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {deadline_s:g} s: {what} (last answer: {answer!r})")
        time.sleep(pause)
        pause = min(pause * 1.5, 0.1)
    return answer
