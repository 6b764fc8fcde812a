"""File trees for tests: written as nested literals, and read back by an oracle that shares no code with the program.

Paths and names are bytes everywhere. A state is a map from relative path to (type, size, digest, target); `listing`,
`apply_feed` and `index` all give that shape, so that a test compares them with `==`.
"""

import base64
import errno
import hashlib
import itertools
import os
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

Entry = tuple[str, int, str | None, bytes | None]
State = dict[bytes, Entry]

SECOND_NS = 10**9
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# A FIFO put in a file's place must not hold the oracle up.
REGULAR = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


# ---- Trees as literals


@dataclass(frozen=True)
class File:
    content: bytes = b""
    age_s: float | None = None
    mtime_ns: int | None = None


@dataclass(frozen=True)
class Symlink:
    target: bytes
    age_s: float | None = None
    mtime_ns: int | None = None


@dataclass(frozen=True)
class Dir:
    entries: dict[bytes, "File | Symlink | Dir"] = field(default_factory=dict)
    age_s: float | None = None
    mtime_ns: int | None = None


Spec = File | Symlink | Dir


def build(root: bytes, spec: Spec, *, age_s: float = 3600) -> None:
    """Makes what `spec` says; an entry that names no time of its own is `age_s` old.

    Only mtime and atime can be set. ctime is now: a test that needs old entries moves the program's clock forward.
    """
    _build(root, spec, age_s, time.time_ns())


def _build(path: bytes, spec: Spec, age_s: float, now_ns: int) -> None:
    match spec:
        case File(content=content):
            write(path, content)
        case Symlink(target=target):
            os.symlink(target, path)
        case Dir(entries=entries):
            os.makedirs(path, exist_ok=True)
            for name, entry in entries.items():
                _build(os.path.join(path, name), entry, age_s, now_ns)
    # Last, since making the entries of a folder moves the folder's own times.
    set_mtime(path, _mtime_ns(spec, age_s, now_ns))


def _mtime_ns(spec: Spec, age_s: float, now_ns: int) -> int:
    if spec.mtime_ns is not None:
        return spec.mtime_ns
    return now_ns - round((age_s if spec.age_s is None else spec.age_s) * SECOND_NS)


def write(path: bytes, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)


def set_mtime(path: bytes, mtime_ns: int) -> None:
    os.utime(path, ns=(mtime_ns, mtime_ns), follow_symlinks=False)


def remove(root: bytes) -> None:
    """Unlike shutil.rmtree, also trees deeper than Python's stack and longer than a path may be."""
    subprocess.run([b"rm", b"-rf", b"--", root], check=True)


# ---- Large and deep trees

FOLDERS_PER_FOLDER = 100


def many_folders(folders: int) -> Iterator[bytes]:
    for number in range(folders):
        yield b"%03d/%03d" % divmod(number, FOLDERS_PER_FOLDER)


def many_paths(folders: int, files_per_folder: int) -> Iterator[bytes]:
    """The relative paths of the files that `make_many` makes."""
    for folder in many_folders(folders):
        for number in range(files_per_folder):
            yield b"%s/f%05d" % (folder, number)


def make_many(root: bytes, folders: int, files_per_folder: int, *, size: int = 64, age_s: float = 3600) -> None:
    """Files of distinct content, two levels deep: 5,000 folders come as 50 folders of 100 each."""
    if len(b"%d" % (folders * files_per_folder)) > size:
        raise ValueError(f"{folders * files_per_folder} distinct contents do not fit into {size} bytes")
    mtime_ns = time.time_ns() - round(age_s * SECOND_NS)
    contents = ((b"%d" % number).rjust(size, b".") for number in itertools.count())
    os.makedirs(root, exist_ok=True)
    for folder in many_folders(folders):
        path = os.path.join(root, folder)
        os.makedirs(path)
        _fill(path, files_per_folder, contents, mtime_ns)
    for name in os.listdir(root):
        set_mtime(os.path.join(root, name), mtime_ns)
    set_mtime(root, mtime_ns)


def _fill(folder: bytes, files: int, contents: Iterator[bytes], mtime_ns: int) -> None:
    here = os.open(folder, DIRECTORY)
    for number in range(files):
        file = os.open(b"f%05d" % number, NEW_FILE, 0o644, dir_fd=here)
        os.write(file, next(contents))
        os.utime(file, ns=(mtime_ns, mtime_ns))
        os.close(file)
    os.utime(here, ns=(mtime_ns, mtime_ns))
    os.close(here)


def make_chain(root: bytes, depth: int, *, name: bytes = b"d", content: bytes = b"bottom") -> bytes:
    """Folder in folder, `depth` times, with one file at the bottom, whose relative path is returned."""
    os.makedirs(root, exist_ok=True)
    here = os.open(root, DIRECTORY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=here)
        here = _step(here, name)
    file = os.open(b"file", NEW_FILE, 0o644, dir_fd=here)
    os.write(file, content)
    os.close(file)
    os.close(here)
    return b"/".join([name] * depth + [b"file"])


# ---- The oracle


def folders(root: bytes) -> Iterator[tuple[bytes, int, list[os.DirEntry[str]]]]:
    """Each folder's relative path, a descriptor open on it and its entries, parents first.

    One descriptor at a time, stepping down by name and up by "..", so that neither the depth of a tree nor the
    length of its paths is limited. It is for trees that hold still.
    """
    here = os.open(root, DIRECTORY)
    try:
        path: list[bytes] = []
        entries = _entries(here)
        yield b"", here, entries
        pending = [_subfolders(entries)]
        while True:
            if pending[-1]:
                path.append(pending[-1].pop())
                here = _step(here, path[-1])
                entries = _entries(here)
                yield b"/".join(path), here, entries
                pending.append(_subfolders(entries))
            elif path:
                pending.pop()
                path.pop()
                here = _step(here, b"..")
            else:
                return
    finally:
        os.close(here)


def _entries(here: int) -> list[os.DirEntry[str]]:
    with os.scandir(here) as found:
        return list(found)


def _subfolders(entries: list[os.DirEntry[str]]) -> list[bytes]:
    return [os.fsencode(entry.name) for entry in entries if entry.is_dir(follow_symlinks=False)]


def _step(here: int, name: bytes) -> int:
    there = os.open(name, DIRECTORY, dir_fd=here)
    os.close(here)
    return there


def listing(root: bytes) -> State:
    """A fresh, independent listing with digests. Symlinks are read, never followed; other types are left out."""
    found: State = {}
    for folder, here, entries in folders(root):
        for entry in entries:
            name = os.fsencode(entry.name)
            path = folder + b"/" + name if folder else name
            if entry.is_symlink():
                target = os.readlink(name, dir_fd=here)
                found[path] = ("symlink", len(target), None, target)
            elif entry.is_file(follow_symlinks=False):
                found[path] = file_entry(name, here)
    return found


def file_entry(name: bytes, here: int | None = None) -> Entry:
    with open(os.open(name, REGULAR, dir_fd=here), "rb", buffering=0) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return "file", os.fstat(file.fileno()).st_size, digest, None


# ---- The program's documents, in the oracle's shape


def apply_feed(changes: Iterable[dict], start: State | None = None) -> State:
    """What a reader of the feed ends with who applies each change to its path and asks no further."""
    state = dict(start or {})
    for change in changes:
        path = exact(change, "path")
        match change["kind"]:
            case "added" | "modified":
                state[path] = entry_of(change)
            case "deleted":
                state.pop(path, None)
            case "moved":
                state.pop(exact(change, "old_path"), None)
                state[path] = entry_of(change)
            case kind:
                raise ValueError(f"no such kind of change: {kind!r}")
    return state


def index(files: Iterable[dict]) -> State:
    """File documents as a state; a path that comes twice is an error of the program and not hidden here."""
    state: State = {}
    for document in files:
        path = exact(document, "path")
        if path in state:
            raise ValueError(f"listed twice: {path!r}")
        state[path] = entry_of(document)
    return state


def entry_of(document: dict) -> Entry:
    if document["type"] == "symlink":
        return "symlink", document["size"], None, exact(document, "target")
    return document["type"], document["size"], document["digest"], None


def exact(document: dict, name: str) -> bytes:
    """The exact bytes of a path: from base64 where the name is not UTF-8, and strictly UTF-8 otherwise."""
    encoded = document.get(f"{name}_b64")
    return document[name].encode() if encoded is None else base64.b64decode(encoded, validate=True)


# ---- The file system's clock


def fs_now_ns(path: bytes) -> int:
    """The stamp that the file system of the folder `path` gives at this moment; it may be behind the host's clock."""
    try:
        # A file without a name moves no time of the folder.
        probe = os.open(path, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT):
            raise
        with tempfile.TemporaryFile(dir=path) as named:
            return os.fstat(named.fileno()).st_ctime_ns
    try:
        return os.fstat(probe).st_ctime_ns
    finally:
        os.close(probe)


def next_tick(path: bytes) -> int:
    """Returns once the file system stamps with a later time than now: what changes from here on has another ctime."""
    now = fs_now_ns(path)
    while (later := fs_now_ns(path)) <= now:
        pass
    return later
