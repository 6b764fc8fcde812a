"""`make replay`: consecutive releases of real projects, brought into a tree in four styles and scanned after each.

After every step the index, the feed from its beginning and the feed since the step before are held against a fresh
listing, and the feed's news against what git sees. Exit 1: something differs; 2: nothing could be tried.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests import needs, releases, trees
from tests.command import Command, each_change_once
from tests.gitview import GitView
from tests.releases import Member

CACHE = Path(__file__).parent.parent / "build" / "replay"
# Many files of which few change, and few that are moved about.
PROJECTS = [("django", "wheel"), ("flask", "sdist")]
DEFAULT = " and ".join(f"{package} as {kind}" for package, kind in PROJECTS)
RELEASES = 11
KINDS = ("added", "modified", "deleted", "moved")
SHOWN = 5
# Only the scans that are asked for: one on schedule could see a step half done.
QUIET = {"STRANDLINE_INTERVAL_S": str(7 * 86_400)}


# ---- The styles


def over(tree: bytes, beside: bytes, members: Iterable[Member]) -> None:
    releases.unpack(tree, members)


def move(tree: bytes, beside: bytes, members: Iterable[Member]) -> None:
    releases.unpack(beside, members)
    for name in os.listdir(tree):
        trees.remove(os.path.join(tree, name))
    for name in os.listdir(beside):
        os.rename(os.path.join(beside, name), os.path.join(tree, name))


def rsync(tree: bytes, beside: bytes, members: Iterable[Member], *options: str) -> None:
    releases.unpack(beside, members)
    subprocess.run(["rsync", "-a", "--delete", *options, beside + b"/", tree + b"/"], check=True)


def checksum(tree: bytes, beside: bytes, members: Iterable[Member]) -> None:
    rsync(tree, beside, members, "--checksum")


STYLES: dict[str, Callable[[bytes, bytes, Iterable[Member]], None]] = {
    "over": over,
    "move": move,
    "rsync": rsync,
    "checksum": checksum,
}


# ---- One step


@dataclass
class Step:
    files: int
    feed: Counter[str]
    git: Counter[str]
    hashed: int
    confirmed: int
    seconds: float
    differences: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        news = " ".join(f"{kind} {self.feed[kind]:,}" for kind in KINDS)
        seen = " ".join(f"{letter} {self.git[letter]:,}" for letter in "AMD")
        asked = " confirmed" if self.confirmed else ""
        equal = "no" if self.differences else "yes"
        return f"{self.files:,} files, {news}; git {seen}; hashed {self.hashed:,}; equal {equal}{asked}"


class Replay:
    """One tenant, whose tree is brought from release to release in one style."""

    def __init__(self, cli: Command, folder: Path, tenant: str, style: str) -> None:
        self._cli, self._tenant, self._bring = cli, tenant, STYLES[style]
        self._folder = folder
        self.tree = os.fsencode(folder / tenant)
        os.mkdir(self.tree)
        self._git = GitView(folder / f"{tenant}.git", self.tree)
        self._state: trees.State = {}
        self._cursor: str | None = None

    def step(self, members: Iterable[Member]) -> Step:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(dir=self._folder) as beside:
            self._bring(self.tree, os.fsencode(beside), members)
        return self.look(began)

    def look(self, began: float) -> Step:
        scans = list(self._scan())
        before, now = self._state, trees.listing(self.tree)
        news = self._cli.feed(self._tenant, since=self._cursor)
        whole = self._cli.feed(self._tenant) if self._cursor else news
        seen = self._git.look()
        kinds = Counter(change["kind"] for change in news)
        differences = [
            *failure(scans[-1]),
            *differ("the index", self._cli.index(self._tenant), now),
            *differ("the feed from its beginning", trees.apply_feed(whole), now),
            *differ("the feed since the last step", trees.apply_feed(news, before), now),
            *differ("the feed beside git", dict(said(news)), seen),
            *differ("the scan's totals", {kind: sum(scan[kind] for scan in scans) for kind in KINDS},
                    {kind: kinds[kind] for kind in KINDS}),
            *twice(news),
            *moved_and_changed(news, before, now),
            *([] if each_change_once(whole) else ["the feed from its beginning names a path twice in a scan"]),
        ]  # fmt: skip
        self._state, self._cursor = now, scans[-1]["cursor"] or self._cursor
        return Step(
            files=len(now), feed=kinds, git=Counter(seen.values()), hashed=sum(scan["hashed_files"] for scan in scans),
            confirmed=len(scans) - 1, seconds=time.monotonic() - began, differences=differences,
        )  # fmt: skip

    def _scan(self) -> Iterator[dict]:
        """The scan, and that of confirming it if it doubts what it saw."""
        scan = self._document("scan", self.tree, "--tenant", self._tenant)
        yield scan
        if scan["state"] == "suspect":
            yield self._document("confirm", scan["scan"])

    def _document(self, *words: str | bytes) -> dict:
        done = self._cli.run(*words, "--json")
        assert done.returncode in (0, 1) and done.stdout, f"exit {done.returncode}: {done.stderr[-2000:]}"
        return json.loads(done.stdout)


# ---- Comparing


def failure(scan: dict) -> list[str]:
    return [] if scan["state"] == "succeeded" else [f"the scan ended {scan['state']}: {scan['error']}"]


def differ(what: str, found: Mapping[Any, Any], wanted: Mapping[Any, Any]) -> list[str]:
    """The first keys whose values differ, and how many there are."""
    keys = sorted(key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key))
    lines = [f"{what}: {key!r} is {found.get(key)}, not {wanted.get(key)}" for key in keys[:SHOWN]]
    return lines + ([f"{what}: {len(keys) - SHOWN:,} more"] if len(keys) > SHOWN else [])


def said(news: Iterable[dict]) -> Iterator[tuple[bytes, str]]:
    """What the feed says of each path, in git's letters. Git knows no moves: they are a deletion and an addition."""
    for change in news:
        if change["kind"] == "moved":
            yield trees.exact(change, "old_path"), "D"
        yield trees.exact(change, "path"), {"modified": "M", "deleted": "D"}.get(change["kind"], "A")


def twice(news: Iterable[dict]) -> list[str]:
    counted = Counter(path for path, _ in said(news))
    return [f"the news names {path!r} {count} times" for path, count in counted.items() if count > 1][:SHOWN]


def moved_and_changed(news: Iterable[dict], before: trees.State, now: trees.State) -> list[str]:
    pairs = [
        (trees.exact(change, "old_path"), trees.exact(change, "path")) for change in news if change["kind"] == "moved"
    ]
    wrong = [(old, new) for old, new in pairs if before.get(old) != now.get(new)]
    return [f"moved from {old!r} to {new!r}, but not the same" for old, new in wrong[:SHOWN]]


# ---- Whole projects


@dataclass
class Row:
    """The sum of the steps of one project in one style; the first release, to which nothing leads, is none."""

    project: str
    style: str
    steps: list[Step] = field(default_factory=list)
    differences: int = 0

    HEAD = (
        "project",
        "style",
        "steps",
        "files",
        *KINDS,
        "git A",
        "git M",
        "git D",
        "hashed",
        "confirmed",
        "s",
        "equal",
    )

    def cells(self) -> tuple[str, ...]:
        feed, git = (sum((getattr(step, name) for step in self.steps), Counter()) for name in ("feed", "git"))
        numbers = [len(self.steps), self.steps[-1].files, *(feed[kind] for kind in KINDS), *(git[one] for one in "AMD"),
                   sum(step.hashed for step in self.steps), sum(step.confirmed for step in self.steps),
                   round(sum(step.seconds for step in self.steps))]  # fmt: skip
        return self.project, self.style, *(f"{number:,}" for number in numbers), "no" if self.differences else "yes"

    def tell(self, version: str, step: Step) -> None:
        self.differences += len(step.differences)
        lines = [f"{self.project} {version} {self.style}: {step}", *(f"  {one}" for one in step.differences)]
        print("\n".join(lines), flush=True)


Project = Sequence[tuple[str, Iterable[Member]]]  # versions, oldest first, and what is in them


def replay_all(cli: Command, folder: Path, projects: Mapping[str, Project], styles: Iterable[str]) -> list[Row]:
    """Every project in every style, each a tenant of its own, as many at a time as there are processors."""
    wanted = [(name, style) for name in projects for style in styles]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda one: replay(cli, folder, one[0], projects[one[0]], one[1]), wanted))


def replay(cli: Command, folder: Path, name: str, project: Project, style: str) -> Row:
    row, tenant = Row(name, style), Replay(cli, folder, f"{name}-{style}".replace(" ", "-"), style)
    for number, (version, members) in enumerate(project):
        step = tenant.step(members)
        row.tell(version, step)
        if number:
            row.steps.append(step)
    row.tell("once more", tenant.look(time.monotonic()))
    return row


def table(rows: Iterable[tuple[str, ...]]) -> str:
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([*(cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True)),
                        *(cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True))])
             for row in rows]  # fmt: skip
    return "\n".join(lines)


class Apart(Command):
    """Reads by a process of its own, too: several styles are followed at once, and one process has one stdout."""

    def read(self, *words: str) -> list[dict]:
        return self.json(*words)


@contextmanager
def stack(folder: Path) -> Iterator[Command]:
    cli = Apart(folder, QUIET)
    with cli.up():
        yield cli


def main() -> int:
    parser = argparse.ArgumentParser(prog="make replay", description=__doc__)
    parser.add_argument("--package", action="append", metavar="NAME", help=f"may be given again (default: {DEFAULT})")
    parser.add_argument(
        "--releases", type=int, default=RELEASES, metavar="N", help="the newest N (default: 11, so 10 steps)"
    )
    parser.add_argument("--style", action="append", choices=STYLES, help="may be given again (default: all)")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--wheel", dest="kind", action="store_const", const="wheel", default="wheel", help="default")
    kind.add_argument("--sdist", dest="kind", action="store_const", const="sdist")
    given = parser.parse_args()
    if given.releases < 2:
        parser.error("it takes 2 releases to make a step")
    if missing := [reason for tool in ("rsync", "git") if (reason := needs.missing(tool))]:
        print(f"replaying needs rsync and git: {', '.join(missing)}", file=sys.stderr)
        return 2
    wanted = [(package, given.kind) for package in given.package] if given.package else PROJECTS
    try:
        fetched = {project: releases.fetch(*project, given.releases, CACHE) for project in wanted}
    except releases.NoReleases as error:
        print(error, file=sys.stderr)
        return 2
    projects = {
        f"{package} {kind}": [(one.version, one) for one in found] for (package, kind), found in fetched.items()
    }
    return run(projects, given.style or list(STYLES))


def run(projects: Mapping[str, Project], styles: Iterable[str]) -> int:
    with tempfile.TemporaryDirectory(prefix="strandline-replay-") as made, stack(Path(made) / "state") as cli:
        rows = replay_all(cli, Path(made), projects, styles)
    print("\n" + table([Row.HEAD, *(row.cells() for row in rows)]))
    return 1 if any(row.differences for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
