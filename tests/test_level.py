"""The level of memory: it rises at once, falls slowly, and tells of no more than is so."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from tasks.memory.level import CALM_S, GAP, PROFILES, STALLED, Ladder, Level

profiles = st.sampled_from(sorted(PROFILES)).map(PROFILES.get)
fractions = st.floats(0, 1.2)
seconds = st.floats(0.1, 2 * CALM_S)


def test_the_marks_are_those_of_the_design() -> None:
    assert {name: tuple(marks) for name, marks in PROFILES.items()} == {
        "conservative": (0.5, 0.6, 0.8), "aggressive": (0.6, 0.7, 0.85), "development": (0.6, 0.75, 0.9)
    }  # fmt: skip


def climbed(fractions_: Sequence[float], *, each_s: float = 1.0, stalled: float = 0.0) -> list[Level]:
    ladder = Ladder(PROFILES["conservative"])
    return [ladder.step(fraction, stalled, n * each_s) for n, fraction in enumerate(fractions_)]


def test_it_rises_at_once_and_falls_a_level_at_a_time() -> None:
    assert climbed([0.1, 0.5, 0.9], each_s=0.001) == [Level.LOW, Level.MODERATE, Level.CRITICAL]

    falling = climbed([0.9, *[0.1] * 5], each_s=CALM_S)
    assert falling == [Level.CRITICAL, Level.CRITICAL, Level.HIGH, Level.MODERATE, Level.LOW, Level.LOW]


def test_it_does_not_flap_around_a_mark() -> None:
    assert set(climbed([0.59, 0.61, *[0.56, 0.59] * 100])[1:]) == {Level.HIGH}


def test_who_waits_for_memory_goes_slower_but_does_not_stop() -> None:
    assert climbed([0.1], stalled=STALLED) == [Level.MODERATE]
    assert climbed([0.55], stalled=STALLED) == [Level.HIGH]
    assert climbed([0.7], stalled=100.0) == [Level.HIGH]
    assert climbed([0.1], stalled=STALLED - 0.1) == [Level.LOW]


@given(profiles, st.lists(st.tuples(fractions, st.floats(0, 100), seconds), min_size=1))
def test_it_is_never_below_what_is_used_and_follows_it_down_in_the_end(
    marks, steps: list[tuple[float, float, float]]
) -> None:
    ladder, now_s = Ladder(marks), 0.0
    for fraction, stalled, passed_s in steps:
        now_s += passed_s
        before = ladder.level
        level = ladder.step(fraction, stalled, now_s)
        assert level >= sum(fraction >= mark for mark in marks)
        assert level >= before - 1
    for _ in range(5):
        now_s += CALM_S
        ladder.step(marks.moderate - GAP - 0.01, 0.0, now_s)
    assert ladder.level == Level.LOW
