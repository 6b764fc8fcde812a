"""What may come between the steps of a scan: each of the design's hard cases, forced at the very step.

The tasks run in this process, on SQLite. A death is an exception that nothing catches, before or after the commit of
one flush: what is written then is what a killed process leaves.
"""

import hashlib
import importlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest
from sqlalchemy import Engine

from db import changes, indexed, scans, schema, sending, shards, tenants, vanished
from db.engine import connect, reading, writing
from db.scans import Scan
from db.types import ScanState, Trigger
from orchestrator.documents import change_document, file_document
from orchestrator.start import start_queued
from tasks import settings as all_settings
from tasks.app import App, make_app
from tasks.core.filesystem import Entry
from tasks.core.hashing import Hashed, Hasher
from tasks.lease import Holder
from tests import in_process
from tests.command import each_change_once, tmpfs_folder
from tests.trees import Dir, File, State, Symlink, apply_feed, build, index, listing, remove, write

HOUR_NS = 3_600 * 10**9


class Killed(BaseException):
    """The process is no more."""


@dataclass
class World:
    """A tenant, and the tasks of a cluster of one, run one at a time."""

    engine: Engine
    app: App
    settings: all_settings.Settings
    tenant_id: int
    root: bytes

    def start(self, **asked: bool) -> str:
        with writing(self.engine) as connection:
            scan, _ = scans.request(connection, self.tenant_id, trigger=Trigger.REQUEST, **asked)
        start_queued(self.engine, self.settings)
        return scan.id

    def step(self) -> sending.Sendable | None:
        """Run the next shard that is ready; None where none is."""
        for shard in in_process.ready(self.engine)[:1]:
            in_process.run(shard)
            return shard
        return None

    def carry_on(self, scan_id: str) -> Scan:
        """To the end; what a dead process held is taken over."""
        in_process.expire_leases(self.engine)
        while self.step():
            pass
        return self.scan_of(scan_id)

    def scan(self, **asked: bool) -> Scan:
        return self.carry_on(self.start(**asked))

    def end_early(self, scan_id: str, ending: ScanState) -> Scan:
        with writing(self.engine) as connection:
            assert shards.end_early(connection, scan_id, ending, "for the test")
        return self.carry_on(scan_id)

    def scan_of(self, scan_id: str) -> Scan:
        with reading(self.engine) as connection:
            found = scans.get(connection, scan_id)
        assert found is not None
        return found

    @property
    def index(self) -> State:
        with reading(self.engine) as connection:
            return index(map(file_document, indexed.page(connection, self.tenant_id, limit=100_000)))

    @property
    def feed(self) -> list[dict]:
        with reading(self.engine) as connection:
            return [change_document(one) for one in changes.after(connection, self.tenant_id, None, 100_000)]

    @contextmanager
    def copied(self) -> Iterator[None]:
        """Work on a copy of the database, and then again on the database as it is now."""
        kept, runtime = self.engine, self.app.runtime
        kept.dispose()  # SQLite writes its log back into the file
        path = shutil.copy(str(kept.url.database), f"{kept.url.database}.copy")
        runtime.forked()
        self.engine = runtime.engine = connect(f"sqlite:///{path}")
        yield
        self.engine.dispose()
        os.unlink(path)
        self.engine = runtime.engine = kept

    def exact(self) -> None:
        """Index and feed are what is there, and each change is told once."""
        assert self.index == listing(self.root)
        assert apply_feed(self.feed) == listing(self.root)
        assert each_change_once(self.feed)


Make = Callable[..., World]


@pytest.fixture
def world(tmp_path: Path, redis_url: str) -> Iterator[Make]:
    engines = []
    # Commits by thousands: a disk that others use would be most of the time.
    databases = tempfile.TemporaryDirectory(prefix="strandline-world-", dir=tmpfs_folder())

    def make(spec: Dir, url: str | None = None, name: str = "t", **settings: object) -> World:
        root = os.fsencode(tmp_path / f"root{len(engines)}")
        build(root, spec)
        chosen = all_settings.load(
            {}, database_url=url or f"sqlite:///{databases.name}/{len(engines)}.db", redis_url=redis_url, **settings
        )
        app = make_app(chosen)
        app.runtime.clock_ns = lambda: os.lstat(root).st_ctime_ns + 10 * HOUR_NS  # nothing is fresh or racy
        schema.migrate(app.runtime.engine)
        engines.append(app.runtime.engine)
        with writing(app.runtime.engine) as connection:
            tenant = tenants.add(connection, name=name, root=root, tier="standard", interval_s=60, algorithm="sha256")
        return World(app.runtime.engine, app, chosen, tenant.id, root)

    yield make
    for engine in engines:
        engine.dispose()
    databases.cleanup()


@contextmanager
def killed_at(flush: int, *, committed: bool) -> Iterator[None]:
    """Die at the so manieth flush: before its commit, or after it."""
    count = 0
    real = Holder.flush_changes

    def dying(self: Holder, work: Callable[..., object], *args: int, **counted: int) -> object:
        nonlocal count
        count += 1
        this = count

        def dying_work(*given: object) -> object:
            done = work(*given)
            if this == flush and not committed:
                raise Killed
            return done

        done = real(self, dying_work, *args, **counted)
        if this == flush:
            raise Killed
        return done

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Holder, "flush_changes", dying)
        yield


def until_killed(world: World) -> bool:
    """Run what is ready; True where it was killed on the way."""
    try:
        while world.step():
            pass
    except Killed:
        return True
    return False


NESTED = Dir({b"a": Dir({b"f": File(b"a"), b"b": Dir({b"g": File(b"b")})}), b"h": File(b"h")})


def test_a_child_that_a_cancelled_scan_found_is_listed_by_the_next(world: Make) -> None:
    it = world(NESTED)
    it.scan()
    build(it.root + b"/new", Dir({b"deep": Dir({b"x": File(b"x")}), b"y": File(b"y")}))
    scan_id = it.start()
    with killed_at(1, committed=True):
        assert until_killed(it)  # the root is written, with its new child; nothing of the child is

    cancelled = it.end_early(scan_id, ScanState.CANCELLED)

    assert (cancelled.state, cancelled.deleted) == ("cancelled", 0)
    assert it.scan().state == "succeeded"
    it.exact()


@pytest.mark.parametrize("ending", [ScanState.FAILED, ScanState.CANCELLED])
def test_a_deletion_that_waits_when_a_scan_ends_early_is_done_by_the_next(world: Make, ending: ScanState) -> None:
    it = world(NESTED)
    it.scan()
    before = it.index
    os.unlink(it.root + b"/a/f")
    remove(it.root + b"/a/b")
    scan_id = it.start()
    with killed_at(1, committed=True):
        assert until_killed(it)

    assert it.end_early(scan_id, ending).deleted == 0
    assert it.index == before == apply_feed(it.feed)
    assert it.scan().deleted == 2
    it.exact()


def test_a_child_born_by_an_attempt_that_died_is_listed_though_its_parent_is_equal_now(world: Make) -> None:
    for committed in (1, 2, 3):
        it = world(NESTED, shard_entries=1)
        scan_id = it.start()
        with killed_at(committed, committed=True):
            assert until_killed(it)

        assert it.carry_on(scan_id).state == "succeeded"
        it.exact()


def test_a_file_that_is_back_with_an_equal_stat_before_it_was_deleted_stays(world: Make) -> None:
    it = world(NESTED)
    it.scan()
    rules = it.root + b"/.strandlineignore"
    write(rules, b"f\nb\n")
    scan_id = it.start()
    with killed_at(1, committed=True):
        assert until_killed(it)
    it.end_early(scan_id, ScanState.CANCELLED)
    os.unlink(rules)  # the file was not touched at all

    again = it.scan()

    assert (again.state, again.hashed_files) == ("succeeded", 0)
    it.exact()
    assert not [change for change in it.feed if change["kind"] == "deleted" and change["path"] != ".strandlineignore"]
    it.scan()  # the root once more, since its row of the rule file was deleted
    assert it.scan().directories_unchanged == 3


@pytest.mark.timeout(30)
def test_a_shard_whose_time_is_over_before_it_begins_lists_one_directory(world: Make) -> None:
    it = world(NESTED)
    it.app.runtime.clock_s = count(0, 10_000).__next__

    for _ in range(2):
        assert it.scan().state == "succeeded"
        it.exact()


def test_a_file_that_comes_back_while_its_deletion_is_carried_out_is_added_again(
    world: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    it = world(NESTED)
    it.scan()
    os.rename(it.root + b"/a/f", it.root + b"-f")
    real = vanished.collect

    def collect(*args: object) -> None:
        os.rename(it.root + b"-f", it.root + b"/a/f")
        real(*args)

    monkeypatch.setattr("tasks.deletions.vanished.collect", collect)
    assert it.scan().deleted == 1
    monkeypatch.undo()
    assert it.scan().added == 1
    it.exact()


def test_a_folder_that_is_back_while_the_finish_expands_it_is_added_again(
    world: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    it = world(NESTED)
    it.scan()
    os.rename(it.root + b"/a", it.root + b"-a")
    real = vanished.expand

    def expand(*args: object) -> bool:
        if os.path.exists(it.root + b"-a"):
            os.rename(it.root + b"-a", it.root + b"/a")
        return real(*args)

    monkeypatch.setattr("tasks.deletions.vanished.expand", expand)
    assert it.scan().deleted == 2
    monkeypatch.undo()
    assert it.scan().state == "succeeded"
    it.exact()


@pytest.mark.parametrize("after", range(1, 6))
@pytest.mark.parametrize(("old", "new"), [(b"/b/moved", b"/y/moved"), (b"/y/moved", b"/b/moved")])
def test_a_folder_renamed_between_two_shards_of_a_scan_is_settled_by_the_next(
    world: Make, after: int, old: bytes, new: bytes
) -> None:
    spec = {
        name: Dir({b"%d" % number: File(name + b"%d" % number) for number in range(4)}) for name in (b"b", b"m", b"y")
    }
    it = world(
        Dir({**spec, old.split(b"/")[1]: Dir({b"moved": Dir({b"f": File(b"f"), b"in": Dir({b"g": File(b"g")})})})})
    )
    it.scan()
    it.settings = it.settings.model_copy(update={"shard_entries": 4})
    scan_id = it.start()
    for _ in range(after):
        it.step()
    os.rename(it.root + old, it.root + new)
    it.carry_on(scan_id)

    assert it.scan().state == "succeeded"
    it.exact()


@pytest.mark.parametrize("another_is_there", [False, True])
@pytest.mark.parametrize("where", [b"a", b"a/b"])
@pytest.mark.parametrize(("huge", "step"), [(20_000, "tasks.pipeline.list_directory"), (16, "tasks.huge.list_ranges")])
def test_what_is_made_in_a_folder_once_it_has_another_name_is_never_told_under_its_former_one(
    world: Make, huge: int, where: bytes, another_is_there: bool, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {b"%d" % number: File(b"%d" % number) for number in range(20)}
    it = world(Dir({b"a": Dir({**files, b"b": Dir(files)})}), huge_entries=huge)
    it.scan()
    write(it.root + b"/" + where + b"/before", b"so that it differs")
    module, name = step.rsplit(".", 1)
    real = getattr(importlib.import_module(module), name)

    def listed(fd: int, path: bytes, *more: object) -> object:
        if path == where and not os.path.exists(it.root + b"/z"):
            os.rename(it.root + b"/a", it.root + b"/z")
            if another_is_there:
                build(it.root + b"/a", Dir({b"b": Dir({b"other": File(b"other")}), b"other": File(b"other")}))
            for number in range(40):  # some of them in each range
                write(it.root + b"/z" + where[1:] + b"/made%d" % number, b"there alone")
        return real(fd, path, *more)

    monkeypatch.setattr(step, listed)
    assert it.scan().errors_total == 0
    it.scan()

    it.exact()
    told = [change["path"] for change in it.feed if "/made" in change["path"]]
    assert sorted(told) == sorted(f"z{os.fsdecode(where[1:])}/made{number}" for number in range(40))


def test_what_is_written_into_a_file_once_its_folder_has_another_name_is_never_told_under_its_former_one(
    world: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    it = world(NESTED)
    it.scan()
    write(it.root + b"/a/f", b"before")
    real = Hasher.hash

    def hashed(self: Hasher, directory: int, entry: Entry, *more: int) -> Hashed:
        if os.path.exists(it.root + b"/a"):
            os.rename(it.root + b"/a", it.root + b"/z")
            write(it.root + b"/z/f", b"written there")
        return real(self, directory, entry, *more)

    monkeypatch.setattr(Hasher, "hash", hashed)
    it.scan()
    it.scan()

    it.exact()
    written = hashlib.sha256(b"written there").hexdigest()
    assert {change["path"] for change in it.feed if change["digest"] == written} == {"z/f"}


@pytest.mark.row(37, "the root replaced by an empty folder between any two shards: nothing deleted")
@pytest.mark.parametrize("after", range(6))
def test_a_root_that_is_replaced_in_mid_scan_deletes_nothing(world: Make, after: int) -> None:
    folders = {name: Dir({b"%d" % number: File(name + b"%d" % number) for number in range(4)}) for name in (b"m", b"x")}
    it = world(Dir({**folders, b"a": File(b"a")}))
    it.scan()
    before = it.index
    it.settings = it.settings.model_copy(update={"shard_entries": 4})
    write(it.root + b"/a", b"changed, so that there is something to do")
    scan_id = it.start()
    for _ in range(after):
        it.step()
    if it.scan_of(scan_id).state != "running":
        return
    os.rename(it.root, it.root + b"-away")
    os.mkdir(it.root)

    ended = it.carry_on(scan_id)

    assert (ended.state, ended.deleted, ended.moved) == ("suspect", 0, 0)
    assert "confirm" in (ended.error or "")
    assert it.index.keys() == before.keys()
    os.rmdir(it.root)
    os.rename(it.root + b"-away", it.root)
    assert it.scan().state == "succeeded"
    it.exact()


# Before a commit is as after the one before.
@pytest.mark.parametrize("committed", [pytest.param(False, marks=pytest.mark.large), True])
def test_a_frontier_that_was_handed_on_is_walked_once_whoever_dies(world: Make, committed: bool) -> None:
    spec = Dir(
        {b"%02d" % one: Dir({b"%02d" % two: File(b"%d %d" % (one, two)) for two in range(5)}) for one in range(12)}
    )
    survived = 0
    for turn in range(1, 60):
        it = world(spec, shard_entries=10)
        scan_id = it.start()
        with killed_at(turn, committed=committed):
            if not until_killed(it):
                break
        survived += 1
        assert it.carry_on(scan_id).state == "succeeded"
        it.exact()
    assert survived > 5


@pytest.mark.parametrize("what", ["tasks.scan_shard.shards.complete", "tasks.finish.scans.publish"])
def test_who_dies_in_the_transaction_that_completes_a_shard_or_the_scan_has_not_completed_it(
    world: Make, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Dir({b"%02d" % number: File(b"%d" % number) for number in range(5)})
    it = world(Dir({b"%02d" % number: folder for number in range(12)}), shard_entries=10)
    scan_id = it.start()
    real = shards.complete if what.endswith("complete") else scans.publish

    def dying(*args: object, **more: object) -> None:
        real(*args, **more)
        raise Killed

    deaths = 0
    while it.scan_of(scan_id).state == "running":
        with monkeypatch.context() as patched:
            patched.setattr(what, dying)
            deaths += until_killed(it)
        in_process.expire_leases(it.engine)
        it.step()

    assert deaths > 1 or what.endswith("publish")
    assert it.scan_of(scan_id).state == "succeeded"
    it.exact()


@pytest.mark.parametrize(("committed", "huge"), [(False, 16), pytest.param(True, 20_000, marks=pytest.mark.large)])
def test_a_finish_killed_in_each_of_its_steps_is_done_again(
    world: Make, committed: bool, huge: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given
    monkeypatch.setattr("tasks.deletions.BATCH", 16)
    it = world(BEFORE, huge_entries=huge)
    it.scan()
    change(it.root)
    scan_id = it.start()
    while not _finish_is_next(it):
        it.step()
    there = {path: one for path, one in listing(it.root).items() if not path.startswith(b"ignored/")}

    # when, then
    survived = 0
    for turn in range(1, 80):
        with it.copied():
            with killed_at(turn, committed=committed):
                if not until_killed(it):
                    break
            survived += 1
            ended = it.carry_on(scan_id)
            assert (ended.state, ended.moved, ended.deleted) == ("succeeded", 32, 4), f"killed at step {turn}"
            assert it.index == there == apply_feed(it.feed) and each_change_once(it.feed)
    assert survived > 10


@pytest.mark.parametrize("huge", [20_000, 16])
def test_moves_deletions_and_ignored_files_on_each_database(world: Make, migrated_url: str, huge: int) -> None:
    it = world(BEFORE, migrated_url, huge_entries=huge)
    it.scan()
    change(it.root)

    ended = it.scan()

    assert (ended.state, ended.moved, ended.deleted) == ("succeeded", 32, 4)
    there = {path: one for path, one in listing(it.root).items() if not path.startswith(b"ignored/")}
    assert it.index == there == apply_feed(it.feed) and each_change_once(it.feed)
    remove(it.root + b"/moved")
    remove(it.root + b"/stays")
    suspect = it.scan()
    assert (suspect.state, suspect.deleted) == ("suspect", 0)
    with writing(it.engine) as connection:
        scans.request(connection, it.tenant_id, trigger=Trigger.REQUEST, confirms=suspect.fence)
    assert it.scan().deleted == 61
    assert it.index.keys() == {path for path in there if not path.startswith((b"moved/", b"stays/"))}
    assert it.scan(verify=True).verified_files == len([one for one in it.index.values() if one[0] == "file"])


MANY = {b"%02d" % number: File(b"many %d" % number) for number in range(30)}
BEFORE = Dir({
    b"moving": Dir({**MANY, b"link": Symlink(b"x")}), b"going": Dir({b"deep": Dir({b"g": File(b"g")})}),
    b"ignored": Dir({b"i": File(b"i")}), b"equal1": File(b"equal"), b"equal2": File(b"equal"),
    b"stays": Dir(MANY), b"becomes": File(b"a folder"),
})  # fmt: skip


def change(root: bytes) -> None:
    os.rename(root + b"/moving", root + b"/moved")
    remove(root + b"/going")
    os.rename(root + b"/equal1", root + b"/stays/equal")
    os.unlink(root + b"/stays/00")
    os.unlink(root + b"/becomes")
    build(root + b"/becomes", Dir({b"now": File(b"now")}))
    write(root + b"/.strandlineignore", b"ignored\n")


def _finish_is_next(it: World) -> bool:
    return in_process.ready(it.engine)[0].number == shards.FINISH
