"""When which fault comes, and for how long: a function of the seed alone."""

import itertools
import random
from collections.abc import Iterator, Mapping
from typing import NamedTuple

# From one fault to the next, seconds; and what a part that was struck is given until it is struck again.
LEAST_S, MOST_S = 2.0, 7.0
REST_S = 3.0


class Kind(NamedTuple):
    """What is struck, of which one thing is wrong at a time, and for how long at least and at most."""

    part: str
    least_s: float
    most_s: float


class Spell(NamedTuple):
    """A fault from its beginning to its end, seconds from the beginning of all. The number tells it from others."""

    at_s: float
    until_s: float
    fault: str
    number: int


def forecast(seed: int, seconds: float, kinds: Mapping[str, Kind]) -> list[Spell]:
    """The spells of so many seconds, in order: each kind once, shuffled, then each again. All are over in time."""
    return list(itertools.takewhile(lambda spell: spell.at_s < seconds, _spells(random.Random(seed), seconds, kinds)))


def _spells(rng: random.Random, seconds: float, kinds: Mapping[str, Kind]) -> Iterator[Spell]:
    free_s = dict.fromkeys((kind.part for kind in kinds.values()), 0.0)
    waiting: list[str] = []
    at_s = 0.0
    for number in itertools.count():
        if not waiting:
            waiting = rng.sample(sorted(kinds), len(kinds))
        at_s = max(at_s + rng.uniform(LEAST_S, MOST_S), min(free_s[kinds[name].part] for name in waiting))
        fault = next(name for name in waiting if free_s[kinds[name].part] <= at_s)
        waiting.remove(fault)
        part, least_s, most_s = kinds[fault]
        until_s = at_s + rng.uniform(least_s, most_s)
        free_s[part] = until_s + REST_S
        if until_s <= seconds or at_s > seconds:
            yield Spell(at_s, until_s, fault, number)
