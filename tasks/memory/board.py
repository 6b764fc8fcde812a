"""What a worker's main process asks of its children: a page that all share, whenever they were forked."""

from __future__ import annotations

import mmap

from billiard.process import current_process

# As many children as a worker may have by our settings; `celery control autoscale` knows no bound, and those beyond are
# never asked.
CHILDREN = 256


class Board:
    """A place for each child, by its number in the pool."""

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, CHILDREN)

    def ask(self, numbers: set[int]) -> None:
        """Ask these children, and no other, to hand on what they have not begun."""
        self._page[:] = bytes(number in numbers for number in range(CHILDREN))

    def asked(self) -> bool:
        """Is this child asked?"""
        index = getattr(current_process(), "index", 0)
        return index < CHILDREN and self._page[index] != 0
