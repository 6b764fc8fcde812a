"""One directory listed: what is in it, exactly; and a fingerprint that any change moves and nothing else does."""

import errno
import itertools
import os
import random
import shutil
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tasks.core import filesystem, listing
from tasks.core.filesystem import Entry, Missing, Unreadable
from tasks.core.listing import LISTING_TRIES, Listing, Seed, list_directory
from tasks.core.policy import Policy
from tasks.core.profile import Profile
from tests import trees
from tests.children import as_nobody
from tests.processes import open_descriptors
from tests.trees import SECOND_NS, Dir, File, Symlink, build

FULL = Profile("full")
NO_CTIME = Profile("no ctime", ctime=False)
NO_INODE = Profile("no inode", inode=False)
NEITHER = Profile("neither", ctime=False, inode=False)
SEED = Seed.of(1, Policy("sha256"), FULL)
SHARED_MEMORY = Path("/dev/shm")


def taken(folder: Path, seed: Seed = SEED) -> Listing:
    fd = os.open(folder, trees.DIRECTORY)
    try:
        return list_directory(fd, b"path", seed)
    finally:
        os.close(fd)


def names(found: Listing) -> list[bytes]:
    return sorted([entry.name for entry in found.files] + [name for name, _ in found.children])


# ---- What is listed


def test_files_symlinks_and_folders_are_listed_as_stat_shows_them(tmp_path: Path) -> None:
    # given
    build(
        os.fsencode(tmp_path),
        Dir({b"f": File(b"12345", mtime_ns=1_234_567_891), b"l": Symlink(b"nowhere/\xff"), b"d": Dir({b"x": File()})}),
    )
    file, link = os.lstat(tmp_path / "f"), os.lstat(tmp_path / "l")

    # when
    found = taken(tmp_path)

    # then
    assert sorted(found.files) == [
        Entry(b"f", "file", 5, 1_234_567_891, file.st_ctime_ns, file.st_ino, None),
        Entry(b"l", "symlink", link.st_size, link.st_mtime_ns, link.st_ctime_ns, link.st_ino, b"nowhere/\xff"),
    ]
    assert found.children == [(b"d", os.stat(tmp_path / "d").st_ino)]
    assert (found.size, found.other, found.steady) == (5, 0, True)


def test_an_empty_folder_has_a_fingerprint_too(tmp_path: Path) -> None:
    found = taken(tmp_path)

    assert (found.files, found.children, len(found.fingerprint)) == ([], [], 16)


@pytest.mark.row(21, "exact bytes in a listing")
@pytest.mark.parametrize(
    "name",
    [b"\xff\xfe", b"\xed\xa0\x80", b"new\nline", b"\r\t\x1b[31m", b"'\"$(x)%s", b"-rf", b"n" * 255, b"e\xcc\x81"],
)
def test_names_are_exact_bytes(tmp_path: Path, name: bytes) -> None:
    folder = os.fsencode(tmp_path)
    build(folder, Dir({name: File(), b"d" + name[:254]: Dir(), b"l" + name[:254]: Symlink(name)}))

    found = taken(tmp_path)

    assert names(found) == sorted([name, b"d" + name[:254], b"l" + name[:254]])
    assert [entry.target for entry in found.files if entry.type == "symlink"] == [name]


@pytest.mark.row(14, "counted, never opened")
def test_pipes_sockets_and_devices_are_counted_and_never_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        monkeypatch.chdir(tmp_path)
        listening.bind("socket")
    expected = 2
    if os.geteuid() == 0:
        os.mknod(tmp_path / "zero", stat.S_IFCHR | 0o600, os.makedev(1, 5))
        expected += 1
    before = taken(tmp_path).fingerprint
    fd = os.open(tmp_path, trees.DIRECTORY)
    monkeypatch.setattr(listing.os, "open", None)

    # when
    found = list_directory(fd, b"", SEED)

    # then
    os.close(fd)
    assert (found.files, found.children, found.other, found.fingerprint) == ([], [], expected, before)


# ---- The fingerprint, by what the file system holds


def test_the_order_of_creation_does_not_matter(tmp_path: Path) -> None:
    # given: equal content twice, as far as no inode and no change time is compared
    seed = Seed.of(1, Policy("sha256"), NEITHER)
    order = list(range(500))
    found = []
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        random.Random(number).shuffle(order)
        build(os.fsencode(folder), Dir({b"f%d" % n: File(b"%d" % n, mtime_ns=n * SECOND_NS) for n in order}))

        # when
        found.append(taken(folder, seed))

    # then
    assert found[0].fingerprint == found[1].fingerprint


def test_what_is_in_a_child_and_the_childs_own_times_do_not_matter(tmp_path: Path) -> None:
    build(os.fsencode(tmp_path), Dir({b"d": Dir({b"x": File(b"1")}), b"f": File()}))
    before = taken(tmp_path).fingerprint

    (tmp_path / "d" / "y").write_bytes(b"2")
    os.utime(tmp_path / "d", (5, 5))
    os.chmod(tmp_path / "d", 0o700)

    assert taken(tmp_path).fingerprint == before


CHANGES: dict[str, Callable[[Path], object]] = {
    "content, the time set back": lambda folder: rewritten(folder / "f"),
    "size": lambda folder: (folder / "f").open("ab").write(b"x"),
    "mtime by a nanosecond": lambda folder: os.utime(
        folder / "f", ns=(0, os.stat(folder / "f").st_mtime_ns + 1)
    ),
    "mode": lambda folder: os.chmod(folder / "f", 0o600),
    "name": lambda folder: os.rename(folder / "f", folder / "g"),
    "added": lambda folder: (folder / "new").touch(),
    "removed": lambda folder: os.unlink(folder / "f"),
    "folder added": lambda folder: os.mkdir(folder / "new"),
    "folder removed": lambda folder: os.rmdir(folder / "d"),
    "folder renamed": lambda folder: os.rename(folder / "d", folder / "e"),
    "folder replaced": lambda folder: replaced_folder(folder / "d"),
    "retargeted": lambda folder: (os.unlink(folder / "l"), os.symlink("g", folder / "l")),
    "file to folder": lambda folder: (os.unlink(folder / "f"), os.mkdir(folder / "f")),
    "folder to file": lambda folder: (os.rmdir(folder / "d"), (folder / "d").touch()),
    "two names exchanged": lambda folder: exchanged(folder, "f", "same"),
}  # fmt: skip


def rewritten(path: Path) -> None:
    before = os.stat(path)
    path.write_bytes(b"x" * before.st_size)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replaced_folder(path: Path) -> None:
    os.rename(path, path.with_name("old"))
    os.mkdir(path)
    os.rmdir(path.with_name("old"))


def exchanged(folder: Path, one: str, other: str) -> None:
    os.rename(folder / one, folder / "aside")
    os.rename(folder / other, folder / one)
    os.rename(folder / "aside", folder / other)


@pytest.mark.parametrize("change", CHANGES)
def test_any_one_change_moves_the_fingerprint(tmp_path: Path, change: str) -> None:
    # given
    build(
        os.fsencode(tmp_path),
        Dir({b"f": File(b"1"), b"same": File(b"2", mtime_ns=0), b"l": Symlink(b"f"), b"d": Dir()}),
    )
    os.utime(tmp_path / "f", ns=(0, 0))
    before = taken(tmp_path).fingerprint
    trees.next_tick(os.fsencode(tmp_path))

    # when
    CHANGES[change](tmp_path)

    # then
    assert taken(tmp_path).fingerprint != before


@pytest.mark.row(39, "fields that mean nothing are not compared")
def test_where_change_times_and_inodes_mean_nothing_they_are_left_out(tmp_path: Path) -> None:
    # given: a copy has another ctime and another inode
    build(os.fsencode(tmp_path / "one"), Dir({b"f": File(b"1", mtime_ns=0), b"d": Dir()}))
    trees.next_tick(os.fsencode(tmp_path))
    shutil.copytree(tmp_path / "one", tmp_path / "two")

    # when
    equal = {
        profile.name: taken(tmp_path / "one", seed).fingerprint == taken(tmp_path / "two", seed).fingerprint
        for profile in (FULL, NO_CTIME, NO_INODE, NEITHER)
        for seed in (Seed.of(1, Policy("sha256"), profile),)
    }

    # then
    assert equal == {"full": False, "no ctime": False, "no inode": False, "neither": True}


def test_a_mode_alone_moves_the_change_time_and_so_only_what_compares_it(tmp_path: Path) -> None:
    build(os.fsencode(tmp_path), Dir({b"f": File(b"1")}))
    seeds = [Seed.of(1, Policy("sha256"), profile) for profile in (FULL, NO_INODE, NO_CTIME, NEITHER)]
    before = [taken(tmp_path, seed).fingerprint for seed in seeds]
    trees.next_tick(os.fsencode(tmp_path))

    os.chmod(tmp_path / "f", 0o600)

    after = [taken(tmp_path, seed).fingerprint for seed in seeds]
    assert [one == two for one, two in zip(before, after, strict=True)] == [False, False, True, True]


def test_tenant_algorithm_and_profile_keep_fingerprints_apart(tmp_path: Path) -> None:
    build(os.fsencode(tmp_path), Dir({b"f": File(b"1")}))
    seeds = [
        Seed.of(tenant, Policy(algorithm), profile)
        for tenant in (1, 2, 12)
        for algorithm in ("sha256", "blake3")
        for profile in (FULL, NO_CTIME, NO_INODE, NEITHER)
    ]

    found = {taken(tmp_path, seed).fingerprint for seed in seeds}

    assert len(found) == len(seeds) == 24


# ---- The fingerprint, by what stat may answer. Entries as a file system would tell of them.


class Told:
    """A directory entry, with the stat that a file system gives it."""

    def __init__(self, entry: dict[str, Any]) -> None:
        self.name = os.fsdecode(entry["name"])
        self._entry = entry

    def is_dir(self, *, follow_symlinks: bool) -> bool:
        assert not follow_symlinks
        return self._entry["type"] == "dir"

    def inode(self) -> int:
        return self._entry["inode"]

    def stat(self, *, follow_symlinks: bool) -> SimpleNamespace:
        assert not follow_symlinks
        mode = {"file": stat.S_IFREG, "symlink": stat.S_IFLNK}[self._entry["type"]]
        fields = {f"st_{name}": self._entry[name] for name in ("size", "mtime_ns", "ctime_ns")}
        return SimpleNamespace(st_mode=mode, st_ino=self._entry["inode"], **fields)


class Scandir(list):
    def __enter__(self) -> "Scandir":
        return self

    def __exit__(self, *_: object) -> None:
        pass


def told(entries: list[dict[str, Any]], seed: Seed) -> Listing:
    targets = {os.fsdecode(entry["name"]): os.fsdecode(entry["target"]) for entry in entries}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(listing.os, "scandir", lambda fd: Scandir(map(Told, entries)))
        patched.setattr(listing.os, "readlink", lambda name, dir_fd: targets[name])
        return listing._list_once(-1, b"", seed, None, None)


INT64 = st.integers(-(2**63), 2**63 - 1)
INODES = st.integers(0, 2**64 - 1)
NAMES = st.binary(min_size=1, max_size=12).filter(lambda name: not set(name) & {0, 0x2F})
ENTRIES = st.lists(
    st.fixed_dictionaries(
        {
            "name": NAMES,
            "type": st.sampled_from(["file", "symlink", "dir"]),
            "size": st.integers(0, 2**63 - 1),
            "mtime_ns": INT64,
            "ctime_ns": INT64,
            "inode": INODES,
            "target": NAMES,
        }
    ),
    min_size=1,
    max_size=6,
    unique_by=lambda entry: entry["name"],
)
PROFILES = st.sampled_from([FULL, NO_CTIME, NO_INODE, NEITHER])
VALUES = {"name": NAMES, "type": st.sampled_from(["file", "symlink", "dir"]), "size": st.integers(0, 2**63 - 1),
          "mtime_ns": INT64, "ctime_ns": INT64, "inode": INODES, "target": NAMES}  # fmt: skip


def counts(field: str, entry: dict[str, Any], profile: Profile) -> bool:
    """Must a change of this field of this entry be seen?"""
    if field == "inode":
        return profile.inode
    if field in ("name", "type"):
        return True
    if field == "target":
        return entry["type"] == "symlink"
    return entry["type"] != "dir" and (field != "ctime_ns" or profile.ctime)


@given(ENTRIES, PROFILES, st.data())
def test_a_change_of_one_field_moves_the_fingerprint_just_where_the_field_is_compared(
    entries: list[dict[str, Any]], profile: Profile, data: st.DataObject
) -> None:
    # given
    seed = Seed.of(1, Policy("sha256"), profile)
    at = data.draw(st.integers(0, len(entries) - 1))
    field = data.draw(st.sampled_from(sorted(VALUES)))
    value = data.draw(VALUES[field].filter(lambda value: value != entries[at][field]))
    changed = [dict(entry) for entry in entries]
    changed[at][field] = value
    if field == "name" and value in [entry["name"] for entry in entries]:
        return

    # when
    before, after = told(entries, seed).fingerprint, told(changed, seed).fingerprint

    # then
    assert (before != after) == counts(field, entries[at], profile)


@given(ENTRIES, PROFILES, st.data())
def test_an_entry_more_or_fewer_moves_the_fingerprint_and_another_order_does_not(
    entries: list[dict[str, Any]], profile: Profile, data: st.DataObject
) -> None:
    seed = Seed.of(1, Policy("sha256"), profile)
    fewer = [*entries]
    del fewer[data.draw(st.integers(0, len(entries) - 1))]
    other_order = data.draw(st.permutations(entries))

    whole = told(entries, seed).fingerprint

    assert told(fewer, seed).fingerprint != whole
    assert told(other_order, seed).fingerprint == whole


@given(NAMES, NAMES, PROFILES)
def test_a_name_and_a_target_are_not_told_apart_by_their_sum_alone(one: bytes, two: bytes, profile: Profile) -> None:
    """What a name gives to its target must be seen: "ab" → "c" is not "a" → "bc"."""
    seed = Seed.of(1, Policy("sha256"), profile)
    base = {"type": "symlink", "size": 1, "mtime_ns": 0, "ctime_ns": 0, "inode": 7}
    whole = one + two

    found = {
        told([{**base, "name": whole[:cut], "target": whole[cut:]}], seed).fingerprint for cut in range(1, len(whole))
    }

    assert len(found) == len(whole) - 1


def entry(**values: Any) -> dict[str, Any]:
    return {"name": b"f", "type": "file", "size": 0, "mtime_ns": 0, "ctime_ns": 0, "inode": 1, "target": b"t"} | values


YEAR_9999_NS = 253_402_300_799 * SECOND_NS


@pytest.mark.row(27, "beyond 64 bits: the nearest that fits")
@pytest.mark.parametrize(
    ("ns", "kept"), [(YEAR_9999_NS, 2**63 - 1), (-62_198_755_200 * SECOND_NS, -(2**63)), (2**63, 2**63 - 1), (-1, -1)]
)
@pytest.mark.parametrize("field", ["mtime_ns", "ctime_ns"])
def test_stamps_beyond_64_bits_are_kept_as_the_nearest_that_fit(field: str, ns: int, kept: int) -> None:
    found = told([entry(**{field: ns})], SEED)

    assert getattr(found.files[0], field) == kept
    assert found.fingerprint != told([entry()], SEED).fingerprint
    assert found.fingerprint == told([entry(**{field: kept})], SEED).fingerprint


@pytest.mark.parametrize(("inode", "kept"), [(2**63, -(2**63)), (2**64 - 1, -1), (2**63 - 1, 2**63 - 1)])
def test_inodes_beyond_63_bits_become_the_signed_number_that_a_database_holds(inode: int, kept: int) -> None:
    assert told([entry(inode=inode)], SEED).files[0].inode == kept
    assert told([entry(inode=inode, type="dir")], SEED).children == [(b"f", kept)]


@pytest.mark.row(27, "the year 9999 and 1960, on a tmpfs")
@pytest.mark.skipif(not os.access(SHARED_MEMORY, os.W_OK), reason="needs a writable tmpfs")
def test_a_real_file_of_the_year_9999_and_one_of_1960_are_listed_and_looked_at_alike() -> None:
    with tempfile.TemporaryDirectory(dir=SHARED_MEMORY) as folder:
        # given
        for name, ns in (("late", YEAR_9999_NS), ("early", -315_619_200 * SECOND_NS - 1)):
            Path(folder, name).touch()
            os.utime(Path(folder, name), ns=(0, ns))
        if os.stat(Path(folder, "late")).st_mtime_ns != YEAR_9999_NS:
            pytest.skip("this tmpfs does not hold the year 9999")
        fd = os.open(folder, trees.DIRECTORY)

        # when
        found = {entry.name: entry for entry in list_directory(fd, b"", SEED).files}
        looked = {name: filesystem.look(fd, name) for name in found}

        # then
        os.close(fd)
        assert (found[b"late"].mtime_ns, found[b"early"].mtime_ns) == (2**63 - 1, -315_619_200 * SECOND_NS - 1)
        assert looked == found


# ---- While it changes


@pytest.fixture
def busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Iterator[bool]], list[int]]:
    """Makes somebody add a file behind each listing for which `when` says so; gives the list of listings."""

    def make(when: Iterator[bool]) -> list[int]:
        listings: list[int] = []
        real = os.scandir

        class Watched:
            def __init__(self, fd: int) -> None:
                self._entries = real(fd)

            def __enter__(self) -> Iterator[os.DirEntry[str]]:
                return iter(self._entries)

            def __exit__(self, *_: object) -> None:
                self._entries.close()
                listings.append(len(listings))
                if next(when):
                    trees.next_tick(os.fsencode(tmp_path.parent))
                    (tmp_path / f"new{len(listings)}").touch()

        monkeypatch.setattr(listing.os, "scandir", Watched)
        return listings

    return make


@pytest.mark.row(32, "its times moved meanwhile: listed again")
def test_a_folder_that_changes_while_it_is_listed_is_listed_again(tmp_path: Path, busy: Callable) -> None:
    (tmp_path / "f").touch()
    listings = busy(itertools.chain([True], itertools.repeat(False)))

    found = taken(tmp_path)

    assert (len(listings), found.steady, names(found)) == (2, True, [b"f", b"new1"])


@pytest.mark.row(32, "never at rest: so many times, and said so")
def test_a_folder_that_never_rests_is_listed_so_many_times_and_said_to_be_unsteady(
    tmp_path: Path, busy: Callable
) -> None:
    (tmp_path / "f").touch()
    listings = busy(itertools.repeat(True))

    found = taken(tmp_path)

    assert (len(listings), found.steady) == (LISTING_TRIES, False)
    assert names(found) == [b"f", b"new1", b"new2"]


def test_a_folder_at_rest_is_listed_once(tmp_path: Path, busy: Callable) -> None:
    listings = busy(itertools.repeat(False))

    assert taken(tmp_path).steady
    assert len(listings) == 1


def test_a_folder_removed_while_it_is_open_is_missing(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    build(os.fsencode(folder), Dir({b"f": File()}))
    fd = os.open(folder, trees.DIRECTORY)
    shutil.rmtree(folder)

    with pytest.raises(Missing):
        list_directory(fd, b"d", SEED)

    os.close(fd)


@pytest.mark.row(32, "removed in the middle of its listing: missing")
def test_a_folder_removed_in_the_middle_of_its_listing_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given
    folder = tmp_path / "d"
    build(os.fsencode(folder), Dir({b"f%d" % n: File() for n in range(5)}))

    def removing(entries: Iterator[os.DirEntry[str]]) -> Iterator[os.DirEntry[str]]:
        for number, found in enumerate(entries):
            if number == 2:
                trees.remove(os.fsencode(folder))
            yield found

    monkeypatch.setattr(listing.os, "scandir", wrapped(removing))

    # when, then
    with pytest.raises(Missing):
        taken(folder)


def wrapped(passing: Callable[[Iterator[Any]], Iterator[Any]]) -> type:
    real = os.scandir

    class Wrapped:
        def __init__(self, fd: int) -> None:
            self._entries = real(fd)

        def __enter__(self) -> Iterator[os.DirEntry[str]]:
            return passing(self._entries)

        def __exit__(self, *_: object) -> None:
            self._entries.close()

    return Wrapped


@pytest.mark.row(31, "half-way through a listing: unreadable, never shorter")
@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT])
def test_an_error_half_way_through_is_unreadable_and_never_a_shorter_listing(
    tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given
    build(os.fsencode(tmp_path), Dir({b"f%d" % n: File() for n in range(10)}))

    def failing(entries: Iterator[os.DirEntry[str]]) -> Iterator[os.DirEntry[str]]:
        yield from itertools.islice(entries, 5)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(listing.os, "scandir", wrapped(failing))
    before = open_descriptors()

    # when
    with pytest.raises(Unreadable) as refused:
        taken(tmp_path)

    # then
    assert (refused.value.path, refused.value.operation) == (b"path", "list")
    assert refused.value.error == os.strerror(code).lower()
    assert open_descriptors() <= before


@pytest.mark.parametrize("change", ["removed", "replaced by a folder", "symlink replaced by a file"])
def test_an_entry_that_changes_between_its_name_and_its_stat_is_listed_again(
    tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given
    build(os.fsencode(tmp_path), Dir({b"a": File(), b"b": Symlink(b"a"), b"c": File()}))
    what = tmp_path / ("b" if change.startswith("symlink") else "a")
    done = False

    def changing(entries: Iterator[os.DirEntry[str]]) -> Iterator[os.DirEntry[str]]:
        nonlocal done
        names = list(entries)
        if not done:
            done = True
            trees.next_tick(os.fsencode(tmp_path.parent))
            what.unlink()
            if change != "removed":
                what.mkdir() if what.name == "a" else what.touch()
        yield from names

    monkeypatch.setattr(listing.os, "scandir", wrapped(changing))

    # when
    found = taken(tmp_path)

    # then
    state = {entry.name: entry.type for entry in found.files} | {name: "dir" for name, _ in found.children}
    expected = {b"a": "file", b"b": "symlink", b"c": "file"}
    match change:
        case "removed":
            del expected[b"a"]
        case "replaced by a folder":
            expected[b"a"] = "dir"
        case _:
            expected[b"b"] = "file"
    assert found.steady and state == expected


@pytest.mark.row(30, "a folder that may not be listed: unreadable")
def test_a_folder_that_may_not_be_listed_is_unreadable() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        build(os.fsencode(folder), Dir({b"d": Dir({b"f": File()})}))
        os.chmod(os.path.join(folder, "d"), 0o444)

        def look() -> None:
            with pytest.raises(Unreadable, match="permission denied"):
                taken(Path(folder, "d"))

        as_nobody(look)


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(st.sets(NAMES.filter(lambda name: name not in (b".", b"..")), max_size=20))
def test_whatever_the_names_they_are_those_that_were_made(tmp_path: Path, made: set[bytes]) -> None:
    with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
        build(os.fsencode(folder), Dir({name: File() for name in made}))

        assert names(taken(Path(folder))) == sorted(made)
