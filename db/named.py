"""The paths that a scan was asked for, relative to the root; none: it was asked for the whole tree.

As stored (`scans.paths`): a JSON list of hexadecimal strings, sorted, none of them below another.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

# Whoever names more means so much of the tree that it is scanned whole: most of it costs no more than `find`.
MOST = 1_000


def dump(paths: Iterable[bytes]) -> str | None:
    """As they are stored. None, the whole tree, where they are too many, or the root is one of them."""
    kept: list[bytes] = []
    for path in sorted(set(paths), key=lambda path: path.split(b"/")):
        if not kept or not path.startswith(kept[-1] + b"/"):
            kept.append(path)
    return None if len(kept) > MOST or b"" in kept else json.dumps([path.hex() for path in kept])


def load(stored: str | None) -> Sequence[bytes]:
    """From what is stored; empty for the whole tree."""
    return [] if stored is None else [bytes.fromhex(path) for path in json.loads(stored)]


def widened(one: str | None, other: str | None) -> str | None:
    """What covers both."""
    return None if one is None or other is None else dump([*load(one), *load(other)])
