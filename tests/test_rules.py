"""Ignore rules through real scans: what is left out, what that does to the index, rule files that cannot be read."""

import os
from pathlib import Path

import pytest

from tests.command import Command
from tests.trees import Dir, File, State, Symlink, apply_feed, build, listing, write

TREE = Dir(
    {
        b"kept": File(b"kept"),
        b"a.log": File(b"log"),
        b"src": Dir({b"b.log": File(b"log b"), b"code": File(b"code"), b"build": Dir({b"out": File(b"out")})}),
        b"node_modules": Dir({b"pkg": Dir({b"index.js": File(b"js"), b"link": Symlink(b"index.js")})}),
    }
)


def new(cli: Command, tmp_path: Path, *options: str, tree: Dir = TREE) -> tuple[bytes, str]:
    root, name = os.fsencode(tmp_path / "root"), "t" + tmp_path.name.replace("_", "-")[-60:]
    build(root, tree)
    cli.json("tenant", "add", name, os.fsdecode(root), *options)
    return root, name


def without(state: State, *paths: bytes) -> State:
    return {path: entry for path, entry in state.items() if not path.startswith(paths)}


def exact(cli: Command, name: str, state: State) -> None:
    assert cli.index(name) == state == apply_feed(cli.feed(name))


def test_rules_of_the_tenant_and_of_files_leave_out_what_git_would(cli: Command, tmp_path: Path) -> None:
    root, name = new(cli, tmp_path, "--ignore", "*.log", "--ignore", "/node_modules/")
    write(root + b"/src/.strandlineignore", b"build/\n!b.log\n")
    write(root + b"/.gitignore", b"kept\n")

    document = cli.scan(root)

    assert document["state"] == "succeeded"
    exact(cli, name, without(listing(root), b"a.log", b"src/build", b"node_modules"))


def test_git_s_own_files_count_where_the_tenant_says_so_and_ours_are_stronger(cli: Command, tmp_path: Path) -> None:
    root, name = new(cli, tmp_path, "--gitignore")
    write(root + b"/.gitignore", b"*.log\nkept\n")
    write(root + b"/.strandlineignore", b"!kept\n")

    cli.scan(root)

    exact(cli, name, without(listing(root), b"a.log", b"src/b.log"))
    cli.json("tenant", "set", name, "--no-gitignore")
    cli.scan(root)
    exact(cli, name, listing(root))


@pytest.mark.row(33, "`deleted` with reason `ignored`, `added` when it comes in again, nothing else")
def test_what_becomes_ignored_is_deleted_with_that_reason_and_without_alarm(cli: Command, tmp_path: Path) -> None:
    many = {b"%03d" % number: File(b"%d" % number) for number in range(200)}
    root, name = new(cli, tmp_path, tree=Dir({**TREE.entries, b"many": Dir(many)}))
    first = cli.scan(root)
    write(root + b"/.strandlineignore", b"node_modules\n/many\na.log\n")

    second = cli.scan(root)

    assert (second["state"], second["added"], second["deleted"], second["modified"]) == ("succeeded", 1, 203, 0)
    news = cli.feed(name, since=first["cursor"])
    assert {change["reason"] for change in news if change["kind"] == "deleted"} == {"ignored"}
    exact(cli, name, without(listing(root), b"many", b"node_modules", b"a.log"))
    write(root + b"/.strandlineignore", b"node_modules\n/many/*9\na.log\n")

    third = cli.scan(root)

    assert (third["added"], third["deleted"], third["modified"]) == (180, 0, 1)
    ignored = [b"many/%03d" % number for number in range(9, 200, 10)]
    exact(cli, name, without(listing(root), b"node_modules", b"a.log", *ignored))


def test_an_ignored_folder_is_not_entered(cli: Command, tmp_path: Path) -> None:
    root, name = new(cli, tmp_path, "--ignore", "node_modules")
    os.chmod(root + b"/node_modules", 0)
    write(root + b"/node_modules/.strandlineignore", b"x\n" * 600_000)  # far too large to be read

    assert cli.scan(root)["errors"] == []
    exact(cli, name, without(listing(root), b"node_modules"))


UNREADABLE = {
    "too large": lambda path: write(path, b"#" * (1 << 20) + b"#"),
    "a folder": os.mkdir,
    "a symlink": lambda path: os.symlink(b"elsewhere", path),
    "a pipe": os.mkfifo,
}


@pytest.mark.parametrize("what", UNREADABLE)
def test_a_rule_file_that_cannot_be_read_makes_its_folder_unknown(cli: Command, tmp_path: Path, what: str) -> None:
    root, name = new(cli, tmp_path)
    cli.scan(root)
    before = listing(root)
    UNREADABLE[what](root + b"/src/.strandlineignore")
    os.unlink(root + b"/src/code")
    write(root + b"/src/build/new", b"new")
    write(root + b"/beside", b"beside")

    second = cli.scan(root, status=1)

    assert (second["state"], second["deleted"], second["errors_total"]) == ("partial", 0, 1)
    [error] = second["errors"]
    assert (error["path"], error["operation"]) == ("src/.strandlineignore", "read rules")
    assert cli.index(name) == before | {b"beside": listing(root)[b"beside"]}
    os.rmdir(root + b"/src/.strandlineignore") if what == "a folder" else os.unlink(root + b"/src/.strandlineignore")
    assert cli.scan(root)["state"] == "succeeded"
    exact(cli, name, listing(root))


def test_a_state_folder_inside_the_root_is_left_out(tmp_path: Path) -> None:
    root = tmp_path / "root"
    build(os.fsencode(root), TREE)
    own = Command(root / "my [state]")

    with own.up():
        for _ in range(2):
            document = own.scan(root)

        assert (document["state"], document["added"], document["modified"]) == ("succeeded", 0, 0)
        own.json("tenant", "set", "root", "--ignore", "*.log", "--ignore", "*.tmp")
        assert own.scan(root)["added"] == 0
    left_out = {path: entry for path, entry in listing(os.fsencode(root)).items() if not path.endswith(b".log")}
    assert own.index("root") == without(left_out, b"my [state]")
    assert "our own state folder" in own.run("scan", str(own.state)).stderr


REFUSED = {
    "ignore pattern 'a\\nb'": ["--ignore", "a\nb"],
    "unknown policy 'some'": ["--large-file", "some", "--large-file-bytes", "1000000"],
    "needs --large-file-bytes": ["--large-file", "partial"],
    "files of 5 bytes are not large": ["--large-file", "skip", "--large-file-bytes", "5"],
    "deletion limit 0": ["--deletion-limit", "0"],
    "more than the 10,000 that are allowed": [word for number in range(10_001) for word in ("--ignore", f"x{number}")],
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_a_bad_policy_is_refused_and_named(cli: Command, tmp_path: Path, sentence: str) -> None:
    refused = cli.run("tenant", "add", "refused", str(tmp_path), *REFUSED[sentence])

    assert refused.returncode == 2 and sentence in refused.stderr
