"""Releases of real projects: listed and fetched by pip, and unpacked without running anything that is in them.

Wheels come by `pip download`. Of a source distribution that would run its build backend, so pip is only asked for the
link, and the file behind it is fetched through pip's session and held against the index's digest.
"""

import calendar
import hashlib
import os
import re
import stat
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests import trees
from tests.trees import Dir, File, Symlink

PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
CHOICE = {"wheel": ["--only-binary", ":all:"], "sdist": ["--no-binary", ":all:"]}


class NoReleases(Exception):
    """There is nothing to replay, and the text says why."""


@dataclass(frozen=True)
class Member:
    """An entry of a release."""

    path: bytes
    spec: trees.Spec
    executable: bool = False


@dataclass(frozen=True)
class Release:
    version: str
    archive: Path

    def __iter__(self) -> Iterator[Member]:
        return read(self.archive)


# ---- From the index


def fetch(package: str, kind: str, count: int, cache: Path) -> list[Release]:
    """The newest `count` final releases that this Python can use, oldest first. Raises NoReleases."""
    found = versions(package, kind)
    if len(found) < count:
        raise NoReleases(f"{package} has {len(found)} final releases as {kind}, and {count} are asked for")
    return [Release(version, _archive(package, version, kind, cache)) for version in found[-count:]]


def versions(package: str, kind: str) -> list[str]:
    """Oldest first; pip leaves out pre-releases, and so do we where there is nothing else."""
    answer = _pip("index", "versions", package, *CHOICE[kind])
    listed = re.search(r"^Available versions: (.*)$", answer, re.MULTILINE)
    assert listed, answer
    newest_first = listed[1].split(", ")
    return [version for version in reversed(newest_first) if not re.search(r"[a-z]", version.replace(".post", ""))]


def _archive(package: str, version: str, kind: str, cache: Path) -> Path:
    folder = cache / kind / package / version
    if not folder.exists():
        unfinished = Path(f"{folder}.unfinished")
        unfinished.mkdir(parents=True, exist_ok=True)
        if kind == "wheel":
            _pip("download", "-q", "--no-deps", *CHOICE[kind], "-d", str(unfinished), f"{package}=={version}")
        else:
            _fetch_sdist(package, version, unfinished)
        unfinished.rename(folder)
    [archive] = folder.iterdir()
    return archive


def _pip(*words: str) -> str:
    done = subprocess.run([*PIP, *words], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise NoReleases(done.stderr.strip().splitlines()[-1])
    return done.stdout


def _fetch_sdist(package: str, version: str, folder: Path) -> None:
    # No command of pip gives a source distribution unbuilt; these few names have been the same since pip 20.
    from pip._internal.commands import create_command

    command = create_command("download")
    options, _ = command.parse_args(["-qq", package])
    with command.main_context():
        session = command.get_default_session(options)
        finder = command._build_package_finder(options=options, session=session)
        candidates = finder.find_all_candidates(package)
        links = [one.link for one in candidates if str(one.version) == version and not one.link.is_wheel]
        if not links:
            raise NoReleases(f"there is no source distribution of {package} {version}")
        link = links[-1]
        answer = session.get(link.url_without_fragment, headers={"Accept-Encoding": "identity"})
        answer.raise_for_status()
    if link.hash_name and hashlib.new(link.hash_name, answer.content).hexdigest() != link.hash:
        raise NoReleases(f"{link.filename} is not what the index says: its {link.hash_name} is another")
    (folder / link.filename).write_bytes(answer.content)


# ---- What is in an archive


def read(archive: Path) -> Iterator[Member]:
    """Files, symlinks and folders, in stored order. What git would refuse to see is left out: any name like `.git`."""
    found = _read_zip(archive) if archive.suffix in (".whl", ".zip") else _read_tar(archive)
    top = 0 if archive.suffix == ".whl" else 1  # a source distribution is all below NAME-VERSION/
    for member in found:
        names = [name for name in member.path.split(b"/") if name not in (b"", b".")]
        if b".." in names or member.path.startswith(b"/"):
            raise NoReleases(f"{archive.name} holds {member.path!r}, which leads out of it")
        if len(names) > top and b".git" not in (name.lower() for name in names):
            yield Member(b"/".join(names[top:]), member.spec, member.executable)


def _read_zip(archive: Path) -> Iterator[Member]:
    with zipfile.ZipFile(archive) as file:
        for info in file.infolist():
            mode = info.external_attr >> 16
            year, month, day, *rest = info.date_time
            mtime_ns = calendar.timegm((year, max(month, 1), max(day, 1), *rest)) * trees.SECOND_NS
            path = os.fsencode(info.filename)
            if info.is_dir():
                yield Member(path, Dir(mtime_ns=mtime_ns))
            elif stat.S_ISLNK(mode):
                yield Member(path, Symlink(file.read(info), mtime_ns=mtime_ns))
            else:
                yield Member(path, File(file.read(info), mtime_ns=mtime_ns), bool(mode & 0o111))


def _read_tar(archive: Path) -> Iterator[Member]:
    with tarfile.open(archive) as file:
        for info in file:
            path, mtime_ns = os.fsencode(info.name), round(info.mtime * trees.SECOND_NS)
            if info.isdir():
                yield Member(path, Dir(mtime_ns=mtime_ns))
            elif info.issym():
                yield Member(path, Symlink(os.fsencode(info.linkname), mtime_ns=mtime_ns))
            elif content := file.extractfile(info):  # a hard link too; not of a device
                yield Member(path, File(content.read(), mtime_ns=mtime_ns), bool(info.mode & 0o111))


# ---- Unpacking


def unpack(root: bytes, members: Iterable[Member]) -> None:
    """Writes over what is there, files in place, with their stored times; what is not in the release stays.

    Nothing is written through a symlink: one that stands in the way is replaced, as is all of another type.
    """
    for member in members:
        path = os.path.join(root, member.path)
        names = member.path.split(b"/")
        for depth in range(1, len(names)):
            _make_folder(os.path.join(root, *names[:depth]))
        match member.spec:
            case Dir():
                _make_folder(path)
                continue  # its time moves with each entry that is still to come
            case File(content=content):
                if os.path.islink(path) or os.path.isdir(path):
                    trees.remove(path)
                trees.write(path, content)
                os.chmod(path, 0o755 if member.executable else 0o644)
            case Symlink(target=target):
                if os.path.lexists(path):
                    trees.remove(path)
                os.symlink(target, path)
        assert member.spec.mtime_ns is not None
        trees.set_mtime(path, member.spec.mtime_ns)


def _make_folder(path: bytes) -> None:
    if os.path.islink(path) or os.path.isfile(path):
        os.unlink(path)
    os.makedirs(path, exist_ok=True)
