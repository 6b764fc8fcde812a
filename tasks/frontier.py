"""The frontier of a shard: what it has to walk besides the directories that it owns. Stored as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from db.types import Place


class Piece(NamedTuple):
    """Ranges of one huge directory that has so many, in groups that are worked on at a time."""

    directory_id: int
    ranges: int
    groups: Sequence[Sequence[int]]

    def shared_out(self, among: int) -> list[Piece]:
        """Pieces of it for so many shards, or fewer."""
        among = min(among, len(self.groups))
        return [self._replace(groups=self.groups[first::among]) for first in range(among)]


@dataclass(frozen=True, slots=True)
class Frontier:
    """A range of the depth-first order, a piece of a huge directory, named paths, or nothing (then the shard has only
    what it owns).

    `after` is excluded and `to` included; None stands for the beginning and for the end.
    """

    ranged: bool = False
    after: Place | None = None
    to: Place | None = None
    piece: Piece | None = None
    paths: Sequence[bytes] = ()

    def dump(self) -> str:
        """As it is stored."""
        if self.piece is not None:
            return json.dumps({"piece": self.piece})
        if self.paths:
            # To the release before this is a range: all. It has more to do, and does nothing wrong.
            return json.dumps({"after": None, "to": None, "paths": [path.hex() for path in self.paths]})
        if not self.ranged:
            return "{}"
        return json.dumps({"after": _dump(self.after), "to": _dump(self.to)})

    @classmethod
    def load(cls, text: str) -> Frontier:
        """From what is stored."""
        stored = json.loads(text)
        if not stored:
            return cls()
        if "piece" in stored:
            return cls(piece=Piece(*stored["piece"]))
        if "paths" in stored:
            return cls(paths=[bytes.fromhex(path) for path in stored["paths"]])
        return cls(True, _load(stored["after"]), _load(stored["to"]))


def _dump(place: Place | None) -> list[str | int] | None:
    return None if place is None else [place.key.hex(), place.id]


def _load(stored: list[str] | None) -> Place | None:
    return None if stored is None else Place(bytes.fromhex(stored[0]), int(stored[1]))


def ranges(cuts: Sequence[Place]) -> list[Frontier]:
    """The ranges between places: from the beginning to the first, between two, and from the last but one to the end."""
    afters: list[Place | None] = [None, *cuts[:-1]]
    tos: list[Place | None] = [*cuts[:-1], None]
    return [Frontier(True, after, to) for after, to in zip(afters, tos, strict=True)]
