"""A database that is away for a while, as one process sees it: said when it goes and when it is back."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from db import schema
from db.failures import Failure, failure_of

log = logging.getLogger(__name__)


class Outage:
    """Whether it is away, and since when."""

    def __init__(self) -> None:
        self._since_s: float | None = None

    @contextmanager
    def borne(self, engine: Engine) -> Iterator[None]:
        """What cannot be done while the database is away is left undone; a mistake of ours is an error as ever."""
        try:
            yield
        except DBAPIError as error:
            if failure_of(error) is Failure.OURS:
                raise
            if self._since_s is None:
                self._since_s = time.monotonic()
                log.error("%s; trying again", schema.unusable(engine, error))
        else:
            if self._since_s is not None:
                log.warning("the database answers again, after %.1f s", time.monotonic() - self._since_s)
                self._since_s = None


# Of whatever this process does with the database: its tasks and ticks.
here = Outage()
