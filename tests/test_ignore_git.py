"""Ignore rules against git itself: of drawn trees and rules each path is decided, and by the very same line."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.core.ignore import Rule, Rules, RuleSet
from tests.test_ignore import CASES

# A few seconds. After a change of how rules are read or matched raise it to 5,000 once.
EXAMPLES = 80
RULES = b".gitignore"
# A directory is a dictionary, a file its content.
Tree = dict[bytes, "Tree | bytes"]
# What decides on a path: source, line and pattern.
Verdict = tuple[bytes, int, bytes]

pytestmark = [pytest.mark.needs("git"), pytest.mark.filterwarnings("error")]
drawn = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))


class Git:
    """An empty repository, whose git is asked what it ignores."""

    def __init__(self, folder: Path) -> None:
        # Nothing of this machine's: no configuration, no ignore file of the user's.
        self._environment = {"PATH": os.environ["PATH"], "HOME": os.fspath(folder), "GIT_CONFIG_NOSYSTEM": "1",
                             "GIT_CONFIG_GLOBAL": os.devnull}  # fmt: skip
        self._root = os.fsencode(folder / "tree")
        self._run(b"init", b"--quiet", b"--template=", self._root)
        self._exclude = folder / "tree" / ".git" / "info" / "exclude"
        self._exclude.parent.mkdir()
        self._written: Tree = {}

    def verdicts(self, tree: Tree, tenant: bytes) -> dict[bytes, Verdict | None]:
        """For each path of a tree; the tenant's own patterns are its .git/info/exclude."""
        self._write(tree)
        self._exclude.write_bytes(tenant)
        asked = b"".join(b"./%b\0" % path for path in paths(tree))
        found = self._run(b"-C", self._root, b"check-ignore", b"--no-index", b"--verbose", b"--non-matching", b"-z",
                          b"--stdin", asked=asked).split(b"\0")[:-1]  # fmt: skip
        told = zip(*[iter(found)] * 4, strict=True)
        return {path.removeprefix(b"./"): _verdict(source, line, pattern) for source, line, pattern, path in told}

    def _write(self, tree: Tree) -> None:
        if set(paths(tree)) != set(paths(self._written)):
            for name in set(os.listdir(self._root)) - {b".git"}:
                path = self._root + b"/" + name
                shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)
            self._written = {}
        write(tree, self._root, self._written)
        self._written = tree

    def _run(self, *arguments: bytes, asked: bytes = b"") -> bytes:
        done = subprocess.run([b"git", *arguments], env=self._environment, input=asked, capture_output=True)
        assert done.returncode in (0, 1) and not done.stderr, done  # 1: nothing is ignored
        return done.stdout


def _verdict(source: bytes, line: bytes, pattern: bytes) -> Verdict | None:
    return (b"" if source == b".git/info/exclude" else source, int(line), pattern) if source else None


@pytest.fixture(scope="module")
def git(tmp_path_factory: pytest.TempPathFactory) -> Git:
    return Git(tmp_path_factory.mktemp("ignore"))


def write(tree: Tree, folder: bytes, written: Tree) -> None:
    """Write what is not written already."""
    for name, what in tree.items():
        path, before = folder + b"/" + name, written.get(name)
        if not isinstance(what, bytes):
            if before is None:
                os.mkdir(path)
            write(what, path, before if isinstance(before, dict) else {})
        elif what != before:
            Path(os.fsdecode(path)).write_bytes(what)


def paths(tree: Tree, above: bytes = b"") -> Iterator[bytes]:
    for name, what in tree.items():
        yield above + name
        if not isinstance(what, bytes):
            yield from paths(what, above + name + b"/")


def walked(tree: Tree, rules: Rules, base: bytes = b"") -> dict[bytes, Verdict | None]:
    """As a walk decides: from the top, into no ignored directory, whose rule stands for all that is below it."""
    above = base + b"/" if base else b""
    if isinstance(text := tree.get(RULES), bytes):
        rules = rules.below(RuleSet.parse(text, source=above + RULES, base=base))
    found: dict[bytes, Verdict | None] = {}
    for name, what in tree.items():
        path, is_directory = above + name, not isinstance(what, bytes)
        rule = rules.decide(path, is_directory)
        found[path] = rule and told(rule)
        assert rules.ignores(path, is_directory) == (rule is not None and rule.ignores)
        if rule is not None and rule.ignores:
            found |= dict.fromkeys(paths({name: what}, above), told(rule))
        elif not isinstance(what, bytes):
            found |= walked(what, rules, path)
    return found


def told(rule: Rule) -> Verdict:
    return rule.source, rule.line, rule.pattern


# ---- The one difference

# Before 2.52 git took `**` for directories also where a name begins before it, up to the first wildcard of the line.
MISREAD = re.compile(rb"(?m)^!?/?[^*?\[\\\n]*[^*?\[\\/\n]\*\*+(\\?/|[ \r\0]|$)")


def _misreads() -> bool:
    if shutil.which("git") is None:
        return False
    found = re.search(r"(\d+)\.(\d+)", subprocess.run(["git", "version"], capture_output=True, text=True).stdout)
    assert found
    return (int(found[1]), int(found[2])) < (2, 52)


MISREADS = _misreads()


def read_well(line: bytes) -> bool:
    return not (MISREADS and MISREAD.search(line))


def test_only_git_before_2_52_takes_two_stars_after_part_of_a_name_for_directories(git: Git) -> None:
    tree: Tree = {b"ab": b"", b"axb": b"", b"ax": {b"b": b"", b"y": {b"b": b""}}, RULES: b"a**/b"}

    ours, gits = walked(tree, Rules()), git.verdicts(tree, b"")

    assert {path for path in ours if ours[path]} == {b"ax/b"}
    assert {path for path in gits if gits[path]} == {b"ax/b"} | ({b"ab", b"ax/y/b"} if MISREADS else set())


# ---- Drawn trees and rules

LETTERS = [b"a", b"a", b"b", b"c", b"*", b"[", b"]", b"!", b"#", b" ", b"\\", b"?", b"-", b"^", b":", b".",
           b"\n", b"\r", b"\t", b"\xff", b"\xc3\xa9", b"Z", b"0"]  # fmt: skip
WILD = [b"*", b"*", b"**", b"***", b"?", b"/", b"**/", b"/**", b"/**/", b"*.", b"[a-c]", b"[!a]", b"[^b]", b"[]a]",
        b"[!]]", b"[a-]", b"[c-a]", b"[\\a-c]", b"[a\\-c]", b"[\\]]", b"[[:alpha:]]", b"[![:alpha:]]", b"[[:punct:]]",
        b"[[:space:][:digit:]]", b"[[:nope:]]", b"[[:alpha]", b"[a/b]", b"[", b"[a", b"[[:", b"]", b"\\", b"\\ ",
        b"\\*", b"\\/", b"\\!", b"\\#", b"[\x80-\xff]", b"[!-~]", b"\0"]  # fmt: skip


def joined(fragments: list[bytes], most: int) -> st.SearchStrategy[bytes]:
    return st.lists(st.sampled_from(fragments), min_size=1, max_size=most).map(b"".join)


def patterns(parts: st.SearchStrategy[bytes], ends: list[bytes]) -> st.SearchStrategy[bytes]:
    return st.builds(
        lambda negation, start, found, end: negation + start + b"/".join(found) + end,
        st.sampled_from([b"", b"", b"!"]),
        st.sampled_from([b"", b"", b"/", b"**/", b"\\/"]),
        st.lists(parts, min_size=1, max_size=4),
        st.sampled_from(ends),
    )


names = st.sampled_from([b"a", b"b", b"ab", b"a.b", b"abc"]) | joined(LETTERS, 4)
names = names.filter(lambda name: name not in (b".", b".."))
trees: st.SearchStrategy[Tree] = st.just({})
for _ in range(4):
    trees = st.dictionaries(names, st.just(b"") | trees, min_size=1, max_size=4)
# Of parts that fit a path now and then, or of anything.
parts = st.one_of(names, st.sampled_from([b"*", b"**", b"a*", b"*b", b"?", b"[a-c]*"]), joined(LETTERS + WILD, 3))
lines = patterns(parts, [b"", b"", b"", b"/", b"/**", b"/*", b" ", b"\\ ", b"  ", b"/ "]) | joined(LETTERS + WILD, 6)
texts = st.builds(
    lambda mark, found, end: mark + end.join(found) + (end if len(found) % 2 else b""),
    st.sampled_from([b"", b"", b"", b"\xef\xbb\xbf"]),
    st.lists(lines.filter(read_well), min_size=1, max_size=5),
    st.sampled_from([b"\n", b"\n", b"\r\n", b"\n\n"]),
)


@st.composite
def trees_with_rules(draw: st.DrawFn) -> Tree:
    def sown(tree: Tree) -> Tree:
        found: Tree = {name: what if isinstance(what, bytes) else sown(what) for name, what in tree.items()}
        text = draw(st.none() | texts)
        return found if text is None else found | {RULES: text}

    return sown(draw(trees))


@given(tree=trees_with_rules(), tenant=st.just(b"") | texts)
@drawn
def test_each_path_of_a_tree_is_decided_as_git_does_by_the_same_line(git: Git, tree: Tree, tenant: bytes) -> None:
    rules = Rules().below(RuleSet.parse(tenant, source=b"", base=b""))

    assert walked(tree, rules) == git.verdicts(tree, tenant)


# ---- Many lines for one tree, which is dense in what they match

SOME = [b"a", b"b", b"ab", b"ba", b"abc", b"a.b", b"a\n", b"*", b"a b", b"[a", b"\xff"]
DENSE: Tree = {
    name: {inner: {b"a": {b"b": b""}, b"b": b"", b"ab": b""} for inner in SOME[:5]} for name in SOME[:4]
} | dict.fromkeys(SOME[4:], b"")
fitting = st.sampled_from([b"a", b"b", b"ab", b"*", b"**", b"***"]) | joined([b"a", b"b", b"c", *WILD], 4)
# What a line would take back must be ignored first.
NEGATED = b"*\n!*/\n"


@given(lines=st.lists(patterns(fitting, [b"", b"", b"/", b"/**", b"/*"]).filter(read_well), min_size=12, max_size=12))
@drawn
def test_each_line_matches_what_it_matches_in_git(git: Git, lines: list[bytes]) -> None:
    # Each line in a directory of its own, so that one call of git answers for all.
    tree: Tree = {
        b"%d" % number: DENSE | {RULES: NEGATED * line.startswith(b"!") + line} for number, line in enumerate(lines)
    }

    assert walked(tree, Rules()) == git.verdicts(tree, b"")


# ---- The tables


def planted(paths: list[bytes]) -> Tree:
    tree: Tree = {}
    for path in paths:
        *above, name = path.split(b"/")
        folder = tree
        for one in above:
            inner = folder.setdefault(one, {})
            assert isinstance(inner, dict)
            folder = inner
        if name:
            folder[name] = b""
    return tree


def test_the_tables_of_ignored_and_kept_paths_say_what_git_says(git: Git) -> None:
    cases = {name: case for name, case in CASES.items() if read_well(case[0])}
    tree: Tree = {b"%d" % n: planted(out + kept) | {RULES: text} for n, (text, out, kept) in enumerate(cases.values())}

    found = git.verdicts(tree, b"")

    for number, (name, (_, out, kept)) in enumerate(cases.items()):
        verdicts = {path: found[b"%d/%b" % (number, path.removesuffix(b"/"))] for path in out + kept}
        ignored = {path for path, one in verdicts.items() if one is not None and not one[2].startswith(b"!")}
        assert ignored == set(out), name
