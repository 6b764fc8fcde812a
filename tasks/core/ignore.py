"""Ignore rules as git has them: which entries of a tree are to be left out. Pure: no file is opened here.

Each entry is judged by its own path alone, since the walk enters no ignored directory: what is below one is never
asked about, and no rule can take it back. Names and patterns are bytes, and case counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from tasks.core.glob import Glob, LastMatch, Match, match_any
from tasks.core.rulefile import Read, Rule, RulesError, Size, read

__all__ = ["Rule", "RuleSet", "Rules", "RulesError"]


class RuleSet:
    """The rules of one source, for what lies below one directory. Its length is their number."""

    def __init__(self, found: list[Read], base: bytes) -> None:
        self.rules = [one.rule for one in found]
        self.size = Size.of(self.rules)
        self._prefix = base + b"/" if base else b""
        self.sieve = _Sieve.of([one for one in found if one.rule.ignores], self._prefix)
        # Each is a pair: for what is no directory, and for directories.
        self._names = [LastMatch(_numbered(found, directory, of_names=True)) for directory in (False, True)]
        self._paths = [LastMatch(_numbered(found, directory, of_names=False)) for directory in (False, True)]

    @classmethod
    def parse(cls, text: bytes, *, source: bytes, base: bytes) -> RuleSet:
        """Read a rule file that holds below `base`, a path relative to the root (b"": the root itself).

        Lines that can match nothing are no rules. Raises RulesError beyond a limit.
        """
        return cls(read(text, source), base)

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


def _numbered(found: list[Read], directories: bool, *, of_names: bool) -> list[tuple[int, Glob]]:
    return [
        (number, one.glob)
        for number, one in enumerate(found)
        if one.of_names == of_names and (directories or not one.directories_only)
    ]


class _Sieve(NamedTuple):
    """What every ignored entry passes, and hardly another: directories and what negations take back are not told."""

    names: frozenset[bytes] = frozenset()
    paths: frozenset[bytes] = frozenset()
    suffixes: tuple[bytes, ...] = ()
    name_globs: tuple[Match, ...] = ()
    path_globs: tuple[tuple[int, Match], ...] = ()  # with the offset to match from

    @classmethod
    def of(cls, found: list[Read], prefix: bytes) -> _Sieve:
        names = [one.glob for one in found if one.of_names]
        paths = [one.glob for one in found if not one.of_names]
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
        # Runs once for every entry of every scan: loops, since any() would make a generator each time.
        names, paths, suffixes, name_globs, path_globs = self
        start = path.rfind(b"/") + 1
        if path[start:] in names or path in paths or path.endswith(suffixes, start):
            return True
        for match in name_globs:
            if match(path, start):
                return True
        for offset, match in path_globs:  # noqa: SIM110
            if match(path, offset):
                return True
        return False


_NO_SIZE = Size()
_NO_SIEVE = _Sieve()


@dataclass(frozen=True, slots=True)
class Rules:
    """All rules that hold in one directory, in sources from the weakest, the tenant's own, to the strongest."""

    _strongest_first: tuple[RuleSet, ...] = ()
    _size: Size = _NO_SIZE
    _sieve: _Sieve = _NO_SIEVE

    def __bool__(self) -> bool:
        """Is there any rule?"""
        return bool(self._strongest_first)

    def below(self, found: RuleSet) -> Rules:
        """These and one more source, stronger than all: for a directory's rule files, the weaker of them first.

        Raises RulesError where they are too many together.
        """
        if not found:
            return self
        size = self._size.with_(found.size)
        size.check(found.rules[0].source)
        return Rules((found, *self._strongest_first), size, self._sieve.with_(found.sieve))

    def decide(self, path: bytes, is_directory: bool) -> Rule | None:
        """The rule that decides on an entry: the last that matches, of the strongest source with one that does."""
        for rules in self._strongest_first:
            rule = rules.decide(path, is_directory)
            if rule is not None:
                return rule
        return None

    def ignores(self, path: bytes, is_directory: bool) -> bool:
        """Is the entry to be left out, and with a directory all that is below it?"""
        if not self._sieve.passes(path):
            return False
        rule = self.decide(path, is_directory)
        return rule is not None and rule.ignores
