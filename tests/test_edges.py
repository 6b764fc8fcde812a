"""Where text of people and machines meets bytes: roots, names, documents."""

import json
import os
import re
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from db import schema, tenants
from db.changes import Change
from db.engine import connect, writing
from db.indexed import IndexedFile
from db.tenants import NAME
from db.types import Strategy, UsageError
from orchestrator import documents
from orchestrator.cli.common import escaped
from orchestrator.documents import text_of, timestamp
from orchestrator.roots import checked_root, name_for
from orchestrator.start import choose
from tasks import settings
from tasks.settings import Settings
from tests import trees
from tests.children import as_nobody


@pytest.fixture
def place() -> Iterator[Path]:
    """Not in tmp_path, which nobody but its owner may enter; its own path holds no symlink."""
    with tempfile.TemporaryDirectory(prefix="strandline-") as folder:
        os.chmod(folder, 0o755)
        yield Path(folder).resolve()


def checked(path: Path | str | bytes, **given_: str) -> bytes:
    return checked_root(os.fsencode(path), Settings(**given_))


def refusal(path: Path | str | bytes, **given_: str) -> str:
    with pytest.raises(UsageError) as refused:
        checked(path, **given_)
    assert refused.value.exit_code == 2
    return str(refused.value)


# ---- Roots


@pytest.mark.row(41, "slash, .., relative: one true path")
def test_a_folder_is_taken_by_its_one_true_path_however_it_is_written(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given
    (place / "root" / "in").mkdir(parents=True)
    (place / "through").symlink_to(place)
    monkeypatch.chdir(place)
    expected = os.fsencode(place / "root")

    # when, then
    for written in ("root", "./root/", f"{place}/root//", f"{place}/root/in/..", f"{place}/./root/.", "through/root"):
        assert checked(written) == expected, written
    monkeypatch.chdir(place / "root")
    assert checked(".") == expected
    assert checked("in/..") == expected


@pytest.mark.row(21, "a root's own name is exact")
@pytest.mark.parametrize("name", [b"\xff\xfe", b"new\nline", b" ", b"-rf", b"n" * 255, "ä".encode()])
def test_a_root_of_any_name_is_taken_exactly(place: Path, name: bytes) -> None:
    path = os.fsencode(place) + b"/" + name
    os.mkdir(path)

    assert checked(path + b"/") == path


@pytest.mark.row(36, "missing: refused")
def test_a_root_that_is_missing_is_refused(place: Path) -> None:
    assert refusal(place / "none").startswith(f"root '{place}/none' cannot be read: no such file or directory")


@pytest.mark.row(36, "a file: refused")
def test_a_root_that_is_a_file_is_refused(place: Path) -> None:
    (place / "file").touch()

    assert refusal(place / "file") == f"root '{place}/file' is not a folder; give the folder that holds it"
    assert "not a directory" in refusal(place / "file" / "below")


@pytest.mark.row(36, "a symlink: refused, its target named")
@pytest.mark.parametrize("slash", ["", "/"])
def test_a_root_that_is_a_symlink_is_refused_and_its_target_named(place: Path, slash: str) -> None:
    (place / "folder").mkdir()
    (place / "link").symlink_to("folder")

    message = refusal(f"{place}/link{slash}")

    assert message == f"root '{place}/link{slash}' is a symbolic link; give the folder itself: '{place}/folder'"


def test_a_symlink_that_leads_nowhere_or_to_itself_is_refused(place: Path) -> None:
    (place / "dangling").symlink_to("none")
    (place / "loop").symlink_to("loop")

    assert "cannot be read: no such file or directory" in refusal(place / "dangling")
    assert "cannot be read: too many levels of symbolic links" in refusal(place / "loop")


@pytest.mark.row(36, "/: refused")
@pytest.mark.parametrize("path", ["/", "//", "/.", "/tmp/..", "/../.."])
def test_the_whole_machine_is_refused(path: str) -> None:
    assert refusal(path) == "root '/' is the whole machine; give a folder below it"


@pytest.mark.parametrize("path", [b"", b"a\0b"])
def test_what_is_no_path_is_refused(path: bytes) -> None:
    assert "is no path" in refusal(path)


def test_a_path_too_long_for_the_system_is_refused_with_that_reason(place: Path) -> None:
    assert "file name too long" in refusal(place / ("n" * 300))


@pytest.mark.row(36, "unreadable: refused")
def test_a_root_that_may_not_be_listed_is_refused(place: Path) -> None:
    (place / "closed" / "in").mkdir(parents=True)
    os.chmod(place / "closed", 0)

    def ask() -> None:
        for path in ("closed", "closed/in"):
            assert refusal(place / path) == (
                f"root '{place}/{path}' cannot be read: permission denied; see that it may be listed and entered"
            )

    as_nobody(ask)


def test_a_root_that_may_be_listed_but_not_entered_is_refused(place: Path) -> None:
    (place / "closed").mkdir()
    os.chmod(place / "closed", 0o444)

    as_nobody(lambda: refusal(place / "closed"))


@pytest.mark.row(36, "outside the allowed folders: refused")
def test_with_allowed_folders_only_what_lies_in_them_is_taken(place: Path) -> None:
    for name in ("one/in", "two", "one-more", "elsewhere"):
        (place / name).mkdir(parents=True)
    (place / "one" / "out").symlink_to(place / "elsewhere")
    allowed = f"{place}/one/:{place}/two"

    for name in ("one", "one/in", "two"):
        assert checked(place / name, roots=allowed) == os.fsencode(place / name)
    for name in ("one-more", "elsewhere", ".", "one/../elsewhere"):
        assert refusal(f"{place}/{name}", roots=allowed) == (
            f"root '{place}/{name}' lies outside of the folders that STRANDLINE_ROOTS allows: {allowed}"
        )


@pytest.mark.row(36, "out of the allowed folders by a symlink: refused")
def test_a_way_out_of_the_allowed_folders_through_a_symlink_is_refused(place: Path) -> None:
    (place / "one").mkdir()
    (place / "elsewhere" / "in").mkdir(parents=True)
    (place / "one" / "out").symlink_to(place / "elsewhere")

    assert "lies outside" in refusal(place / "one" / "out" / "in", roots=f"{place}/one")


def test_an_allowed_folder_may_be_named_through_a_symlink(place: Path) -> None:
    (place / "one" / "in").mkdir(parents=True)
    (place / "alias").symlink_to("one")

    assert checked(place / "one" / "in", roots=f"{place}/alias") == os.fsencode(place / "one" / "in")
    assert checked(place / "alias" / "in", roots=f"{place}/one") == os.fsencode(place / "one" / "in")


def test_a_refused_root_is_named_in_printable_text(place: Path) -> None:
    message = refusal(os.fsencode(place) + b"/\xff\x1b[31m\n")

    assert message.isprintable()
    message.encode()


# ---- A tenant's name, from its root


@pytest.mark.parametrize(
    ("root", "name"),
    [
        (b"/srv/notes", "notes"),
        (b"/srv/My Notes (2)", "My-Notes-2"),
        (b"/srv/.hidden", "hidden"),
        (b"/srv/--", "folder"),
        (b"/srv/\xff\xfe", "folder"),
        ("/srv/Büro".encode(), "B-ro"),
        (b"/srv/_a.b-c", "_a.b-c"),
    ],
)
def test_a_tenant_is_named_like_its_folder(root: bytes, name: str) -> None:
    assert name_for(root, set()) == name


def test_a_name_that_is_taken_gets_a_number() -> None:
    assert name_for(b"/srv/notes", {"notes", "notes-2"}) == "notes-3"


@given(st.binary(min_size=1, max_size=255).filter(lambda name: not set(name) & {0, 0x2F}), st.integers(0, 20))
def test_whatever_the_folder_is_called_the_name_is_allowed_and_free(name: bytes, others: int) -> None:
    taken: set[str] = set()

    for _ in range(others + 1):
        found = name_for(b"/srv/" + name, taken)
        assert NAME.fullmatch(found) and found not in taken
        taken.add(found)


# ---- Documents


def test_a_time_has_microseconds_and_a_z() -> None:
    assert timestamp(datetime(2026, 3, 1, 12, 0, 0, 0, UTC)) == "2026-03-01T12:00:00.000000Z"
    assert timestamp(datetime(2026, 3, 1, 12, 0, 0, 1, UTC)) == "2026-03-01T12:00:00.000001Z"
    assert timestamp(None) is None


@given(st.datetimes(datetime(1970, 1, 1), datetime(9999, 12, 31), timezones=st.just(UTC)))
def test_a_time_is_read_back_as_it_was(value: datetime) -> None:
    text = timestamp(value)

    assert text is not None and re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", text)
    assert datetime.fromisoformat(text) - value == timedelta(0)


@given(st.binary())
def test_text_is_exact_and_carries_its_bytes_just_where_it_is_not_utf8(value: bytes) -> None:
    document = json.loads(json.dumps(text_of("path", value), ensure_ascii=False).encode())

    assert trees.exact(document, "path") == value
    try:
        value.decode()
    except UnicodeDecodeError:
        assert document.keys() == {"path", "path_b64"}
    else:
        assert document.keys() == {"path"}


NOT_UTF8 = b"a/\xff"
AT = datetime(2026, 3, 1, tzinfo=UTC)


def test_a_change_that_is_not_utf8_carries_the_bytes_of_each_of_its_names() -> None:
    change = Change(**dict.fromkeys(Change._fields) | {
        "fence": 7, "n": 3, "kind": "moved", "path": NOT_UTF8, "old_path": NOT_UTF8 + b"2", "type": "symlink",
        "size": 1, "target": NOT_UTF8 + b"3", "scan": "0199", "at": AT,
    })  # fmt: skip

    document = documents.change_document(change)

    assert trees.exact(document, "path") == NOT_UTF8
    assert trees.exact(document, "old_path") == NOT_UTF8 + b"2"
    assert trees.exact(document, "target") == NOT_UTF8 + b"3"
    assert {"path_b64", "old_path_b64", "target_b64"} <= document.keys()
    assert document["at"] == "2026-03-01T00:00:00.000000Z"
    assert "digest" not in document and "reason" not in document


def test_a_file_has_its_digest_in_lower_case_hex_and_a_symlink_its_target_and_none() -> None:
    common = {"size": 1, "mtime_ns": 2, "changed": 7}
    file = documents.file_document(
        IndexedFile(**dict.fromkeys(IndexedFile._fields) | common
                    | {"path": b"f", "type": "file", "digest": b"\xab\x01", "algorithm": "sha256"})
    )  # fmt: skip
    link = documents.file_document(
        IndexedFile(**dict.fromkeys(IndexedFile._fields) | common | {"path": b"l", "type": "symlink", "target": b"f"})
    )

    assert file == {"path": "f", "type": "file", "size": 1, "mtime_ns": 2, "digest": "ab01", "algorithm": "sha256",
                    "changed_in": 7}  # fmt: skip
    assert link == {"path": "l", "type": "symlink", "size": 1, "mtime_ns": 2, "target": "f", "changed_in": 7}


@pytest.mark.row(21, "whatever the bytes, a terminal gets printable text")
@given(st.binary())
def test_what_a_terminal_gets_is_printable(value: bytes) -> None:
    shown = escaped(value)

    assert shown.isprintable()
    shown.encode()


def test_readable_text_reaches_a_terminal_as_it_is() -> None:
    assert escaped("Büro/a b.md".encode()) == "Büro/a b.md"
    assert escaped(b"a\n\x1b[31m\xff") == "a\\n\\x1b[31m\\xff"


# ---- Why a scan trusts what is stored, or does not


@pytest.mark.parametrize(
    ("known", "full", "watermark", "strategy", "reason"),
    [
        (False, True, 5, Strategy.FULL_INITIAL, "no directory is known yet"),
        (False, False, None, Strategy.FULL_INITIAL, "no directory is known yet"),
        (True, True, 5, Strategy.FULL_FORCED, "asked for"),
        (True, False, None, Strategy.FULL_FALLBACK, "no scan was ever complete"),
        (True, False, 5, Strategy.INCREMENTAL, "watermark valid"),
    ],
)
def test_a_scan_trusts_what_is_stored_only_behind_a_watermark(
    known: bool, full: bool, watermark: int | None, strategy: Strategy, reason: str
) -> None:
    scan, tenant = (
        SimpleNamespace(full=full, verify=False, confirms=None, paths=None),
        SimpleNamespace(watermark_fence=watermark),
    )

    assert choose(scan, tenant, known) == (strategy, reason)


# ---- Settings, at the edge of the process


def test_settings_are_read_once_and_hold_still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRANDLINE_WINDOW", "7")
    loaded = settings.load()
    monkeypatch.setenv("STRANDLINE_WINDOW", "8")

    assert loaded.window == 7
    with pytest.raises(ValueError, match="frozen"):
        loaded.window = 9  # type: ignore[misc]


def test_an_option_that_cannot_be_used_names_its_setting() -> None:
    with pytest.raises(UsageError, match=r"^STRANDLINE_WORKERS=-1 cannot be used: "):
        settings.load(workers=-1)


@pytest.mark.parametrize("address", ["redis://:s3cr3t@host/0", "postgresql+psycopg://me:s3cr3t@host/db",
                                     "postgresql+psycopg://host/db?password=s3cr3t"])  # fmt: skip
def test_an_address_given_to_another_setting_is_refused_without_its_password(address: str) -> None:
    with pytest.raises(UsageError, match=r"^STRANDLINE_WORKERS='.*\*\*\*.*' cannot be used: ") as refused:
        settings.load({"STRANDLINE_WORKERS": address})
    assert "s3cr3t" not in str(refused.value)


def test_every_refusal_is_one_line_that_can_be_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in (("STRANDLINE_WORKERS", "a\nb\x1b"), ("STRANDLINE_WORKERS", "\udcff"), ("STRANDLINE_X", "")):
        with monkeypatch.context() as patched, pytest.raises(UsageError) as refused:
            patched.setenv(variable, value)
            settings.load()
        assert str(refused.value).isprintable()


@pytest.mark.row(39, "what cannot be seen is said")
def test_a_tenants_document_says_what_cannot_be_seen_on_its_file_system(tmp_path):
    engine = connect(f"sqlite:///{tmp_path}/test.db")
    schema.migrate(engine)
    with writing(engine) as connection:
        tenant = tenants.add(connection, name="t", root=b"/t", tier="standard", interval_s=60, algorithm="sha256")
        assert documents.tenant_document(tenant)["cannot_see"] is None
        for filesystem, seen_whole in {"ext4": True, "vfat": False}.items():
            tenants.note_root(connection, tenant.id, filesystem=filesystem, inode=1)
            document = documents.tenant_document(tenants.get(connection, "t"))
            assert (document["cannot_see"] is None) == seen_whole
    assert "size and mtime" in document["cannot_see"]
    engine.dispose()
