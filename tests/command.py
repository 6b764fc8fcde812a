"""The command as people use it: run in a process of its own, its answers read as JSON."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from click.testing import CliRunner

from db.engine import reading
from orchestrator.cli import group
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

    def argv(self, *words: str | bytes) -> list[str | bytes]:
        return [STRANDLINE, *words, "--state", str(self.state)]

    def run(self, *words: str | bytes, timeout_s: float = 100) -> subprocess.CompletedProcess[str]:
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
            yield stack

    def json(self, *words: str | bytes, status: int = 0) -> list[dict]:
        done = self.run(*words, "--json")
        assert done.returncode == status, f"exit {done.returncode}: {done.stdout[-500:]} {done.stderr[-2000:]}"
        return [json.loads(line) for line in done.stdout.splitlines()]

    def scan(self, root: bytes | Path, *words: str, status: int = 0) -> dict:
        [document] = self.json("scan", os.fsencode(root), *words, status=status)
        return document

    def read(self, *words: str) -> list[dict]:
        """What a command that only reads prints, by the same code but in this process: that spares its start."""
        done = CliRunner(env=self.env).invoke(group, self.argv(*words, "--json")[1:])
        assert done.exit_code == 0, done.output
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
