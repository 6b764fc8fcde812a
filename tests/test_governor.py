"""What a process does about memory: batches that fit, a wait with an end, and handing on."""

import itertools
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.memory import governor as governors
from tasks.memory.bound import REMEMBERED, STEPS, Bound
from tasks.memory.gauge import Reading
from tasks.memory.governor import LEAST_ROWS, LOOKED_EVERY_S, MOST_ROWS, PAUSE_S, PAUSED_EVERY_S, ROW_BYTES, Governor
from tasks.memory.level import CALM_S, PROFILES, Level
from tasks.settings import Settings

MB = 1 << 20
LIMIT = 1000 * MB
levels = st.sampled_from(Level)


@given(st.lists(st.one_of(levels, st.tuples(st.integers(1, 10**6), st.integers(-(10**9), 10**9)))), st.floats(0, 1e9))
def test_a_bound_stays_between_its_least_and_its_most_and_shrinks_with_the_room(steps: list, room: float) -> None:
    bound = Bound(100, 2_000, 4_000)
    for step in steps:
        before = bound.within(float("inf"))
        if isinstance(step, Level):
            bound.step(step)
            after = bound.within(float("inf"))
            assert after >= before if step == Level.LOW else after <= before
        else:
            bound.learn(*step)
        assert 100 <= bound.within(room) <= bound.within(room * 2) <= 2_000
        assert bound.within(room) * 4_000 <= room or bound.within(room) == 100


def test_it_is_halved_where_memory_is_critical_and_grows_back_slowly() -> None:
    bound = Bound(100, 1_600, 1)
    bound.step(Level.CRITICAL)
    assert bound.within(1e9) == 800
    bound.step(Level.HIGH)
    assert bound.within(1e9) == 600
    bound.step(Level.MODERATE)
    assert bound.within(1e9) == 600
    for n in range(STEPS):
        assert bound.within(1e9) == min(1_600, 600 + n * 100)
        bound.step(Level.LOW)


def test_what_one_costs_is_learned_and_forgotten_slowly() -> None:
    bound = Bound(10, 1_000, 1_000)
    assert bound.within(100_000) == 100
    bound.learn(50, 100_000)
    assert bound.within(100_000) == 50
    bound.learn(50, 0)  # it fitted into what was freed
    assert bound.within(100_000) == int(50 / REMEMBERED)
    bound.learn(9, 10**9)  # too few to tell
    assert bound.within(100_000) > 50


class Machine:
    """Memory that is as full as it is told, and a clock that moves as one sleeps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s, self.fraction, self.own = 0.0, 0.1, 0
        self.looks = 0
        self.then: Callable[[], None] = lambda: None
        monkeypatch.setattr(governors.Gauge, "read", lambda *_: self._read())
        monkeypatch.setattr(governors, "family", lambda: [1, 2, 3, 4, 5])
        monkeypatch.setattr(governors, "share", lambda _: self.own)

    def _read(self) -> Reading:
        self.looks += 1
        return Reading("a test", LIMIT, round(LIMIT * self.fraction), None, 0.0, 0)

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        self.then()

    def governor(self, **settings: object) -> Governor:
        made = Governor(Settings(**settings), lambda: self.now_s, self.sleep)
        made.begin()
        return made

    def look(self, governor: Governor) -> None:
        self.now_s += 1.0
        governor.check(lambda: None)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def test_where_memory_is_critical_it_waits_and_goes_on_when_there_is_some_again(machine: Machine) -> None:
    governor = machine.governor()
    machine.fraction = 0.9

    def over() -> None:
        if machine.now_s > 3:
            machine.fraction = 0.1

    machine.then = over
    machine.look(governor)
    assert 3 + CALM_S < machine.now_s < 1 + PAUSE_S and not governor.hands_on


def test_it_waits_for_ten_seconds_of_a_shard_at_most_and_then_hands_on(machine: Machine) -> None:
    governor = machine.governor()
    machine.fraction = 0.9
    asked = itertools.count()
    machine.now_s += 1
    governor.check(lambda: next(asked) and None)
    assert machine.now_s == 1 + PAUSE_S
    assert next(asked) == PAUSE_S / PAUSED_EVERY_S, "it would have heard of an end meanwhile"
    assert governor.hands_on

    for _ in range(5):
        machine.look(governor)
    assert machine.now_s == 1 + PAUSE_S + 5, "what is left of it does not wait again"
    governor.begin()
    assert not governor.hands_on, "the next shard has ten seconds of its own"


def test_what_it_hears_while_it_waits_ends_the_wait(machine: Machine) -> None:
    governor = machine.governor()
    machine.fraction, machine.now_s = 0.9, 1.0

    def ends() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        governor.check(ends)


def test_who_takes_more_than_its_share_hands_on_where_memory_is_high(machine: Machine) -> None:
    governor = machine.governor()
    its_share = PROFILES["conservative"].high * LIMIT / 5
    machine.own = round(its_share) + MB
    machine.look(governor)
    assert not governor.hands_on, "there is enough for all"
    machine.fraction = 0.65
    machine.look(governor)
    assert governor.hands_on
    machine.own = round(its_share) - MB
    machine.look(governor)
    assert not governor.hands_on
    machine.own, machine.fraction, before_s = LIMIT, 0.9, machine.now_s
    machine.look(governor)
    assert governor.hands_on and machine.now_s == before_s + 1, "nobody but itself could end the wait"


def test_batches_follow_the_room_that_each_process_has(machine: Machine) -> None:
    governor = machine.governor(huge_entries=20_000)
    assert (governor.rows, governor.entries, governor.buffer(64 * MB)) == (MOST_ROWS, 60_000, 8 * MB)
    room = 400 * ROW_BYTES
    machine.fraction = 0.6 - 5 * room / LIMIT
    machine.look(governor)
    assert governor.rows == pytest.approx(400, abs=1) and governor.entries == 20_000
    assert governor.buffer(64 << 10) == 64 << 10 and governor.buffer(MB) == 128 << 10
    machine.fraction = 0.7
    machine.look(governor)
    assert governor.rows == LEAST_ROWS and governor.buffer(MB) == 4096


def test_it_looks_a_few_times_a_second_however_often_it_is_asked(machine: Machine) -> None:
    governor = machine.governor()
    for _ in range(1000):
        machine.now_s += 0.01
        governor.check(lambda: None)
    assert 9 / LOOKED_EVERY_S < machine.looks < 11 / LOOKED_EVERY_S


def test_switched_off_it_watches_nothing(machine: Machine) -> None:
    governor = machine.governor(memory_governor="off")
    machine.fraction = 0.99
    machine.look(governor)
    assert machine.looks == 0 and not governor.hands_on and governor.rows == MOST_ROWS
