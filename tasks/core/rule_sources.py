"""Where ignore rules come from: the tenant's own patterns, and rule files in any directory."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field

from tasks.core.filesystem import Unreadable, explain, is_regular, may_look, open_file
from tasks.core.ignore import Rules, RulesError, RuleSet
from tasks.core.rulefile import MAX_BYTES

RULE_FILE = b".strandlineignore"
GIT_RULE_FILE = b".gitignore"


@dataclass(frozen=True, slots=True)
class RuleSources:
    """Where rules come from: a tenant's own patterns, and files of these names in any directory, the weaker first."""

    patterns: Rules = field(default_factory=Rules)
    names: tuple[bytes, ...] = (RULE_FILE,)

    def read(self, fd: int, path: bytes, above: Rules) -> Rules:
        """The rules in an open directory, of which `above` hold too. Raises Unreadable."""
        rules = above
        for name in self.names:
            source = path + b"/" + name if path else name
            try:
                text = _read_rules(fd, name)
                if text is not None:
                    rules = rules.below(RuleSet.parse(text, source=source, base=path))
            except OSError as error:
                # Where not even the stat may be seen it is the directory that cannot be looked into.
                blind = error.errno == errno.EACCES and not may_look(fd, name)
                raise Unreadable(*((path, "list") if blind else (source, "read rules")), explain(error)) from error
            except RulesError as error:
                raise Unreadable(source, "read rules", error.problem) from error
        return rules


def _read_rules(directory: int, name: bytes) -> bytes | None:
    """What is in a rule file, up to one byte more than may be; None: there is no such file. Raises OSError."""
    try:
        fd = open_file(directory, name)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        if name == RULE_FILE:
            raise RulesError(name, "a symbolic link") from error
        return None  # as git does
    try:
        if is_regular(fd):
            with os.fdopen(fd, "rb", closefd=False) as file:  # it reads on where one read falls short
                return file.read(MAX_BYTES + 1)
        if name == RULE_FILE:
            raise RulesError(name, "not a regular file")
        return None
    finally:
        os.close(fd)
