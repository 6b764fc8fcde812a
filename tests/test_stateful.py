"""Whatever people do to a tree, and whatever befalls the scans: the index is the tree, the feed tells it, and nothing
is deleted that could not be looked at.

A machine of hypothesis changes a tree and scans it, through the product's own tasks in this process (tests.in_process);
beside it a shadow (tests.shadow) says what there is to see, and what is held of what cannot be seen. `make test` runs a
few fixed examples, `make test-large` many new ones; STATEFUL_EXAMPLES says how many.
"""

import os
import shutil
import stat
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from sqlalchemy import Engine

from db import schema
from db.engine import connect
from tasks import settings as all_settings
from tasks.app import App, make_app
from tasks.core import guard
from tests import needs, scenarios, shadow, trees
from tests.command import each_change_once, tmpfs_folder
from tests.in_process import InProcess
from tests.shadow import Seen
from tests.trees import Dir, File, State, Symlink, apply_feed

CURSORS_KEPT = 4

# Few, so that names meet again: as files, folders and links, in one folder and in another.
NAMES = [b"a", b"b", b"c", b"x.tmp", b"\xff", ".é".encode(), b"huge"]
CONTENTS = [b"", b"1", b"2", b"other", b"o t h", b"." * 5000]
RULES = [
    b"a\n",
    b"/b\n",
    b"c/\n",
    b"*.tmp\n",
    b"!a\n!x.tmp\n",
    b"/a/b\n",
    b"**/c\n",
    b".strandlineignore\n",
    b"*\n",
    b"",
]
SMALL = Dir(
    {
        b"a": Dir({b"a": File(b"a"), b"b": File(b"b"), b"c": Dir({b"a": File(b"1"), b"x.tmp": File(b"2")})}),
        b"b": Dir({b"%02d" % number: File(b"%d" % number) for number in range(12)}),
        b"c": File(b"1"),
        b"\xff": Symlink(b"a"),
    }
)
CHANGES = [
    "create_file", "create_folder", "write", "rewrite_with_the_same_size", "set_time", "move", "swap",
    "replace_by_another_type", "link", "delete", "move_in_what_is_old", "grow_or_shrink", "write_rules", "delete_rules",
    "change_mode",
]  # fmt: skip
picks = st.integers(0, 10**6)
names = st.sampled_from(NAMES)
contents = st.sampled_from(CONTENTS)
Change = tuple[str, int, int, bytes, bytes]
some_change = st.tuples(st.sampled_from(CHANGES), picks, picks, names, contents)


class Tide(RuleBasedStateMachine):
    """One tenant and its tree."""

    app: ClassVar[App]
    engine: ClassVar[Engine]

    @initialize(
        shard_entries=st.sampled_from([50_000, 30, 6]),
        verify_days=st.sampled_from([1e6, 1e6, 1e-7]),
        patterns=st.sampled_from([[], [], ["*.tmp"], ["/a", "!b"]]),
        gitignore=st.booleans(),
    )
    def begin(self, shard_entries: int, verify_days: float, patterns: list[str], gitignore: bool) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="strandline-stateful-"))
        self.folder.chmod(0o755)
        self.root, self.aside = (os.fsencode(self.folder / name) for name in ("root", "aside"))
        os.mkdir(self.root)
        self.patterns, self.gitignore = patterns, gitignore
        self.strandline = InProcess(
            self.app, self.engine, self.root, policy={"ignore": patterns, "gitignore": gitignore}, huge_entries=16,
            shard_entries=shard_entries, verify_days=verify_days, verify_days_untrusted=verify_days,
        )  # fmt: skip
        self.held: State = {}  # what the index must be
        self.kept: list[tuple[str, State]] = []  # cursors, with what was held there
        self.missing: dict[bytes, int] = {}  # held, but not there: by which fence that could be known
        self.suspect: str | None = None  # the last scan, if it was
        self.looks: list[Seen] = []  # of a scan under way: the tree whenever it did something
        self.made = 0
        os.rmdir(self.root)
        trees.build(self.root, SMALL)
        self._scan_quietly()

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.strandline.close()
            self._unmount()
            trees.remove(os.fsencode(self.folder))

    # What is there

    def paths(self, *kinds: Callable[[int], bool]) -> list[bytes]:
        """Absolute, of what is of one of these kinds, the root left out."""
        return [path for path, mode in self._below(self.root) if not kinds or any(kind(mode) for kind in kinds)]

    def _below(self, folder: bytes) -> Iterator[tuple[bytes, int]]:
        for name in sorted(os.listdir(folder)):
            path = folder + b"/" + name
            mode = os.lstat(path).st_mode
            yield path, mode
            if stat.S_ISDIR(mode):
                yield from self._below(path)

    def one(self, pick: int, *kinds: Callable[[int], bool]) -> bytes | None:
        found = self.paths(*kinds)
        return found[pick % len(found)] if found else None

    def a_folder(self, pick: int) -> bytes:
        """Of few levels, since trees that grow into themselves have no end."""
        found = [
            self.root,
            *(path for path in self.paths(stat.S_ISDIR) if path.count(b"/") < self.root.count(b"/") + 4),
        ]
        return found[pick % len(found)]

    def free(self, pick: int, name: bytes) -> bytes | None:
        """A name in some folder under which there is nothing."""
        path = self.a_folder(pick) + b"/" + name
        return None if os.path.lexists(path) else path

    def look(self) -> Seen:
        return shadow.look(self.root, self.patterns, self.gitignore, self.strandline.eyes)

    # What people do

    @rule(changes=st.lists(some_change, min_size=1, max_size=4))
    def change(self, changes: list[Change]) -> None:
        for what, pick, other, name, content in changes:
            getattr(self, what)(pick, other, name, content)

    def create_file(self, pick: int, other: int, name: bytes, content: bytes) -> None:
        if path := self.free(pick, name):
            trees.write(path, content)

    def create_folder(self, pick: int, other: int, name: bytes, content: bytes) -> None:
        if path := self.free(pick, name):
            os.mkdir(path)
            self._fill(path, range(other % 5))

    def _fill(self, folder: bytes, numbers: range) -> None:
        for number in numbers:
            self.made += 1
            trees.write(folder + b"/%02d" % number, b"content %d" % self.made)

    def write(self, pick: int, other: int, name: bytes, content: bytes) -> None:
        if path := self.one(pick, stat.S_ISREG):
            trees.write(path, content)

    def rewrite_with_the_same_size(self, pick: int, other: int, name: bytes, content: bytes) -> None:
        if path := self.one(pick, stat.S_ISREG):
            before = os.lstat(path)
            self.made += 1
            trees.write(path, (b"%06d" % (self.made % 10**6))[-before.st_size or 6 :].ljust(before.st_size, b"-"))
            if other % 2:
                trees.set_mtime(path, before.st_mtime_ns)

    def set_time(self, pick: int, other: int, name: bytes, content: bytes) -> None:
        if path := self.one(pick):
            trees.set_mtime(path, (1_000_000_000 + other * 3_000) * trees.SECOND_NS)  # until the year 2096

    def move(self, pick: int, other: int, name: bytes, content: bytes) -> None:
        """A file or a folder, to another name or folder; over a file that is there, too."""
        source, target = self.one(pick), self.a_folder(other) + b"/" + name
        if source is None or target.startswith(source + b"/") or target == source:
            return
        if os.path.lexists(target):
            alike = stat.S_ISDIR(os.lstat(source).st_mode) == stat.S_ISDIR(os.lstat(target).st_mode)
            if not alike or (os.path.isdir(target) and not os.path.islink(target) and os.listdir(target)):
                return
        os.rename(source, target)

    def swap(self, pick: int, other: int, name: bytes, content: bytes) -> None:
        first, second = self.one(pick), self.one(other)
        if first and second and os.path.commonpath([first, second]) not in (first, second):
            scenarios.exchange(first, second)

    def replace_by_another_type(self, pick: int, other: int, name: bytes, content: bytes) -> None:
        if path := self.one(pick):
            trees.remove(path)
            if other % 4 == 0:
                trees.write(path, content)
            elif other % 4 == 1:
                os.mkdir(path)
                trees.write(path + b"/a", content)
            elif other % 4 == 2:
                os.symlink(content[:20] or b"nowhere", path)
            else:
                os.mkfifo(path, 0o644)

    def link(self, pick: int, other: int, name: bytes, content: bytes) -> None:
        source, target = self.one(pick, stat.S_ISREG, stat.S_ISLNK), self.free(other, name)
        if source and target:
            os.link(source, target, follow_symlinks=False)

    def delete(self, pick: int, other: int, name: bytes, content: bytes) -> None:
        if path := self.one(pick):
            trees.remove(path)

    def move_in_what_is_old(self, pick: int, other: int, name: bytes, content: bytes) -> None:
        if path := self.free(pick, name):
            outside = os.fsencode(self.folder / "outside")
            files: dict[bytes, Any] = {b"%d" % number: File(b"old %d" % number) for number in range(3)}
            trees.build(outside, Dir({**files, b"b": Dir({b"a": File(content)})}), age_s=10**8)
            shutil.move(os.fsdecode(outside), os.fsdecode(path))  # with its times, to another volume too

    def grow_or_shrink(self, pick: int, other: int, name: bytes, content: bytes) -> None:
        """A folder of so many files; from 16 entries on it is huge."""
        path, count = self.a_folder(pick) + b"/" + name, (0, 3, 12, 17, 30, 70)[other % 6]
        if not os.path.lexists(path):
            os.mkdir(path)
        if stat.S_ISDIR(os.lstat(path).st_mode):
            here = sorted(one for one in os.listdir(path) if one.isdigit())
            for one in here[count:]:
                trees.remove(path + b"/" + one)
            self._fill(path, range(len(here), count))

    def write_rules(self, pick: int, other: int, name: bytes, content: bytes) -> None:
        path = self.a_folder(pick) + (b"/.gitignore" if other % 3 == 0 else b"/.strandlineignore")
        if not os.path.lexists(path) or stat.S_ISREG(os.lstat(path).st_mode):
            trees.write(path, RULES[other % len(RULES)] + RULES[pick % len(RULES)])

    def delete_rules(self, pick: int, other: int, name: bytes, content: bytes) -> None:
        for path in self.paths(stat.S_ISREG):
            if path.endswith((b"/.gitignore", b"/.strandlineignore")):
                os.unlink(path)

    def change_mode(self, pick: int, other: int, name: bytes, content: bytes) -> None:
        if path := self.one(pick, stat.S_ISREG, stat.S_ISDIR):
            os.chmod(path, (0o755, 0o555)[other % 2])

    # What is in the way

    @rule(
        how=st.sampled_from(["take permission", "break folder", "break file"]),
        pick=picks, mode=st.sampled_from([0o000, 0o444, 0o111]), after=st.integers(0, 5),
    )  # fmt: skip
    def hinder(self, how: str, pick: int, mode: int, after: int) -> None:
        path = self.one(pick, stat.S_ISREG, stat.S_ISDIR)
        if how == "break folder":
            self.strandline.eyes.folders[os.lstat(self.a_folder(pick)).st_ino] = after
        elif path and how == "break file":
            self.strandline.eyes.files.add(os.lstat(path).st_ino)
        elif path and os.geteuid() == 0:  # else this machine could not work on the tree itself
            os.chmod(path, mode)

    @rule()
    def ease(self) -> None:
        """Nothing is in the way any more, but rule files that are none."""
        self.strandline.eyes.folders.clear()
        self.strandline.eyes.files.clear()
        for path in [self.root, *self.paths(stat.S_ISREG, stat.S_ISDIR)]:
            if os.lstat(path).st_mode & 0o5 != 0o5:
                os.chmod(path, 0o755)

    @precondition(lambda self: needs.missing("mount") is None)
    @rule()
    def mount_another_volume_or_unmount(self) -> None:
        """A real one, over the root."""
        if not self._unmount():
            subprocess.run([b"mount", b"-t", b"tmpfs", b"-o", b"mode=755", b"none", self.root], check=True)

    def _unmount(self) -> bool:
        mounted = os.path.ismount(self.root)
        if mounted:
            subprocess.run([b"umount", self.root], check=True)
        return mounted

    @precondition(lambda self: not os.path.ismount(self.root))
    @rule()
    def put_another_root_there_or_back(self) -> None:
        """As an unmounted volume, whose mount point is another, empty folder."""
        if os.path.lexists(self.aside):
            trees.remove(self.root)
            os.rename(self.aside, self.root)
        else:
            os.rename(self.root, self.aside)
            os.mkdir(self.root)

    # Scans

    @rule(
        racy=st.booleans(),
        how=st.sampled_from([{}, {}, {}, {"full": True}, {"verify": True}]),
        deaths=st.lists(st.tuples(st.integers(0, 14), st.booleans(), st.lists(some_change, max_size=2)), max_size=7),
        then=st.sampled_from(["carry on", "leave", "cancel"]),
        order=picks,
    )
    def scan(
        self, racy: bool, how: dict[str, bool], deaths: list[tuple[int, bool, list[Change]]], then: str, order: int
    ) -> None:
        """A scan whose processes die at these commits, while the tree changes; what is left then is carried on, or
        waits, or is cancelled.
        """
        self._carry_on_what_was_left()
        self._begin(racy, **how)
        for *dies_at, changes in deaths:
            if self._go_on(order, tuple(dies_at)):
                self._check()
                return
            self.change(changes)
        if deaths and then == "leave":
            return
        if deaths and then == "cancel":
            self.strandline.cancel()
        assert self._go_on(order)
        self._check()

    def _scan_quietly(self) -> None:
        self.scan(False, {}, [], "carry on", 0)

    @precondition(lambda self: self.suspect is not None)
    @rule(order=picks)
    def confirm(self, order: int) -> None:
        self._carry_on_what_was_left()
        if self.suspect is None:
            return
        fence = self.strandline.scan().fence
        self._begin(False, confirms=fence)
        assert self._go_on(order)
        self._check()

    @rule()
    def come_to_rest(self) -> None:
        """With nothing in the way, scans soon find nothing new to report, to hash or to look into."""
        self.ease()
        for path in self.paths():  # a rule file that is none is in the way, too
            if path.endswith(b"/.strandlineignore") and not stat.S_ISREG(os.lstat(path).st_mode):
                trees.remove(path)
                return
        self._scan_quietly()
        if self.suspect is not None:
            self.confirm(0)
        for _ in range(2):
            self._scan_quietly()
        ended = self.strandline.document()
        assert (ended["state"], ended["hashed_files"]) == ("succeeded", ended["verified_files"]), ended
        if not ended["verified_files"]:  # a huge folder is looked into to be verified
            assert ended["directories_unchanged"] == ended["directories"], ended

    def _begin(self, racy: bool, **how: Any) -> None:
        self.strandline.racy = racy
        self.strandline.request(**how)
        self.looks = []

    def _go_on(self, order: int, dies_at: tuple[int, bool] | None = None) -> bool:
        self.looks.append(self.look())
        return self.strandline.carry_on(dies_at, lambda n: order % n)

    def _carry_on_what_was_left(self) -> None:
        if self.looks:
            assert self._go_on(0)
            self._check()

    # What must hold

    def _check(self) -> None:
        looks, self.looks = self.looks, []
        scan, document = self.strandline.scan(), self.strandline.document()
        index, news = self.strandline.index(), self.strandline.news()
        told = (document, news)
        self._check_feed(index, news, document)
        lost = self.held.keys() - index.keys()
        assert not lost or scan.state in ("succeeded", "partial"), told
        if len({repr(look) for look in looks}) == 1:
            self._check_exact(looks[0], index, scan.confirms, told)
        else:
            self._check_mixed(looks, index, told)
        self._note(looks, index, scan.state, scan.fence or 0, scan.id)

    def _check_feed(self, index: State, news: list[dict], document: dict) -> None:
        assert apply_feed(news, self.held) == index, (document, news)
        assert apply_feed([*news, *news], self.held) == index
        assert each_change_once(news)
        counted = Counter(change["kind"] for change in news)
        kinds = ("added", "modified", "deleted", "moved")
        assert {kind: document[kind] for kind in kinds} == {kind: counted[kind] for kind in kinds}
        assert apply_feed(self.strandline.feed()) == index
        for cursor, state in self.kept:
            assert apply_feed(self.strandline.feed(cursor), state) == index

    def _check_exact(self, seen: Seen, index: State, confirms: int | None, told: tuple) -> None:
        """The tree held still during this scan."""
        state = told[0]["state"]
        for path in seen.unread:  # what is known of it stays; it may also be known from where it was before
            assert index.get(path) in (self.held.get(path), seen.unread[path]), (path, told)
            assert path in index or path not in self.held, (path, told)
        dim = {path for path in {**self.held, **index, **seen.files} if seen.is_dim(path)}
        for path in dim - seen.unread.keys():
            assert index.get(path) in (self.held.get(path), seen.files.get(path)), (path, told)
        aside = dim | seen.unread.keys()
        visible = {path: entry for path, entry in index.items() if path not in aside}
        expected = {path: entry for path, entry in self.held.items() if seen.is_blind(path)} | seen.files
        expected = {path: entry for path, entry in expected.items() if path not in aside}
        missing = {path: entry for path, entry in self.held.items() if path not in aside and path not in expected}
        if state in ("failed", "cancelled"):
            assert all(index.get(path) in (entry, seen.files.get(path)) for path, entry in missing.items()), told
            assert all(entry in (self.held.get(path), seen.files.get(path)) for path, entry in visible.items()), told
            died = "never came" in (told[0]["error"] or "")
            assert state == "cancelled" or died or self._root_is_closed(), told
            return
        if state == "suspect":
            assert visible == {**expected, **missing}, told
            assert len(missing) >= guard.DOUBTED_ALL_FROM or "root" in told[0]["error"], told
            return
        assert state == ("succeeded" if seen.quiet else state), told
        if confirms is None:
            assert visible == expected, told
        else:
            later = {path: entry for path, entry in missing.items() if self.missing.get(path, confirms + 1) > confirms}
            assert {**expected, **later}.items() <= visible.items() <= {**expected, **missing}.items(), told
        if state == "succeeded" and seen.quiet and confirms is None:
            size = sum(entry[1] for entry in seen.files.values() if entry[0] == "file")
            counted = tuple(told[0][name] for name in ("files", "bytes", "directories"))
            assert counted == (len(seen.files), size, len(seen.folders)), told

    def _root_is_closed(self) -> bool:
        return os.lstat(self.root).st_mode & 0o4 == 0

    def _check_mixed(self, looks: list[Seen], index: State, told: tuple) -> None:
        """The tree changed while the scan was interrupted."""
        for path in self.held.keys() - index.keys():
            there = [path in look.files or path in look.unread or look.is_blind(path) for look in looks]
            assert not all(there), (path, told)
        for path, entry in index.items():
            possible = [self.held.get(path)]
            for look in looks:
                possible += [look.files.get(path), look.unread.get(path)]
            assert entry in possible, (path, told)

    def _note(self, looks: list[Seen], index: State, state: str, fence: int, scan_id: str) -> None:
        self.held = index
        self.kept = [*self.kept[-CURSORS_KEPT + 1 :], (self.strandline.document()["cursor"], index)]
        self.suspect = scan_id if state == "suspect" else None
        whole = state in ("succeeded", "partial", "suspect")
        for path in index:
            there = [path in look.files or path in look.unread for look in looks]
            if not all(there) and not any(look.is_blind(path) for look in looks):
                self.missing.setdefault(path, fence)
            elif all(there) and whole:
                self.missing.pop(path, None)
        self.missing = {path: by for path, by in self.missing.items() if path in index}


@pytest.fixture(scope="module")
def machine() -> Iterator[type[Tide]]:
    with tempfile.TemporaryDirectory(prefix="strandline-stateful-", dir=tmpfs_folder()) as folder:
        os.chmod(folder, 0o777)  # whoever scans opens the database, too
        engine = connect(f"sqlite:///{folder}/test.sqlite")
        schema.migrate(engine)
        os.chmod(f"{folder}/test.sqlite", 0o666)
        Tide.app, Tide.engine = make_app(all_settings.load({}, redis_url="redis://nowhere")), engine
        yield Tide
        engine.dispose()


QUIET = {"deadline": None, "suppress_health_check": list(HealthCheck), "print_blob": True}


def test_index_and_feed_are_exact_whatever_happens(machine: type[Tide]) -> None:
    run_state_machine_as_test(
        machine, settings=settings(max_examples=6, stateful_step_count=10, derandomize=True, database=None, **QUIET)
    )


@pytest.mark.large
@pytest.mark.timeout(0)
def test_and_in_many_more_examples(machine: type[Tide]) -> None:
    examples = int(os.environ.get("STATEFUL_EXAMPLES", "2000"))
    run_state_machine_as_test(machine, settings=settings(max_examples=examples, stateful_step_count=20, **QUIET))
