"""The 29 scenarios: one set-up, and one change each that some way of noticing changes has missed somewhere.

`setup(root)`, scan, `SCENARIOS[name].prepare(outside)` before or after that, `.do(root, outside)`, scan, compare.
`outside` is a folder out of the root but on its file system, since old files are moved in from there by rename.
"""

import ctypes
import os
import shutil
import subprocess
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.trees import SECOND_NS, Dir, File, State, Symlink, apply_feed, build, exact, remove, set_mtime, write

EQUAL_MTIME_NS = 10**9 * SECOND_NS
OTHER_MTIME_NS = EQUAL_MTIME_NS + 86_400 * SECOND_NS
YEAR_2096_NS = 3_976_214_400 * SECOND_NS

NFC = unicodedata.normalize("NFC", "café.txt").encode()
NFD = unicodedata.normalize("NFD", "café.txt").encode()
C_NAMES = [b"%02d" % number for number in range(20)]

RENAME_EXCHANGE = 2
AT_FDCWD = -100

Change = tuple[str, bytes]


# ---- The set-up


def text(words: bytes, size: int = 96) -> bytes:
    """Contents of one size, so that a change of content need not show in the size."""
    return words.ljust(size - 1, b".") + b"\n"


def tree(salt: bytes = b"") -> Dir:
    """`salt` makes the contents of one set-up differ from those of another beside it."""
    return Dir(
        {
            b"a": Dir({b"f1": File(text(b"f1 " + salt))}),
            # Of another size than f1: only the two equal files may be swapped without size or mtime showing it.
            b"b": Dir({b"f2": File(text(b"f2 " + salt, 160))}),
            b"c": Dir({name: File(text(b"c " + name + b" " + salt)) for name in C_NAMES}),
            b"equal1": File(text(b"first " + salt), mtime_ns=EQUAL_MTIME_NS),
            b"equal2": File(text(b"second " + salt), mtime_ns=EQUAL_MTIME_NS),
            NFC: File(text(b"nfc " + salt)),
            b"link": Symlink(b"a/f1"),
            b"future": File(text(b"future " + salt), mtime_ns=YEAR_2096_NS),
        }
    )


def setup(root: bytes, salt: bytes = b"") -> None:
    build(root, tree(salt), age_s=3600)


# ---- What a scenario is


@dataclass(frozen=True)
class Scenario:
    name: str
    do: Callable[[bytes, bytes], None]
    # What a plain comparison of the listings shows: each path once, as added, modified or deleted.
    plain: frozenset[Change]
    # What lies ready outside of the root before the change.
    outside: Dir = field(default_factory=Dir)

    def prepare(self, outside: bytes) -> None:
        build(outside, self.outside, age_s=3600)

    def expect(self, before: State, after: State) -> set[Change]:
        return allowed(before, after)


def allowed(before: State, after: State) -> set[Change]:
    """The (kind, path) pairs that changes from one listing to the other may carry; a move may be told as two changes.

    Only what left its path can have moved: a hard link or a copy beside the old one is `added`.
    """
    changes = plain(before, after)
    arrived = {path: entry for path, entry in after.items() if before.get(path) != entry}
    left = {path: entry for path, entry in before.items() if after.get(path) != entry}
    came, went = set(arrived.values()), set(left.values())
    changes |= {("moved", path) for path, entry in arrived.items() if entry in went}
    for path in arrived.keys() & left.keys():
        # A move away empties a path; what then comes to it may be told as added.
        if left[path] in came:
            changes.add(("added", path))
        # Another type under the same name may be told as another thing.
        if left[path][0] != arrived[path][0]:
            changes |= {("deleted", path), ("added", path)}
    return changes


def plain(before: State, after: State) -> set[Change]:
    """The difference with no thought of moves."""
    changed = {path for path in before.keys() & after.keys() if before[path] != after[path]}
    return (
        {("added", path) for path in after.keys() - before.keys()}
        | {("deleted", path) for path in before.keys() - after.keys()}
        | {("modified", path) for path in changed}
    )


SCENARIOS: dict[str, Scenario] = {}


def scenario(
    name: str,
    *,
    added: list[bytes] | None = None,
    modified: list[bytes] | None = None,
    deleted: list[bytes] | None = None,
    outside: Dir | None = None,
) -> Callable[[Callable[[bytes, bytes], None]], Callable[[bytes, bytes], None]]:
    kinds = {"added": added or [], "modified": modified or [], "deleted": deleted or []}
    changes = frozenset((kind, path) for kind, paths in kinds.items() for path in paths)

    def register(do: Callable[[bytes, bytes], None]) -> Callable[[bytes, bytes], None]:
        SCENARIOS[name] = Scenario(name, do, changes, outside or Dir())
        return do

    return register


# ---- Means


def at(folder: bytes, path: bytes) -> bytes:
    return os.path.join(folder, path)


def run(*command: bytes) -> None:
    subprocess.run(command, check=True)


def exchange(first: bytes, second: bytes) -> None:
    """Swaps two names in one step, as `mv --exchange` does."""
    rename_with(RENAME_EXCHANGE, first, second)


def rename_with(flags: int, first: bytes, second: bytes) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(AT_FDCWD, first, AT_FDCWD, second, flags):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), first, None, second)


def swap_by_three_renames(first: bytes, second: bytes) -> None:
    aside = first + b".aside"
    os.rename(first, aside)
    os.rename(second, first)
    os.rename(aside, second)


def rsync(source: bytes, target: bytes) -> None:
    """`rsync -a`, or the same steps where it is not installed: a hidden temporary file beside, then a rename."""
    if shutil.which("rsync"):
        run(b"rsync", b"-a", b"--", source, target)
        return
    folder, name = os.path.split(target)
    temporary = at(folder, b"." + name + b".Ab12Cd")
    shutil.copy2(source, temporary)
    os.rename(temporary, target)


def append(path: bytes, content: bytes) -> None:
    with open(path, "ab") as file:
        file.write(content)


# ---- The scenarios, in the catalogue's order


@scenario("add", added=[b"a/new"])
def _(root: bytes, outside: bytes) -> None:
    write(at(root, b"a/new"), text(b"new"))


@scenario("edit", modified=[b"a/f1"])
def _(root: bytes, outside: bytes) -> None:
    append(at(root, b"a/f1"), b"one more line\n")


@scenario("delete", deleted=[b"c/07"])
def _(root: bytes, outside: bytes) -> None:
    os.unlink(at(root, b"c/07"))


@scenario("delete-create", deleted=[b"c/07"], added=[b"c/created"])
def _(root: bytes, outside: bytes) -> None:
    os.unlink(at(root, b"c/07"))
    write(at(root, b"c/created"), text(b"created"))


@scenario(
    "delete-2-add-2-old",
    deleted=[b"c/07", b"c/08"],
    added=[b"c/old1", b"c/old2"],
    outside=Dir({b"old1": File(text(b"one of two old")), b"old2": File(text(b"two of two old"))}),
)
def _(root: bytes, outside: bytes) -> None:
    for gone, come in ((b"07", b"old1"), (b"08", b"old2")):
        os.unlink(at(root, b"c/" + gone))
        run(b"cp", b"-p", at(outside, come), at(root, b"c/" + come))


@scenario("rename-file", deleted=[b"a/f1"], added=[b"a/renamed"])
def _(root: bytes, outside: bytes) -> None:
    os.rename(at(root, b"a/f1"), at(root, b"a/renamed"))


@scenario("rename-directory", deleted=[b"c/" + name for name in C_NAMES], added=[b"d/" + name for name in C_NAMES])
def _(root: bytes, outside: bytes) -> None:
    os.rename(at(root, b"c"), at(root, b"d"))


@scenario("exchange-two-files", modified=[b"a/f1", b"b/f2"])
def _(root: bytes, outside: bytes) -> None:
    exchange(at(root, b"a/f1"), at(root, b"b/f2"))


@scenario("swap-by-three-renames", modified=[b"a/f1", b"b/f2"])
def _(root: bytes, outside: bytes) -> None:
    swap_by_three_renames(at(root, b"a/f1"), at(root, b"b/f2"))


@scenario("swap-two-of-equal-size-and-mtime", modified=[b"equal1", b"equal2"])
def _(root: bytes, outside: bytes) -> None:
    swap_by_three_renames(at(root, b"equal1"), at(root, b"equal2"))


@scenario("exchange-two-directories", deleted=[b"a/f1", b"b/f2"], added=[b"a/f2", b"b/f1"])
def _(root: bytes, outside: bytes) -> None:
    exchange(at(root, b"a"), at(root, b"b"))


@scenario("rewrite-same-size-utime-back", modified=[b"a/f1"])
def _(root: bytes, outside: bytes) -> None:
    path = at(root, b"a/f1")
    mtime_ns = os.lstat(path).st_mtime_ns
    write(path, text(b"rewritten"))
    set_mtime(path, mtime_ns)


@scenario(
    "cp-p-over-same-size-and-mtime",
    modified=[b"equal1"],
    outside=Dir({b"old": File(text(b"copied over"), mtime_ns=EQUAL_MTIME_NS)}),
)
def _(root: bytes, outside: bytes) -> None:
    run(b"cp", b"-p", at(outside, b"old"), at(root, b"equal1"))


@scenario("rsync-a-new-old-file", added=[b"b/rsynced"], outside=Dir({b"rsynced": File(text(b"rsynced"))}))
def _(root: bytes, outside: bytes) -> None:
    rsync(at(outside, b"rsynced"), at(root, b"b/rsynced"))


@scenario(
    "tar-x-old-tree",
    added=[b"tree/top", b"tree/sub/below"],
    outside=Dir({b"tree": Dir({b"top": File(text(b"tar top")), b"sub": Dir({b"below": File(text(b"tar below"))})})}),
)
def _(root: bytes, outside: bytes) -> None:
    archive = at(outside, b"tree.tar")
    run(b"tar", b"-cf", archive, b"-C", outside, b"tree")
    run(b"tar", b"-xf", archive, b"-C", root)


@scenario("mv-old-file-in", added=[b"b/moved-in"], outside=Dir({b"old": File(text(b"moved in"))}))
def _(root: bytes, outside: bytes) -> None:
    os.rename(at(outside, b"old"), at(root, b"b/moved-in"))


@scenario(
    "mv-old-tree-in",
    added=[b"b/tree/top", b"b/tree/sub/below"],
    outside=Dir({b"tree": Dir({b"top": File(text(b"mv top")), b"sub": Dir({b"below": File(text(b"mv below"))})})}),
)
def _(root: bytes, outside: bytes) -> None:
    os.rename(at(outside, b"tree"), at(root, b"b/tree"))


# The old file carries the very mtime of the one it replaces: neither size nor mtime tells.
@scenario(
    "rename-over-by-old-file-of-same-size",
    modified=[b"equal1"],
    outside=Dir({b"old": File(text(b"renamed over"), mtime_ns=EQUAL_MTIME_NS)}),
)
def _(root: bytes, outside: bytes) -> None:
    os.rename(at(outside, b"old"), at(root, b"equal1"))


@scenario("add-hard-link", added=[b"b/hard"])
def _(root: bytes, outside: bytes) -> None:
    os.link(at(root, b"a/f1"), at(root, b"b/hard"))


@scenario("retarget-symlink", modified=[b"link"])
def _(root: bytes, outside: bytes) -> None:
    run(b"ln", b"-sfn", b"b/f2", at(root, b"link"))


@scenario("file-to-directory", deleted=[b"a/f1"], added=[b"a/f1/inner"])
def _(root: bytes, outside: bytes) -> None:
    os.unlink(at(root, b"a/f1"))
    os.mkdir(at(root, b"a/f1"))
    write(at(root, b"a/f1/inner"), text(b"inner"))


@scenario("directory-to-file", deleted=[b"c/" + name for name in C_NAMES], added=[b"c"])
def _(root: bytes, outside: bytes) -> None:
    remove(at(root, b"c"))
    write(at(root, b"c"), text(b"once a folder"))


@scenario("case-rename", deleted=[b"a/f1"], added=[b"a/F1"])
def _(root: bytes, outside: bytes) -> None:
    os.rename(at(root, b"a/f1"), at(root, b"a/F1"))


@scenario("nfd-twin", added=[NFD])
def _(root: bytes, outside: bytes) -> None:
    write(at(root, NFD), text(b"nfd"))


@scenario("newline-name", added=[b"two\nlines"])
def _(root: bytes, outside: bytes) -> None:
    write(at(root, b"two\nlines"), text(b"newline"))


@scenario("non-utf-8-name", added=[b"latin-\xe9-\xff"])
def _(root: bytes, outside: bytes) -> None:
    write(at(root, b"latin-\xe9-\xff"), text(b"not utf-8"))


@scenario("same-size-other-old-mtime", modified=[b"equal1"])
def _(root: bytes, outside: bytes) -> None:
    write(at(root, b"equal1"), text(b"another day"))
    set_mtime(at(root, b"equal1"), OTHER_MTIME_NS)


@scenario("edit-file-dated-in-the-future", modified=[b"future"])
def _(root: bytes, outside: bytes) -> None:
    append(at(root, b"future"), b"one more line\n")


@scenario("add-symlink-to-directory", added=[b"to-a"])
def _(root: bytes, outside: bytes) -> None:
    os.symlink(b"a", at(root, b"to-a"))


# ---- All of them together


def setup_all(root: bytes, outside: bytes) -> None:
    """A sub-tree for each scenario, named by it, in one root; and what they need in folders of the same names."""
    os.makedirs(root, exist_ok=True)
    for name, one in SCENARIOS.items():
        setup(at(root, name.encode()), salt=name.encode())
        one.prepare(at(outside, name.encode()))


def do_all(root: bytes, outside: bytes) -> None:
    for name, one in SCENARIOS.items():
        one.do(at(root, name.encode()), at(outside, name.encode()))


def wrong(before: State, after: State, index: State, news: list[dict]) -> set[str]:
    """The scenarios, each in its sub-tree of `do_all`, whose part of the index or of the feed is not right."""
    applied = apply_feed(news, before)
    told: set[Change] = {(change["kind"], exact(change, "path")) for change in news}
    return {
        name
        for name, one in SCENARIOS.items()
        if not (
            part(after, name) == part(index, name) == part(applied, name)
            and {change for change in told if change[1].startswith(name.encode() + b"/")}
            <= one.expect(part(before, name), part(after, name))
        )
    }


def part(state: State, name: str) -> State:
    return {path: entry for path, entry in state.items() if path.startswith(name.encode() + b"/")}


# What stat cannot show on a file system, and so no scan finds that reads nothing again.
NO_CTIME = {
    "rewrite-same-size-utime-back": "size and mtime as before, and no change time that tells",
    "swap-two-of-equal-size-and-mtime": "each finds the other's size and mtime, and no inode that can be relied on",
    "cp-p-over-same-size-and-mtime": "the copy carries size and mtime of what it covers",
    "rename-over-by-old-file-of-same-size": "it carries size and mtime of what it covers, and no reliable inode",
}
HIDDEN: dict[str, dict[str, str]] = {"fuse": NO_CTIME, "fuse-exfat": NO_CTIME}
