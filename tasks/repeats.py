"""What is said again and again is said so often a minute, and then how often it was left out. Pure: time is given."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

MOST = 20
WINDOW_S = 60.0
# Of more different ones those that began first are forgotten, with what was left out of them said.
KNOWN = 1_000

K = TypeVar("K", bound=Hashable)


@dataclass(slots=True)
class _Window:
    began_s: float
    said: int = 0
    left_out: int = 0


class Repeats(Generic[K]):
    """Counts by key. A key's window begins with its first, and `tell(key, left_out)` is called after it has ended, as
    soon as anybody asks anything.
    """

    def __init__(self, tell: Callable[[K, int], None], most: int = MOST, window_s: float = WINDOW_S) -> None:
        self._tell, self._most, self._window_s = tell, most, window_s
        self._windows: dict[K, _Window] = {}  # in the order in which they began

    def admits(self, key: K, now_s: float) -> bool:
        """Shall this be said? Else it is counted."""
        self.look(now_s)
        window = self._windows.get(key)
        if window is None:
            if len(self._windows) >= KNOWN:
                self._end(next(iter(self._windows)))
            window = self._windows[key] = _Window(now_s)
        if window.said < self._most:
            window.said += 1
            return True
        window.left_out += 1
        return False

    def look(self, now_s: float) -> None:
        """End the windows that are over."""
        for key, window in list(self._windows.items()):
            if now_s - window.began_s < self._window_s:
                return  # so are all that began after it
            self._end(key)

    def end(self) -> None:
        """End all: nothing is said any more."""
        for key in list(self._windows):
            self._end(key)

    def _end(self, key: K) -> None:
        window = self._windows.pop(key)
        if window.left_out:
            self._tell(key, window.left_out)
