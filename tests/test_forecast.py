"""The weather is a function of the seed alone."""

import itertools

import pytest

from tests.storm import FAULTS, KINDS
from tests.weather import MOST_S, REST_S, Kind, forecast

MANY = {f"kind {number}": Kind(f"part {number % 5}", number % 4, 4.0 + number) for number in range(16)}


def test_the_weather_is_a_function_of_the_seed() -> None:
    assert forecast(7, 600, MANY) == forecast(7, 600, dict(reversed(MANY.items())))
    assert forecast(7, 600, MANY) != forecast(8, 600, MANY)
    assert forecast(7, 120, MANY)[:5] == forecast(7, 600, MANY)[:5]


@pytest.mark.parametrize("seed", range(20))
def test_every_fault_comes_and_no_part_is_struck_twice_at_once(seed: int) -> None:
    spells = forecast(seed, 600, KINDS)
    assert {spell.fault for spell in spells} == KINDS.keys() == FAULTS.keys()
    assert len({spell.fault for spell in forecast(seed, 120, KINDS)}) > len(KINDS) / 2
    for part in {kind.part for kind in KINDS.values()}:
        of_part = [spell for spell in spells if KINDS[spell.fault].part == part]
        assert all(before.until_s + REST_S <= after.at_s for before, after in itertools.pairwise(of_part))
    assert all(0 < spell.at_s <= spell.until_s <= 600 for spell in spells)
    assert spells[-1].at_s > 600 - 40 - MOST_S
