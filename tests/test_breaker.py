"""The breaker's decisions, by themselves: any order of failures, successes and probes, at any time."""

from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from tasks.core.breaker import (
    PROBE_S,
    SIBLINGS,
    Covers,
    Entries,
    Failed,
    Key,
    Limits,
    State,
    covering,
    failed,
    parent,
    probed,
    succeeded,
)

LIMITS = Limits(failures=3, window_s=3600, open_s=3600, tracked=100)
FILE = Key(Covers.FILE, b"a/f")


def fails(entries: Entries, *keys: Key, fence: int, now: float, limits: Limits = LIMITS) -> Entries:
    return failed(entries, [Failed(key, "denied") for key in keys], fence, now, limits)


def opened(now: float = 0.0) -> Entries:
    entries: Entries = {}
    for fence in range(LIMITS.failures + 1):
        entries = fails(entries, FILE, fence=fence, now=now)
    return entries


# Examples


def test_it_opens_at_the_fourth_failure_and_for_an_hour() -> None:
    entries: Entries = {}
    for fence in range(3):
        entries = fails(entries, FILE, fence=fence, now=fence)
        assert entries[FILE].state(fence) == State.CLOSED
    entries = fails(entries, FILE, fence=3, now=3)

    assert entries[FILE].state(3602.9) == State.OPEN
    assert entries[FILE].state(3603) == State.HALF_OPEN


def test_one_scan_counts_once_however_often_it_tries() -> None:
    entries: Entries = {}
    for now in range(100):
        entries = fails(entries, FILE, fence=7, now=now)

    assert entries[FILE].state(100) == State.CLOSED


def test_what_failed_longer_ago_than_the_window_does_not_count() -> None:
    entries: Entries = {}
    for fence in range(20):
        entries = fails(entries, FILE, fence=fence, now=fence * 1300.0)  # at most three within an hour

        assert entries[FILE].state(fence * 1300.0) == State.CLOSED


def test_half_open_one_probe_is_let_through_until_it_is_given_up() -> None:
    entries = opened()
    assert probed(entries, FILE, 3599) is None
    probing = probed(entries, FILE, 3600)
    assert probing is not None and probed(probing, FILE, 3600) is None

    assert probed(probing, FILE, 3600 + PROBE_S) is not None


def test_a_probe_that_fails_opens_it_again_and_one_that_succeeds_closes_it() -> None:
    probing = probed(opened(), FILE, 3600)
    assert probing is not None

    assert fails(probing, FILE, fence=9, now=3601)[FILE].state(7200) == State.OPEN
    assert succeeded(probing, [FILE], 3601, LIMITS) == {}


def test_eleven_files_of_a_folder_become_one_entry_and_eleven_such_folders_one_of_theirs() -> None:
    entries: Entries = {}
    for folder in range(SIBLINGS + 1):
        keys = [Key(Covers.FILE, b"top/%d/%d" % (folder, number)) for number in range(SIBLINGS + 1)]
        entries = fails(entries, *keys[:-1], fence=1, now=1)
        assert len(entries) == folder + SIBLINGS
        entries = fails(entries, keys[-1], fence=1, now=1)
        assert folder == SIBLINGS or Key(Covers.FILES, b"top/%d" % folder) in entries

    assert list(entries) == [Key(Covers.FILES, b"top")]


def test_ten_thousand_files_that_fail_in_four_scans_are_one_open_entry() -> None:
    keys = [Key(Covers.FILE, b"all/%d" % number) for number in range(10_000)]
    entries: Entries = {}
    for fence in range(4):
        entries = fails(entries, *keys, fence=fence, now=fence)

    assert [(key, entry.state(5)) for key, entry in entries.items()] == [(Key(Covers.FILES, b"all"), State.OPEN)]


def test_files_that_fail_in_a_thousand_folders_of_ten_are_opened_too() -> None:
    keys = [Key(Covers.FILE, b"%d/%d" % (number % 1000, number)) for number in range(10_000)]
    entries: Entries = {}
    for fence in range(4):
        entries = fails(entries, *keys, fence=fence, now=fence)

    assert all(entries[covering(entries, key)].state(5) == State.OPEN for key in keys)


def test_one_good_file_brings_the_probe_of_many_forward_and_the_probe_closes_their_entry() -> None:
    keys = [Key(Covers.FILE, b"a/%d" % number) for number in range(20)]
    entries: Entries = {}
    for fence in range(4):
        entries = fails(entries, *keys, fence=fence, now=0)

    [above] = entries
    assert succeeded(entries, keys[:1], 10, LIMITS, {above})[above].state(10) == State.HALF_OPEN
    assert succeeded(entries, keys[:1], 3601, LIMITS, {above}) == succeeded(entries, keys[:1], 10, LIMITS) == {}


# Properties

paths = st.lists(st.sampled_from([b"a", b"b", b"c"]), min_size=1, max_size=3).flatmap(
    lambda parts: st.integers(0, 30).map(lambda number: b"/".join([*parts, b"%d" % number]))
)
keys = st.builds(Key, st.sampled_from([Covers.FILE, Covers.FILE, Covers.FILE, Covers.DIRECTORY]), paths)
events = st.lists(
    st.tuples(st.sampled_from(["failed", "failed", "failed", "succeeded", "probed"]), keys, st.floats(0, 2000)),
    max_size=80,
)


@given(events, st.integers(1, 5), st.integers(3, 40))
def test_whatever_happens(events: list[tuple[str, Key, float]], failures: int, tracked: int) -> None:
    limits = Limits(failures, 3600, 1800, tracked)
    entries: Entries = {}
    now = 0.0
    fences: dict[Key, int] = defaultdict(int)  # scans in which the exact place failed, ever
    for fence, (what, key, later) in enumerate(events):
        now += later
        if what == "failed":
            entries = fails(entries, key, fence=fence, now=now, limits=limits)
            fences[key] += 1
            assert covering(entries, key) in entries, "what failed just now is known"
        elif what == "succeeded":
            entries = succeeded(entries, [key], now, limits)
            assert key not in entries
        elif (after := probed(entries, key, now)) is not None:
            assert entries[key].state(now) == State.HALF_OPEN
            assert probed(after, key, now) is None, "only one probe is let through"
            entries = after
        check(entries, fences, limits)


def check(entries: Entries, fences: dict[Key, int], limits: Limits) -> None:
    assert len(entries) <= limits.tracked
    of_folder: dict[tuple[Covers, bytes], int] = defaultdict(int)
    for key, entry in entries.items():
        of_folder[key.covers, parent(key.path)] += bool(key.path) and key.covers != Covers.DIRECTORY
        assert len(entry.failures) == len({fence for fence, _ in entry.failures}) <= limits.failures + 1
        if key.covers != Covers.FILES and entry.open_until is not None:
            assert fences[key] > limits.failures, "it opened too early"
    assert max(of_folder.values(), default=0) <= SIBLINGS
