"""Hashing a file: the digest of what is there, proven, or none; and never a wait, a leak or a torn digest."""

import errno
import gc
import hashlib
import mmap
import os
import socket
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from blake3 import blake3

from db.types import Unsettled
from tasks.core import filesystem, hashing
from tasks.core.filesystem import Entry
from tasks.core.hashing import DROP_CACHE_BYTES, FRESH_NS, FSYNCS_PER_SHARD, TRIES, Hashed, Hasher
from tasks.core.policy import Policy
from tests import trees
from tests.children import as_nobody
from tests.processes import open_descriptors

CHUNK = 4096
BLOCKING_S = 20
DIGESTS = {"sha256": lambda data: hashlib.sha256(data).digest(), "blake3": lambda data: blake3(data).digest()}
# As the program's clock would say of a file that was touched long ago.
LATER_NS = 3600 * 10**9


class Place:
    """A folder, open, and the hashing of what is in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fd = os.open(folder, trees.DIRECTORY)

    def write(self, content: bytes, name: str = "f") -> Entry:
        (self.folder / name).write_bytes(content)
        return self.entry(name)

    def entry(self, name: str = "f") -> Entry:
        found = filesystem.look(self.fd, name.encode())
        assert found is not None
        return found

    def hash(
        self, listed: Entry, progress: Callable[[int], object] = lambda _: None, *, algorithm: str = "sha256",
        age_ns: int = LATER_NS,
    ) -> Hashed:  # fmt: skip
        hasher = Hasher(Policy(algorithm), CHUNK, progress)
        return hasher.hash(self.fd, listed, max(listed.mtime_ns, listed.ctime_ns) + age_ns)


@pytest.fixture
def place(tmp_path: Path):
    made = Place(tmp_path)
    yield made
    os.close(made.fd)


@pytest.fixture(autouse=True)
def no_descriptor_is_left():
    gc.collect()  # what tests before this one have left
    before = open_descriptors()
    yield
    assert open_descriptors() <= before


def sha(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def once(action: Callable[[], object]) -> Callable[[int], None]:
    done = False

    def progress(_: int) -> None:
        nonlocal done
        if not done:
            done = True
            action()

    return progress


# ---- At rest


@pytest.mark.parametrize("algorithm", hashing.ALGORITHMS)
@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 3 * CHUNK + 5])
def test_the_digest_is_that_of_the_content_at_every_size(place: Place, size: int, algorithm: str) -> None:
    content = os.urandom(size)
    listed = place.write(content)
    told: list[int] = []

    found = place.hash(listed, told.append, algorithm=algorithm)

    assert found == Hashed(listed, DIGESTS[algorithm](content))
    assert sum(told) == size
    assert all(0 <= one <= CHUNK for one in told)


def test_one_hasher_hashes_many_files_and_mixes_none(place: Place) -> None:
    hasher = Hasher(Policy("sha256"), CHUNK, lambda _: None)
    contents = [b"a" * 9000, b"", b"b" * 100, b"a" * 9000]
    entries = [place.write(content, f"f{n}") for n, content in enumerate(contents)]

    found = [hasher.hash(place.fd, entry, entry.ctime_ns + LATER_NS).digest for entry in entries]

    assert found == [sha(content) for content in contents]


def test_a_name_of_any_bytes_is_hashed(place: Place) -> None:
    name = b"-\xff\n$(x)"
    trees.write(os.fsencode(place.folder) + b"/" + name, b"x")
    listed = filesystem.look(place.fd, name)
    assert listed is not None

    assert place.hash(listed).digest == sha(b"x")


# ---- While somebody writes

OLD, SIZE = b"o" * (3 * CHUNK), 3 * CHUNK


def appended(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def rewritten(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"n" * SIZE)


def rewritten_and_set_back(path: Path) -> None:
    before = os.stat(path)
    rewritten(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def shortened(path: Path) -> None:
    os.truncate(path, CHUNK + 1)


def emptied(path: Path) -> None:
    os.truncate(path, 0)


def touched(path: Path) -> None:
    os.utime(path, ns=(0, 0))


WRITERS = [appended, rewritten, rewritten_and_set_back, shortened, emptied, touched]


@pytest.mark.row(10, "written once meanwhile: the digest of what is there then")
@pytest.mark.parametrize("write", WRITERS)
def test_a_file_written_once_while_it_is_hashed_gives_the_digest_of_what_is_there_then(
    place: Place, write: Callable[[Path], None]
) -> None:
    # given
    listed = place.write(OLD)
    trees.next_tick(os.fsencode(place.folder))

    # when
    found = place.hash(listed, once(lambda: write(place.folder / "f")))

    # then: proven under the stat that it has now, which is not the one that was listed
    assert found.digest == sha((place.folder / "f").read_bytes())
    assert found.entry == place.entry() != listed


@pytest.mark.parametrize("write", WRITERS)
def test_a_file_written_after_its_listing_is_hashed_as_it_is_now(place: Place, write: Callable[[Path], None]) -> None:
    listed = place.write(OLD)
    trees.next_tick(os.fsencode(place.folder))
    write(place.folder / "f")

    found = place.hash(listed)

    assert found.digest == sha((place.folder / "f").read_bytes())
    assert found.entry == place.entry() != listed


@pytest.mark.row(10, "replaced: never under the new one's stat")
def test_a_file_replaced_while_it_is_hashed_is_never_told_under_the_new_ones_stat(place: Place) -> None:
    # given
    listed = place.write(OLD)
    trees.next_tick(os.fsencode(place.folder))

    def replace() -> None:
        (place.folder / "new").write_bytes(b"n" * SIZE)
        os.rename(place.folder / "new", place.folder / "f")

    # when
    found = place.hash(listed, once(replace))

    # then: what was open was hashed, and both listings differ from it
    assert found.digest in (None, sha(OLD))
    assert found.entry not in (listed, place.entry())


@pytest.mark.row(11, "given up after so many tries: unstable")
def test_a_file_that_grows_at_every_chunk_is_given_up_after_so_many_tries(place: Place) -> None:
    listed = place.write(OLD)
    chunks = 0

    def grow(_: int) -> None:
        nonlocal chunks
        chunks += 1
        trees.next_tick(os.fsencode(place.folder))
        appended(place.folder / "f")

    found = place.hash(listed, grow)

    assert (found.digest, found.unsettled, found.error) == (None, Unsettled.UNSTABLE, None)
    assert found.entry is not None and found.entry.size > listed.size
    assert chunks <= TRIES * 5


@pytest.mark.row(11, "grows faster than it is read: ends all the same")
def test_a_file_that_grows_faster_than_it_is_read_ends_too(place: Place) -> None:
    listed = place.write(b"x")

    def grow(count: int) -> None:
        with (place.folder / "f").open("ab") as file:
            file.write(b"y" * 2 * CHUNK)

    found = place.hash(listed, grow)

    assert (found.digest, found.unsettled) == (None, Unsettled.UNSTABLE)


@pytest.mark.row(10, "at every chunk: old or new, never a mixture")
def test_no_digest_mixes_two_versions_wherever_the_writer_strikes(place: Place) -> None:
    """A writer that rewrites all of the file after the nth chunk, for each n: old or new, never a mixture."""
    for strike in range(1, 2 * 3 + 1):
        listed = place.write(OLD)
        trees.next_tick(os.fsencode(place.folder))
        chunk = 0

        def progress(count: int, strike: int = strike) -> None:
            nonlocal chunk
            chunk += count > 0
            if count > 0 and chunk == strike:
                rewritten(place.folder / "f")

        found = place.hash(listed, progress)

        assert found.digest == sha(OLD if strike > 3 else b"n" * SIZE), strike


@pytest.mark.parametrize("write", WRITERS)
def test_a_digest_that_took_a_second_try_is_looked_at_again(place: Place, write: Callable[[Path], None]) -> None:
    """Its stamps are later than the listing: a writer that goes on may leave the same ones."""
    listed = place.write(OLD)
    trees.next_tick(os.fsencode(place.folder))

    assert place.hash(listed, once(lambda: write(place.folder / "f"))).unsettled == Unsettled.RACY


@pytest.mark.row(9, "stores through a map while it is hashed: no torn digest")
def test_stores_through_a_map_during_both_tries_never_give_a_torn_digest(place: Place) -> None:
    """The first store moves the time and makes the page writable: without a second flush, no later store moves it."""
    # given
    if not on_a_disk(place.folder):
        pytest.skip("needs ext4, xfs or btrfs under the temporary folder")
    place.write(OLD)
    listed = place.entry()
    chunks = 0
    with (place.folder / "f").open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:

        def store(count: int) -> None:
            nonlocal chunks
            chunks += count > 0
            if count > 0 and chunks in (1, 3 + 2):
                trees.next_tick(os.fsencode(place.folder))
                mapped[0:1] = b"%d" % chunks

        # when
        found = place.hash(listed, store)

        # then: the third try had rest
        assert chunks == 3 * 3
        assert found.digest == sha(mapped[:])
        assert found.entry == place.entry()


# ---- When something else is there


def fifo(path: Path) -> None:
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.mkdir()


def symlink(path: Path) -> None:
    (path.parent / "target").write_bytes(OLD)
    path.symlink_to("target")


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def unix_socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(path.name)
    finally:
        os.chdir(here)


def device(path: Path) -> None:
    os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))  # /dev/zero, which never ends


def nothing(path: Path) -> None:
    pass


@pytest.mark.row(12, "gone between list and open: no error")
@pytest.mark.row(14, "a pipe, socket or device in its place: never waited for")
@pytest.mark.timeout(BLOCKING_S)
@pytest.mark.parametrize(
    "other", [nothing, fifo, folder, symlink, loop, unix_socket, pytest.param(device, marks=pytest.mark.needs("root"))]
)
def test_what_is_no_file_any_more_is_neither_hashed_nor_an_error_and_never_waited_for(
    place: Place, other: Callable[[Path], None]
) -> None:
    listed = place.write(OLD)
    (place.folder / "f").unlink()
    other(place.folder / "f")

    assert place.hash(listed) == Hashed(None)


def test_a_folder_that_went_with_its_file_is_no_error(place: Place) -> None:
    (place.folder / "d").mkdir()
    inner = Place(place.folder / "d")
    listed = inner.write(OLD)
    trees.remove(os.fsencode(place.folder / "d"))

    found = inner.hash(listed)

    os.close(inner.fd)
    assert found == Hashed(None)


@pytest.mark.row(30, "a file that may not be read: failed, with the reason")
def test_a_file_that_may_not_be_read_failed_with_the_reason() -> None:
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        place = Place(Path(name))
        listed = place.write(OLD)
        os.chmod(Path(name, "f"), 0)

        def read() -> None:
            assert place.hash(listed) == Hashed(listed, None, Unsettled.FAILED, "permission denied")

        as_nobody(read)
        os.close(place.fd)


@pytest.mark.row(31, "open, stat or read of a file fails: failed, with the reason")
@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
@pytest.mark.parametrize("call", ["readv", "fstat", "open"])
def test_an_error_of_the_file_system_failed_with_the_reason(
    place: Place, call: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = place.write(OLD)

    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(hashing.os, call, fail)
    found = place.hash(listed)
    monkeypatch.undo()

    assert found == Hashed(listed, None, Unsettled.FAILED, os.strerror(code).lower())


# ---- Fresh files


@pytest.fixture
def flushed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    monkeypatch.setattr(hashing.os, "fsync", calls.append)
    return calls


def test_a_file_touched_within_the_last_minute_is_flushed_first_and_an_older_one_is_not(
    place: Place, flushed: list[int]
) -> None:
    listed = place.write(OLD)

    for age_ns, flushes in ((FRESH_NS, 0), (FRESH_NS - 1, 1), (0, 1), (-LATER_NS, 1)):
        flushed.clear()
        assert place.hash(listed, age_ns=age_ns) == Hashed(listed, sha(OLD))
        assert len(flushed) == flushes, age_ns


def test_a_file_with_an_old_date_that_was_touched_just_now_is_flushed(place: Place, flushed: list[int]) -> None:
    place.write(OLD)
    os.utime(place.folder / "f", ns=(0, 0))

    place.hash(place.entry(), age_ns=0)

    assert len(flushed) == 1


def test_beyond_its_flushes_a_shard_hashes_fresh_files_unsettled(place: Place, flushed: list[int]) -> None:
    # given
    hasher = Hasher(Policy("sha256"), CHUNK, lambda _: None)
    fresh = place.write(b"x")

    # when
    found = [hasher.hash(place.fd, fresh, fresh.ctime_ns) for _ in range(FSYNCS_PER_SHARD + 3)]
    old = hasher.hash(place.fd, fresh, fresh.ctime_ns + LATER_NS)

    # then: old ones need none
    assert len(flushed) == FSYNCS_PER_SHARD
    assert [one.unsettled for one in found] == [None] * FSYNCS_PER_SHARD + [Unsettled.FSYNC_BUDGET] * 3
    assert {one.digest for one in found} == {sha(b"x")}
    assert old == Hashed(fresh, sha(b"x"))


def test_a_file_system_that_cannot_flush_is_hashed_all_the_same(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = place.write(b"x")

    def fail(_: int) -> None:
        raise OSError(errno.EINVAL, "")

    monkeypatch.setattr(hashing.os, "fsync", fail)

    assert place.hash(listed, age_ns=0) == Hashed(listed, sha(b"x"))


def on_a_disk(folder: Path) -> bool:
    fd = os.open(folder, trees.DIRECTORY)
    try:
        return filesystem.filesystem_magic(fd) in (0xEF53, 0x58465342, 0x9123683E)
    finally:
        os.close(fd)


def stored_through_a_map_after_hashing(place: Place) -> tuple[Entry, Entry]:
    """The entry that was hashed, and what stat says after a store through a map that had been written before."""
    place.write(OLD)
    with (place.folder / "f").open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[0:1] = b"1"
        trees.next_tick(os.fsencode(place.folder))
        hashed = place.hash(place.entry(), age_ns=0)
        assert hashed.entry is not None and hashed.digest == sha(b"1" + OLD[1:])
        trees.next_tick(os.fsencode(place.folder))
        mapped[0:1] = b"2"
        return hashed.entry, place.entry()


@pytest.mark.row(9, "flushed before it is hashed, a later store moves a time")
def test_a_store_through_a_map_after_the_hash_is_seen_by_stat(place: Place) -> None:
    if not on_a_disk(place.folder):
        pytest.skip("needs ext4, xfs or btrfs under the temporary folder")

    hashed, now = stored_through_a_map_after_hashing(place)

    assert now != hashed


@pytest.mark.row(9, "without the flush it would not")
def test_without_the_flush_that_store_would_not_be_seen(place: Place, flushed: list[int]) -> None:
    """Why there is a flush at all; where this fails, the file system needs none."""
    if not on_a_disk(place.folder):
        pytest.skip("needs ext4, xfs or btrfs under the temporary folder")

    hashed, now = stored_through_a_map_after_hashing(place)

    assert len(flushed) == 1 and now == hashed


# ---- The machine around it


def test_a_large_file_is_dropped_from_the_page_cache_as_it_is_read(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given
    size = 2 * DROP_CACHE_BYTES + 5
    (place.folder / "f").touch()
    os.truncate(place.folder / "f", size)
    dropped: list[tuple[int, int]] = []

    def drop(_: int, offset: int, length: int, advice: int) -> None:
        assert advice == os.POSIX_FADV_DONTNEED
        dropped.append((offset, length))

    monkeypatch.setattr(hashing.os, "posix_fadvise", drop)
    hasher = Hasher(Policy("sha256"), 1 << 20, lambda _: None)
    listed = place.entry()

    # when
    found = hasher.hash(place.fd, listed, listed.ctime_ns + LATER_NS)

    # then
    assert found.digest == sha(bytes(size))
    assert dropped == [(0, DROP_CACHE_BYTES), (DROP_CACHE_BYTES, DROP_CACHE_BYTES)]


def test_a_small_file_stays_in_the_page_cache(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashing.os, "posix_fadvise", None)

    assert place.hash(place.write(OLD)).digest == sha(OLD)


class Stopped(Exception):
    pass


def test_an_exception_from_progress_passes_through(place: Place) -> None:
    # and leaks no descriptor: see no_descriptor_is_left
    listed = place.write(OLD)

    def stop(_: int) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        place.hash(listed, stop)
