"""How many children a worker may have: as many as fit, at least one, and not another number every moment."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from tasks.memory.cap import LEAST_BYTES, STEADY_S, Cap, fitting
from tasks.memory.gauge import Reading
from tasks.memory.level import PROFILES, Level

MB = 1 << 20
MARKS = PROFILES["conservative"]
sizes = st.integers(1 * MB, 400 * MB)


def reading(limit: int, used: int) -> Reading:
    return Reading("a test", limit, used, None, 0.0, 0)


def stepped(cap: Cap, limit: int, children: Sequence[int], now_s: float, others: int = 0) -> int:
    seen = reading(limit, others + sum(children))
    level = Level(sum(seen.fraction >= mark for mark in MARKS))
    return cap.step(seen, MARKS, level, children, now_s)


def test_as_many_fit_as_stay_below_the_mark_of_high_beside_what_others_use() -> None:
    assert fitting(reading(1000 * MB, 300 * MB), MARKS, [100 * MB, 100 * MB], 100 * MB) == 5
    assert fitting(reading(1000 * MB, 700 * MB), MARKS, [100 * MB], 100 * MB) == 1, "others use it all"


def test_it_falls_at_once_as_far_as_it_must_and_rises_one_by_one() -> None:
    cap, four = Cap(most=4, value=4), [100 * MB] * 4
    assert stepped(cap, 1000 * MB, four, 0.0) == 4
    assert stepped(cap, 400 * MB, four, 1.0) == 2
    risen = [stepped(cap, 4000 * MB, [100 * MB] * 2, 1.0 + n) for n in range(30)]
    assert risen == [2] * 10 + [3] * 10 + [4] * 10


def test_a_child_that_was_large_once_is_reckoned_with() -> None:
    cap = Cap(most=8, value=8)
    stepped(cap, 1000 * MB, [300 * MB], 0.0)

    assert stepped(cap, 1000 * MB, [LEAST_BYTES], STEADY_S) == 2
    forgotten = [stepped(cap, 1000 * MB, [LEAST_BYTES], STEADY_S + n) for n in range(1, 300)]
    assert forgotten[30] == 2 and forgotten[-1] == 8, "not for ever: it may have ended"


@given(
    st.integers(1, 16),
    st.lists(st.tuples(st.integers(64 * MB, 4000 * MB), st.lists(sizes, max_size=16), sizes, st.floats(0.1, 20)),
             min_size=1, max_size=50),
)  # fmt: skip
def test_there_is_always_one_never_too_many_and_no_change_within_ten_seconds(most: int, steps) -> None:
    cap, now_s, changed_s = Cap(most=most, value=most), 0.0, float("-inf")
    for limit, children, others, passed_s in steps:
        now_s += passed_s
        before = cap.value
        value = stepped(cap, limit, children, now_s, others)
        assert 1 <= value <= most and value <= before + 1
        if value != before:
            assert now_s - changed_s >= STEADY_S
            changed_s = now_s
