"""The pure decision which of the files that are gone are the same as files that were added: they have moved.

Two ways, in this order: what agrees in content and inode, where both sides are unique; and what is left of equal
content, first with first in the order of name and directory. Never by inode alone (file systems give them out again
at once), and never empty files (whoever calls leaves them out).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, groupby, islice
from typing import NamedTuple

# So many of equal content wait to be paired at a time; beyond, what came first is paired, or stays as it is.
WAITING = 10_000
# Keys that begin so stand for a stat, not for content that was read: equal ones are the same only with the inode.
STAT_KEY = b"s"


class Candidate(NamedTuple):
    """A file that is gone, or an addition that it may have become. `n` is the number of the addition's change."""

    key: bytes  # equal for equal content
    inode: int
    gone: bool
    directory_id: int
    name: bytes
    n: int | None


Pair = tuple[Candidate, Candidate]


def pair(candidates: Iterable[Candidate]) -> Iterator[Pair]:
    """Pairs (gone, added) of candidates that come in the order of key and inode. No candidate is in two pairs."""
    for key, equal in groupby(candidates, key=lambda one: one.key):
        yield from _pair_equal(equal, by_order=not key.startswith(STAT_KEY))


def _pair_equal(equal: Iterable[Candidate], *, by_order: bool) -> Iterator[Pair]:
    gone: list[Candidate] = []
    added: list[Candidate] = []
    for _, same in groupby(equal, key=lambda one: one.inode):
        first = list(islice(same, 3))
        if len(first) == 2 and first[0].gone != first[1].gone:
            yield (first[0], first[1]) if first[0].gone else (first[1], first[0])
            continue
        # The rest one by one: a file may have more names than fit into memory.
        for one in chain(first, same) if by_order else ():
            side, other = (gone, added) if one.gone else (added, gone)
            if len(side) == WAITING:
                if not other:
                    continue
                yield from _pair_in_order(gone, added)
                paired = min(len(gone), len(added))
                del gone[:paired], added[:paired]
            side.append(one)
    yield from _pair_in_order(gone, added)


def _pair_in_order(gone: list[Candidate], added: list[Candidate]) -> Iterator[Pair]:
    for side in (gone, added):
        side.sort(key=lambda one: (one.name, one.directory_id))
    yield from zip(gone, added, strict=False)
