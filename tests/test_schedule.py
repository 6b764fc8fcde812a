"""Slots: each tenant its own, the same after every restart, spread evenly, one interval apart."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from orchestrator.schedule import JITTER, JITTER_S, next_slot

TENANTS = st.integers(1, 2**31)
INTERVALS = st.integers(1, 366 * 86400)
WINDOWS = st.floats(0, 10_000)
INSTANTS = st.datetimes(datetime(1971, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))
NOW = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)


def jitter(interval_s: int) -> timedelta:
    """By so much at most a slot is moved."""
    return timedelta(seconds=min(JITTER * interval_s, JITTER_S))


@given(TENANTS, INTERVALS, INSTANTS, WINDOWS)
@example(1, 1, NOW, 30.0)
def test_the_next_slot_is_after_now_and_at_most_one_interval_later(
    tenant: int, interval_s: int, now: datetime, window_s: float
) -> None:
    slot = next_slot(tenant, interval_s, now, window_s)

    assert now < slot <= now + timedelta(seconds=interval_s) + jitter(interval_s)


@given(TENANTS, INTERVALS, INSTANTS, WINDOWS)
def test_slots_are_one_interval_apart_but_for_their_jitter(
    tenant: int, interval_s: int, now: datetime, window_s: float
) -> None:  # fmt: skip
    first = slot = next_slot(tenant, interval_s, now, window_s)

    for number in range(1, 6):
        following = next_slot(tenant, interval_s, slot, window_s)
        assert abs(following - first - number * timedelta(seconds=interval_s)) <= jitter(interval_s)
        assert following > slot
        slot = following


def test_two_tenants_who_meet_once_do_not_meet_every_time() -> None:
    """Of any two, one comes now sooner and now later than the other's slot would say."""
    slots = [[next_slot(tenant, 3600, NOW + timedelta(hours=n), 30.0) for n in range(50)] for tenant in (1, 2)]

    apart = {one - other for one, other in zip(*slots, strict=True)}

    assert len(apart) == 50
    assert max(apart) - min(apart) > jitter(3600)


@given(TENANTS, INTERVALS, INSTANTS, WINDOWS, st.floats(0, 1, exclude_max=True))
def test_who_asks_again_before_the_slot_gets_the_same_one(
    tenant: int, interval_s: int, now: datetime, window_s: float, share: float
) -> None:
    """So it does not matter when a process was restarted, nor which one asks."""
    slot = next_slot(tenant, interval_s, now, window_s)
    later = now + (slot - now) * share

    assert later >= slot or next_slot(tenant, interval_s, later, window_s) == slot


def test_a_slot_is_known_across_versions() -> None:
    """A change of the hash would move every tenant's slot at an upgrade, all at once."""
    assert next_slot(7, 3600, NOW, 30.0) == datetime(2026, 3, 1, 12, 26, 47, 240371, tzinfo=UTC)


@pytest.mark.parametrize(
    ("interval_s", "window_s"), [(3600, 30.0), (86400, 30.0), (60, 30.0), (20, 30.0), (1, 30.0), (7, 30.0), (45, 60.0)]
)
def test_thousands_of_tenants_are_spread_evenly(interval_s: int, window_s: float) -> None:
    # given
    tenants, parts, end = 10_000, 10, NOW + timedelta(seconds=interval_s)

    # when: all slots of one interval
    counts = [0] * parts
    for tenant in range(1, tenants + 1):
        slot = next_slot(tenant, interval_s, NOW, window_s)
        while slot < end:
            counts[int((slot - NOW) / (end - NOW) * parts)] += 1
            slot = next_slot(tenant, interval_s, slot, window_s)

    # then: five standard deviations of a fair throw
    fair = tenants / parts
    assert max(abs(count - fair) for count in counts) < 5 * fair**0.5


def test_another_tenant_moves_nobody() -> None:
    before = {tenant: next_slot(tenant, 600, NOW, 30.0) for tenant in range(1, 100)}

    after = {tenant: next_slot(tenant, 600, NOW, 30.0) for tenant in range(1, 1000)}

    assert after.items() >= before.items()


def test_tenants_of_different_intervals_do_not_meet_at_the_epochs_multiples() -> None:
    slots = {next_slot(tenant, 3600, NOW, 30.0) for tenant in range(1, 1001)}

    assert len(slots) == 1000
