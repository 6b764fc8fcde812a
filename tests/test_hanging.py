"""A call that never returns: it is known which folder is to blame, and none is made that need not be."""

import contextlib
import os
from pathlib import Path

import pytest

from tasks.core.filesystem import OtherMount, Shadowed
from tasks.core.walk import Tree
from tests.trees import Dir, build


@pytest.fixture
def root(tmp_path: Path) -> bytes:
    return os.fsencode(tmp_path / "root")


def test_each_folder_is_named_before_it_is_entered(root: bytes) -> None:
    build(root, Dir({b"a": Dir({b"b": Dir({b"c": Dir()})})}))
    named: list[bytes] = []

    with Tree(root, touching=named.append) as tree:
        tree.directory(b"a/b/c")
        tree.mark(b"a/b")

    assert named == [b"a", b"a/b", b"a/b/c", b"a/b"]


@pytest.mark.parametrize("crossed", [False, True])
def test_what_is_mounted_below_is_touched_only_if_it_is_crossed(
    root: bytes, crossed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(root, Dir({b"point": Dir({b"below": Dir()})}))
    monkeypatch.setattr("tasks.core.walk.mount_points", lambda: frozenset({root + b"/point"}))
    named: list[bytes] = []

    with Tree(root, cross_mounts=crossed, touching=named.append) as tree:
        for path, refusal in ((b"point", OtherMount), (b"point/below", Shadowed)):
            with contextlib.nullcontext() if crossed else pytest.raises(refusal):
                tree.directory(path)

    assert named == ([b"point", b"point/below"] if crossed else [])
