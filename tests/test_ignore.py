"""Ignore rules: what each kind of line means, which of many decides, what it costs. Against git: test_ignore_git."""

import time

import pytest

from tasks.core import glob, rulefile
from tasks.core.ignore import Rule, Rules, RulesError, RuleSet

# Python warns of brackets that it may read differently one day.
pytestmark = pytest.mark.filterwarnings("error")

# What a file of rules in the root ignores, and what not. A path that ends in a slash is a directory's.
CASES: dict[str, tuple[bytes, list[bytes], list[bytes]]] = {
    "nothing": (b"", [], [b"a"]),
    "a name, at any depth, file or directory": (b"a", [b"a", b"x/a", b"x/y/a/"], [b"ab", b"b", b"A"]),
    "a last line without an end": (b"b\na", [b"a", b"b"], [b"a\n"]),
    "blank lines and comments": (b"\n\n#a\n  \n\na b\n", [b"a b"], [b"#a", b"a", b" "]),
    "a comment only at the start": (b" #a\n!#b\nc#d", [b" #a", b"c#d"], [b"#a", b"#b"]),
    "an escaped hash or mark": (b"\\#a\n\\!b", [b"#a", b"!b"], [b"a", b"b", b"\\#a"]),
    "a mark that is not first": (b"a!b", [b"a!b"], []),
    "two marks negate a name with a mark": (b"*b\n!!b", [b"ab"], [b"!b"]),
    "a negation of what is not ignored": (b"!a", [], [b"a"]),
    "the last line decides": (b"*.o\n!keep.o\nx/keep.o", [b"a.o", b"x/keep.o"], [b"keep.o", b"y/keep.o"]),
    "a directory only": (b"a/", [b"a/", b"x/a/"], [b"b/a"]),
    "a file is none": (b"a/\n!b/\nb", [b"b"], [b"a"]),
    "two slashes at the end": (b"a//", [], [b"a/"]),
    "a slash alone, marks alone": (b"/\n!\n!/\n//", [], [b"a", b"!", b"b/"]),
    "a slash at the start": (b"/a", [b"a"], [b"x/a", b"ab"]),
    "a slash within": (b"a/b", [b"a/b"], [b"x/a/b", b"b", b"a/c"]),
    "a slash at the start and the end": (b"/a/", [b"a/"], [b"x/a/", b"b"]),
    "a slash within and at the end": (b"a/b/", [b"a/b/"], [b"x/a/b/", b"b/"]),
    "two slashes within": (b"a//b\n//c", [], [b"a/b", b"c"]),
    "a star": (b"*.o", [b"a.o", b".o", b"x/a.o", b"a\n.o"], [b"a.oo", b"o", b"a.O"]),
    "a star alone": (b"*\n!x/", [b"a", b".a"], [b"x/"]),
    "a star takes no slash": (b"a/*c", [b"a/bc", b"a/c"], [b"a/b/c", b"ac"]),
    "a star at the end of a path": (b"a/*", [b"a/b", b"a/c/"], [b"a/", b"x/a/b"]),
    "a star for a directory": (b"*/b", [b"a/b"], [b"b", b"a/x/b"]),
    "many stars in a name": (b"a*b*c", [b"abc", b"axbxc", b"abbcc"], [b"ab", b"acb", b"abcx"]),
    "what follows a star may overlap itself": (b"*aab\n*abab*c", [b"aaab", b"abababc"], [b"aaba", b"ababa"]),
    "the end may not overlap what is before it": (b"ab*ba", [b"abba", b"abxba"], [b"aba"]),
    "a question mark is one byte": (b"a?", [b"ab", b"a\xff", b"a\n"], [b"a", b"abc", "aä".encode()]),
    "a question mark takes no slash": (b"a?b\nc/?/d", [b"axb", b"c/x/d"], [b"a/b", b"c/d"]),
    "two for two": ("ä".encode() + b"\n??", ["ä".encode(), "ö".encode()], ["a€".encode()]),
    "a name that is not UTF-8": (b"\xff*\n[\x80-\x8f]", [b"\xff", b"\xffa", b"\x85"], [b"\xfe", b"\x90"]),
    "two stars at the start": (b"**/a", [b"a", b"x/a", b"x/y/a/"], [b"xa", b"x/ya"]),
    "two stars at the end": (b"a/**", [b"a/b", b"a/c/"], [b"a/", b"x/a/b"]),
    "two stars between": (b"a/**/b", [b"a/b", b"a/x/b", b"a/x/y/b"], [b"b", b"ab", b"a/xb"]),
    "two stars, and more after a first fit": (b"a/**/b/c*/**/d", [b"a/b/b/c/d", b"a/b/x/b/cc/y/d"], [b"a/b/d"]),
    "two stars twice": (b"**/**/a/**/**/b", [b"a/b", b"x/a/y/z/b"], [b"b"]),
    "two stars alone": (b"**", [b"a", b"b/"], []),
    "two stars and a slash": (b"**/", [b"a/", b"b/"], [b"c"]),
    "two stars and a directory": (b"a/**/", [b"a/b/"], [b"a/", b"a/c"]),
    "three stars are as two": (b"***/a\nb/****", [b"a", b"x/y/a", b"b/c"], [b"xa", b"b/"]),
    "two stars within a name are as one": (b"a**b\nc/d**/e", [b"ab", b"axb", b"c/d/e", b"c/dx/e"], [b"c/d/x/e"]),
    "two stars after part of a name": (b"foo**/bar", [b"foo/bar", b"foox/bar"], [b"foobar", b"foo/x/bar"]),
    "two stars before part of a name": (b"a/**b", [b"a/b", b"a/xb"], [b"a/x/b"]),
    "an escaped slash after two stars": (b"**\\/a\nb/**\\/c", [b"x/a", b"x/y/a", b"b/x/c"], [b"a", b"b/c"]),
    "an escaped slash within": (b"a\\/b", [b"a/b"], [b"x/a/b", b"b"]),
    "an escaped slash at the end": (b"a\\/", [], [b"a", b"b/"]),
    "escaped wildcards": (b"\\*\n\\?\n\\[a]\na\\b", [b"*", b"?", b"[a]", b"ab"], [b"x", b"a", b"a\\b"]),
    "an escaped backslash": (b"a\\\\b", [b"a\\b"], [b"ab", b"a\\\\b"]),
    "a backslash at the end": (b"a\\\n*\\", [], [b"a", b"a\\", b"\\"]),
    "spaces at the end": (b"a  \nb \t\n c", [b"a", b"b \t", b" c"], [b"a  ", b"b", b"c"]),
    "escaped spaces at the end": (b"a\\ \nb\\  \nc \\  ", [b"a ", b"b ", b"c  "], [b"a", b"b", b"b  ", b"c "]),
    "spaces after an escaped backslash": (b"a\\\\ ", [b"a\\"], [b"a\\ ", b"a "]),
    "spaces after a slash": (b"a/ ", [b"a/"], [b"b/a", b"a /"]),
    "carriage returns": (b"a\r\nb \r\nc\r\r\n\r\n#d\r\ne\r", [b"a", b"b", b"c\r", b"e"], [b"c", b"\r", b"e\r"]),
    "a space after a carriage return": (b"a\r \n", [b"a\r"], [b"a"]),
    "a byte order mark": (b"\xef\xbb\xbfa\n\xef\xbb\xbfb", [b"a", b"\xef\xbb\xbfb"], [b"b", b"\xef\xbb\xbfa"]),
    "a byte order mark before a comment": (b"\xef\xbb\xbf#a\n", [], [b"#a", b"a"]),
    "what follows a zero byte": (b"a\0b\nc \0\nd\0\r\n\0e", [b"a", b"c", b"d"], [b"ab", b"e", b"c "]),
    "brackets": (b"[abc]", [b"a", b"c"], [b"d", b"ab", b"[abc]"]),
    "a range": (b"x[a-c]", [b"xa", b"xb", b"xc"], [b"x-", b"xd", b"x"]),
    "a range backwards": (b"[c-a]", [b"c"], [b"a", b"b", b"-"]),
    "a dash first, last and escaped": (b"x[-a]\ny[a-]\nz[a\\-c]", [b"x-", b"y-", b"z-", b"za"], [b"zb"]),
    "a range from an escaped byte": (b"[\\a-c]", [b"b"], [b"-", b"\\"]),
    "two ranges that share an end": (b"[a-c-e]", [b"b", b"-", b"e"], [b"d"]),
    "none of": (b"x[!a]\ny[^a]", [b"xb", b"x!", b"yb"], [b"xa", b"ya", b"x"]),
    "a closing bracket first": (b"x[]a]\ny[!]a]", [b"x]", b"xa", b"yb"], [b"y]", b"ya", b"x[]a]"]),
    "an escaped closing bracket": (b"[a\\]]", [b"a", b"]"], [b"\\", b"a]"]),
    "a class": (b"x[[:alpha:]]\ny[[:digit:]_]\n[[:upper:]-z]", [b"xa", b"xZ", b"y1", b"y_", b"A", b"-", b"z"],
                [b"x1", b"x:", b"x\xe4", b"ya", b"b"]),
    "none of a class": (b"[![:space:]]", [b"a", b"\x0b", b"\xa0"], [b" ", b"\t", b"\n"]),
    "no class": (b"[[:alfa:]]\n[[:]\n[[:a]b]", [b"[", b":", b"ab]"], [b"a", b"l"]),
    "a bracket that is not closed": (b"[a\n[]\n[!]\n[[:alpha:]\n[a\\]", [], [b"[a", b"[]", b"[!]", b"a", b"["]),
    "brackets take no slash": (b"a[/]b\na[!x]b\na[.-0]b", [b"ayb"], [b"a/b"]),
    "a slash in brackets makes a path": (b"[a/b]", [b"a", b"b"], [b"x/a"]),
    "an invalid line decides nothing": (b"*\n!a\n[a\n", [b"b"], [b"a"]),
    "a newline in a name": (b"a?b\n[!x]c", [b"a\nb", b"\nc"], [b"a", b"b"]),
    "what looks like a regular expression": (b"a.b\n(c|d)\n^e$\nf+", [b"a.b", b"(c|d)", b"^e$", b"f+"],
                                             [b"axb", b"c", b"e", b"ff"]),
}  # fmt: skip


def parsed(text: bytes, source: bytes = b"", base: bytes = b"") -> RuleSet:
    return RuleSet.parse(text, source=source, base=base)


def ignored(rules: Rules, path: bytes) -> bool:
    """By both ways to ask, which must agree."""
    entry = path.removesuffix(b"/"), path.endswith(b"/")
    found = rules.ignores(*entry)
    rule = rules.decide(*entry)
    assert found == (rule is not None and rule.ignores)
    return found


@pytest.mark.parametrize(("text", "out", "kept"), CASES.values(), ids=CASES)
def test_a_file_of_rules_ignores_what_its_lines_say(text: bytes, out: list[bytes], kept: list[bytes]) -> None:
    rules = Rules().below(parsed(text))

    assert {path: ignored(rules, path) for path in out + kept} == dict.fromkeys(out, True) | dict.fromkeys(kept, False)


@pytest.mark.parametrize(("text", "out", "kept"), CASES.values(), ids=CASES)
def test_the_rules_of_a_directory_say_the_same_below_it(text: bytes, out: list[bytes], kept: list[bytes]) -> None:
    rules = Rules().below(parsed(text, source=b"d*/e/.gitignore", base=b"d*/e"))

    assert all(ignored(rules, b"d*/e/" + path) for path in out)
    assert not any(ignored(rules, b"d*/e/" + path) for path in kept)
    assert not any(ignored(rules, b"dx/e/" + path) for path in out + kept)
    assert not any(ignored(rules, b"d*/ef/" + path) for path in out + kept)


# ---- Which rule decides

TENANT = parsed(b"*.o\n!d/e/keep.o\n/only\nbuild/")
ROOT = parsed(b"# mine\n!only\n*.tmp\nd/e/late", source=b".gitignore")
SUB = parsed(b"!build\n*.o\n/only\nlate\n!d/", source=b"d/.gitignore", base=b"d")
LATER = parsed(b"!late", source=b"d/.strandlineignore", base=b"d")
CHAIN = Rules().below(TENANT).below(ROOT).below(SUB).below(LATER)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (b"a.o", Rule(b"", 1, b"*.o", True)),
        (b"only", Rule(b".gitignore", 2, b"!only", False)),
        (b"x.tmp", Rule(b".gitignore", 3, b"*.tmp", True)),
        (b"d/x.tmp", Rule(b".gitignore", 3, b"*.tmp", True)),
        (b"build/", Rule(b"", 4, b"build/", True)),
        (b"build", None),
        (b"d/build/", Rule(b"d/.gitignore", 1, b"!build", False)),
        (b"d/build/x.o", Rule(b"d/.gitignore", 2, b"*.o", True)),  # by itself: what is above it says nothing of it
        (b"d/e/keep.o", Rule(b"d/.gitignore", 2, b"*.o", True)),
        (b"d/only", Rule(b"d/.gitignore", 3, b"/only", True)),
        (b"d/e/only", Rule(b".gitignore", 2, b"!only", False)),
        (b"d/e/late", Rule(b"d/.strandlineignore", 1, b"!late", False)),
        (b"d/d/", Rule(b"d/.gitignore", 5, b"!d/", False)),
        (b"d/", None),
        (b"d/else", None),
    ],
)
def test_the_strongest_source_with_a_match_decides_by_its_last(path: bytes, expected: Rule | None) -> None:
    assert CHAIN.decide(path.removesuffix(b"/"), path.endswith(b"/")) == expected
    assert ignored(CHAIN, path) == (expected is not None and expected.ignores)


def test_a_negation_of_a_deeper_directory_takes_back_no_entry_below_it() -> None:
    rules = Rules().below(parsed(b"*.o")).below(parsed(b"!build", source=b"sub/.gitignore", base=b"sub"))

    assert not ignored(rules, b"sub/build/")
    assert rules.decide(b"sub/build/x.o", False) == Rule(b"", 1, b"*.o", True)


def test_rules_of_every_kind_hold_below_a_source_with_rules_of_every_kind() -> None:
    kinds = [
        (b"name", b"name"),
        (b"/d/path", b"d/path"),
        (b"*.end", b"x.end"),
        (b"na?me", b"d/na-me"),
        (b"/d/*", b"d/x"),
    ]
    others = b"other\n/other/path\n*.other\noth?er\n/other/*"

    for pattern, path in kinds:
        above, below = Rules().below(parsed(pattern)), Rules().below(parsed(others))
        assert ignored(above.below(parsed(others)), path)
        assert ignored(below.below(parsed(pattern)), path)
        assert not ignored(below, path)


def test_of_one_source_rules_for_names_and_for_paths_count_in_the_order_of_their_lines() -> None:
    names_last, paths_last = parsed(b"/a\n!a*\n*b\n/ab\n!ab"), parsed(b"!ab\na*\n!/ab\n!*b")

    assert names_last.decide(b"ab", False) == Rule(b"", 5, b"!ab", False)
    assert names_last.decide(b"a", False) == Rule(b"", 2, b"!a*", False)
    assert paths_last.decide(b"ab", False) == Rule(b"", 4, b"!*b", False)
    assert paths_last.decide(b"a", False) == Rule(b"", 2, b"a*", True)
    assert paths_last.decide(b"c", False) is None


def test_of_equal_lines_the_last_decides() -> None:
    assert parsed(b"a\n*c\na\n*c").decide(b"a", False) == Rule(b"", 3, b"a", True)
    assert parsed(b"a\n*c\na\n*c").decide(b"c", False) == Rule(b"", 4, b"*c", True)


def test_a_rule_is_told_as_it_is_written() -> None:
    found = parsed(b"\xef\xbb\xbf!a/ \r\n#\n\n\\#b\\  \n/c", source=b"d/\xff", base=b"d").rules

    assert found == [
        Rule(b"d/\xff", 1, b"!a/", False), Rule(b"d/\xff", 4, b"\\#b\\ ", True), Rule(b"d/\xff", 5, b"/c", True)
    ]  # fmt: skip


def test_a_source_without_rules_changes_nothing() -> None:
    for text in (b"", b"\n", b"# nothing\n\n", b"[\n!\n/\na\\\n"):
        assert not parsed(text)
        assert CHAIN.below(parsed(text)) is CHAIN
    assert len(parsed(b"a\n!b\n#c\n[")) == 2
    assert not ignored(Rules(), b"a")


def test_rules_for_what_is_below_leave_those_above_as_they_were() -> None:
    above = Rules().below(parsed(b"a"))
    above.below(parsed(b"!a\nb"))

    assert ignored(above, b"a") and not ignored(above, b"b")


# ---- What it may cost


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"#" * (rulefile.MAX_BYTES + 1), "'d/.gitignore': more than the 1,048,576 bytes that are allowed"),
        (b"a\n" * 10_001, "10,001 rules, more than the 10,000 "),
        (b"*a\n" * 1_001, "1,001 rules with wildcards, more than the 1,000 "),
        ((b"*" + b"a" * 399 + b"\n") * 82, "32,800 bytes of rules with wildcards, more than the 32,768 "),
        (b"a\n!*" + b"a" * 512, "513 bytes of a rule with wildcards in line 2, more than the 512 "),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_more_than_a_limit_is_refused_by_name(text: bytes, message: str) -> None:
    with pytest.raises(RulesError, match=message):
        parsed(text, source=b"d/.gitignore", base=b"d")


@pytest.mark.parametrize(
    "text",
    [
        b"#" * rulefile.MAX_BYTES,
        b"a\n" * 10_000,
        b"*a\n" * 1_000,
        (b"*" + b"a" * 511 + b"\n") * 64,
        b"a" * 2000,  # without a wildcard it may be as long as it likes
    ],
    ids=["bytes", "rules", "globs", "glob bytes", "literal"],
)
def test_what_is_at_a_limit_is_not_refused(text: bytes) -> None:
    Rules().below(parsed(text))


def test_limits_hold_for_all_sources_together_and_the_one_too_many_is_named() -> None:
    rules = Rules().below(parsed(b"*a\n" * 600))

    with pytest.raises(RulesError, match=r"'d/\\\\xff': 1,200 rules with wildcards, more than the 1,000 "):
        rules.below(parsed(b"*a\n" * 600, source=b"d/\xff", base=b"d"))
    with pytest.raises(RulesError, match=": 10,600 rules, more than the 10,000 "):
        rules.below(parsed(b"a\n" * 10_000))
    with pytest.raises(RulesError, match="the tenant's patterns: 33,200 bytes of rules with wildcards"):
        rules.below(parsed((b"*" + b"a" * 399 + b"\n") * 80))


def test_what_python_keeps_of_expressions_that_it_compiled_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    purged = []
    monkeypatch.setattr(glob.re, "purge", lambda: purged.append(True))

    parsed(b"a?\nb*c\n/d/*")
    assert not purged
    parsed((b"?" + b"a" * glob.KEPT_BYTES)[:500] + b"\n*b*" * 700)
    assert purged


DEEP = b"/".join([b"a"] * 2000)
# Each as many times as the limits allow, against a text made for it.
ATTACKS = {
    "stars": (b"a*" * 16 + b"b", b"a" * 255),
    "stars between brackets": (b"[a-c]*" * 20 + b"b", b"a" * 255),
    "pairs of stars": (b"**a" * 11 + b"b", b"a" * 255),
    "pairs of stars for directories": (b"**/" * 10 + b"x", DEEP),
    "directories between pairs of stars": (b"**/a/" * 6 + b"x", DEEP),
    "names with stars between pairs of stars": (b"**/*a*a/" * 4 + b"x", b"/".join([b"aaa"] * 1000)),
    "a long piece": (b"*" + b"a" * 127 + b"b*", b"a" * 255),
    "many directories": (b"**/" + b"a/" * 250 + b"b", DEEP),
    "a star for long names": (b"**/*?a?b/x", b"/".join([b"a" * 250] * 16)),
}


@pytest.mark.parametrize(("pattern", "path"), ATTACKS.values(), ids=ATTACKS)
def test_no_pattern_takes_long_for_any_path(pattern: bytes, path: bytes) -> None:
    # Different ones, or the compiler would make one of them.
    count = min(1_000, rulefile.MAX_GLOB_BYTES // (len(pattern) + 3))
    rules = Rules().below(parsed(b"\n".join(pattern + b"%03d" % number for number in range(count))))
    rules.decide(path, False)  # compiles

    before = time.process_time()
    assert not ignored(rules, path)
    # Milliseconds; with a backtrack it would be hours.
    assert time.process_time() - before < 2


def test_no_brackets_take_long_to_read() -> None:
    before = time.process_time()
    assert len(parsed(b"\n".join([b"[" + b"[:" * 254 + b"a]"] * 64))) == 64
    assert time.process_time() - before < 5
