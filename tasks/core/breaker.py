"""The circuit breaker's decisions: which places that keep failing are left alone for a while. Pure: time is given.

As Nygard's (Release It!, 2007): closed, everything is tried; after too many failures open, nothing is; after a while
half-open, one probe is let through, which closes or re-opens it. Here for each file that cannot be read and each
directory that cannot be listed. Where many files of a directory fail, one entry stands for all that fail in it and
below, so that the entries of a tenant are few whatever happens to its storage.

Entries are values in a map by (covers, path); every function gives a new map.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NamedTuple

# More files than so many that fail in one directory become one entry; so do more such directories in theirs.
SIBLINGS = 10
# A probe that was let through and never came back is given up after so long.
PROBE_S = 60.0
# Nobody needs more of what the system said.
ERROR_LENGTH = 200


class Covers(StrEnum):
    """What an entry is about."""

    FILE = "file"  # the file of that path, which cannot be read
    FILES = "files"  # all files that cannot be read, in the directory of that path and below
    DIRECTORY = "directory"  # the directory of that path, which cannot be listed; empty: the root


class State(StrEnum):
    """closed → open → half-open → closed | open."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Key(NamedTuple):
    """What an entry is found by."""

    covers: Covers
    path: bytes


ROOT = Key(Covers.DIRECTORY, b"")


@dataclass(frozen=True, slots=True)
class Entry:
    """What is known of a place that failed. Times are seconds since the epoch, by Redis's clock.

    `failures` are the fences that failed, each with its time, oldest first: a scan counts once. `mark` is what stat
    showed of the place when it failed last, and `stamp_ns` the latest change that it showed of any that failed: by the
    file system's clock, so that it is compared with nothing else.
    """

    failures: tuple[tuple[int, float], ...]
    error: str
    mark: str | None = None
    stamp_ns: int = 0
    open_until: float | None = None
    probe_until: float | None = None

    @property
    def failed_at(self) -> float:
        """When it failed last."""
        return self.failures[-1][1]

    def state(self, now: float) -> State:
        """Is it closed, open, or half-open?"""
        if self.open_until is None:
            return State.CLOSED
        return State.OPEN if now < self.open_until else State.HALF_OPEN

    def probing(self, now: float) -> bool:
        """Is a probe under way?"""
        return self.probe_until is not None and now < self.probe_until


Entries = Mapping[Key, Entry]


class Failed(NamedTuple):
    """Something failed; see Entry."""

    key: Key
    error: str
    mark: str | None = None
    stamp_ns: int = 0


@dataclass(frozen=True, slots=True)
class Limits:
    """More than `failures` within `window_s` open it for `open_s`; at most `tracked` entries are kept."""

    failures: int
    window_s: float
    open_s: float
    tracked: int


def parent(path: bytes) -> bytes:
    """The directory that a path is in; that of the root is the root."""
    return path.rpartition(b"/")[0]


def ancestors(path: bytes) -> Iterator[bytes]:
    """The directories above a path, from its own up to the root."""
    while path:
        path = parent(path)
        yield path


def covering(entries: Entries, key: Key) -> Key:
    """What an event at `key` counts for: the entry that covers all failing files around it, if there is one."""
    if key.covers == Covers.FILE:
        for folder in ancestors(key.path):
            if (above := Key(Covers.FILES, folder)) in entries:
                return above
    return key


def failed(entries: Entries, events: Sequence[Failed], fence: int, now: float, limits: Limits) -> Entries:
    """After these failures in the scan of that fence."""
    found = dict(current(entries, now, limits))
    for event in events:
        key = covering(found, event.key)
        found[key] = _failed(found.get(key), event, fence, now, limits)
        _collapse(found, key, now, limits)
        _fit(found, now, limits)
    return found


def _failed(entry: Entry | None, event: Failed, fence: int, now: float, limits: Limits) -> Entry:
    earlier = () if entry is None else tuple(one for one in entry.failures if one[0] != fence)
    failures = (*earlier, (fence, now))[-limits.failures - 1 :]
    opens = len(failures) > limits.failures or (entry is not None and entry.open_until is not None)
    stamp_ns = max(event.stamp_ns, 0 if entry is None else entry.stamp_ns)
    return Entry(failures, event.error[:ERROR_LENGTH], event.mark, stamp_ns, now + limits.open_s if opens else None)


def _collapse(entries: dict[Key, Entry], key: Key, now: float, limits: Limits) -> None:
    """Siblings that are too many become one entry of their directory, and so on upwards."""
    while key.covers != Covers.DIRECTORY and key.path:
        folder = parent(key.path)
        siblings = [one for one in entries if one.covers == key.covers and one.path and parent(one.path) == folder]
        if len(siblings) <= SIBLINGS:
            return
        key = _merge(entries, siblings, folder, now, limits)


def _merge(entries: dict[Key, Entry], keys: Sequence[Key], folder: bytes, now: float, limits: Limits) -> Key:
    """These, and whatever there is of the folder and of files below it, become one entry."""
    target = Key(Covers.FILES, folder)
    prefix = folder + b"/" if folder else b""
    below = [
        one for one in entries
        if one == target or (one.covers != Covers.DIRECTORY and one.path != folder and one.path.startswith(prefix))
    ]  # fmt: skip
    merged = [entries.pop(one) for one in dict.fromkeys((*below, *keys)) if one in entries]
    fences: dict[int, float] = {}
    for fence, at in sorted((one for entry in merged for one in entry.failures), key=lambda one: one[1]):
        fences[fence] = at
    failures = tuple(sorted(fences.items(), key=lambda one: one[1]))[-limits.failures - 1 :]
    opened = [entry.open_until for entry in merged if entry.open_until is not None]
    until = now + limits.open_s if len(failures) > limits.failures else None
    latest = max(merged, key=lambda entry: entry.failed_at)
    stamp_ns = max(entry.stamp_ns for entry in merged)
    entries[target] = Entry(failures, latest.error, None, stamp_ns, max(opened) if opened else until)
    return target


def _fit(entries: dict[Key, Entry], now: float, limits: Limits) -> None:
    """Where there are too many, the oldest gives way: to the entry of its directory, or at the top altogether."""
    while len(entries) > limits.tracked:
        oldest = min(entries, key=lambda key: entries[key].failed_at)
        if oldest.covers == Covers.DIRECTORY or not oldest.path:
            del entries[oldest]
        else:
            _merge(entries, [oldest], parent(oldest.path), now, limits)


def succeeded(
    entries: Entries, keys: Sequence[Key], now: float, limits: Limits, refused: Collection[Key] = ()
) -> Entries:
    """After these, which had failed, were looked at without failure. Where many share an entry, of which some were
    refused meanwhile, that brings its probe forward: some are well again, the others may be.
    """
    found = dict(current(entries, now, limits))
    for above in {covering(found, key) for key in keys}:
        entry = found.get(above)
        if entry is not None and above in refused and entry.state(now) == State.OPEN:
            found[above] = replace(entry, open_until=now)
        else:
            found.pop(above, None)
    return found


def probed(entries: Entries, key: Key, now: float) -> Entries | None:
    """With a probe under way, if it is time for one and there is none; else None."""
    entry = entries.get(key)
    if entry is None or entry.state(now) != State.HALF_OPEN or entry.probing(now):
        return None
    return {**entries, key: replace(entry, probe_until=now + PROBE_S)}


def current(entries: Entries, now: float, limits: Limits) -> Entries:
    """Without failures that are too old to count, and entries that are left with none and were not opened lately."""
    found = {}
    for key, entry in entries.items():
        oldest = now - limits.window_s
        failures = tuple(one for one in entry.failures if one[1] >= oldest)
        if entry.open_until is not None and entry.open_until >= oldest:
            found[key] = entry
        elif failures:
            found[key] = replace(entry, failures=failures, open_until=None)
    return found


def counted(entries: Entries, now: float) -> Counter[State]:
    """How many entries are in which state."""
    return Counter(entry.state(now) for entry in entries.values())
