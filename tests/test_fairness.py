"""Whose shards are sent next: never too many, in turns, by priority, and nobody waits without end."""

import itertools
from collections.abc import Callable
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from db.sending import Contender
from db.types import Trigger
from orchestrator.fairness import KEPT, allot, priority
from orchestrator.windows import SLOTS_UNKNOWN, Windows

AGEING_S = 60.0
# By priority, the first goes first.
CLASSES = [("background", Trigger.REQUEST), ("priority", Trigger.SCHEDULE), ("standard", Trigger.SCHEDULE),
           ("background", Trigger.SCHEDULE)]  # fmt: skip


def contender(name: str, rank: int, ready: int, in_flight: int, waited_s: float, done: int = 1000) -> Contender:
    return Contender(name, 1, *CLASSES[rank], ready, in_flight, done, waited_s)


def test_whoever_waits_for_a_scan_goes_first_and_then_tiers_do() -> None:
    assert [priority(contender("a", rank, 1, 0, 0.0)) for rank in range(4)] == [0, 1, 2, 3]


@st.composite
def clusters(draw: Callable) -> list[Contender]:
    """Running scans of a few priorities."""
    one = st.tuples(st.integers(0, 3), st.integers(0, 50), st.integers(0, 10), st.floats(0, 300), st.integers(0, 20))
    return [contender(str(number), *values) for number, values in enumerate(draw(st.lists(one, max_size=12)))]


SLOTS = st.integers(0, 40)
LIMITS = st.integers(1, 100)
WINDOWS = st.builds(Windows, SLOTS, LIMITS, LIMITS)


def room(one: Contender, running: list[Contender], windows: Windows) -> int:
    return max(0, min(one.ready, windows.of_one(one.done, alone=len(running) == 1) - one.in_flight))


@given(WINDOWS, st.integers(0, 100), st.booleans())
def test_everybody_gets_a_slot_and_nobody_more_than_there_is(windows: Windows, done: int, alone: bool) -> None:
    assert 1 <= windows.of_one(done, alone=alone) <= windows.in_all <= windows.most
    assert windows.of_one(done, alone=alone) <= windows.most_of_one
    assert (
        windows.of_one(done, alone=alone)
        <= windows.of_one(done + 1, alone=alone)
        <= windows.of_one(done + 1, alone=True)
    )
    assert windows.in_all <= 2 * (windows.slots or SLOTS_UNKNOWN)


@given(st.integers(4, 100))
def test_one_whose_mount_hangs_and_one_whose_mount_is_slow_leave_a_slot_to_others(slots: int) -> None:
    windows = Windows(slots, 10**6, 10**6)

    hangs, slow = windows.of_one(0, alone=False), windows.of_one(10**6, alone=False)

    assert hangs + slow < slots


def test_who_is_alone_gets_all_once_he_has_shown_that_he_gives_slots_back() -> None:
    windows = Windows(8, 10**6, 10**6)

    assert [windows.of_one(done, alone=True) for done in (0, 1, 5, 14, 99)] == [2, 3, 7, 16, 16]


@given(clusters(), WINDOWS)
def test_what_is_free_is_given_and_no_more(running: list[Contender], windows: Windows) -> None:
    given = allot(running, windows, AGEING_S)

    free = max(0, windows.in_all - sum(one.in_flight for one in running))
    assert sum(given.values()) == min(free, sum(room(one, running, windows) for one in running))
    assert all(0 < given[one.scan_id] <= room(one, running, windows) for one in running if one.scan_id in given)


@given(clusters(), WINDOWS)
def test_of_one_priority_who_has_most_under_way_gets_nothing_before_who_has_less(
    running: list[Contender], windows: Windows
) -> None:
    alike = [replace(one, tier="standard", trigger=Trigger.REQUEST) for one in running]

    given = allot(alike, windows, AGEING_S)

    for one in alike:
        if given.get(one.scan_id, 0) < room(one, running, windows):  # it would have taken more
            least = one.in_flight + given.get(one.scan_id, 0)
            others = [other for other in alike if given.get(other.scan_id)]
            assert all(other.in_flight + given[other.scan_id] <= least + 1 for other in others)


@given(clusters(), WINDOWS)
def test_a_lower_priority_gets_only_what_is_left_or_kept(running: list[Contender], windows: Windows) -> None:
    given = allot(running, windows, AGEING_S)

    for one in running:
        if given.get(one.scan_id, 0) < room(one, running, windows):
            lower = [other for other in running if priority(other) > priority(one) and given.get(other.scan_id)]
            assert sum(given[other.scan_id] for other in lower) <= max(1, windows.in_all // KEPT)
            assert all(other.waited_s >= AGEING_S / 2 for other in lower), "nobody but who has waited overtakes"


def test_one_with_thousands_takes_turns_with_those_that_have_one() -> None:
    huge = contender("huge", 0, 5_000, 12, 0.0)
    small = [contender(f"small {number}", 0, 1, 0, 1.0) for number in range(6)]

    assert allot([huge, *small], Windows(8, 100, 12), AGEING_S) == {f"small {number}": 1 for number in range(4)}


def test_of_those_with_nothing_under_way_the_least_recently_served_goes_first() -> None:
    running = [contender(name, 0, 1, 0, waited_s) for name, waited_s in (("a", 1.0), ("b", 3.0), ("c", 2.0))]

    assert allot(running, Windows(1, 9, 9), AGEING_S) == {"b": 1, "c": 1}


def simulate(slots: int, priorities: dict[str, int], seconds: int) -> dict[str, list[int]]:
    """Each second all that was sent is done, everybody has more than enough; when was each served?"""
    served: dict[str, list[int]] = {name: [] for name in priorities}
    for now in range(seconds):
        running = [
            contender(name, priority, 100, 0, now - (served[name] or [0])[-1]) for name, priority in priorities.items()
        ]
        for name in allot(running, Windows(slots, slots, slots), AGEING_S):
            served[name].append(now)
    return served


@given(st.integers(1, 8), st.integers(1, 20), st.integers(1, 3))
def test_under_full_load_of_the_highest_priority_the_lowest_is_served_every_ageing_period(
    slots: int, high: int, lowest: int
) -> None:
    served = simulate(slots, {f"high {n}": 0 for n in range(high)} | {"low": lowest}, 300)["low"]

    times = [0, *served, 300]
    assert all(later - earlier <= AGEING_S for earlier, later in itertools.pairwise(times))
    assert len(served) <= 300 / (AGEING_S / 2) or high < slots, "and no more often"
