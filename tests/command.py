"""The command as people use it, its answers read as JSON. It is run in a process of its own where it starts something;
beside a stack or a cluster that runs it is run in this one, by the same code: that spares the start of hundreds.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from click.testing import CliRunner

from db.engine import reading
from orchestrator.cli import main
from orchestrator.cli.common import settings_of
from orchestrator.cli.scan import asking
from orchestrator.documents import scan_document
from orchestrator.session import Session
from tests import processes, trees
from tests.waiting import wait_until

STRANDLINE = str(Path(sys.executable).with_name("strandline"))


@dataclass
class Command:
    """`strandline … --state STATE`, with an environment of its own."""

    state: Path
    env: Mapping[str, str] = field(default_factory=dict)
    starts_nothing: bool = False  # what it asks runs already

    def argv(self, *words: str | bytes) -> list[str | bytes]:
        return [STRANDLINE, *words, "--state", str(self.state)]

    def run(self, *words: str | bytes, timeout_s: float = 100) -> subprocess.CompletedProcess[str]:
        if self.starts_nothing and threading.current_thread() is threading.main_thread():
            return run_here(self.argv(*words), self.env, timeout_s)
        return subprocess.run(
            self.argv(*words), env={**os.environ, **self.env}, stdin=subprocess.DEVNULL, capture_output=True,
            text=True, timeout=timeout_s, errors="surrogateescape",
        )  # fmt: skip

    def start(self, *words: str | bytes) -> processes.Running:
        return processes.start(self.argv(*words), env={**os.environ, **self.env})

    @contextlib.contextmanager
    def up(self, *words: str | bytes) -> Iterator[processes.Running]:
        """A stack that runs until the end of the block: each scan joins it."""
        with self.start("up", *words) as stack:
            assert stack.stdout.wait_for(b"Press Ctrl-C", 60), stack.stderr.content
            self.starts_nothing = True
            try:
                yield stack
            finally:
                self.starts_nothing = False

    def json(self, *words: str | bytes, status: int = 0) -> list[dict]:
        done = self.run(*words, "--json")
        assert done.returncode == status, f"exit {done.returncode}: {done.stdout[-500:]} {done.stderr[-2000:]}"
        return [json.loads(line) for line in done.stdout.splitlines()]

    def scan(self, root: bytes | Path, *words: str, status: int = 0) -> dict:
        [document] = self.json("scan", os.fsencode(root), *words, status=status)
        return document

    def read(self, *words: str) -> list[dict]:
        """What a command that only reads prints."""
        done = run_here(self.argv(*words, "--json"), self.env, 100)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.split("\n")[:-1]]

    def index(self, tenant: str) -> trees.State:
        return trees.index(self.read("files", tenant))

    def feed(self, tenant: str, since: str | None = None) -> list[dict]:
        return self.read("changes", tenant, *(["--since", since] if since else []))

    @contextlib.contextmanager
    def asking(self) -> Iterator["Asking"]:
        """Beside a stack that runs: scans asked for by this process, for many small ones."""
        with asking(settings_of(str(self.state))) as session:
            yield Asking(session)


def run_here(argv: Sequence[str | bytes], env: Mapping[str, str], timeout_s: float) -> subprocess.CompletedProcess[str]:
    """A command in this process; what it does not catch is raised."""
    argv, status = [os.fsdecode(word) for word in argv], 0
    with CliRunner().isolation(env=env) as (stdout, stderr, _), _interrupted_after(timeout_s):
        before, sys.argv = sys.argv, argv
        try:
            main()
        except SystemExit as ending:
            status = ending.code if isinstance(ending.code, int) else 0
        finally:
            sys.argv = before
            sys.stdout.flush()
    return subprocess.CompletedProcess(argv, status, stdout.getvalue().decode(), stderr.getvalue().decode())


@contextlib.contextmanager
def _interrupted_after(seconds: float) -> Iterator[None]:
    """A command that hangs fails the test; and what it does with signals is undone."""

    def too_late(*_: object) -> None:
        raise AssertionError(f"the command took more than {seconds} s")

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)}
    signal.signal(signal.SIGALRM, too_late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in handlers.items():
            signal.signal(number, handler)


@dataclass
class Asking:
    """As `scan` and `enqueue` ask, without the start of a process."""

    session: Session

    def scan(self, root: bytes, name: str) -> dict:
        tenant = self.session.tenant_for(root, name)
        ended = self.session.wait(self.session.ask(tenant))
        with reading(self.session.engine) as connection:
            return scan_document(connection, ended, name)


@dataclass
class Followed:
    """A tenant whose feed is read on after each scan, as a reader does who applies it to what he has."""

    command: Command
    asking: Asking
    root: bytes
    name: str
    state: trees.State = field(default_factory=dict)
    cursor: str | None = None

    def scan(self, state: str = "succeeded") -> dict:
        """A scan that ends so; its document, with the changes as (kind, path) under `news`, and all paths that they
        name, the old ones of moves too, under `touched`.
        """
        document = self.asking.scan(self.root, self.name)
        assert document["state"] == state, document
        news = self.command.feed(self.name, since=self.cursor)
        assert each_change_once(news)
        self.state, self.cursor = trees.apply_feed(news, self.state), document["cursor"]
        assert self.command.index(self.name) == self.state
        touched = {trees.exact(change, name) for change in news for name in ("path", "old_path") if name in change}
        told = sorted((change["kind"], trees.exact(change, "path")) for change in news)
        return document | {"news": told, "touched": touched}

    def exact(self) -> dict:
        """A scan after which index and feed are what a fresh listing with digests shows."""
        document = self.scan()
        assert self.state == trees.listing(self.root)
        assert document["files"] == len(self.state)
        return document

    def settle(self, deadline_s: float = 20) -> dict:
        """Scan until nothing is hashed again: every row holds a stat that is past the racy window."""
        return wait_until(lambda: self._unless_hashed(self.exact()), deadline_s, "nothing is hashed any more")

    @staticmethod
    def _unless_hashed(document: dict) -> dict | None:
        return None if document["hashed_files"] else document


def each_change_once(feed: list[dict]) -> bool:
    """At most one change a path and scan, and cursors that never repeat."""
    paths = [(change["fence"], trees.exact(change, "path")) for change in feed]
    cursors = [change["cursor"] for change in feed]
    return len(set(paths)) == len(paths) and len(set(cursors)) == len(cursors)


def tmpfs_folder() -> str | None:
    """A folder in memory that can be written to."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) and shutil.disk_usage("/dev/shm").free > 64 << 20 else None
