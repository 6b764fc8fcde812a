"""The pure decision, by properties: what it says, applied to the rows, gives what the listing showed."""

import hashlib
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from db.types import FileType, Gone, Kind, KnownChild, KnownFile, Unsettled
from tasks.core.compare import (
    Comparison,
    Outcome,
    compare,
    outcome_as_known,
    outcome_of_hash,
    outcome_of_symlink,
    racy,
)
from tasks.core.filesystem import Entry
from tasks.core.hashing import Hashed
from tasks.core.listing import Listing
from tasks.core.policy import Policy
from tasks.core.profile import Profile

FULL = Profile("full")
PROFILES = [FULL, Profile("no ctime", ctime=False), Profile("neither", ctime=False, inode=False)]
FENCE = 9
SECOND_NS = 10**9
# Every stamp below is long past.
NOW_NS = 10**18
NAMES = [b"a", b"b", b"c", b"\xff"]


def content(entry: Entry, profile: Profile) -> bytes:
    """Of the compared fields alone, so that equal stat means equal content; and often equal where stat differs."""
    fields = (entry.size, entry.mtime_ns % 2, profile.ctime and entry.ctime_ns % 2, profile.inode and entry.inode % 2)
    return hashlib.sha256(repr(fields).encode()).digest()


# ---- Folders and rows, drawn


few = st.integers(0, 3)
files = st.builds(Entry, st.just(b""), st.just("file"), few, few, few, few, st.none())
symlinks = st.builds(Entry, st.just(b""), st.just("symlink"), few, few, few, few, st.sampled_from([b"x", b"y"]))
folders = few


@st.composite
def listings(draw: st.DrawFn) -> Listing:
    found = Listing()
    for name, what in draw(st.dictionaries(st.sampled_from(NAMES), files | symlinks | folders)).items():
        if isinstance(what, Entry):
            found.files.append(what._replace(name=name))
        else:
            found.children.append((name, what))
    return found


@st.composite
def rows(draw: st.DrawFn, profile: Profile) -> dict[bytes, KnownFile]:
    """What earlier scans may have left: settled rows are true, others may hold anything or nothing."""
    found = {}
    for name, entry in draw(st.dictionaries(st.sampled_from(NAMES), files | symlinks)).items():
        unsettled = draw(st.none() | st.sampled_from(Unsettled))
        algorithm: str | None = draw(st.sampled_from(["sha256", "sha256", "blake3"]))
        digest: bytes | None = content(entry, profile)
        if unsettled is not None:
            digest = draw(st.sampled_from([digest, b"stale", None]))
        if entry.type == "symlink":
            digest = algorithm = None
        gone = draw(st.none() | st.just(5))
        found[name] = KnownFile(*entry[1:6], unsettled, digest, algorithm, entry.target, 3, gone)
    return found


children = st.dictionaries(
    st.sampled_from(NAMES), st.builds(KnownChild, st.integers(1, 99), few, st.none() | st.just(5))
)


# ---- What a scan makes of a comparison, as the pipeline and the database do


def outcomes(
    comparison: Comparison, profile: Profile, unreadable: frozenset[bytes] = frozenset(), now_ns: int = NOW_NS
) -> list[Outcome]:
    found = [outcome_of_symlink(entry, known, fence=FENCE) for entry, known in comparison.symlinks]
    found += [outcome_as_known(entry.name, known) for entry, known in comparison.back]
    for entry, known in comparison.to_hash:
        if entry.name in unreadable:
            hashed = Hashed(entry, unsettled=Unsettled.FAILED, error="permission denied")
        else:
            hashed = Hashed(entry, content(entry, profile))
        found.append(
            outcome_of_hash(hashed, entry, known, fence=FENCE, now_ns=now_ns, profile=profile, algorithm="sha256")
        )
    return found


def row(outcome: Outcome) -> KnownFile:
    entry = outcome.entry
    return KnownFile(
        *entry[1:6], outcome.unsettled, outcome.digest, outcome.algorithm, entry.target, outcome.changed, None
    )


def applied(
    before: dict[bytes, KnownFile], comparison: Comparison, found: list[Outcome]
) -> dict[bytes, KnownFile]:  # fmt: skip
    after = before | {outcome.entry.name: row(outcome) for outcome in found}
    for name, _ in comparison.missing:
        after[name] = after[name]._replace(gone=after[name].gone or FENCE)
    return after


def visible(known: dict[bytes, KnownFile]) -> dict[bytes, tuple[Any, ...]]:
    """The index, as a reader of the feed knows it: a deletion is told of by finish, not here."""
    return {
        name: (one.type, one.size if one.type == "symlink" else None, one.digest, one.algorithm, one.target)
        for name, one in known.items()
        if one.type == "symlink" or one.digest is not None
    }


@st.composite
def cases(draw: st.DrawFn) -> tuple[Profile, Listing, dict[bytes, KnownFile], dict[bytes, KnownChild]]:
    profile = draw(st.sampled_from(PROFILES))
    return profile, draw(listings()), draw(rows(profile)), draw(children)


@given(cases())
def test_applied_to_the_rows_the_comparison_gives_what_the_listing_showed(case: Any) -> None:
    # given
    profile, listing, before, known_children = case

    # when
    comparison = compare(listing, before, known_children, profile, Policy("sha256"))
    after = applied(before, comparison, outcomes(comparison, profile))

    # then: each entry has a settled row that is true in all that is compared
    here = {name: one for name, one in after.items() if one.gone is None}
    assert here.keys() == {entry.name for entry in listing.files}
    for entry in listing.files:
        one = here[entry.name]
        assert (one.type, one.size, one.mtime_ns, one.target, one.unsettled) == (
            entry.type, entry.size, entry.mtime_ns, entry.target, None)  # fmt: skip
        assert not profile.ctime or one.ctime_ns == entry.ctime_ns
        assert not profile.inode or one.inode == entry.inode
        expected = (content(entry, profile), "sha256") if entry.type == "file" else (None, None)
        assert (one.digest, one.algorithm) == expected
    # and what is gone keeps what was known of it
    for name in after.keys() - here.keys():
        assert after[name]._replace(gone=None) == before[name]._replace(gone=None)


@given(cases())
def test_a_second_comparison_finds_nothing_to_do(case: Any) -> None:
    profile, listing, before, known_children = case
    comparison = compare(listing, before, known_children, profile, Policy("sha256"))
    after = applied(before, comparison, outcomes(comparison, profile))

    again = compare(listing, after, known_children, profile, Policy("sha256"))

    assert (again.to_hash, again.symlinks, again.back) == ([], [], [])


@given(cases())
def test_children_found_lost_and_back_are_those_of_the_listing(case: Any) -> None:
    profile, listing, before, known = case
    here = dict(listing.children)

    comparison = compare(listing, before, known, profile, Policy("sha256"))

    assert dict(comparison.new_children) == {name: inode for name, inode in here.items() if name not in known}
    assert sorted(comparison.found_children) == sorted(
        (one.id, here[name])
        for name, one in known.items()
        if name in here and (one.gone is not None or one.inode != here[name])
    )
    assert {name for name, _, _ in comparison.missing_children} == known.keys() - here.keys()
    assert all(known[name].id == id_ for name, id_, _ in comparison.missing_children)


@given(cases())
def test_a_fingerprint_may_be_kept_only_where_nothing_is_missing(case: Any) -> None:
    profile, listing, before, known_children = case
    names = {entry.name for entry in listing.files}, {name for name, _ in listing.children}

    comparison = compare(listing, before, known_children, profile, Policy("sha256"))

    assert comparison.settled == (before.keys() <= names[0] and known_children.keys() <= names[1])


@given(cases())
def test_what_is_equal_is_not_hashed_and_what_is_unsettled_always_is(case: Any) -> None:
    profile, listing, before, known_children = case

    comparison = compare(listing, before, known_children, profile, Policy("sha256"))

    hashed = {entry.name for entry, _ in comparison.to_hash}
    for entry in listing.files:
        if entry.type != "file":
            assert entry.name not in hashed
            continue
        one = before.get(entry.name)
        equal = one is not None and one.unsettled is None and one.algorithm == "sha256" and (
            (one.type, one.size, one.mtime_ns) == (entry.type, entry.size, entry.mtime_ns)
            and (not profile.ctime or one.ctime_ns == entry.ctime_ns)
            and (not profile.inode or one.inode == entry.inode)
        )  # fmt: skip
        assert (entry.name in hashed) == (not equal)


@given(cases(), st.frozensets(st.sampled_from(NAMES)))
def test_the_changes_applied_to_what_a_reader_knew_give_what_is_known_now(
    case: Any, unreadable: frozenset[bytes]
) -> None:
    # given
    profile, listing, before, known_children = case
    comparison = compare(listing, before, known_children, profile, Policy("sha256"))
    found = outcomes(comparison, profile, unreadable)

    # when
    reader = visible(before)
    for outcome in found:
        name = outcome.entry.name
        if outcome.kind is not None:
            assert (name in reader) == (outcome.kind == Kind.MODIFIED)
            assert outcome.changed == FENCE
            reader[name] = visible({name: row(outcome)})[name]

    # then
    now = visible(applied(before, comparison, found))
    assert {name: one[2:] for name, one in reader.items()} == {name: one[2:] for name, one in now.items()}
    assert reader.keys() == now.keys()


@pytest.mark.row(31, "what cannot be read keeps its row and digest")
@given(cases(), st.frozensets(st.sampled_from(NAMES)))
def test_what_cannot_be_read_keeps_its_row_and_digest_and_waits_for_another_look(
    case: Any, unreadable: frozenset[bytes]
) -> None:
    profile, listing, before, known_children = case
    comparison = compare(listing, before, known_children, profile, Policy("sha256"))

    after = applied(before, comparison, outcomes(comparison, profile, unreadable))

    for entry, known in comparison.to_hash:
        if entry.name not in unreadable:
            continue
        one = after[entry.name]
        assert (one.unsettled, one.gone) == (Unsettled.FAILED, None)
        if known is None:
            assert one.digest is None
        else:
            assert one._replace(unsettled=None, gone=None) == known._replace(unsettled=None, gone=None)


# ---- One by one

FILE = Entry(b"f", "file", 1, 10, 20, 30, None)
LINK = Entry(b"f", "symlink", 1, 10, 20, 30, b"x")
KNOWN = KnownFile("file", 1, 10, 20, 30, None, content(FILE, FULL), "sha256", None, 3, None)
KNOWN_LINK = KnownFile("symlink", 1, 10, 20, 30, None, None, None, b"x", 3, None)


def compared(listing: Listing, known: dict[bytes, KnownFile], children: dict[bytes, KnownChild]) -> Comparison:
    return compare(listing, known, children, FULL, Policy("sha256"))


@pytest.mark.row(13, "file to symlink and back: modified")
def test_a_file_that_becomes_a_symlink_is_one_modified_row_and_so_is_the_reverse() -> None:
    to_link = compared(Listing(files=[LINK]), {b"f": KNOWN}, {})
    to_file = compared(Listing(files=[FILE]), {b"f": KNOWN_LINK}, {})

    for comparison, entry in ((to_link, LINK), (to_file, FILE)):
        [found] = outcomes(comparison, FULL)
        assert (found.kind, found.entry, found.changed) == (Kind.MODIFIED, entry, FENCE)
        assert comparison.missing == [] and comparison.settled


@pytest.mark.row(13, "folder to file and back: replaced")
def test_a_folder_that_becomes_a_file_and_the_reverse_are_replaced() -> None:
    to_file = compared(Listing(files=[FILE]), {}, {b"f": KnownChild(7, 1, None)})
    to_folder = compared(Listing(children=[(b"f", 1)]), {b"f": KNOWN}, {})

    assert to_file.missing_children == [(b"f", 7, Gone.REPLACED)]
    assert [one.kind for one in outcomes(to_file, FULL)] == [Kind.ADDED]
    assert to_folder.missing == [(b"f", Gone.REPLACED)]
    assert to_folder.new_children == [(b"f", 1)]
    assert not to_file.settled and not to_folder.settled


def test_what_left_no_entry_is_absent() -> None:
    comparison = compared(Listing(), {b"f": KNOWN}, {b"d": KnownChild(7, 1, None)})

    assert comparison.missing == [(b"f", Gone.ABSENT)]
    assert comparison.missing_children == [(b"d", 7, Gone.ABSENT)]


@pytest.mark.row(29, "equal content is no change")
def test_a_touched_file_of_equal_content_is_no_change_and_keeps_the_fence_that_changed_it() -> None:
    touched = FILE._replace(mtime_ns=12, ctime_ns=22)
    [found] = outcomes(compared(Listing(files=[touched]), {b"f": KNOWN}, {}), FULL)

    assert found == Outcome(touched, KNOWN.digest, "sha256", None, None, KNOWN.changed, 9, "mtime, ctime")


def test_a_gone_row_that_is_back_as_it_was_is_written_without_hashing() -> None:
    comparison = compared(Listing(files=[FILE, LINK._replace(name=b"l")]),
                          {b"f": KNOWN._replace(gone=5), b"l": KNOWN_LINK._replace(gone=5)}, {})  # fmt: skip

    assert (comparison.to_hash, comparison.symlinks) == ([], [])
    assert [entry.name for entry, _ in comparison.back] == [b"f", b"l"]
    assert [one.kind for one in outcomes(comparison, FULL)] == [None, None]


def test_the_first_digest_of_a_file_that_could_not_be_read_before_is_added() -> None:
    never_read = KNOWN._replace(digest=None, algorithm=None, unsettled=Unsettled.FAILED)

    [found] = outcomes(compared(Listing(files=[FILE]), {b"f": never_read}, {}), FULL)

    assert (found.kind, found.unsettled) == (Kind.ADDED, None)


def test_why_a_digest_is_unsettled_is_kept_before_it_is_called_racy() -> None:
    hashed = Hashed(FILE, b"d", Unsettled.FSYNC_BUDGET)

    found = outcome_of_hash(hashed, FILE, None, fence=1, now_ns=FILE.ctime_ns, profile=FULL, algorithm="sha256")

    assert found.unsettled == Unsettled.FSYNC_BUDGET


# ---- Racy

HOUR, YEAR = 3600.0, 365 * 86400.0
NO_CTIME = Profile("no ctime", ctime=False)
NFS = Profile("nfs", network=True)
SMB = Profile("smb", ctime=False, network=True)
FAT = Profile("vfat", ctime=False, inode=False, granularity_s=2.0)
# (profile, mtime and ctime in seconds after the listing, may a later write carry the same stamps?)
RACES: list[tuple[str, Profile, float, float, bool]] = [
    ("old", FULL, -HOUR, -HOUR, False),
    ("just now", FULL, 0, 0, True),
    ("within the window", FULL, -1.9, -1.9, True),
    ("at the edge of the window", FULL, -2, -2, True),
    ("just out of the window", FULL, -2.1, -2.1, False),
    ("an old date given just now", FULL, -YEAR, -1, True),
    ("a future date given long ago", FULL, 70 * YEAR, -HOUR, False),
    ("a future date given just now", FULL, 70 * YEAR, -1, True),
    ("a future date without a change time", NO_CTIME, 70 * YEAR, -1, False),
    ("within the window, without a change time", NO_CTIME, -1, -YEAR, True),
    ("old, without a change time", NO_CTIME, -HOUR, 0, False),
    ("touched while it was listed, without a change time", NO_CTIME, 1, -HOUR, True),
    ("a server's clock somewhat ahead, without a change time", SMB, 9, -HOUR, True),
    ("a minute ahead, without a change time", SMB, 60, -HOUR, False),
    ("change time an hour ahead: the clock stepped back", FULL, -HOUR, HOUR, True),
    ("change time ten years ahead: the clock was mended", FULL, 10 * YEAR, 10 * YEAR, False),
    ("network: eight seconds ago", NFS, -8, -8, True),
    ("network: eleven seconds ago", NFS, -11, -11, False),
    ("no network: eight seconds ago", FULL, -8, -8, False),
    ("fat: three seconds ago", FAT, -3, -HOUR, True),
    ("fat: five seconds ago", FAT, -5, -HOUR, False),
]


@pytest.mark.row(8, "what a later write could look like is looked at again")
@pytest.mark.row(40, "by the age of its stamps, on either side of now")
@pytest.mark.parametrize(("profile", "mtime_s", "ctime_s", "expected"), [one[1:] for one in RACES],
                         ids=[one[0] for one in RACES])  # fmt: skip
def test_racy_is_what_a_later_write_could_look_like(
    profile: Profile, mtime_s: float, ctime_s: float, expected: bool
) -> None:
    entry = FILE._replace(mtime_ns=NOW_NS + int(mtime_s * SECOND_NS), ctime_ns=NOW_NS + int(ctime_s * SECOND_NS))

    assert racy(entry, NOW_NS, profile) == expected
    hashed = outcome_of_hash(
        Hashed(entry, b"d"), entry, None, fence=1, now_ns=NOW_NS, profile=profile, algorithm="sha256"
    )
    assert hashed.unsettled == (Unsettled.RACY if expected else None)


@given(st.floats(0, 100 * YEAR), st.sampled_from([FULL, NO_CTIME, NFS, SMB, FAT]), st.floats(-YEAR, 100 * YEAR))
@example(70 * YEAR, FULL, 70 * YEAR)
def test_what_is_racy_now_is_settled_after_a_while(age_s: float, profile: Profile, mtime_s: float) -> None:
    """No endless re-hash, whatever date a file carries: its change time passes, or it is too far ahead to be met."""
    entry = FILE._replace(mtime_ns=NOW_NS + int(mtime_s * SECOND_NS), ctime_ns=NOW_NS + int(age_s * SECOND_NS))
    windows = range(40)

    looked = [racy(entry, NOW_NS + int(age_s * SECOND_NS) + n * 86400 * SECOND_NS + 60 * SECOND_NS, profile)
              for n in windows]  # fmt: skip

    assert sum(looked) <= 2


def test_a_filetype_is_what_entries_call_it() -> None:
    assert {FILE.type, LINK.type} == set(FileType)
