"""Git's patterns of paths (its wildmatch) as regular expressions whose time is bounded.

Brackets are read by dulwich, which knows all their corners; whole patterns are put together here, since dulwich's and
pathspec's both differ from git's (`***/a`, `a\\`; pathspec's also in brackets) and take days on
`a*a*a*a*a*a*a*a*b` for one long name.

Git's `*` takes any bytes within one name, `**/` any directories, so that the first place where what follows fits is as
good as any later one: each becomes an atomic group, which never looks for a second place, and matching takes at most
the pattern's length times the text's.

Text and pattern are bytes. A text is a path, or one name of it: it has no empty names, and no slash at either end.
The one difference known is from git before 2.52, which takes the `**` of `foo**/bar` for one after a slash.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import NamedTuple

from dulwich.wildmatch import MalformedPattern, translate_bracket_expression

__all__ = ["Glob", "LastMatch", "MalformedPattern", "Match", "is_literal", "match_any"]

# `re` itself keeps the last 512 expressions that it compiled; longer ones must not stay there.
KEPT_BYTES = 4_096
_SPECIAL = re.compile(rb"[*?\[\\]")
# Git takes `**` for directories only between slashes or ends; the slash before must be bare, the one after need not.
_TOKEN = re.compile(
    rb"(?P<globstar>(?:\A|(?<=/))\*\*+(?:/|(?=\\/|\Z)))|(?P<star>\*+)|(?P<slash>\\?/)|(?P<any>\?)|(?P<bracket>\[)"
    rb"|\\(?P<escaped>.)|(?P<plain>[^*/?\\\[]+)",
    re.DOTALL,  # a pattern may hold a newline, though a line may not
)

_Piece = list[bytes]  # expressions of fixed length: what stands between two `*`
_Name = list[_Piece]  # what stands between two slashes
_Group = list[_Name]  # what stands between two `**/`

Match = Callable[[bytes, int], re.Match[bytes] | None]  # of a text, from an offset to its end


class Glob(NamedTuple):
    """One pattern, read."""

    pattern: bytes
    expression: bytes | None  # matches all of what the pattern matches; None: that is the pattern itself
    suffix: bytes | None  # what a name must end in, where the pattern is this after a `*`

    @classmethod
    def read(cls, pattern: bytes) -> Glob:
        """Raises MalformedPattern where git's would match nothing at all."""
        if is_literal(pattern):
            return cls(pattern, None, None)
        suffix = pattern[1:] if pattern[:1] == b"*" and is_literal(pattern[1:]) else None
        return cls(pattern, _expression(pattern), suffix)


class LastMatch:
    """Finds the last of many globs that matches a text."""

    def __init__(self, globs: list[tuple[int, Glob]]) -> None:
        self._literals = {glob.pattern: number for number, glob in globs if glob.expression is None}
        self._wild = [(number, glob.expression) for number, glob in reversed(globs) if glob.expression is not None]

    def __call__(self, text: bytes, start: int) -> int:
        """The number that came with the last glob that matches the text from an offset on, or -1."""
        found = self._literals.get(text[start:], -1)
        match = self._each(text, start) if self._wild else None
        if match is None or match.lastindex is None:
            return found
        return max(found, self._wild[match.lastindex - 1][0])

    @cached_property
    def _each(self) -> Match:
        return _compile(b"|".join(b"(%b)" % expression for _, expression in self._wild))


def match_any(globs: Iterable[Glob]) -> Match:
    """Does one of them match? For globs that are not literal."""
    return _compile(b"|".join(glob.expression for glob in globs if glob.expression is not None))


def _compile(expression: bytes) -> Match:
    compiled = re.compile(expression)
    if len(expression) > KEPT_BYTES:
        re.purge()
    return compiled.match


def is_literal(pattern: bytes) -> bool:
    """Has it no wildcard and no escape?"""
    return _SPECIAL.search(pattern) is None


def _expression(pattern: bytes) -> bytes:
    first, *rest = _groups(pattern)
    found = b"/".join(map(_name, first))
    if not rest:
        return found + rb"\Z"
    *between, last = rest
    found += b"/" if first else b""
    found += b"".join(rb"(?>(?:[^/]*+/)*?" + b"/".join(map(_name, group)) + b"/)" for group in between if group)
    return found + rb"(?>(?:[^/]*+/)*?" + b"/".join(map(_name, last)) + rb"\Z)"


def _name(pieces: _Name) -> bytes:
    first, *rest = [b"".join(piece) for piece in pieces]
    if not rest:
        return first
    *between, last = rest
    return first + b"".join(rb"(?>[^/]*?" + piece + b")" for piece in between) + rb"(?>[^/]*" + last + rb"(?![^/]))"


def _groups(pattern: bytes) -> list[_Group]:
    groups: list[_Group] = [[[[]]]]
    at = 0
    while at < len(pattern):
        token = _TOKEN.match(pattern, at)
        if token is None:  # a backslash at the end
            raise MalformedPattern(pattern)
        at = token.end()
        names = groups[-1]
        match token.lastgroup:
            case "globstar":
                names.pop()  # the empty one after the slash before
                # Without a bare slash after it there must be at least one name: `a/**` is `a/**/*`.
                groups.append([[[]]] if token[0].endswith(b"/") else [[[], []]])
            case "star":
                names[-1].append([])
            case "slash":
                names.append([[]])
            case "any":
                names[-1][-1].append(b"[^/]")
            case "bracket":
                at, found = translate_bracket_expression(pattern, at)
                names[-1][-1].append(found)
            case kind:
                names[-1][-1].append(re.escape(token[kind or 0]))
    return groups
