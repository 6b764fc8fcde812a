"""Reading a rule file, line by line as git reads .gitignore; and how much of it there may be."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from tasks.core.glob import Glob, MalformedPattern, is_literal

MAX_BYTES = 1 << 20  # of one source
# Of all sources that hold in one directory. A pattern without wildcards is looked up; those with wildcards are tried
# one by one, each for at most its length times the path's. Within these limits no entry was seen to take longer than
# 10 ms for a name of 255 bytes, or 0.2 s for a path of 4,000.
MAX_RULES = 10_000
MAX_GLOBS = 1_000
MAX_GLOB_BYTES = 32_768
LONGEST_GLOB = 512  # bytes; to read brackets may take the square of it
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class RulesError(ValueError):
    """More rules than may be. The message says whose, of what, and the limit; `problem` all but whose."""

    def __init__(self, source: bytes, problem: str) -> None:
        shown = repr(source.decode("utf-8", "backslashreplace")) if source else "the tenant's patterns"
        super().__init__(f"{shown}: {problem}")
        self.problem = problem


class Rule(NamedTuple):
    """One line of one source."""

    source: bytes  # path of the rule file relative to the root; b"" for the tenant's own patterns
    line: int  # from 1
    pattern: bytes  # as written, but for what git drops from its end: spaces, a carriage return
    ignores: bool  # False for a negation


class Read(NamedTuple):
    """A rule, and what it matches."""

    rule: Rule
    glob: Glob
    of_names: bool  # at any depth; otherwise it is of paths below the directory that the rules hold for
    directories_only: bool


class Size(NamedTuple):
    """What rules cost."""

    rules: int = 0
    globs: int = 0  # rules with wildcards, or escapes
    glob_bytes: int = 0

    @classmethod
    def of(cls, rules: list[Rule]) -> Size:
        globs = [len(rule.pattern) for rule in rules if not is_literal(rule.pattern)]
        return cls(len(rules), len(globs), sum(globs))

    def with_(self, more: Size) -> Size:
        return Size(self.rules + more.rules, self.globs + more.globs, self.glob_bytes + more.glob_bytes)

    def check(self, source: bytes) -> None:
        """Raises RulesError beyond a limit, in the name of the source that goes beyond it."""
        _check(source, self.rules, MAX_RULES, "rules")
        _check(source, self.globs, MAX_GLOBS, "rules with wildcards")
        _check(source, self.glob_bytes, MAX_GLOB_BYTES, "bytes of rules with wildcards")


def read(text: bytes, source: bytes) -> list[Read]:
    """The rules of a file, without those that can match nothing. Raises RulesError beyond a limit."""
    if len(text) > MAX_BYTES:  # how many, nobody has read
        raise RulesError(source, f"more than the {MAX_BYTES:,} bytes that are allowed")
    rules = list(_rules(text, source))
    Size.of(rules).check(source)
    return [found for found in map(_read, rules) if found is not None]


def _check(source: bytes, found: int, limit: int, what: str) -> None:
    if found > limit:
        raise RulesError(source, f"{found:,} {what}, more than the {limit:,} that are allowed")


def _rules(text: bytes, source: bytes) -> Iterator[Rule]:
    for number, line in enumerate(text.removeprefix(_BYTE_ORDER_MARK).split(b"\n"), 1):
        if line and not line.startswith(b"#"):
            # Git's lines are C strings: what follows a NUL is not there.
            pattern = _trimmed(line.removesuffix(b"\r").partition(b"\0")[0])
            yield Rule(source, number, pattern, not pattern.startswith(b"!"))


def _trimmed(line: bytes) -> bytes:
    kept = line.rstrip(b" ")
    backslashes = len(kept) - len(kept.rstrip(b"\\"))
    return line[: len(kept) + backslashes % 2]  # an odd one escapes the first of the spaces


def _read(rule: Rule) -> Read | None:
    pattern = rule.pattern if rule.ignores else rule.pattern[1:]
    bare = pattern.removesuffix(b"/")
    of_names = b"/" not in bare
    if not is_literal(bare):
        _check(rule.source, len(bare), LONGEST_GLOB, f"bytes of a rule with wildcards in line {rule.line}")
    try:
        glob = Glob.read(bare.removeprefix(b"/"))
    except MalformedPattern:
        return None
    return Read(rule, glob, of_names, bare != pattern) if glob.pattern else None
