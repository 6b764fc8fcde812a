"""What there is to see of a tree, by a walk of its own that shares with the product only the reading of ignore rules.

It is for trees that hold still. It is done with root's rights, and says of which places a scan without them, or with
bad eyes, can tell nothing.
"""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

from tasks.core.ignore import Rules, RuleSet
from tasks.core.rule_sources import GIT_RULE_FILE, RULE_FILE
from tests import trees
from tests.in_process import Eyes


@dataclass
class Seen:
    """A tree at one moment."""

    files: trees.State = field(default_factory=dict)  # and symlinks; all that can be read and is not ignored
    unread: trees.State = field(default_factory=dict)  # files that cannot be read, as they are
    folders: set[bytes] = field(default_factory=set)  # that can be entered
    blind: set[bytes] = field(default_factory=set)  # that cannot be entered: nothing below them can be known
    broken: set[bytes] = field(default_factory=set)  # whose listing breaks off: nothing in them, but more below

    @property
    def quiet(self) -> bool:
        """Is nothing in the way?"""
        return not (self.blind or self.broken or self.unread)

    def is_blind(self, path: bytes) -> bool:
        """Can nothing be known of what is or was there?"""
        above = list(folders_above(path))
        if not self.blind.isdisjoint(above):
            return True
        # Below a listing that broke off, folders that are known by name are entered all the same.
        return any(
            at in self.broken and below not in self.folders for at, below in zip(above, [*above[1:], path], strict=True)
        )

    def is_dim(self, path: bytes) -> bool:
        """Can something be known of it if its folder was known before?"""
        return not self.is_blind(path) and not self.broken.isdisjoint(folders_above(path))


def folders_above(path: bytes) -> Iterator[bytes]:
    """From the root down."""
    yield b""
    parts = path.split(b"/")
    for depth in range(1, len(parts)):
        yield b"/".join(parts[:depth])


def look(root: bytes, patterns: list[str], gitignore: bool, eyes: Eyes) -> Seen:
    seen = Seen()
    own = Rules().below(RuleSet.parse(os.fsencode("\n".join(patterns)), source=b"", base=b""))
    _look(seen, root, b"", own, (GIT_RULE_FILE, RULE_FILE) if gitignore else (RULE_FILE,), eyes)
    return seen


def _look(seen: Seen, root: bytes, folder: bytes, above: Rules, names: tuple[bytes, ...], eyes: Eyes) -> None:
    here = os.path.join(root, folder)
    found = os.lstat(here)
    rules = None if found.st_mode & 0o5 != 0o5 else _rules(here, folder, above, names)
    if rules is None:
        seen.blind.add(folder)
        return
    seen.folders.add(folder)
    if broken := found.st_ino in eyes.folders:
        seen.broken.add(folder)
    for name in sorted(os.listdir(here)):
        path, at = os.path.join(folder, name), os.path.join(here, name)
        found = os.lstat(at)
        if rules.ignores(path, stat.S_ISDIR(found.st_mode)):
            continue
        if stat.S_ISDIR(found.st_mode):
            _look(seen, root, path, rules, names, eyes)
        elif broken:
            continue
        elif stat.S_ISLNK(found.st_mode):
            target = os.readlink(at)
            seen.files[path] = ("symlink", len(target), None, target)
        elif stat.S_ISREG(found.st_mode):
            readable = found.st_mode & 0o4 and found.st_ino not in eyes.files
            (seen.files if readable else seen.unread)[path] = trees.file_entry(at)


def _rules(here: bytes, folder: bytes, above: Rules, names: tuple[bytes, ...]) -> Rules | None:
    """The rules in a folder; None where a rule file cannot be read."""
    rules = above
    for name in names:
        at = os.path.join(here, name)
        if not os.path.lexists(at):
            continue
        found = os.lstat(at)
        if name == GIT_RULE_FILE and stat.S_ISLNK(found.st_mode):
            continue  # git takes no notice of it
        if not found.st_mode & 0o4:
            return None
        if not stat.S_ISREG(found.st_mode):
            if name == GIT_RULE_FILE:
                continue
            return None
        with open(at, "rb") as file:
            rules = rules.below(RuleSet.parse(file.read(), source=os.path.join(folder, name), base=folder))
    return rules
