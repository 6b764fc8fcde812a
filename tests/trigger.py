"""The number that KEDA is told, read as KEDA does: the text of the manifest, on the real database."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import psycopg

COUNTED = """
SELECT scan_id, count(*) FILTER (WHERE state = 'ready') AS ready, count(*) FILTER (WHERE state = 'leased') AS leased
FROM shards WHERE state IN ('ready', 'leased') AND queue = ANY(%s) GROUP BY scan_id
"""


class Number(NamedTuple):
    """What is told; and of each scan how many shards are ready and how many leased at that very moment."""

    told: float
    scans: list[tuple[int, int]]

    @property
    def open(self) -> int:
        return sum(map(sum, self.scans))

    def of_each_at_most(self, window: int) -> int:
        """What is to be told."""
        return sum(min(sum(one), window) for one in self.scans)


class Trigger:
    """A query, and beside it a plain count of the shards in these queues."""

    def __init__(self, database_url: str, query: str, queues: Collection[str]) -> None:
        self._url = database_url.replace("+psycopg", "")
        self._query, self._queues = query, list(queues)

    def read(self) -> Number:
        """Raises psycopg.Error where the database refuses the query."""
        with psycopg.connect(self._url) as connection:
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ  # both see the same
            [(told,)] = connection.execute(self._query).fetchall()
            return Number(float(told), [(row[1], row[2]) for row in connection.execute(COUNTED, [self._queues])])
