"""One shard's work: list → compare → hash → write, directory by directory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple
from zlib import crc32

from db import tree
from db.engine import reading
from db.scans import Scan
from db.tenants import Tenant
from db.tree import Hashes
from db.types import HASHES, Gone, KnownChild, KnownDirectory, KnownFile, Place, Strategy, Unsettled
from tasks import named
from tasks.budget import Budget
from tasks.core import filesystem
from tasks.core.compare import (
    Comparison,
    compare,
    outcome_as_known,
    outcome_of_hash,
    outcome_of_symlink,
    outcome_taken_over,
    outcome_unread,
    same,
)
from tasks.core.filesystem import Entry, Ignored, Missing, OtherMount, Shadowed, Unreadable
from tasks.core.hashing import Hashed, Hasher
from tasks.core.ignore import Rules
from tasks.core.listing import Listing, Seed, TooLarge, list_directory
from tasks.core.policy import Policy
from tasks.core.profile import Profile, place_of, profile_of
from tasks.core.walk import Tree
from tasks.frontier import Frontier, Piece
from tasks.gate import Gate
from tasks.huge import Huge
from tasks.lease import Holder
from tasks.memory.governor import Governor
from tasks.mounts import Mounts
from tasks.redis.progress import Progress
from tasks.write_back import Todo, WriteBack, join

# Directories read from the database at a time.
PAGE = 500
# New directories kept in memory to be listed next; more wait as rows.
STACK = 1_000
# So much is hashed between two signs of life (a few milliseconds on a disk that is not hung).
TELL_BYTES = 4 << 20
# Directories of the same inode that are asked for the digests of a renamed one: by far most inodes were used once.
SAME_INODE = 8


class Opened(NamedTuple):
    """A directory that is being looked at: its descriptor, the rules in it, and how its entries are compared."""

    fd: int
    rules: Rules
    profile: Profile
    seed: Seed


class Settled(NamedTuple):
    """What became of a directory, or of a range of a huge one."""

    whole: bool  # nothing in it waits for another look
    files: int  # of those that are in the index now
    bytes: int


class Pipeline:
    """Walks one shard's frontier. `clock_ns` is the wall clock; whatever is done goes through the `holder`'s lease.

    After `run`, `pieces` is what is left of huge directories.
    """

    def __init__(self, holder: Holder, gate: Gate, write: WriteBack, scan: Scan, tenant: Tenant, root: Tree, *,
                 budget: Budget, governor: Governor, progress: Progress, chunk_bytes: int, huge_entries: int,
                 clock_ns: Callable[[], int]) -> None:  # fmt: skip
        assert scan.fence is not None
        self.engine, self.holder, self.budget, self.progress = holder.engine, holder, budget, progress
        self.governor, self.write, self._gate = governor, write, gate
        self.tenant, self.fence = tenant, scan.fence
        self._scan, self._root, self._clock_ns = scan, root, clock_ns
        self._huge_entries = huge_entries
        self.trusting = scan.strategy in (Strategy.INCREMENTAL, Strategy.PATHS) and not scan.full
        self.place = place_of(root)
        self._policy = Policy(tenant.algorithm, tenant.large_file, tenant.large_file_bytes)
        self._compared_by: dict[int, tuple[Profile, Seed]] = {}
        self._hasher = Hasher(
            self._policy, governor.buffer(chunk_bytes), self._read_bytes, inode=self.place.inode is not None
        )
        self._stack: list[Todo] = []
        self._mounts = Mounts(holder.engine, scan, tenant, root, write)
        self.pieces: list[Piece] = []
        self._untold_bytes = 0
        self._hashed_files = self._hashed_bytes = 0  # of the directory that is being settled, too
        self._unread: list[Entry] = []  # of the directory that is being settled: files that never had a digest
        self._verified_files = 0
        self.directories_unchanged = 0
        self.other = 0
        # Directories, files and bytes listed that a retry would list again.
        self.walked: Counter[str] = Counter()

    def close(self) -> None:
        """Give back what it held."""
        self._hasher.close()

    # What to walk

    def run(self, frontier: Frontier) -> list[Frontier]:
        """Walk until all is done or the budget is spent. What is left is the returned frontiers, `pieces`, and what the
        shard still owns. Raises LeaseLost, StaleDirectory.
        """
        rest: list[Frontier] = []
        if frontier.piece is not None:
            self._carry_on(frontier.piece)
        elif frontier.paths:
            rest = named.walk(self, frontier.paths)
        elif frontier.ranged:
            left = self.walk_range(frontier)
            rest = [left] if left.ranged else []
        self._walk_owned()
        self.write.flush()
        self._tell()
        self._gate.tell()
        return rest

    def _carry_on(self, piece: Piece) -> None:
        with reading(self.engine) as connection:
            known = tree.known_directory(connection, self.tenant.id, piece.directory_id)
        if known is not None:
            self.visit(Todo(known), piece)
            self.drain()

    def walk_range(self, frontier: Frontier) -> Frontier:
        """Walk the directories of a range that are known; what is left of it, or nothing."""
        after = frontier.after
        while True:
            with reading(self.engine) as connection:
                page = tree.range_page(connection, self.tenant.id, self.fence, after, frontier.to, PAGE)
            for known in page:
                if self.budget.spent:
                    return Frontier(True, after, frontier.to)
                self.visit(Todo(known))
                self.drain()
                after = Place(known.key, known.id)
            if len(page) < PAGE:
                return Frontier()

    def _walk_owned(self) -> None:
        while not self.budget.spent:
            self.write.flush()
            with reading(self.engine) as connection:
                page = tree.owned(connection, self.tenant.id, self.fence, self.holder.lease.number, PAGE)
            if not page:
                return
            self._stack = [Todo(known) for known in reversed(page)]
            self.drain()

    def drain(self) -> None:
        """List what is new in what was visited."""
        while self._stack and not self.budget.spent:
            self.visit(self._stack.pop())
        self._stack.clear()  # each of them is a row that this shard owns

    # One directory

    def visit(self, todo: Todo, piece: Piece | None = None) -> None:
        """List one directory (or a piece of a huge one), compare it, and put what differs into the batch."""
        self.budget.begun = True
        self.governor.check(self.holder.check)
        known = todo.known
        try:
            refusal = self._gate.directory(known.path, self._root)
            if refusal is not None:
                self.write.give_up(todo)
                self.write.skip(known.path, refusal.reason, refusal.operation)
                return
            opened = self._open(known)
            self._look(todo, opened, piece)
            self._gate.was_listed(known.path)
        except (Missing, Shadowed, Ignored):
            self.write.give_up(todo)
        except OtherMount:
            self.write.give_up(todo)
            self._mounts.note_other(known)
        except Unreadable as error:
            self.write.give_up(todo)
            self.write.error(error.path, error.operation, error.error)
            if error.operation == "list":
                self._gate.was_not_listed(error.path, self._root, error.error)

    def _open(self, known: KnownDirectory) -> Opened:
        fd = self._root.directory(known.path)
        magic = filesystem.filesystem_magic(fd) if self.tenant.cross_mounts or not self._compared_by else 0
        if magic and magic not in self._compared_by:
            profile = profile_of(magic)
            self._compared_by[magic] = profile, Seed.of(self.tenant.id, self._policy, profile)
        profile, seed = self._compared_by[magic] if magic else next(iter(self._compared_by.values()))
        return Opened(fd, self._root.rules, profile, seed)

    def _look(self, todo: Todo, opened: Opened, piece: Piece | None) -> None:
        known, now_ns = todo.known, self._clock_ns()
        try:
            if known.ranges is not None:
                raise TooLarge
            listing = list_directory(opened.fd, known.path, opened.seed, opened.rules, self._huge_entries)
        except TooLarge:
            if not self._mounts.unmounted(todo, opened.fd, None):
                Huge(self, self._huge_entries).look(todo, opened, now_ns, piece)
            return
        self.count(known, len(listing.files), listing.size, listing.other)
        if self._mounts.unmounted(todo, opened.fd, listing):
            return
        equal = listing.fingerprint == known.fingerprint and (self.trusting or known.listed == self.fence)
        verifying = self.verifies(known.id)
        if equal and not verifying:
            self.directories_unchanged += 1
            return
        self.confirm(known, opened)
        files, children = self.rows(todo, None)
        settled = self.settle(known, opened, listing, files, children, now_ns, verifying)
        if equal and settled.whole:
            self.directories_unchanged += 1
        else:
            if known.born == self.fence:
                self.write.count(directories=1, files=len(listing.files), bytes=listing.size)
            self.write.directory(todo, listing.fingerprint, *settled)

    def confirm(self, known: KnownDirectory, opened: Opened) -> None:
        """Raise Missing where what was listed is elsewhere by now: under its new path it is its parent's to tell."""
        if opened.profile.inode:
            self._root.confirm(known.path, opened.fd)

    def count(self, known: KnownDirectory, files: int, size: int, other: int) -> None:
        """A directory was listed. One that was born in this scan is counted in the database with its row: no retry
        lists it again.
        """
        self.budget.entries -= files + tree.DIRECTORY_ENTRIES
        self.progress.add(directories=1, files=files, bytes=size)
        self.other += other
        if known.born != self.fence:
            self.walked.update(directories=1, files=files, bytes=size)

    def verifies(self, directory_id: int, number: int = 0) -> bool:
        """Is it the turn of this directory (or of this range of it) to have its files hashed even if they are equal?"""
        if self._scan.verify:
            return True
        place = crc32(b"%d %d" % (directory_id, number))
        first, last = self._scan.verify_from, self._scan.verify_to
        return first <= place < last or first <= place + HASHES < last

    def rows(self, todo: Todo, hashes: Hashes | None) -> tuple[Mapping[bytes, KnownFile], Mapping[bytes, KnownChild]]:
        """What is recorded of a directory, or of a part of a huge one."""
        if todo.row is not None:
            return {}, {}  # born in this very attempt it has no rows yet; a dead attempt may have left some
        with reading(self.engine) as connection:
            files = tree.files_of(connection, self.tenant.id, todo.known.id, hashes)
            return files, tree.children_of(connection, self.tenant.id, todo.known.id, hashes)

    # What is in it

    def settle(self, known: KnownDirectory, opened: Opened, listing: Listing, files: Mapping[bytes, KnownFile],
               children: Mapping[bytes, KnownChild], now_ns: int, verifying: bool) -> Settled:  # fmt: skip
        """Compare what is listed with what is recorded, hash what differs, and put all that into the batch."""
        self._unread = []
        self._hashed_files = self._hashed_bytes = self._verified_files = 0
        comparison = compare(listing, files, children, opened.profile, self._policy)
        if not listing.steady:
            self._confirm_missing(opened.fd, known.path, comparison)
        for name in listing.unseen if listing.steady else ():
            self.write.error(
                join(known.path, name), "stat", "listed, but it has no stat; what is recorded stays as it is"
            )
        settled = comparison.settled and listing.steady
        elsewhere = self._elsewhere(known, opened, listing, comparison) if not files else {}
        for entry, before in self._gate.in_turn(comparison.to_hash, self.fence):
            old = elsewhere.get(entry.name)
            if old is not None and same(entry, old, opened.profile, self._policy):
                self.write.outcome(known, outcome_taken_over(entry, old, fence=self.fence))
            else:
                settled &= self._hash(known, opened, entry, before, now_ns)
        self._add_hashed(self._hashed_files)
        self.write.count(hashed_files=self._hashed_files, hashed_bytes=self._hashed_bytes)
        for entry, before in comparison.symlinks:
            self.write.outcome(known, outcome_of_symlink(entry, before, fence=self.fence))
        for entry, file in comparison.back:
            self.write.outcome(known, outcome_as_known(entry.name, file))
        if verifying:
            for entry, file in comparison.equal:
                settled &= self._verify(known, opened, entry, file, now_ns)
            self._add_hashed(self._verified_files)
        self.write.missing(known, comparison)
        for todo in self.write.children(known, comparison):
            if len(self._stack) < STACK:
                self._stack.append(todo)
        size = listing.size - sum(entry.size for entry in self._unread)
        return Settled(settled, len(listing.files) - len(self._unread), size)

    def _confirm_missing(self, fd: int, path: bytes, comparison: Comparison) -> None:
        """In a directory too busy to be listed whole, only what is really not there is missing."""
        try:
            comparison.missing = [
                one for one in comparison.missing if one[1] == Gone.IGNORED or not filesystem.exists(fd, one[0])
            ]
            comparison.missing_children = [
                one
                for one in comparison.missing_children
                if one[2] == Gone.IGNORED or not filesystem.exists(fd, one[0])
            ]
        except OSError as error:
            comparison.missing, comparison.missing_children = [], []
            self.write.error(path, "stat", filesystem.explain(error))

    def _elsewhere(self, known: KnownDirectory, opened: Opened, listing: Listing,
                   comparison: Comparison) -> Mapping[bytes, KnownFile]:  # fmt: skip
        """What is recorded of the files of a directory that was renamed, under its old name."""
        by_stat = opened.profile.ctime and opened.profile.inode
        if not comparison.to_hash or not by_stat or self._scan.strategy == Strategy.FULL_INITIAL:
            return {}
        found: dict[bytes, KnownFile] = {}
        with reading(self.engine) as connection:
            for one in tree.with_inode(connection, self.tenant.id, filesystem.inode_of(opened.fd), SAME_INODE):
                old = tree.known_directory(connection, self.tenant.id, one) if one != known.id else None
                if old is not None:
                    found |= tree.files_of(
                        connection, self.tenant.id, one, listing.hashes if old.ranges is not None else None
                    )
        return found

    def _hash(self, known: KnownDirectory, opened: Opened, entry: Entry, before: KnownFile | None,
              now_ns: int) -> bool:  # fmt: skip
        """Hash one file into the batch; False where it must be looked at again."""
        hashed = self._read(known, opened, entry, before, now_ns)
        if hashed is None:
            return False
        if hashed.digest is not None and hashed.entry is not None and hashed.read:
            self._hashed_files += 1
            self._hashed_bytes += hashed.entry.size
        elif hashed.digest is None and (before is None or before.digest is None):
            self._unread.append(entry)
        return self._put(known, opened, entry, before, hashed, now_ns)

    def _verify(self, known: KnownDirectory, opened: Opened, entry: Entry, before: KnownFile, now_ns: int) -> bool:
        """Hash a file that is equal by its stat; only what is not as recorded is written."""
        hashed = self._read(known, opened, entry, before, now_ns)
        if hashed is None:
            return False
        if hashed.read:
            self._verified_files += 1
            self.write.count(verified_files=1, hashed_files=1, hashed_bytes=entry.size)
        if hashed.entry == entry and hashed.digest == before.digest:
            return True
        self.write.count(silent_changes=int(hashed.entry == entry and hashed.digest is not None))
        return self._put(known, opened, entry, before, hashed, now_ns)

    def _read(self, known: KnownDirectory, opened: Opened, entry: Entry, before: KnownFile | None,
              now_ns: int) -> Hashed | None:  # fmt: skip
        """Hash a file, unless it must not be touched (None): then what is recorded of it stays, and that is noted."""
        path = join(known.path, entry.name)
        refusal = self._gate.file(path, entry, before, opened.profile)
        if refusal is None:
            hashed = self._hasher.hash(opened.fd, entry, now_ns)
            self._gate.was_read(path, entry, before, opened.profile, hashed)
            return hashed
        self.write.skip(path, refusal.reason, refusal.operation)
        if before is None or before.digest is None:
            self._unread.append(entry)
        if before is None or before.unsettled != Unsettled.FAILED or before.gone is not None:
            self.write.outcome(known, outcome_unread(entry, before, fence=self.fence))
        return None

    def _put(self, known: KnownDirectory, opened: Opened, entry: Entry, before: KnownFile | None, hashed: Hashed,
             now_ns: int) -> bool:  # fmt: skip
        """Put what a hash found into the batch; False where the file must be looked at again."""
        if hashed.entry is None:
            return False  # gone or something else by now: the next listing tells
        if hashed.entry != entry:
            self.confirm(known, opened)  # it may have been written since its directory was moved
        if hashed.error is not None:
            self.write.error(join(known.path, entry.name), "read", hashed.error)
        outcome = outcome_of_hash(
            hashed, hashed.entry, before, fence=self.fence, now_ns=now_ns, profile=opened.profile,
            algorithm=self._policy.algorithm_for(hashed.entry.size),
        )  # fmt: skip
        self.write.outcome(known, outcome)
        return outcome.unsettled is None and hashed.entry == entry

    def _read_bytes(self, count: int) -> None:
        self.budget.bytes -= count
        self._untold_bytes += count
        if self._untold_bytes >= TELL_BYTES:
            self._tell()

    def _tell(self) -> None:
        """Whoever watches sees it, from within long hashes too."""
        self.holder.check()
        self.governor.check(self.holder.check)
        self._add_hashed(0)

    def _add_hashed(self, files: int) -> None:
        self.progress.add(hashed_files=files, hashed_bytes=self._untold_bytes)
        self._untold_bytes = 0
