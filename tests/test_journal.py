"""The instruments of a storm: a journal that tells what is there, a comparison that finds what is not as it was."""

import os
import random
from pathlib import Path

import pytest

from tests.invariants import taken_away
from tests.journal import Journal, Span, doubled, invented, missed
from tests.trees import Entry, listing
from tests.writer import Writer, Writers, entry_of, operations

A, B, C = (entry_of(content) for content in (b"a", b"b", b"c"))
SECOND_NS = 10**9


def change(kind: str, path: bytes, entry: Entry | None = None, old: bytes | None = None, fence: int = 1) -> dict:
    """As the feed has it; a symlink has a target in place of a digest."""
    entry_type, size, digest, target = entry or ("symlink", 1, None, b"")
    content = {"digest": digest} if target is None else {"target": target.decode()}
    document = {"kind": kind, "path": path.decode(), "type": entry_type, "size": size, "fence": fence, **content}
    return document | ({"old_path": old.decode()} if old is not None else {})


def past(first: dict[bytes, Entry], *steps: dict[bytes, Entry | None]) -> tuple[Journal, dict[int, Span]]:
    """A journal with one step a second, as it is told, and scans: the nth ends just before the nth step."""
    journal, spans = Journal(first), {1: Span(0, SECOND_NS - 1)}
    for number, step in enumerate(steps, start=1):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("time.time_ns", lambda number=number: number * SECOND_NS)
            journal.do(lambda: None, step)
        spans[number + 1] = Span(number * SECOND_NS, (number + 1) * SECOND_NS - 1)
    return journal, spans


# ---- The journal, and who keeps it


@pytest.mark.parametrize("seed", range(4))
def test_a_journal_ends_with_what_is_there(tmp_path: Path, seed: int) -> None:
    root = os.fsencode(tmp_path / "root")
    writer = Writer(root, random.Random(seed))
    for _ in range(8):
        for _ in range(100):
            writer.change()
        assert writer.journal.last() == listing(root)
    assert len(writer.counted) == len(writer._weights()), "everything was done"
    assert any(not _is_text(path) for path in writer.journal.last())


def _is_text(path: bytes) -> bool:
    return path.decode("utf-8", "replace").encode() == path


def test_the_same_seed_makes_the_same_tree(tmp_path: Path) -> None:
    writers = [Writer(os.fsencode(tmp_path / name), random.Random(5)) for name in ("one", "two")]
    for writer in writers:
        for _ in range(200):
            writer.change()
    assert listing(writers[0].root) == listing(writers[1].root)


def test_a_thread_of_writers_tells_what_went_wrong(tmp_path: Path) -> None:
    writer = Writer(os.fsencode(tmp_path / "root"), random.Random(1))
    os.rename(tmp_path / "root", tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError), Writers([writer], "1", 1000) as writers:
        writers._thread.join(60)
    assert operations([writer]).total() < 10


def test_a_path_may_be_either_while_it_changes() -> None:
    journal, _ = past({b"f": A}, {b"f": B}, {b"f": None})
    second = SECOND_NS
    assert journal.within(b"f", Span(0, second - 1)) == {A}
    assert journal.within(b"f", Span(0, second)) == {A, B}
    assert journal.within(b"f", Span(second, 2 * second - 1)) == {B}
    assert journal.within(b"f", Span(second + 1, 5 * second)) == {B, None}
    assert journal.within(b"never", Span(0, second)) == {None}
    assert (journal.last(), journal.removed()) == ({}, {b"f"})


# ---- What is planted is found


def test_what_is_right_is_not_complained_of() -> None:
    journal, spans = past({b"f": A}, {b"f": B, b"g": C}, {b"g": None, b"h": C}, {b"f": None})
    feed = [
        change("added", b"f", A),
        change("modified", b"f", B, fence=2),
        change("added", b"g", C, fence=2),
        change("moved", b"h", C, b"g", fence=3),
        change("deleted", b"f", fence=4),
    ]
    assert missed(journal, {b"h": C}) == invented(journal, feed, spans) == doubled(journal, feed, spans) == []


@pytest.mark.parametrize("index", [{}, {b"f": A}, {b"f": B, b"g": A}], ids=["lost", "of before", "of nobody"])
def test_an_index_that_is_otherwise_is_a_miss(index: dict[bytes, Entry]) -> None:
    journal, _ = past({b"f": A}, {b"f": B})
    assert len(missed(journal, index)) == 1


@pytest.mark.parametrize(
    "told",
    [
        change("modified", b"f", C, fence=2),  # of another file
        change("modified", b"f", A, fence=2),  # which it was, but no longer in this scan
        change("modified", b"f", B),  # which it was not yet
        change("added", b"nothing", A, fence=2),
        change("deleted", b"f", fence=2),
        change("moved", b"f", B, b"g", fence=2),  # but g is still there
    ],
    ids=lambda told: f"{told['kind']} in {told['fence']}",
)
def test_what_was_not_so_during_its_scan_is_invented(told: dict) -> None:
    journal, spans = past({b"f": A, b"g": C}, {b"f": B})
    assert len(invented(journal, [told], spans)) == 1


@pytest.mark.parametrize(
    "told",
    [
        change("added", b"f", A, fence=2),
        change("modified", b"f", A, fence=2),
        change("modified", b"g", B, fence=2),
        change("deleted", b"g", fence=2),
        change("moved", b"f", B, b"g", fence=2),
        change("moved", b"h", B, b"g", fence=2),  # from where nothing was
        change("modified", b"f", B),  # twice in one scan
    ],
    ids=lambda told: f"{told['kind']} {told['path']} in {told['fence']}",
)
def test_what_leaves_all_as_it_was_is_doubled(told: dict) -> None:
    journal, spans = past({b"f": A}, {})
    assert len(doubled(journal, [change("added", b"f", A), told], spans)) == 1


def test_what_came_and_went_during_one_scan_may_be_told_as_gone() -> None:
    journal, _ = past({b"f": A}, {b"f": B, b"g": C}, {b"f": A, b"g": None})
    spans, feed = {1: Span(0, 9 * SECOND_NS), 2: Span(10 * SECOND_NS, 20 * SECOND_NS)}, [change("added", b"f", A)]
    assert doubled(journal, [*feed, change("deleted", b"g")], spans) == []
    assert len(doubled(journal, [*feed, change("deleted", b"g", fence=2)], spans)) == 1


def test_what_a_reader_had_and_no_longer_has_was_taken_from_him() -> None:
    feed = [
        {"kind": "deleted", "path": "never had"},
        *({"kind": "added", "path": path} for path in ("a", "b", "c")),
        {"kind": "deleted", "path": "a"},
        {"kind": "moved", "path": "d", "old_path": "b"},
        {"kind": "modified", "path": "c"},
        {"kind": "deleted", "path": "d"},
    ]

    assert taken_away(feed) == {b"a", b"b", b"d"}
