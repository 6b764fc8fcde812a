"""Walking the paths that a scan was asked for, and nothing else of the tree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from db import tree
from db.engine import reading
from db.tree import ORDER_KEY_BYTES
from db.types import KnownDirectory, Place
from tasks.core.breaker import ancestors
from tasks.frontier import Frontier
from tasks.write_back import Todo

if TYPE_CHECKING:
    from tasks.pipeline import Pipeline

# Ancestors that are asked for in one query.
AT_ONCE = 500


def walk(pipeline: Pipeline, paths: Sequence[bytes]) -> list[Frontier]:
    """Of each path list the nearest directory above it that is known (what is new below it is walked, too), and where
    the path is a known directory itself, all that is known below it. What is left when the budget is spent.
    """
    visited = set()
    for at, path in enumerate(paths):
        if pipeline.budget.spent:
            return [Frontier(paths=paths[at:])]
        above, itself = _known(pipeline, path)
        if above is not None and above.id not in visited:
            visited.add(above.id)
            pipeline.visit(Todo(above))
            pipeline.drain()
        if itself is not None:
            rest = pipeline.walk_range(below(itself))
            if rest.ranged:
                return [rest, *([Frontier(paths=paths[at + 1 :])] if paths[at + 1 :] else [])]
    return []


def below(known: KnownDirectory) -> Frontier:
    """A directory with all below it; those are between it and what sorts just behind its key with a separator. Where
    the key is cut off, others of the same key are taken along.
    """
    if len(known.key) >= ORDER_KEY_BYTES:
        return Frontier(True, Place(known.key, 0), Place(known.key, (1 << 63) - 1))
    return Frontier(True, Place(known.key, known.id - 1), Place(known.key + b"\1", 0))


def _known(pipeline: Pipeline, path: bytes) -> tuple[KnownDirectory | None, KnownDirectory | None]:
    """The nearest known directory above a path, and the path itself where it is one."""
    nearest_first = [path, *ancestors(path)]
    itself = None
    for first in range(0, len(nearest_first), AT_ONCE):
        with reading(pipeline.engine) as connection:
            some = set(nearest_first[first : first + AT_ONCE])
            known = {one.path: one for one in tree.known_among(connection, pipeline.tenant.id, pipeline.fence, some)}
        itself = known.pop(path, itself)
        if known:
            return known[max(known, key=len)], itself
    return None, itself
