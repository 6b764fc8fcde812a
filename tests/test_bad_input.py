"""What cannot work is said in a sentence that names the thing and what to do; exit 2, and nothing half-written."""

import os
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from db.types import UsageError
from orchestrator.stack.state import StateFolder
from tests import trees
from tests.command import Command
from tests.trees import Dir, File, build


@pytest.fixture
def cli(tmp_path: Path) -> Command:
    return Command(tmp_path / "state")


@pytest.fixture
def refusing(tmp_path: Path) -> Command:
    """For what is refused before anything is started."""
    return Command(tmp_path / "state", starts_nothing=True)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    build(os.fsencode(tmp_path / "root"), Dir({b"f": File(b"1"), b"inside": Dir({})}))
    return tmp_path / "root"


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    for word in words:
        assert word in done.stderr, done.stderr


def tenants_in(state: Path) -> list[tuple]:
    if not (state / "strandline.db").exists():
        return []
    with sqlite3.connect(state / "strandline.db") as connection:
        return connection.execute("SELECT name FROM tenants").fetchall()


BAD_ROOTS: dict[str, tuple[Callable[[Path], str], str]] = {
    "missing": (lambda root: str(root / "nowhere"), "no such file or directory"),
    "a file": (lambda root: str(root / "f"), "not a folder"),
    "/": (lambda root: "/", "whole machine"),
    "a symlink": (lambda root: os.symlink(root / "inside", root / "link") or str(root / "link"), "symbolic link"),
}


@pytest.mark.row(36, "missing, a file, /, a symlink: one sentence, exit 2, no tenant")
@pytest.mark.parametrize("case", BAD_ROOTS)
@pytest.mark.parametrize("words", [["scan"], ["tenant", "add", "name"], ["up", "--dir"]], ids=" ".join)
def test_a_root_that_cannot_be_one_is_refused(refusing: Command, root: Path, case: str, words: list[str]) -> None:
    make, said = BAD_ROOTS[case]
    path = make(root)
    refused(refusing.run(*words, path), repr(path), said)
    assert tenants_in(refusing.state) == []


@pytest.mark.row(36, "unreadable: one sentence")
@pytest.mark.needs("root")
def test_an_unreadable_root_is_refused(cli: Command, root: Path) -> None:
    os.chown(root / "inside", 65534, 65534)
    (root / "inside").chmod(0o700)
    # Root may read everything by these two rights: given up, it is a user like others.
    drop = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    refused(subprocess.run([*drop, *cli.argv("scan", str(root / "inside"))], capture_output=True, text=True),
            str(root / "inside"), "permission denied")  # fmt: skip


@pytest.mark.needs("root")
@pytest.mark.parametrize("words", [["status"], ["tenant", "list"], ["scan", "."]], ids=" ".join)
def test_another_users_state_folder_is_refused_in_a_sentence(cli: Command, words: list[str]) -> None:
    cli.state.mkdir(mode=0o700)
    os.chown(cli.state, 65534, 65534)
    drop = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    done = subprocess.run([*drop, *cli.argv(*words)], capture_output=True, text=True)
    refused(done, f"the state folder {cli.state} cannot be used: permission denied", "--state")
    assert "Errno" not in done.stderr


@pytest.mark.row(36, "inside or around another tenant's root: refused")
def test_roots_of_tenants_do_not_overlap(refusing: Command, root: Path) -> None:
    assert refusing.run("tenant", "add", "outer", str(root)).returncode == 0
    refused(refusing.run("tenant", "add", "inner", str(root / "inside")), "inside", "outer", str(root))
    refused(refusing.run("scan", str(root / "inside")), "inside", "outer")
    refused(refusing.run("scan", str(root.parent)), "contains", "outer")
    assert tenants_in(refusing.state) == [("outer",)]


def test_folders_that_overlap_are_refused_before_anything_is_started(refusing: Command, root: Path) -> None:
    for words in ([str(root), str(root / "inside")], [f"{root}/inside/", f"{root}/../root"]):
        refused(refusing.run("up", "--dir", words[0], "--dir", words[1]), f"'{root}/inside'", f"'{root}'", "apart")
    assert not refusing.state.exists()


def test_of_several_folders_none_is_registered_where_one_overlaps_a_tenants(
    cli: Command, root: Path, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    assert cli.run("tenant", "add", "outer", str(root)).returncode == 0
    refused(cli.run("up", "--dir", str(tmp_path / "other"), "--dir", str(root / "inside")), "inside", "outer")
    assert tenants_in(cli.state) == [("outer",)]


@pytest.mark.parametrize("name", ["a/b", ".hidden", "-dash", "x" * 300, "", "ä", "a b", "a\nb"])
def test_a_bad_tenant_name_is_refused(refusing: Command, root: Path, name: str) -> None:
    if not name.startswith("-"):  # as an argument that would be an option
        refused(refusing.run("tenant", "add", name, str(root)), "tenant name", "letters")
    refused(refusing.run("scan", str(root), f"--tenant={name}"), "tenant name", "letters")
    assert tenants_in(refusing.state) == []


def test_a_known_tenant_with_another_root_is_refused(refusing: Command, root: Path, tmp_path: Path) -> None:
    assert refusing.run("tenant", "add", "one", str(root)).returncode == 0
    (tmp_path / "other").mkdir()
    refused(refusing.run("scan", str(tmp_path / "other"), "--tenant", "one"), "one", str(root), "another root")
    refused(refusing.run("tenant", "add", "one", str(tmp_path / "other")), "one", "exists already")


def test_unknown_words_are_refused(refusing: Command, root: Path) -> None:
    refused(refusing.run("scan", str(root), "--algorithm", "md5"), "md5", "sha256")
    refused(refusing.run("tenant", "add", "t", str(root), "--algorithm", "md5"), "md5", "sha256")
    refused(refusing.run("tenant", "add", "t", str(root), "--tier", "gold"), "gold", "priority")
    refused(refusing.run("tenant", "add", "t", str(root), "--interval", "0"), "interval", "0")
    assert refusing.run("tenant", "add", "t", str(root)).returncode == 0
    refused(refusing.run("tenant", "show", "nobody"), "nobody", "tenant list")
    refused(refusing.run("changes", "t", "--since", "rubbish"), "rubbish", "files")
    refused(refusing.run("cancel", "rubbish"), "rubbish", "scans")
    for words in (["scans", "t", "--limit"], ["tenant", "set", "t", "--large-file-bytes"]):
        done = refusing.run(*words, str(1 << 63))
        assert done.returncode == 2 and f"Invalid value for '{words[-1]}'" in done.stderr
    refused(refusing.run("enqueue", "t"), "no stack runs", "strandline up")


def test_status_makes_no_state_folder_and_says_where_no_stack_runs(refusing: Command, root: Path) -> None:
    refused(refusing.run("status"), "nothing was ever scanned", str(refusing.state), "--state")
    assert not refusing.state.exists()

    assert refusing.run("tenant", "add", "t", str(root)).returncode == 0
    done = refusing.run("status")
    assert done.returncode == 0 and f"no stack runs on {refusing.state}" in done.stderr


def test_a_command_whose_stdout_is_closed_is_no_error(cli: Command, root: Path) -> None:
    cli.state.mkdir()
    done = subprocess.run(["sh", "-c", '"$@" >&-', "sh", *cli.argv("config", "list")], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_unknown_setting_is_refused_and_the_nearest_named(refusing: Command, root: Path) -> None:
    refusing.env = {"STRANDLINE_HASH_CHUNK_BYTE": "1"}
    refused(refusing.run("scan", str(root)), "STRANDLINE_HASH_CHUNK_BYTE", "STRANDLINE_HASH_CHUNK_BYTES")
    refusing.env = {"STRANDLINE_SHARD_ENTRIES": "many"}
    refused(refusing.run("scan", str(root)), "STRANDLINE_SHARD_ENTRIES", "many")
    refusing.env = {"STRANDLINE_DATABASE_URL": "mysql://x"}
    refused(refusing.run("scan", str(root)), "STRANDLINE_DATABASE_URL", "postgresql+psycopg")


def test_a_state_folder_of_a_newer_schema_is_refused_and_left_as_it_is(cli: Command, root: Path) -> None:
    assert cli.run("scan", str(root)).returncode == 0
    database = cli.state / "strandline.db"
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.execute("UPDATE compatibility SET least = '9998'")
    for words in (["scan", str(root)], ["files", "root"], ["up"]):
        refused(cli.run(*words), "9999", "newer", str(database), "upgrade")
    with sqlite3.connect(database) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [("9999",)]


def test_a_corrupt_database_is_refused_and_left_as_it_is(cli: Command, root: Path) -> None:
    cli.state.mkdir()
    database = cli.state / "strandline.db"
    database.write_bytes(b"this is no database" * 1000)
    for words in (["scan", str(root)], ["files", "root"], ["up"]):
        refused(cli.run(*words), str(database), "not a database", "move it away")
    assert database.read_bytes() == b"this is no database" * 1000


@pytest.mark.row(42, "not writable: said in a sentence")
def test_a_state_folder_that_is_a_file_or_cannot_be_written_is_refused(cli: Command, root: Path) -> None:
    cli.state.write_text("")
    refused(cli.run("scan", str(root)), str(cli.state), "--state")
    cli.state = Path("/proc/strandline")
    refused(cli.run("scan", str(root)), "/proc/strandline", "--state")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    mounted = tmp_path / "disk"
    mounted.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=11m", "none", mounted], check=True)
    yield mounted
    subprocess.run(["umount", "-l", mounted], check=True)


@pytest.mark.row(42, "full: said before anything starts")
@pytest.mark.needs("root")
@pytest.mark.needs("mount")
def test_a_full_disk_under_the_state_folder_is_said_before_anything_starts(
    cli: Command, root: Path, small_disk: Path
) -> None:
    cli.state = small_disk / "state"
    (small_disk / "filler").write_bytes(b"x" * (7 << 20))
    refused(cli.run("scan", str(root)), str(cli.state), "full")
    (small_disk / "filler").unlink()
    assert cli.scan(root)["state"] == "succeeded"


@pytest.mark.long
@pytest.mark.chaos
@pytest.mark.row(42, "full meanwhile: the scan fails with that sentence, the next completes")
@pytest.mark.needs("root")
@pytest.mark.needs("mount")
def test_a_disk_that_fills_up_meanwhile_fails_the_scan_with_that_sentence_and_the_next_completes(
    cli: Command, tmp_path: Path, small_disk: Path
) -> None:
    many = os.fsencode(tmp_path / "many")
    trees.make_many(many, 300, 100)
    cli.state = small_disk / "state"
    done = cli.run("scan", os.fsdecode(many), "--tenant", "many")
    assert done.returncode in (1, 2), (done.returncode, done.stdout, done.stderr)
    assert "full" in done.stderr + done.stdout and str(cli.state) in done.stderr + done.stdout
    assert "Traceback" not in done.stderr

    subprocess.run(["mount", "-o", "remount,size=200m", small_disk], check=True)
    document = cli.scan(many, "--tenant", "many")
    assert document["state"] == "succeeded"
    assert cli.index("many") == trees.listing(many)
    assert trees.apply_feed(cli.feed("many")) == trees.listing(many)


def test_a_state_folder_on_a_network_mount_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # No network mount can be made here: the file system's type, as statfs tells it, is NFS's.
    monkeypatch.setattr("orchestrator.stack.state.filesystem_magic", lambda fd: 0x6969)
    with pytest.raises(UsageError, match=r"network.*\(nfs\).*--state"):
        StateFolder(str(tmp_path / "state"))
