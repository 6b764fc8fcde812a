"""The tree: rows written by compare-and-swap, owned by one shard at a time, under ids that never repeat."""

import functools
import itertools
import multiprocessing
import tracemalloc

import pytest
from sqlalchemy import event, insert

from db import indexed, schema, tree
from db.engine import connect, reading, writing
from db.tables import directories, files
from db.types import StaleDirectory
from tests.storage import at_once, directory, file, rows, tree_rows, write_tree

PRINT = b"fingerprint 0123"


def known(engine, tenant_id=1):
    return {row["path"]: row for row in rows(engine, directories, tenant_id=tenant_id)}


# Writing


def test_a_batch_inserts_directories_and_files(engine):
    new = directory(1, 2, b"a", 1, listed=None, owner=3, fence=5)

    write_tree(engine, new_directories=[directory(1, 1, b"", None, fingerprint=PRINT), new], files=[file(1, 2, b"f")])

    row = known(engine)[b"a"]
    assert (row["id"], row["parent_id"], row["name"], row["born"], row["owner"]) == (2, 1, b"a", 5, 3)
    assert (row["version"], row["listed"], row["fingerprint"], row["gone"]) == (1, None, None, None)
    assert known(engine)[b""]["fingerprint"] == PRINT
    with reading(engine) as connection:
        assert tree.files_of(connection, 1, 2).keys() == {b"f"}
        assert tree.children_of(connection, 1, 1).keys() == {b"a"}
        assert tree.sizes(connection, [1, 2]) == {1: (2 * tree.DIRECTORY_ENTRIES, 0)}


def test_a_listed_directory_is_updated_where_its_version_is_the_one_that_was_read(engine):
    write_tree(engine, new_directories=[directory(1, 1, b"", None, listed=None, owner=1)])

    write_tree(engine, listed=[(PRINT, 3, 2**40, 6, 1, 1, 1)])

    row = known(engine)[b""]
    assert (row["fingerprint"], row["files"], row["bytes"], row["listed"]) == (PRINT, 3, 2**40, 6)
    assert (row["version"], row["owner"]) == (2, None)


@pytest.mark.parametrize("version, place", [(0, 0), (2, 0), (2, 1), (0, 2)])
def test_a_directory_that_moved_meanwhile_stops_the_whole_batch(engine, version, place):
    write_tree(engine, new_directories=tree_rows(1, [b"a", b"b"]), files=[file(1, 1, b"kept")])
    before = rows(engine, directories), rows(engine, files)
    listed = [(PRINT, 1, 1, 6, 1, number, 1) for number in (1, 2, 3)]
    listed[place] = (*listed[place][:-1], version)

    with pytest.raises(StaleDirectory, match="1 directories were written by somebody else"):
        write_tree(
            engine,
            listed=listed,
            new_directories=[directory(1, 9, b"new", 1)],
            files=[file(1, 1, b"new")],
            gone_files=[(6, "absent", 1, 1, b"kept")],
        )

    assert (rows(engine, directories), rows(engine, files)) == before


def test_of_writers_at_once_that_read_the_same_version_exactly_one_writes(engine):
    write_tree(engine, new_directories=[directory(1, 1, b"", None)])

    for version in range(1, 11):
        listed = [(PRINT, 1, 1, version, 1, 1, version)]
        wrote = at_once(*[functools.partial(write_tree, engine, listed=listed)] * 3)

        assert [type(one) for one in wrote].count(type(None)) == 1
        assert [type(one) for one in wrote].count(StaleDirectory) == 2
        assert known(engine)[b""]["version"] == version + 1


def test_what_is_gone_keeps_the_first_fence_that_missed_it(engine):
    write_tree(engine, new_directories=tree_rows(1, [b"a"]), files=[file(1, 1, b"f")])

    for fence, reason in ((5, "absent"), (6, "ignored")):
        write_tree(engine, gone_files=[(fence, reason, 1, 1, b"f")], gone_children=[(fence, reason, 1, 2)])

    assert [(row["gone"], row["gone_reason"]) for row in rows(engine, files)] == [(5, "absent")]
    assert (known(engine)[b"a"]["gone"], known(engine)[b"a"]["gone_reason"]) == (5, "absent")


def test_names_in_a_directory_say_whether_they_wait_to_be_deleted(engine):
    write_tree(engine, new_directories=tree_rows(1, [b"a", b"b/c"]), files=[file(1, 1, b"f"), file(1, 2, b"below")])
    write_tree(engine, gone_files=[(5, "absent", 1, 1, b"f")])

    with reading(engine) as connection:
        found = tree.names_in(connection, 1, 1, 10)
        assert len(tree.names_in(connection, 1, 1, 1)) == 2  # a file and a directory
        assert tree.names_in(connection, 2, 1, 10) == []

    assert (found[0], set(found[1:])) == ((b"f", True), {(b"a", False), (b"b", False)})


def test_what_is_seen_again_is_gone_no_more(engine):
    write_tree(engine, new_directories=tree_rows(1, [b"a"]), files=[file(1, 1, b"f")])
    write_tree(engine, gone_files=[(5, "absent", 1, 1, b"f")], gone_children=[(5, "absent", 1, 2)])

    write_tree(engine, files=[file(1, 1, b"f", size=9)], found_children=[(77, 1, 2)])

    assert [(row["gone"], row["gone_reason"], row["size"]) for row in rows(engine, files)] == [(None, None, 9)]
    row = known(engine)[b"a"]
    assert (row["gone"], row["gone_reason"], row["inode"]) == (None, None, 77)


def test_a_file_that_becomes_a_symlink_is_the_same_row(engine):
    write_tree(engine, files=[file(1, 1, b"f")])
    write_tree(engine, files=[file(1, 1, b"f", type="symlink", digest=None, target=b"\xff/elsewhere")])

    (row,) = rows(engine, files)
    assert (row["type"], row["target"], row["digest"], row["algorithm"]) == ("symlink", b"\xff/elsewhere", None, None)


def test_nothing_of_another_tenant_is_written(engine):
    for tenant_id in (1, 2):
        write_tree(engine, new_directories=tree_rows(tenant_id, [b"a"]), files=[file(tenant_id, 1, b"f")])
    before = rows(engine, directories, tenant_id=2), rows(engine, files, tenant_id=2)

    write_tree(
        engine,
        listed=[(PRINT, 5, 5, 5, 1, 1, 1)],
        gone_children=[(5, "absent", 1, 2)],
        gone_files=[(5, "absent", 1, 1, b"f")],
    )
    with writing(engine) as connection:
        tree.disown(connection, 1, [1, 2])
        tree.delete_files(connection, 1, [(1, b"f")])
        tree.delete_directories(connection, 1, [2])

    assert (rows(engine, directories, tenant_id=2), rows(engine, files, tenant_id=2)) == before


@pytest.mark.row(21, "exact bytes in the database")
@pytest.mark.parametrize(
    "name", [b"\xff\xfe", b"a\nb", b" ", b"'; DROP TABLE files; --", b"%s?:x", bytes(range(1, 256)).replace(b"/", b"")]
)
def test_names_are_any_bytes(engine, name):
    write_tree(engine, new_directories=tree_rows(1, [name]), files=[file(1, 1, name), file(1, 2, name)])

    with reading(engine) as connection:
        assert tree.files_of(connection, 1, 1).keys() == {name}
        assert tree.children_of(connection, 1, 1).keys() == {name}
        assert [one.path for one in indexed.page(connection, 1)] == [name, name + b"/" + name]


@pytest.mark.row(22, "kept whole in the database")
def test_a_path_of_more_than_4000_bytes_is_kept_whole(engine):
    path = b"/".join([b"\xfe" * 250] * 17)
    write_tree(engine, new_directories=tree_rows(1, [path]), files=[file(1, 18, b"n" * 255)])

    assert len(path) > 4000
    with reading(engine) as connection:
        (page,) = indexed.page(connection, 1)
        assert page.path == path + b"/" + b"n" * 255
        assert indexed.page(connection, 1, prefix=path + b"/n") == [page]
        assert indexed.page(connection, 1, prefix=path + b"/o") == []


def test_removing_rows_clears_the_fingerprint_of_their_directory_and_of_no_other(engine):
    write_tree(
        engine,
        new_directories=tree_rows(1, [b"a/x", b"b"], fingerprint=PRINT),
        files=[file(1, 4, b"f"), file(1, 4, b"g")],
    )
    with writing(engine) as connection:
        tree.delete_files(connection, 1, [(4, b"f")])
        tree.delete_directories(connection, 1, [3])

    found = known(engine)
    assert {path: row["fingerprint"] for path, row in found.items()} == {b"": PRINT, b"a": None, b"b": None}
    assert {path: row["version"] for path, row in found.items()} == {b"": 1, b"a": 2, b"b": 2}
    assert [row["name"] for row in rows(engine, files)] == [b"g"]


@pytest.mark.parametrize(
    "impossible",
    [
        {"fingerprint": b"short"},
        {"fingerprint": PRINT, "listed": None},
        {"gone": 5},
        {"gone_reason": "absent"},
        {"gone": 5, "gone_reason": "boredom"},
        {"name": None},
        {"born": None},
    ],
    ids=str,
)
def test_an_impossible_directory_is_refused(engine, impossible):
    row = {"tenant_id": 1, "id": 1, "name": b"", "path": b"", "order_key": b"", "born": 1, "listed": 1} | impossible
    with pytest.raises(Exception, match=r"(?i)constraint"), writing(engine) as connection:
        connection.execute(insert(directories).values(**row))


@pytest.mark.parametrize("impossible", [{"type": "symlink"}, {"target": b"x"}, {"name": None}, {"size": None}], ids=str)
def test_an_impossible_file_is_refused(engine, impossible):
    row = dict(zip(tree.FILE, file(1, 1, b"f"), strict=True)) | impossible
    with pytest.raises(Exception, match=r"(?i)constraint"), writing(engine) as connection:
        connection.execute(insert(files).values(**row))


def test_two_directories_of_one_name_in_a_directory_are_refused(engine):
    write_tree(engine, new_directories=tree_rows(1, [b"a"]))

    with pytest.raises(Exception, match=r"(?i)unique"):
        write_tree(engine, new_directories=[directory(1, 9, b"a", 1)])


# Owners


def owned(engine, number, limit=100, fence=5):
    with reading(engine) as connection:
        return [one.path for one in tree.owned(connection, 1, fence, number, limit)]


def test_a_shard_owns_what_was_born_for_it_in_this_fence_until_it_is_listed(engine):
    born = tree_rows(1, [b"a/x", b"a.x", b"b"], fence=5, owner=1, listed=None)
    write_tree(engine, new_directories=[*born, directory(1, 99, b"old", 1, fence=4, owner=1)])

    assert owned(engine, 1) == [b"", b"a", b"a/x", b"a.x", b"b"]
    assert owned(engine, 1, limit=2) == [b"", b"a"]
    assert owned(engine, 2) == []
    with reading(engine) as connection:
        assert tree.count_owned(connection, 1, 5, 1) == 5

    write_tree(engine, listed=[(PRINT, 0, 0, 5, 1, 1, 1)])
    with writing(engine) as connection:
        tree.disown(connection, 1, [2])
    assert owned(engine, 1) == [b"a/x", b"a.x", b"b"]


@pytest.mark.parametrize("owners", [[7], [7, 8, 9], list(range(7, 30))])
def test_what_is_handed_over_goes_to_the_new_owners_in_contiguous_pieces(engine, owners):
    born = tree_rows(1, [b"%02d" % i for i in range(19)], fence=5, owner=1, listed=None)
    write_tree(engine, new_directories=[*born, directory(1, 99, b"others", 1, fence=5, owner=2, listed=None)])

    with writing(engine) as connection:
        tree.hand_over(connection, 1, 5, 1, owners)

    pieces = [owned(engine, number) for number in owners]
    assert list(itertools.chain(*pieces)) == sorted(row[4] for row in born)
    assert max(map(len, pieces)) - min(map(len, pieces)) <= 1
    assert owned(engine, 1) == []
    assert owned(engine, 2) == [b"others"]


def test_handing_a_large_frontier_over_takes_no_memory(engine):
    many = 20_000
    write_tree(engine, new_directories=tree_rows(1, [b"%05d" % i for i in range(many)], fence=5, owner=1, listed=None))

    with writing(engine) as connection:
        tree.hand_over(connection, 1, 5, 1, [2, 3])  # what is kept of a statement is kept from here on
        tree.hand_over(connection, 1, 5, 2, [4, 5])
        tracemalloc.start()
        try:
            tree.hand_over(connection, 1, 5, 3, [6, 7])
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert [tree.count_owned(connection, 1, 5, number) for number in (3, 6, 7)] == [0, many // 4, many // 4]
    assert peak < 500_000


def test_handing_nothing_over_does_nothing(engine):
    with writing(engine) as connection:
        tree.hand_over(connection, 1, 5, 1, [2, 3])


# Ids


def test_ids_never_repeat_between_engines_threads_and_roots(engine, migrated_url):
    others = [connect(migrated_url) for _ in range(3)]
    with writing(engine) as connection:
        tree.add_roots(connection, {1: 1, 2: 1})
    roots = [row["id"] for row in rows(engine, directories)]

    taken = at_once(*(functools.partial(take, tree.Ids(other), 2 * tree.IDS_PER_BLOCK + 1) for other in others))

    together = roots + [number for each in taken for number in each]
    assert len(set(together)) == len(together) == 2 + 3 * (2 * tree.IDS_PER_BLOCK + 1)
    for other in others:
        other.dispose()


def take(ids, count):
    return [ids.next() for _ in range(count)]


def test_ids_never_repeat_between_processes(migrated_url):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        taken = pool.map(_take_in_a_process, [migrated_url] * 4, chunksize=1)

    together = list(itertools.chain(*taken))
    assert len(set(together)) == len(together) == 4 * 1500


def _take_in_a_process(url):
    return take(tree.Ids(connect(url)), 1500)


def test_directories_of_an_inode_are_found_without_reading_all_others(tmp_path):
    """Asked for each new directory: reading all for each made a renamed tree take the square of its size.

    SQLite only: PostgreSQL plans by what is in the tables.
    """
    engine = connect(f"sqlite:///{tmp_path}/test.sqlite")
    schema.migrate(engine)
    asked = []
    event.listen(engine, "before_cursor_execute", lambda *args: asked.append(args[2:4]))
    with reading(engine) as connection:
        assert tree.with_inode(connection, 1, 7, 8) == []
    statement, parameters = asked[-1]

    with reading(engine) as connection:
        plan = connection.exec_driver_sql("EXPLAIN QUERY PLAN " + statement, parameters).all()

    assert any("ix_directories_inode" in row[3] for row in plan), plan
    engine.dispose()
