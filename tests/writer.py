"""Who changes trees all the time, as told by a seed, and keeps a journal of it: tests.journal."""

import hashlib
import os
import random
import threading
from collections import Counter
from collections.abc import Sequence
from itertools import count

from tests import trees
from tests.journal import Journal
from tests.trees import Dir, Entry, File, Symlink

# Between these numbers of files a tree is kept.
FEWEST, MOST = 120, 300
DEEPEST = 6
LONGEST = 3000  # bytes of a path, so that one system call takes it
LARGEST = 2000  # bytes: less than a page, so that nobody sees half of a write
MANY = 15  # files in a folder that is removed as a whole
AGAIN = 0.3  # of what is new takes a name that something had before
NAMES = (
    b"%d.txt",
    b"%d",
    b"n\xc3\xa4h %d",
    b"na\xcc\x88h %d",
    b"-%d",
    b"\xff\xfe%d",
    b"'%d\n\"",
    b" %d ",
    b"%d" + b"x" * 200,
)


def entry_of(content: bytes) -> Entry:
    return "file", len(content), hashlib.sha256(content).hexdigest(), None


def link_to(target: bytes) -> Entry:
    return "symlink", len(target), None, target


class Writer:
    """Changes one tree, which it knows by heart: no content is ever used twice."""

    def __init__(self, root: bytes, rng: random.Random) -> None:
        self.root, self._rng = root, rng
        self._numbers = count(1)
        self.counted: Counter[str] = Counter()
        self._folders: set[bytes] = {b""}
        self._contents: dict[bytes, bytes] = {}
        self._targets: dict[bytes, bytes] = {}
        self._left: list[bytes] = []  # names that something had
        self._make_first()
        self.journal = Journal(trees.listing(root))

    def change(self) -> str:
        """Do one thing; what."""
        names, weights = zip(*self._weights().items(), strict=True)
        while True:
            [name] = self._rng.choices(names, weights)
            if getattr(self, "_" + name)():
                self.counted[name] += 1
                return name

    def _weights(self) -> dict[str, int]:
        fewer = len(self._contents) > MOST
        more = len(self._contents) < FEWEST
        return {
            "create": 3 if fewer else 12, "rewrite": 8, "rewrite_in_place": 8, "append": 8, "truncate": 5, "replace": 8,
            "delete": 1 if more else 10, "rename": 10, "rename_over": 3, "rename_folder": 4, "link": 4, "retarget": 2,
            "touch": 4, "make_tree": 1 if fewer else 3, "remove_tree": 0 if more else 3, "file_to_folder": 2,
            "folder_to_file": 0 if more else 2,
        }  # fmt: skip

    # Where, and with what

    def _make_first(self) -> None:
        """Folders of ten files each, old ones."""
        spec = Dir({self._name(): self._first_folder() for _ in range(12)})
        trees.build(self.root, spec)
        for folder, entry in spec.entries.items():
            self._learn(folder, entry)

    def _first_folder(self) -> Dir:
        files: dict[bytes, File | Symlink | Dir] = {self._name(): File(self._content()) for _ in range(12)}
        return Dir({**files, self._name(): Dir({self._name(): File(self._content())}), self._name(): Symlink(b"../x")})

    def _learn(self, path: bytes, entry: File | Symlink | Dir) -> None:
        match entry:
            case File(content=content):
                self._contents[path] = content
            case Symlink(target=target):
                self._targets[path] = target
            case Dir(entries=entries):
                self._folders.add(path)
                for name, below in entries.items():
                    self._learn(path + b"/" + name, below)

    def _name(self) -> bytes:
        return self._rng.choice(NAMES) % next(self._numbers)

    def _content(self, size: int | None = None) -> bytes:
        """Never used before: it begins with its number."""
        size = self._rng.randrange(12, LARGEST // 2) if size is None else size
        return (b"%010d " % next(self._numbers)).ljust(size, b".")[:size]

    def _file(self) -> bytes:
        return self._rng.choice(sorted(self._contents))

    def _folder(self, deepest: int = DEEPEST) -> bytes:
        return self._rng.choice(sorted(one for one in self._folders if one.count(b"/") < deepest - 1))

    def _new(self, deepest: int = DEEPEST) -> bytes:
        """A path at which nothing is, now and then one at which something was."""
        if self._left and self._rng.random() < AGAIN:
            path = self._rng.choice(self._left)
            if os.path.dirname(path) in self._folders and not self._is(path):
                return path
        return os.path.join(self._folder(deepest), self._name())

    def _is(self, path: bytes) -> bool:
        return path in self._folders or path in self._contents or path in self._targets

    def _below(self, folder: bytes, of: Sequence[bytes] | set[bytes] | dict[bytes, bytes]) -> list[bytes]:
        return sorted(path for path in of if path.startswith(folder + b"/"))

    def _at(self, path: bytes) -> bytes:
        return self.root + b"/" + path

    # Steps: one system call each

    def _made(self, path: bytes, content: bytes) -> None:
        """A file with that content, which is empty for a moment."""
        self._open_written(path, content, os.O_CREAT | os.O_EXCL, 0)

    def _open_written(self, path: bytes, content: bytes, flags: int, offset: int) -> None:
        """Open a file, which may make or empty it, and write the content from some offset on."""
        empties = bool(flags & (os.O_EXCL | os.O_TRUNC))
        opened: list[int] = []
        step = {path: entry_of(b"")} if empties else {}
        self.journal.do(lambda: opened.append(os.open(self._at(path), os.O_WRONLY | flags, 0o644)), step)
        before = b"" if empties else self._contents[path]
        now = before[:offset] + content + before[offset + len(content) :]
        self.journal.do(lambda: os.pwrite(opened[0], content, offset), {path: entry_of(now)})
        os.close(opened[0])
        self._contents[path] = now

    def _unlinked(self, path: bytes) -> None:
        self.journal.do(lambda: os.unlink(self._at(path)), {path: None})
        self._contents.pop(path, None)
        self._targets.pop(path, None)
        self._left.append(path)

    def _made_folder(self, path: bytes) -> None:
        os.mkdir(self._at(path))
        self._folders.add(path)

    def _removed_folder(self, path: bytes) -> None:
        os.rmdir(self._at(path))
        self._folders.remove(path)

    def _renamed(self, old: bytes, new: bytes) -> None:
        """A file or symlink, maybe over another."""
        now = entry_of(self._contents[old]) if old in self._contents else link_to(self._targets[old])
        self.journal.do(lambda: os.rename(self._at(old), self._at(new)), {old: None, new: now})
        for known in (self._contents, self._targets):
            known.pop(new, None)
            if old in known:
                known[new] = known.pop(old)
        self._left.append(old)

    # What is done; False: nothing, since there is nothing to do it with

    def _create(self) -> bool:
        self._made(self._new(), self._content())
        return True

    def _rewrite(self) -> bool:
        self._open_written(self._file(), self._content(), os.O_TRUNC, 0)
        return True

    def _rewrite_in_place(self) -> bool:
        """Of equal size, and now and then with the time of before."""
        path = self._file()
        size = len(self._contents[path])
        if size < 12:
            return False
        before = os.stat(self._at(path))
        self._open_written(path, self._content(size), 0, 0)
        if self._rng.random() < 0.3:
            os.utime(self._at(path), ns=(before.st_atime_ns, before.st_mtime_ns))
        return True

    def _append(self) -> bool:
        path = self._file()
        before = len(self._contents[path])
        if before > LARGEST:
            return False
        self._open_written(path, self._content(40), 0, before)
        return True

    def _truncate(self) -> bool:
        path = self._file()
        content = self._contents[path]
        if len(content) < 13:
            return False
        content = content[: self._rng.randrange(12, len(content))]
        self.journal.do(lambda: os.truncate(self._at(path), len(content)), {path: entry_of(content)})
        self._contents[path] = content
        return True

    def _replace(self) -> bool:
        """As editors save: another file is written beside it and renamed over it."""
        path = self._file()
        beside = os.path.join(os.path.dirname(path), b".%d.tmp" % next(self._numbers))
        self._made(beside, self._content())
        self._renamed(beside, path)
        return True

    def _delete(self) -> bool:
        self._unlinked(self._rng.choice(sorted([*self._contents, *self._targets])))
        return True

    def _rename(self) -> bool:
        self._renamed(self._rng.choice(sorted([*self._contents, *self._targets])), self._new())
        return True

    def _rename_over(self) -> bool:
        old, new = self._file(), self._file()
        if old == new:
            return False
        self._renamed(old, new)
        return True

    def _rename_folder(self) -> bool:
        old, new = self._folder(3), self._new(3)
        moved = {path: new + path[len(old) :] for path in self._below(old, {**self._contents, **self._targets})}
        if not old or (new + b"/").startswith(old + b"/") or any(len(path) > LONGEST for path in moved.values()):
            return False
        then: dict[bytes, Entry | None] = dict.fromkeys(moved)
        for path, there in moved.items():
            then[there] = entry_of(self._contents[path]) if path in self._contents else link_to(self._targets[path])
        self.journal.do(lambda: os.rename(self._at(old), self._at(new)), then)
        for known in (self._contents, self._targets):
            known.update({moved[path]: known.pop(path) for path in self._below(old, known)})
        folders = [old, *self._below(old, self._folders)]
        self._folders.difference_update(folders)
        self._folders.update(new + path[len(old) :] for path in folders)
        self._left.extend([old, *moved])
        return True

    def _link(self) -> bool:
        path, target = self._new(), b"%d" % next(self._numbers)
        self.journal.do(lambda: os.symlink(target, self._at(path)), {path: link_to(target)})
        self._targets[path] = target
        return True

    def _retarget(self) -> bool:
        if not self._targets:
            return False
        path = self._rng.choice(sorted(self._targets))
        self._unlinked(path)
        target = self._file()
        self.journal.do(lambda: os.symlink(target, self._at(path)), {path: link_to(target)})
        self._targets[path] = target
        return True

    def _touch(self) -> bool:
        """What is no change of the feed: permissions and times."""
        path = self._at(self._file())
        if self._rng.random() < 0.5:
            os.chmod(path, self._rng.choice((0o600, 0o644, 0o755)))
        else:
            os.utime(path, (10**9, self._rng.randrange(10**9, 2 * 10**9)))
        return True

    def _make_tree(self) -> bool:
        top = self._new(3)
        self._made_folder(top)
        for folder in (top, top + b"/" + self._name()):
            if folder != top:
                self._made_folder(folder)
            for _ in range(self._rng.randrange(5)):
                self._made(folder + b"/" + self._name(), self._content())
        return True

    def _small(self) -> bytes | None:
        """A folder that holds not too much."""
        known = {**self._contents, **self._targets}
        folders = [one for one in sorted(self._folders) if one and len(self._below(one, known)) <= MANY]
        return self._rng.choice(folders) if folders else None

    def _remove(self, top: bytes) -> None:
        for path in self._below(top, {**self._contents, **self._targets}):
            self._unlinked(path)
        for folder in sorted([top, *self._below(top, self._folders)], reverse=True):
            self._removed_folder(folder)

    def _remove_tree(self) -> bool:
        top = self._small()
        if top is not None:
            self._remove(top)
        return top is not None

    def _file_to_folder(self) -> bool:
        path = self._file()
        if path.count(b"/") >= DEEPEST:
            return False
        self._unlinked(path)
        self._made_folder(path)
        self._made(path + b"/" + self._name(), self._content())
        return True

    def _folder_to_file(self) -> bool:
        top = self._small()
        if top is not None:
            self._remove(top)
            self._made(top, self._content())
        return top is not None


class Writers:
    """A thread that changes one tree after the other, so many times a second. Leaving the `with` ends it, and raises
    what went wrong.
    """

    def __init__(self, writers: Sequence[Writer], seed: str, a_second: float) -> None:
        self._writers, self._rng, self._a_second = writers, random.Random(seed), a_second
        self._end = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="writers")

    def __enter__(self) -> "Writers":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._end.set()
        self._thread.join()
        if self._error is not None and kind is None:
            raise self._error

    def _run(self) -> None:
        try:
            while not self._end.wait(self._rng.expovariate(self._a_second)):
                self._rng.choice(self._writers).change()
        except BaseException as error:  # noqa: BLE001 told by who ends it
            self._error = error


def operations(writers: Sequence[Writer]) -> Counter[str]:
    """How often what was done."""
    return sum((writer.counted for writer in writers), Counter())
