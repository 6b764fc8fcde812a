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
from db.types import DatabaseError

log = logging.getLogger(__name__)


class Away(DatabaseError):
    """The database cannot do now what it was asked for; the same may succeed later."""


class Outage:
    """Whether it is away, and since when."""

    def __init__(self) -> None:
        self._since_s: float | None = None

    @contextmanager
    def noted(self, engine: Engine) -> Iterator[None]:
        """Raises Away for any trouble of the field; a mistake of ours is an error as ever."""
        try:
            yield
        except DBAPIError as error:
            if failure_of(error) is Failure.OURS:
                raise
            sentence = str(schema.unusable(engine, error))
            if self._since_s is None:
                self._since_s = time.monotonic()
                log.error("%s; trying again", sentence)
            raise Away(sentence) from error
        if self._since_s is not None:
            log.warning("the database answers again, after %.1f s", time.monotonic() - self._since_s)
            self._since_s = None


# Of whatever this process does with the database: its tasks and ticks.
here = Outage()
