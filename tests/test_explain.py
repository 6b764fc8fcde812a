"""`explain`: one word and a sentence for any path."""

import os
import shutil
import socket
from pathlib import Path

import pytest

from tests.command import Command
from tests.trees import Dir, File, Symlink, build, write


@pytest.fixture(scope="module")
def root(cli: Command, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("tree") / "root"
    root = os.fsencode(path)
    build(root, Dir({
        b"file": File(b"file"), b"link": Symlink(b"file"), b"d": Dir({b"in": File(b"in"), b"x.log": File(b"log")}),
        b".strandlineignore": File(b"# first\n*.log\n"), b"temporary": Dir({b"deep": Dir({b"f": File(b"f")})}),
    }))  # fmt: skip
    os.mkfifo(path / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        here = os.getcwd()
        os.chdir(path)  # the address of a socket must be short
        listening.bind("socket")
        os.chdir(here)
    cli.json("tenant", "add", "t", str(path), "--ignore", "/temporary")
    document = cli.scan(root)
    while document["hashed_files"]:
        document = cli.scan(root)
    return root


def told(cli: Command, path: str) -> tuple[str, str]:
    [document] = cli.read("explain", "t", path)
    return document["status"], document["explanation"]


# path → (status, what the sentence says)
SAID = {
    "file": ("unchanged", "changed last in scan number 1; hashed "),
    "d/../file": ("unchanged", "since then equal by size, mtime, ctime, inode"),
    "link": ("symlink", "a symlink to 'file', as scan number 1 found it; never followed"),
    "d": ("directory", "a directory of 1 files, as scan number"),
    "": ("directory", "a directory of 3 files"),
    "pipe": ("special", "a pipe: counted as `other`, never opened and not indexed"),
    "socket": ("special", "a socket: counted as `other`"),
    "d/x.log": ("ignored", "left out by line 2 of '.strandlineignore': *.log"),
    "temporary/deep/f": ("ignored", "left out by a pattern of the tenant: /temporary"),
    "nowhere": ("absent", "nothing is recorded of it, and it is not there"),
    "file/below": ("absent", "nothing is recorded of it, and it is not there"),
    "../other": ("outside", "it is not under the tenant's root"),
    "/etc/passwd": ("outside", "it is not under the tenant's root"),
}


@pytest.mark.parametrize("path", SAID)
def test_what_is_said(cli: Command, root: bytes, path: str) -> None:
    status, sentence = SAID[path]

    assert told(cli, path)[0] == status
    assert sentence in told(cli, path)[1]


def test_an_absolute_path_and_one_that_is_not_utf_8(cli: Command, root: bytes) -> None:
    assert told(cli, os.fsdecode(root) + "/file")[0] == "unchanged"
    write(root + b"/\xff", b"new")
    status, sentence = told(cli, "\udcff")
    assert status == "new" and sentence.startswith("a file of which nothing is recorded yet")
    os.unlink(root + b"/\xff")


def test_why_a_file_was_hashed_again(cli: Command, root: bytes) -> None:
    write(root + b"/again", b"1")
    cli.scan(root)
    os.utime(root + b"/again", ns=(1, 1))
    touched = cli.scan(root)
    number = touched["fence"]
    status, sentence = told(cli, "again")
    assert status in ("racy", "unchanged", "fsync_budget")
    while cli.scan(root)["hashed_files"]:
        pass
    status, sentence = told(cli, "again")
    assert status == "unchanged" and f"changed last in scan number {number - 1}" in sentence
    os.unlink(root + b"/again")
    cli.scan(root)
    assert told(cli, "again")[0] == "absent"


@pytest.mark.needs("mount")
def test_what_could_not_be_looked_at_and_since_when(cli: Command, root: bytes) -> None:
    import subprocess

    first = cli.scan(root)
    write(root + b"/d/.strandlineignore", b"")
    os.unlink(root + b"/d/.strandlineignore")
    os.mkfifo(root + b"/d/.strandlineignore")
    second = cli.scan(root, status=1)
    cli.scan(root, status=1)

    for path in ("d", "d/in"):
        status, sentence = told(cli, path)
        assert status == "unknown" and sentence.endswith("not a regular file; what is recorded stays as it was")
        assert f"could not read rules since scan number {second['fence']}: " in sentence
        assert "what is recorded stays as it was" in sentence
    os.unlink(root + b"/d/.strandlineignore")
    os.symlink(b"x", root + b"/d/.strandlineignore")
    cli.scan(root, status=1)
    assert f"since scan number {second['fence']}: a symbolic link; what is recorded" in told(cli, "d/in")[1]
    os.unlink(root + b"/d/.strandlineignore")
    cli.scan(root)
    assert told(cli, "d/in")[0] == "unchanged"
    os.rename(root, root + b"-away")
    assert told(cli, "d/in")[1].startswith("from here the root could not be opened: no such file or directory")
    os.rename(root + b"-away", root)

    os.mkdir(root + b"/mounted")
    subprocess.run([b"mount", b"-t", b"tmpfs", b"none", root + b"/mounted"], check=True)
    try:
        assert cli.scan(root)["skipped"][0]["path"] == "mounted"
        assert told(cli, "mounted") == ("skipped", "something is mounted here, and mounts are not crossed")
        assert told(cli, "mounted/x")[0] == "skipped"
    finally:
        subprocess.run([b"umount", root + b"/mounted"], check=True)
    assert first["state"] == "succeeded"


def test_a_renamed_folder_was_not_hashed(cli: Command, root: bytes) -> None:
    os.rename(root + b"/d", root + b"/renamed")
    number = cli.scan(root)["fence"]
    assert f"number {number}; not hashed then: its folder was renamed" in told(cli, "renamed/in")[1]
    os.rename(root + b"/renamed", root + b"/d")
    cli.scan(root)


def test_what_waits_to_be_deleted(cli: Command, root: bytes) -> None:
    build(root + b"/many", Dir({b"%03d" % number: File(b"%d" % number) for number in range(100)}))
    cli.scan(root)
    shutil.rmtree(root + b"/many")

    suspect = cli.scan(root, status=1)

    number = suspect["fence"]
    assert told(cli, "many")[0] == told(cli, "many/001")[0] == "pending deletion"
    assert f"a directory 'many' is missing since scan number {number} (absent)" in told(cli, "many")[1]
    cli.json("confirm", suspect["scan"])
    assert told(cli, "many")[0] == told(cli, "many/001")[0] == "absent"


def test_for_people(cli: Command, root: bytes, tmp_path: Path) -> None:
    said = cli.run("explain", "t", "link")
    assert said.returncode == 0 and said.stdout.startswith("link: symlink\n  a symlink to")
    assert cli.run("explain", "nobody", "x").returncode == 2


def test_control_characters_reach_no_terminal(tmp_path: Path) -> None:
    cli = Command(tmp_path / "state")
    build(
        os.fsencode(tmp_path / "root"), Dir({b".strandlineignore": File(b"evil\x1b*\n"), b"evil\x1b[31m": File(b"f")})
    )
    with cli.up():
        assert cli.scan(tmp_path / "root")["files"] == 1
        cli.json("tenant", "set", "root", "--ignore", "\x1b[31m")

        asked = [("explain", "root", "evil\x1b[31m"), ("tenant", "show", "root"), ("files", "root")]
        shown = [cli.run(*words) for words in asked]

    assert [(done.returncode, "\x1b" in done.stdout) for done in shown] == [(0, False)] * 3
    assert "evil\\x1b*" in shown[0].stdout
