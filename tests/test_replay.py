"""`make replay` in short: releases of a made-up project, brought into a tree in each style and looked at just so."""

import io
import os
import random
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import replay, trees
from tests.command import Command
from tests.releases import Member, NoReleases, read, unpack
from tests.replay import STYLES, Replay
from tests.trees import Dir, File, Symlink, listing

MTIME_NS = 315_532_800 * trees.SECOND_NS  # of every file, as in wheels that are built reproducibly
WITH_HARD_NAMES = {
    b".gitignore": File(b"*\n"),
    b".gitattributes": File(b"* text=auto eol=lf ident\n"),
    b"lines": File(b"$Id$\r\n\n\r\n"),
    b"d/\xff\xfe": File(b"no UTF-8"),
    b"d/a\nb": File(b"a name of two lines"),
    b"d/ ": File(b"a space"),
    b"empty folder": Dir(),
}


class Project:
    """A made-up project that goes on from release to release, the same way for the same seed."""

    def __init__(self, seed: int) -> None:
        self._random, self._made = random.Random(seed), 0
        self._specs: dict[bytes, trees.Spec] = dict(WITH_HARD_NAMES)
        self._executable: set[bytes] = set()
        for folder in (b"a", b"a/b", b"c", b"c/d/e"):
            for _ in range(30):
                self._add(folder)

    def release(self) -> list[Member]:
        specs = {path: type(spec)(**vars(spec) | {"mtime_ns": MTIME_NS}) for path, spec in self._specs.items()}
        return [Member(path, spec, path in self._executable) for path, spec in specs.items()]

    def go_on(self) -> None:
        for path in self._some(6):
            self._specs[path] = File(self._content(path) + b"more")
        for path in self._some(6):  # as long as before, and no newer
            self._specs[path] = File(bytes(byte ^ 1 for byte in self._content(path)))
        for path in self._some(4):
            del self._specs[path]
        for path in self._some(4):
            self._rename(path, self._name(b"moved"))
        for _ in range(6):
            self._add(self._random.choice([b"a", b"c", b"new"]))
        [copied, emptied, linked, folder, *made_so] = self._some(8)
        self._specs[self._name(b"a")] = self._specs[copied]
        self._specs[emptied] = File(b"")
        self._specs[linked] = Symlink(b"../" + copied)
        self._specs[folder + b"/below"] = self._specs.pop(folder)
        self._executable ^= set(made_so)
        [link, *_] = [path for path, spec in self._specs.items() if isinstance(spec, Symlink)]
        self._specs[link] = File(b"a file again")

    def rename_folder(self) -> None:
        self._rename(b"a/b", b"z/b")

    def put_a_file_in_the_place_of_a_folder(self) -> None:
        self._drop(b"c/d")
        self._specs[b"c/d"] = File(b"a file now")

    def drop_most(self) -> None:
        """More than may go without being asked about."""
        for folder in (b"a", b"z"):
            self._drop(folder)

    def _drop(self, folder: bytes) -> None:
        self._specs = {path: spec for path, spec in self._specs.items() if not path.startswith(folder + b"/")}

    def _rename(self, old: bytes, new: bytes) -> None:
        below = {path: path[len(old) :] for path in self._specs if path == old or path.startswith(old + b"/")}
        self._specs = {
            new + below[path] if path in below else path: spec for path, spec in self._specs.items()
        }  # fmt: skip

    def _add(self, folder: bytes) -> None:
        name = self._name(folder)
        self._specs[name] = File(b"content of %d " % self._made * self._random.randrange(100))
        if not self._made % 9:
            self._specs[name] = Symlink(b"nowhere/%d" % self._made)

    def _name(self, folder: bytes) -> bytes:
        self._made += 1
        return b"%s/%03d" % (folder, self._made)

    def _some(self, count: int) -> list[bytes]:
        """Paths of files, none of which is chosen twice."""
        return self._random.sample([path for path, spec in self._specs.items() if isinstance(spec, File)], count)

    def _content(self, path: bytes) -> bytes:
        spec = self._specs[path]
        assert isinstance(spec, File)
        return spec.content


def made_up_releases(seed: int) -> list[tuple[str, list[Member]]]:
    """Three steps."""
    project = Project(seed)
    found = [("0", project.release())]
    for number, further in enumerate(
        (project.rename_folder, project.put_a_file_in_the_place_of_a_folder, project.drop_most), 1
    ):
        project.go_on()
        further()
        found.append((str(number), project.release()))
    return found


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    with replay.stack(tmp_path_factory.mktemp("state")) as cli:
        yield Command(cli.state, cli.env, starts_nothing=True)


@pytest.mark.needs("rsync", "git")
def test_index_feed_and_git_agree_after_each_step_in_each_style(
    cli: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project = made_up_releases(seed=1)
    rows = [replay.replay(cli, tmp_path, "made up", project, style) for style in STYLES]

    assert not any(row.differences for row in rows), capsys.readouterr().out
    assert [row.style for row in rows] == list(STYLES) and all(len(row.steps) == 3 for row in rows)
    assert all({kind for step in row.steps for kind in step.feed} == set(replay.KINDS) for row in rows)
    assert [sum(step.confirmed for step in row.steps) for row in rows] == [0, 1, 1, 1]
    edits = {row.style: sum(step.git["M"] for step in row.steps) for row in rows}
    assert edits["rsync"] < edits["checksum"]  # rsync -a does not see what keeps size and mtime


@pytest.mark.needs("git")
def test_a_change_that_the_feed_leaves_out_is_told(cli: Command, tmp_path: Path) -> None:
    class Lossy(Command):
        def feed(self, tenant: str, since: str | None = None) -> list[dict]:
            return super().feed(tenant, since)[:-1]

    members = [Member(name, File(name, mtime_ns=MTIME_NS)) for name in (b"a", b"b")]

    step = Replay(Lossy(cli.state, cli.env, starts_nothing=True), tmp_path, "lossy", "over").step(members)

    assert [difference.split(": ")[0] for difference in step.differences] == [
        "the feed from its beginning",
        "the feed since the last step",
        "the feed beside git",
        "the scan's totals",
    ]
    assert str(step).endswith("equal no")


# What is in an archive


def tar(path: Path, *members: tuple[str, bytes, bytes, int]) -> Path:
    with tarfile.open(path, "w:gz") as file:
        for name, kind, content, mode in members:
            info = tarfile.TarInfo(name)
            info.type, info.mode, info.mtime = kind, mode, 1_000_000_000
            if kind == tarfile.REGTYPE:
                info.size = len(content)
            else:
                info.linkname = content.decode()
            file.addfile(info, io.BytesIO(content))
    return path


def test_a_source_distribution_is_read_with_its_links_times_and_modes(tmp_path: Path) -> None:
    archive = tar(
        tmp_path / "p-1.tar.gz",
        ("p-1", tarfile.DIRTYPE, b"", 0o755),
        ("p-1/run", tarfile.REGTYPE, b"#!", 0o755),
        ("p-1/hard", tarfile.LNKTYPE, b"p-1/run", 0o644),
        ("p-1/link", tarfile.SYMTYPE, b"run", 0o777),
        ("p-1/pipe", tarfile.FIFOTYPE, b"", 0o644),
        ("p-1/sub/.git/config", tarfile.REGTYPE, b"no", 0o644),
    )
    at = 1_000_000_000 * trees.SECOND_NS

    assert list(read(archive)) == [
        Member(b"run", File(b"#!", mtime_ns=at), executable=True),
        Member(b"hard", File(b"#!", mtime_ns=at)),
        Member(b"link", Symlink(b"run", mtime_ns=at)),
    ]


def test_a_wheel_is_read_with_its_links_times_and_modes(tmp_path: Path) -> None:
    archive = tmp_path / "p-1-py3-none-any.whl"
    with zipfile.ZipFile(archive, "w") as file:
        for name, content, mode in (
            ("p/run", b"#!", 0o755 | stat.S_IFREG),
            ("p/link", b"run", 0o777 | stat.S_IFLNK),
            ("q/", b"", 0),
        ):
            info = zipfile.ZipInfo(name, (2001, 9, 9, 1, 46, 40))
            info.external_attr = mode << 16
            file.writestr(info, content)
    at = 1_000_000_000 * trees.SECOND_NS

    assert list(read(archive)) == [
        Member(b"p/run", File(b"#!", mtime_ns=at), executable=True),
        Member(b"p/link", Symlink(b"run", mtime_ns=at)),
        Member(b"q", Dir(mtime_ns=at)),
    ]


@pytest.mark.parametrize("name", ["p-1/../../out", "/out"])
def test_an_archive_that_leads_out_of_its_folder_is_refused(tmp_path: Path, name: str) -> None:
    archive = tar(tmp_path / "p-1.tar.gz", (name, tarfile.REGTYPE, b"", 0o644))

    with pytest.raises(NoReleases, match="leads out of it"):
        list(read(archive))


def test_unpacking_over_writes_through_no_symlink_and_replaces_what_is_of_another_type(tmp_path: Path) -> None:
    root, outside = os.fsencode(tmp_path / "root"), os.fsencode(tmp_path / "outside")
    trees.build(outside, Dir({b"file": File(b"untouched")}))
    trees.build(
        root,
        Dir({
            b"folder": Symlink(outside),
            b"file": Symlink(outside + b"/file"),
            b"was a folder": Dir({b"x": File(b"x")}),
            b"was a file": File(b"x"),
            b"stays": File(b"old"),
        }),
    )  # fmt: skip

    unpack(root, [
        Member(b"folder/file", File(b"1", mtime_ns=5)),
        Member(b"file", File(b"2", mtime_ns=6), executable=True),
        Member(b"was a folder", Symlink(b"stays", mtime_ns=7)),
        Member(b"was a file", Dir(mtime_ns=8)),
        Member(b"was a file/y", File(b"3", mtime_ns=9)),
    ])  # fmt: skip

    expected = Dir({
        b"folder": Dir({b"file": File(b"1")}),
        b"file": File(b"2"),
        b"was a folder": Symlink(b"stays"),
        b"was a file": Dir({b"y": File(b"3")}),
        b"stays": File(b"old"),
    })  # fmt: skip
    trees.build(root + b"-expected", expected)
    assert listing(root) == listing(root + b"-expected")
    assert trees.listing(outside) == {b"file": ("file", 9, listing(outside)[b"file"][2], None)}
    assert os.stat(root + b"/file").st_mtime_ns == 6 and os.stat(root + b"/file").st_mode & 0o111
    assert (Path(os.fsdecode(outside)) / "file").read_bytes() == b"untouched"
