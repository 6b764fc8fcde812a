"""Verification, and policies for large files: what stat does not show, and digests that do not cover all."""

import hashlib
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from db.types import HASHES
from orchestrator.verification import share
from tasks import settings as all_settings
from tasks.core.policy import Policy
from tests.command import Command, tmpfs_folder
from tests.trees import Dir, File, apply_feed, build, listing, write

# Whose turn it is

DAY_S = 86_400
NOW = datetime(2026, 1, 1, tzinfo=UTC)
SETTINGS = all_settings.load({})


def tenant_at(place: int, seconds_ago: float, *, filesystem: str = "ext4", silent_changes: int = 0) -> SimpleNamespace:
    until = NOW - timedelta(seconds=seconds_ago)
    return SimpleNamespace(verify_place=place, verify_at=until, filesystem=filesystem, silent_changes=silent_changes)


@given(st.integers(0, HASHES - 1), st.floats(0, 100 * DAY_S), st.integers(0, 1 << 50))
def test_a_turn_begins_where_the_last_ended_and_is_never_more_than_all(place: int, seconds: float, size: int) -> None:
    first, last = share(tenant_at(place, seconds), NOW, size, SETTINGS)

    assert first == place and 0 <= last - first <= HASHES
    assert (last - first) * size <= SETTINGS.verify_bytes * HASHES * 1.01


@pytest.mark.parametrize(
    ("tenant", "days"),
    [
        (tenant_at(0, 3 * DAY_S), 30),
        (tenant_at(0, 3 * DAY_S, silent_changes=1), 7),
        (tenant_at(0, 3 * DAY_S, filesystem="exfat"), 7),
    ],
)
def test_all_have_their_turn_within_the_days_that_the_file_system_deserves(tenant: SimpleNamespace, days: int) -> None:
    first, last = share(tenant, NOW, 1000, SETTINGS)

    assert (last - first) / HASHES == pytest.approx(3 / days, rel=1e-3)


def test_soon_after_a_turn_it_is_nobody_s_turn() -> None:
    first, last = share(tenant_at(7, 40 * 60), NOW, 1000, SETTINGS)
    assert first == last == 7
    first, last = share(tenant_at(7, 45 * 60), NOW, 1000, SETTINGS)
    assert first == 7 < last


def test_before_the_first_complete_scan_it_is_nobody_s_turn() -> None:
    tenant = SimpleNamespace(verify_place=7, verify_at=None, filesystem=None, silent_changes=0)
    assert share(tenant, NOW, 1000, SETTINGS) == (7, 7)


# Through real scans


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    """Everything has its turn within a tenth of a second, and folders of 40 entries are huge."""
    settings = {"STRANDLINE_VERIFY_DAYS": "0.000001", "STRANDLINE_VERIFY_DAYS_UNTRUSTED": "0.000001",
                "STRANDLINE_HUGE_ENTRIES": "40"}  # fmt: skip
    command = Command(tmp_path_factory.mktemp("state"), settings)
    with command.up():
        yield command


def settled(cli: Command, root: bytes) -> dict:
    """Scan until no row waits for another look."""
    document = cli.scan(root)
    while document["hashed_files"] > document["verified_files"]:
        document = cli.scan(root)
    return document


def rot(path: bytes) -> None:
    """Change a file so that stat shows nothing: on tmpfs a store through a map moves no time."""
    import mmap

    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory[0] ^= 1


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[bytes]:
    import shutil
    import tempfile

    folder = tmpfs_folder()
    if folder is None:
        pytest.skip("no tmpfs that can be written to")
    made = tempfile.mkdtemp(dir=folder)
    yield os.fsencode(made)
    shutil.rmtree(made)


@pytest.mark.row(9, "what moved no time at all is found by verification, counted and reported")
def test_a_silent_change_is_found_reported_and_lowers_the_trust(cli: Command, memory: bytes) -> None:
    root, name = memory + b"/root", "rot"
    huge = Dir({b"%03d" % number: File(b"h%d" % number) for number in range(60)})
    build(root, Dir({b"a": File(b"a"), b"b": File(b"b"), b"huge": huge, b"d": Dir({b"e": File(b"e")})}))
    cli.json("tenant", "add", name, os.fsdecode(root))
    first = settled(cli, root)
    for path in (b"/a", b"/huge/031"):
        rot(root + path)

    second = cli.scan(root, "--verify")

    assert (second["strategy"], second["reason"]) == ("verify", "asked for")
    assert (second["verified_files"], second["silent_changes"], second["modified"]) == (63, 2, 2)
    assert cli.index(name) == listing(root) == apply_feed(cli.feed(name))
    assert {change["path"] for change in cli.feed(name, since=first["cursor"])} == {"a", "huge/031"}
    [tenant] = cli.json("tenant", "show", name)
    assert tenant["silent_changes"] == 2


def test_every_file_has_its_turn_without_being_asked_for(cli: Command, memory: bytes) -> None:
    root = memory + b"/root"
    build(root, Dir({b"a": File(b"a"), b"d": Dir({b"e": File(b"e")})}))
    cli.json("tenant", "add", "turn", os.fsdecode(root))
    settled(cli, root)
    rot(root + b"/d/e")

    second = cli.scan(root)

    assert (second["strategy"], second["verified_files"], second["silent_changes"]) == ("incremental", 2, 1)
    assert cli.index("turn") == listing(root)


LARGE = 200_000


def content(size: int, *, middle: bytes = b"") -> bytes:
    return (b"head" + b"." * (size // 2 - 4) + middle).ljust(size - 4, b".") + b"tail"


def test_of_a_large_file_the_digest_covers_what_the_policy_says_and_says_so(cli: Command, tmp_path: Path) -> None:
    root, name = os.fsencode(tmp_path / "root"), "large"
    build(root, Dir({b"large": File(content(LARGE)), b"small": File(b"small")}))
    cli.json("tenant", "add", name, os.fsdecode(root), "--large-file", "partial", "--large-file-bytes", str(LARGE))
    first = settled(cli, root)
    files = {file["path"]: file for file in cli.json("files", name)}
    assert (files["large"]["algorithm"], files["small"]["algorithm"]) == ("sha256-partial", "sha256")
    whole = hashlib.sha256(content(LARGE)).hexdigest()
    assert files["large"]["digest"] != whole

    write(root + b"/large", content(LARGE, middle=b"not seen"))
    assert cli.scan(root)["modified"] == 0
    write(root + b"/large", content(LARGE)[:-1] + b"X")
    assert cli.scan(root)["modified"] == 1
    write(root + b"/large", content(LARGE + 1))
    assert cli.scan(root)["modified"] == 1
    cli.json("tenant", "set", name, "--large-file", "skip")  # from the same size on
    skipped = cli.scan(root)
    assert (skipped["modified"], skipped["hashed_bytes"] < LARGE) == (1, True)  # another digest, of nothing read
    os.rename(root + b"/large", root + b"/moved")
    moved = cli.scan(root)
    assert (moved["moved"], moved["added"], moved["deleted"]) == (1, 0, 0)
    cli.json("tenant", "set", name, "--large-file", "full")
    cli.scan(root)
    assert cli.index(name) == listing(root) == apply_feed(cli.feed(name))
    assert first["state"] == "succeeded"


@pytest.mark.row(26, "8 TB of which nothing is written: within the budget by the tenant's policy")
def test_a_sparse_file_of_terabytes_is_digested_by_its_ends(cli: Command, tmp_path: Path) -> None:
    root = os.fsencode(tmp_path / "root")
    build(root, Dir({b"f": File(b"f")}))
    with open(root + b"/sparse", "wb") as file:
        file.truncate(8 << 40)
    cli.json("tenant", "add", "sparse", os.fsdecode(root), "--large-file", "partial", "--large-file-bytes", "1000000")

    first = cli.scan(root)

    assert (first["state"], first["added"], first["bytes"]) == ("succeeded", 2, (8 << 40) + 1)


def test_a_policy_says_what_it_covers() -> None:
    partial, skip = Policy("blake3", "partial", 100), Policy("sha256", "skip", 100)
    assert [partial.algorithm_for(size) for size in (99, 100)] == ["blake3", "blake3-partial"]
    assert [skip.algorithm_for(size) for size in (99, 100)] == ["sha256", "stat"]
    assert Policy("sha256", "full", 100).algorithm_for(10**9) == Policy("sha256").algorithm_for(10**9) == "sha256"


@pytest.mark.parametrize("size", [1 << 17, (1 << 17) + 1, (1 << 17) - 1, 1 << 20])
def test_parts_are_the_first_and_last_64_kib(tmp_path: Path, size: int) -> None:
    from tasks.core.filesystem import look
    from tasks.core.hashing import Hasher

    folder = os.open(tmp_path, os.O_RDONLY)
    digests = set()
    for place in (None, 0, (1 << 16) - 1, size - 1, size - (1 << 16), size // 2):
        data = bytearray(size)
        if place is not None:
            data[place] = 1
        (tmp_path / "f").write_bytes(data)
        entry = look(folder, b"f")
        assert entry is not None
        hashed = Hasher(Policy("sha256", "partial", 1), 4096, lambda _: None).hash(folder, entry, 0)
        digests.add(hashed.digest)
    os.close(folder)
    inside = (1 << 16) <= size // 2 < size - (1 << 16)
    assert len(digests) == len({None, 0, (1 << 16) - 1, size - 1, size - (1 << 16), size // 2}) - inside
