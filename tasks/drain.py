"""Being told to end: what runs is put back at its next step, so that a worker is gone within seconds."""

from __future__ import annotations

import mmap

# A worker that did not get rid of what it holds by then ends as it is; the ends of its leases do the rest.
WITHIN_S = 15.0


class Draining(Exception):
    """This worker ends: what is held is to be put back."""


class Drain:
    """A switch that a worker's main process throws and all its children see, whenever they were forked."""

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, 1)  # shared by all that are forked from here

    def begin(self) -> None:
        """From now on nothing is begun."""
        self._page[0] = 1

    @property
    def has_begun(self) -> bool:
        """Shall what is held be put back?"""
        return self._page[0] != 0
