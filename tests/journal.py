"""What each path of a tree has been and when, as told by who changed it; and what a feed must not say beside that.

An entry is as in tests.trees, or None where there is nothing. Every system call that changes what is there is one step:
between its beginning and its end the path may have been either. Times are those of the machine's clock, in nanoseconds.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from tests import trees
from tests.trees import Entry, State

Change = dict  # a document of the feed


class Step(NamedTuple):
    """From the end of one system call on a path is this."""

    began_ns: int
    ended_ns: int
    entry: Entry | None


class Span(NamedTuple):
    """When a scan ran."""

    since_ns: int
    until_ns: int


class Journal:
    """The past of one tree, whose first state is as old as the world."""

    def __init__(self, first: State) -> None:
        self._past: dict[bytes, list[Step]] = {path: [Step(0, 0, entry)] for path, entry in first.items()}

    def do(self, call: Callable[[], object], then: Mapping[bytes, Entry | None]) -> None:
        """Make one system call, after which these paths are so."""
        began_ns = time.time_ns()
        call()
        ended_ns = time.time_ns()
        for path, entry in then.items():
            self._past.setdefault(path, []).append(Step(began_ns, ended_ns, entry))

    def past(self, path: bytes) -> list[Step]:
        return self._past.get(path, [])

    def everything(self) -> Iterator[tuple[bytes, list[Step]]]:
        """Each path, and what it has been."""
        yield from self._past.items()

    def last(self) -> State:
        """What is there now."""
        last = ((path, steps[-1].entry) for path, steps in self._past.items())
        return {path: entry for path, entry in last if entry is not None}

    def removed(self) -> set[bytes]:
        """The paths at which something was, and then was not."""
        return {path for path, steps in self._past.items() if any(step.entry is None for step in steps)}

    def within(self, path: bytes, span: Span) -> set[Entry | None]:
        """All that the path was at some time of the span."""
        found: set[Entry | None] = {None}
        for step in self.past(path):
            if step.began_ns > span.until_ns:
                break
            if step.ended_ns <= span.since_ns:
                found.clear()
            found.add(step.entry)
        return found


# ---- What must not be


def missed(journal: Journal, index: State) -> list[str]:
    """Paths that are otherwise in the index than they are."""
    last = journal.last()
    paths = sorted(path for path in last.keys() | index.keys() if last.get(path) != index.get(path))
    return [f"{path!r} is {index.get(path)} in the index, and is {last.get(path)}" for path in paths]


def invented(journal: Journal, feed: Iterable[Change], spans: Mapping[int, Span]) -> list[str]:
    """Changes that say of a path what it was at no time of their scan."""
    return [
        f"{_said(change)}; {path!r} was {_past(journal, path)}"
        for change in feed
        for path, entry in _claims(change).items()
        if entry not in journal.within(path, spans[change["fence"]])
    ]


def doubled(journal: Journal, feed: Iterable[Change], spans: Mapping[int, Span]) -> list[str]:
    """Changes that tell a path twice in a scan, or leave it as it is to whoever has applied all before.

    A shard that is done again adds to what its first attempt had written: what came and went during a scan, or changed
    and changed back, is then one change which leaves all as it was. That is by design, and must really have happened.
    """
    found: list[str] = []
    told: set[tuple[int, bytes]] = set()
    state: State = {}
    for change in feed:
        path, span = trees.exact(change, "path"), spans[change["fence"]]
        wrong = _wrong(change, state, lambda path=path, span=span: len(journal.within(path, span)) == 1)
        if wrong or (change["fence"], path) in told:
            found.append(f"{_said(change)}: {wrong or 'twice in one scan'}; it was {_past(journal, path)}")
        told.add((change["fence"], path))
        state = _applied(state, change)
    return found


def _wrong(change: Change, state: State, still: Callable[[], bool]) -> str | None:
    """What is wrong with a change where the index is so. `still`: nothing happened to the path during the scan."""
    before = state.get(trees.exact(change, "path"))
    match change["kind"]:
        case "added" | "moved" if before is not None:
            return "it is there already"
        case "moved" if trees.exact(change, "old_path") not in state:
            return "what it was moved from is not there"
        case "modified" if before is None:
            return "it is not there"
        case "modified" if before == trees.entry_of(change) and still():
            return "it is so already"
        case "deleted" if before is None and still():
            return "it is gone already"
    return None


def _applied(state: State, change: Change) -> State:
    """In place: a feed is long."""
    for path, entry in _claims(change).items():
        if entry is None:
            state.pop(path, None)
        else:
            state[path] = entry
    return state


def _claims(change: Change) -> dict[bytes, Entry | None]:
    """What a change says of which path."""
    path = trees.exact(change, "path")
    if change["kind"] == "deleted":
        return {path: None}
    old = {trees.exact(change, "old_path"): None} if change["kind"] == "moved" else {}
    return {**old, path: trees.entry_of(change)}


def _said(change: Change) -> str:
    return f"fence {change['fence']} said {change['kind']} {change['path']!r} ({change.get('digest')})"


def _past(journal: Journal, path: bytes) -> str:
    return ", ".join(_steps(journal, path)) or "never anything"


def _steps(journal: Journal, path: bytes) -> Iterator[str]:
    for step in journal.past(path)[-6:]:
        yield f"{step.entry[1:] if step.entry else None} from {step.began_ns / 1e9:.3f} on"
