"""Ignore rules as git has them: which entries of a tree are to be left out. Pure: no file is opened here.

Each entry is judged by its own path alone, since the walk enters no ignored directory: what is below one is never
asked about, and no rule can take it back. Names and patterns are bytes, and case counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from tasks.core.glob import Glob, LastMatch, MalformedPattern, Match, is_literal, match_any

MAX_BYTES = 1 << 20  # of one source
# Of all sources that hold in one directory. A pattern without wildcards is looked up, those with wildcards are tried
# one by one, each for at most its length times the path's: these limits bound the time that one entry takes.
MAX_RULES = 10_000
MAX_GLOBS = 1_000
MAX_GLOB_BYTES = 32_768
LONGEST_GLOB = 1_024  # bytes; reading its brackets may take the square of it
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class RulesError(ValueError):
    """More rules than may be. The message says whose, how many of what, and the limit."""


class Rule(NamedTuple):
    """One line of one source."""

    source: bytes  # path of the rule file relative to the root; b"" for the tenant's own patterns
    line: int  # from 1
    pattern: bytes  # as written, but for what git drops from its end: spaces, a carriage return
    ignores: bool  # False for a negation


class RuleSet:
    """The rules of one source, for what lies below one directory. Its length is their number."""

    def __init__(self, read: list[_Read], base: bytes) -> None:
        self.rules = tuple(one.rule for one in read)
        self.size = _Size.of([one.rule.pattern for one in read])
        self._prefix = base + b"/" if base else b""
        self.sieve = _Sieve.of([one for one in read if one.rule.ignores], self._prefix)
        # Each by whether the entry is a directory.
        self._names = [LastMatch(_numbered(read, directory, of_names=True)) for directory in (False, True)]
        self._paths = [LastMatch(_numbered(read, directory, of_names=False)) for directory in (False, True)]

    @classmethod
    def parse(cls, text: bytes, *, source: bytes, base: bytes) -> RuleSet:
        """Read a rule file that holds below `base`, a path relative to the root (b"": the root).

        Lines that can match nothing are no rules. Raises RulesError beyond a limit.
        """
        _check(source, len(text), MAX_BYTES, "bytes")
        rules = list(_rules(text, source))
        _Size.of([rule.pattern for rule in rules]).check(source)
        return cls([one for one in map(_read, rules) if one is not None], base)

    def __len__(self) -> int:
        return len(self.rules)

    def decide(self, path: bytes, is_directory: bool) -> Rule | None:
        """The last rule that matches this very path, which is relative to the root."""
        if not path.startswith(self._prefix):
            return None
        by_name = self._names[is_directory](path, path.rfind(b"/") + 1)
        by_path = self._paths[is_directory](path, len(self._prefix))
        found = max(by_name, by_path)
        return self.rules[found] if found >= 0 else None


class Rules:
    """All rules that hold in one directory, in sources from the weakest, the tenant's own, to the strongest. Immutable.

    For the directory below it, it goes on with `below`, once for each rule file found there, the weaker first.
    """

    def __init__(self) -> None:
        self._strongest_first: tuple[RuleSet, ...] = ()
        self._size = _Size()
        self._sieve = _Sieve()

    def __bool__(self) -> bool:
        """Is there any rule?"""
        return bool(self._strongest_first)

    def below(self, found: RuleSet) -> Rules:
        """These, and one more source, stronger than all. Raises RulesError where they are too many together."""
        if not found:
            return self
        rules = Rules()
        rules._strongest_first = (found, *self._strongest_first)
        rules._size = self._size.with_(found.size)
        rules._size.check(found.rules[0].source)
        rules._sieve = self._sieve.with_(found.sieve)
        return rules

    def decide(self, path: bytes, is_directory: bool) -> Rule | None:
        """The rule that decides on an entry: the last that matches, of the strongest source with one that does."""
        for rules in self._strongest_first:
            rule = rules.decide(path, is_directory)
            if rule is not None:
                return rule
        return None

    def ignores(self, path: bytes, is_directory: bool) -> bool:
        """Is the entry to be left out? Called for every entry of every scan, of which few pass the sieve."""
        if not self._sieve.passes(path):
            return False
        rule = self.decide(path, is_directory)
        return rule is not None and rule.ignores


class _Read(NamedTuple):
    """A rule and what it matches."""

    rule: Rule
    glob: Glob
    of_names: bool  # at any depth; otherwise it is of paths below the directory that the rules hold for
    directories_only: bool


class _Sieve(NamedTuple):
    """What every ignored entry passes, and hardly another one."""

    names: frozenset[bytes] = frozenset()
    paths: frozenset[bytes] = frozenset()
    suffixes: tuple[bytes, ...] = ()
    name_globs: tuple[Match, ...] = ()
    path_globs: tuple[tuple[int, Match], ...] = ()  # with the offset to match from

    @classmethod
    def of(cls, read: list[_Read], prefix: bytes) -> _Sieve:
        names = [one.glob for one in read if one.of_names]
        paths = [one.glob for one in read if not one.of_names]
        wild_names = [glob for glob in names if glob.expression is not None and glob.suffix is None]
        wild_paths = [glob for glob in paths if glob.expression is not None]
        return cls(
            frozenset(glob.pattern for glob in names if glob.expression is None),
            frozenset(prefix + glob.pattern for glob in paths if glob.expression is None),
            tuple(glob.suffix for glob in names if glob.suffix is not None),
            (match_any(wild_names),) if wild_names else (),
            ((len(prefix), match_any(wild_paths)),) if wild_paths else (),
        )

    def with_(self, more: _Sieve) -> _Sieve:
        return _Sieve(
            self.names | more.names,
            self.paths | more.paths,
            self.suffixes + more.suffixes,
            self.name_globs + more.name_globs,
            self.path_globs + more.path_globs,
        )

    def passes(self, path: bytes) -> bool:
        names, paths, suffixes, name_globs, path_globs = self
        start = path.rfind(b"/") + 1
        if path[start:] in names or path in paths or path.endswith(suffixes, start):
            return True
        for match in name_globs:
            if match(path, start):
                return True
        return any(match(path, start) for start, match in path_globs)


class _Size(NamedTuple):
    """What rules cost."""

    rules: int = 0
    globs: int = 0
    glob_bytes: int = 0

    @classmethod
    def of(cls, patterns: list[bytes]) -> _Size:
        globs = [len(pattern) for pattern in patterns if not is_literal(pattern)]
        return cls(len(patterns), len(globs), sum(globs))

    def with_(self, more: _Size) -> _Size:
        return _Size(self.rules + more.rules, self.globs + more.globs, self.glob_bytes + more.glob_bytes)

    def check(self, source: bytes) -> None:
        _check(source, self.rules, MAX_RULES, "rules")
        _check(source, self.globs, MAX_GLOBS, "rules with wildcards")
        _check(source, self.glob_bytes, MAX_GLOB_BYTES, "bytes of patterns with wildcards")


def _check(source: bytes, found: int, limit: int, what: str) -> None:
    if found > limit:
        shown = repr(source.decode("utf-8", "backslashreplace")) if source else "the tenant's patterns"
        raise RulesError(f"{shown}: {found:,} {what}, more than the {limit:,} that are allowed")


def _rules(text: bytes, source: bytes) -> Iterator[Rule]:
    for number, line in enumerate(text.removeprefix(_BYTE_ORDER_MARK).split(b"\n"), 1):
        if line and not line.startswith(b"#"):
            # Lines are C strings to git: what follows a NUL is not there.
            pattern = _trimmed(line.removesuffix(b"\r").partition(b"\0")[0])
            yield Rule(source, number, pattern, not pattern.startswith(b"!"))


def _trimmed(line: bytes) -> bytes:
    kept = line.rstrip(b" ")
    escapes = len(kept) - len(kept.rstrip(b"\\"))
    return line[: len(kept) + escapes % 2]


def _read(rule: Rule) -> _Read | None:
    pattern = rule.pattern if rule.ignores else rule.pattern[1:]
    bare = pattern.removesuffix(b"/")
    of_names = b"/" not in bare
    try:
        glob = Glob.read(bare.removeprefix(b"/"))
    except MalformedPattern:
        return None
    return _Read(rule, glob, of_names, bare != pattern) if glob.pattern else None


def _numbered(read: list[_Read], directories: bool, *, of_names: bool) -> list[tuple[int, Glob]]:
    return [
        (number, one.glob)
        for number, one in enumerate(read)
        if one.of_names == of_names and (directories or not one.directories_only)
    ]
