"""Order: depth-first, met exactly once however it is cut into ranges and pages, and filtered by prefix."""

import itertools
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from db import indexed, tree
from db.engine import reading
from db.types import Place
from tests.storage import directory, file, tree_rows, write_tree

# Names that an order or a prefix may stumble over: bytes beside the separator's, no UTF-8, a newline.
names = st.sampled_from([b"a", b"a\x01", b"a.", b"a0", b"b", b"\xff", b"\xff\xff", b"\x01", b"a b", b"\n", b"a\xff"])
paths = st.lists(names, min_size=1, max_size=4).map(b"/".join)
fresh_tenant = itertools.count(1000).__next__
on_one_database = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)


# Order


@given(st.lists(paths))
def test_the_order_key_sorts_depth_first(some):
    assert sorted(some, key=tree.order_key) == sorted(some, key=lambda path: path.split(b"/"))


@given(st.lists(st.lists(st.binary(min_size=1), max_size=5)))
def test_the_order_key_sorts_any_names_depth_first(some):
    clean = [[name.translate(None, b"/\0") or b"x" for name in parts] for parts in some]

    assert sorted(clean, key=lambda parts: tree.order_key(b"/".join(parts))) == sorted(clean)


def everything(engine, tenant_id, after, to, limit, fence=100):
    """All of a range, page by page."""
    found = []
    while True:
        with reading(engine) as connection:
            page = tree.range_page(connection, tenant_id, fence, after, to, limit)
        found += page
        if len(page) < limit:
            return found
        after = Place(page[-1].key, page[-1].id)


@on_one_database
@given(st.sets(paths, max_size=25), st.integers(1, 60), st.integers(1, 30), st.randoms(use_true_random=False))
def test_ranges_between_cuts_hold_each_directory_once_and_in_order(engine, some, entries, limit, chance):
    tenant_id = fresh_tenant()
    made = tree_rows(tenant_id, some)
    for row in made:
        row[tree.NEW_DIRECTORY.index("files")] = chance.choice([0, 0, 3, 40])
    chance.shuffle(made)
    write_tree(engine, new_directories=made)

    with reading(engine) as connection:
        cuts = tree.cuts(connection, tenant_id, entries)
    pieces = [
        everything(engine, tenant_id, after, to, limit)
        for after, to in zip([None, *cuts[:-1]], [*cuts[:-1], None], strict=True)
    ]

    met = [one.path for piece in pieces for one in piece]
    assert met == sorted((row[4] for row in made), key=lambda path: path.split(b"/") if path else [])
    assert all(pieces)
    weights = {row[4]: row[8] + tree.DIRECTORY_ENTRIES for row in made}
    assert len(pieces) <= sum(weights.values()) // entries + 1
    for piece in pieces:
        # Only what one directory alone holds goes beyond what was asked for.
        assert sum(weights[one.path] for one in piece) < entries + max(weights.values())


def test_a_range_excludes_its_beginning_and_includes_its_end_also_where_keys_are_cut_alike(engine):
    deep = b"/".join([b"d" * 250] * 5)
    write_tree(engine, new_directories=tree_rows(1, [deep + b"/%d" % i for i in range(10)]))
    keys = {tree.order_key(deep + b"/%d" % i) for i in range(10)}
    assert len(keys) == 1

    (key,) = keys
    met = everything(engine, 1, Place(key, 8), Place(key, 12), 2)

    assert [one.id for one in met] == [9, 10, 11, 12]
    assert [one.id for one in everything(engine, 1, None, None, 3)] == list(range(1, 17))


def test_a_range_holds_only_what_was_known_before_the_fence(engine):
    write_tree(
        engine,
        new_directories=[
            directory(1, 1, b"", None, fence=1),
            directory(1, 2, b"a", 1, fence=5, owner=1, listed=None),
            directory(1, 3, b"b", 1, fence=6, owner=1, listed=None),
        ],
    )

    assert [one.path for one in everything(engine, 1, None, None, 10, fence=6)] == [b"", b"a"]


def test_no_directories_no_cuts(engine):
    with reading(engine) as connection:
        assert tree.cuts(connection, 1, 100) == []


# Pages of the index


def index(engine, tenant_id, limit, prefix=b""):
    found, after = [], None
    while True:
        with reading(engine) as connection:
            page = indexed.page(connection, tenant_id, prefix=prefix, after=after, limit=limit)
        found += page
        if len(page) < limit:
            return found
        after = page[-1].place


def write_files(engine, tenant_id, some):
    """A file for each path, in directories made for it; the paths in the order of the index."""
    folders = {path.rpartition(b"/")[0] for path in some}
    made = tree_rows(tenant_id, folders - {b""})
    ids = {row[4]: row[1] for row in made}
    split = [path.rpartition(b"/") for path in some]
    random.Random(0).shuffle(made)
    write_tree(
        engine, new_directories=made, files=[file(tenant_id, ids[folder], name) for folder, _, name in split]
    )  # fmt: skip
    return sorted(some, key=lambda path: (path.split(b"/")[:-1], path.split(b"/")[-1]))


@on_one_database
@given(st.sets(paths, max_size=30), st.integers(1, 12))
def test_pages_of_the_index_hold_each_file_once_and_in_order(engine, some, limit):
    tenant_id = fresh_tenant()
    in_order = write_files(engine, tenant_id, some)

    assert [one.path for one in index(engine, tenant_id, limit)] == in_order


@on_one_database
@given(st.sets(paths, max_size=30), st.integers(1, 12), st.data())
def test_a_prefix_selects_what_a_filter_would(engine, some, limit, data):
    tenant_id = fresh_tenant()
    in_order = write_files(engine, tenant_id, some)
    starts = {path[:end] for path in some for end in range(1, len(path) + 1)}
    drawn = data.draw(st.sampled_from(sorted(starts)) if starts else paths)

    for prefix in (drawn, drawn + b"/", drawn + b"\xff", b"/", b"\xff", b"/" + drawn):
        expected = [path for path in in_order if path.startswith(prefix)]
        assert [one.path for one in index(engine, tenant_id, limit, prefix)] == expected, prefix


@pytest.mark.parametrize("limit", [1, 3, 100])
def test_paths_beyond_the_order_key_are_paged_and_filtered_too(engine, limit):
    deep = b"/".join([b"d" * 250] * 4 + [b"e" * 100])
    some = {deep + b"/%d/%s" % (i, name) for i in range(4) for name in (b"x", b"\xff")} | {deep[:-3] + b"/y", b"d"}
    write_files(engine, 1, some)

    assert sorted(one.path for one in index(engine, 1, limit)) == sorted(some)
    for prefix in (deep, deep + b"/", deep + b"/2", deep + b"/2/", deep + b"/2/x", deep[:1020], deep[:1024], b"d"):
        expected = sorted(path for path in some if path.startswith(prefix))
        assert sorted(one.path for one in index(engine, 1, limit, prefix)) == expected, prefix


def test_a_file_that_was_never_read_is_not_in_the_index_and_a_symlink_is(engine):
    write_tree(
        engine,
        new_directories=tree_rows(1, []),
        files=[file(1, 1, b"a", digest=None), file(1, 1, b"b", type="symlink", digest=None, target=b"t")],
    )

    (one,) = index(engine, 1, 10)
    assert (one.path, one.type, one.target, one.digest) == (b"b", "symlink", b"t", None)
