"""What a finish deletes: what is gone below directories listed in its fence, all below that, and nothing else."""

import pytest
from sqlalchemy import func, select

from db import losses, tree, vanished
from db.engine import reading, writing
from db.tables import directories, files
from db.tables import losses as losses_table
from db.tables import vanished as vanished_table
from tests.storage import add_tenant, directory, file, rows, start_scan, write_tree

PRINT = b"fingerprint 0123"


@pytest.fixture
def tenant(engine):
    return add_tenant(engine)


@pytest.fixture
def scan(engine, tenant):
    return start_scan(engine, tenant)


@pytest.fixture
def nested(engine, tenant, scan):
    """A tree in which `listed` was listed in this fence and `unlisted` was not; of each, `old` is gone.

    Gone too are the files `lost`; `later` went in a fence to come, and another tenant has the very same rows.
    """
    for tenant_id in (tenant.id, add_tenant(engine, "other").id):
        write_folders(engine, tenant_id, scan.fence)
    return scan


def write_folders(engine, tenant_id, fence):
    paths = [b"listed", b"listed/old", b"listed/old/a", b"listed/old/a/deep", b"listed/old/b", b"listed/stays",
             b"unlisted", b"unlisted/old", b"unlisted/old/a", b"listed/later", b"listed/later/a"]  # fmt: skip
    ids = {path: number for number, path in enumerate([b"", *paths], start=1)}
    made = [directory(tenant_id, 1, b"", None, listed=fence - 1, fence=0)]
    for path in paths:
        listed = fence if path == b"listed" else fence - 1
        print_of = None if path == b"listed" else PRINT
        made.append(
            directory(tenant_id, ids[path], path, ids[path.rpartition(b"/")[0]], listed=listed, fence=0,
                      fingerprint=print_of)
        )  # fmt: skip
    write_tree(
        engine,
        new_directories=made,
        files=[file(tenant_id, number, name) for number in ids.values() for name in (b"lost", b"kept")],
        gone_children=[
            (fence, "absent", tenant_id, ids[b"listed/old"]),
            (fence, "absent", tenant_id, ids[b"unlisted/old"]),
            (fence + 1, "absent", tenant_id, ids[b"listed/later"]),
        ],
        gone_files=[(fence, "absent", tenant_id, ids[path], b"lost") for path in (b"listed", b"unlisted", b"")],
    )


def in_a_transaction(engine, step, *args):
    with writing(engine) as connection:
        return step(connection, *args)


def delete_all(engine, scan, batch=2, times=1):
    """As finish does it; each step `times` times."""
    deleted = []
    for _ in range(times):
        in_a_transaction(engine, vanished.collect, scan)
    for _ in range(times):
        while in_a_transaction(engine, vanished.expand, scan, batch):
            pass
    for step in (losses.note_missing, losses.note_below) * times:
        after = in_a_transaction(engine, step, scan, None, batch)
        while after is not None:
            after = in_a_transaction(engine, step, scan, after, batch)
    while gone := in_a_transaction(engine, page, scan, batch):
        deleted += gone
        for _ in range(times):
            in_a_transaction(engine, delete_some, scan, gone)
    for _ in range(times):
        while in_a_transaction(engine, vanished.delete_noted, scan, batch):
            pass
    return deleted


def page(connection, scan, limit):
    return losses.page(connection, scan, moved=False, after=None, limit=limit)


def delete_some(connection, scan, gone):
    tree.delete_files(connection, scan.tenant_id, [(one.directory_id, one.name) for one in gone])
    losses.forget(connection, scan, gone)


def folders(engine, tenant_id):
    return {row["path"]: row for row in rows(engine, directories, tenant_id=tenant_id)}


KEPT = {b"", b"listed", b"listed/stays", b"unlisted", b"unlisted/old", b"unlisted/old/a", b"listed/later",
        b"listed/later/a"}  # fmt: skip
DELETED = {b"listed/old", b"listed/old/a", b"listed/old/a/deep", b"listed/old/b"}


@pytest.mark.parametrize("batch", [1, 2, 1000])
@pytest.mark.parametrize("times", [1, 2])
def test_what_is_gone_below_listed_directories_is_deleted_with_all_below_it(engine, nested, tenant, batch, times):
    deleted = delete_all(engine, nested, batch, times)

    left = folders(engine, tenant.id)
    assert set(left) == KEPT
    paths = {number: path for path, number in ((path, row["id"]) for path, row in left.items())}
    kept_files = {(paths[row["directory_id"]], row["name"]) for row in rows(engine, files, tenant_id=tenant.id)}
    assert kept_files == {(path, name) for path in KEPT for name in (b"lost", b"kept")} - {(b"listed", b"lost")}
    expected = [b"listed/lost"] + [path + b"/" + name for path in DELETED for name in (b"lost", b"kept")]
    assert sorted(one.path for one in deleted) == sorted(expected)
    assert rows(engine, vanished_table) == rows(engine, losses_table) == []


def noted(connection, scan) -> int:
    query = select(func.count()).select_from(vanished_table).where(vanished_table.c.scan_id == scan.id)
    return connection.execute(query).scalar_one()


def test_nothing_of_another_tenant_is_deleted(engine, nested, tenant):
    before = [row for row in rows(engine, directories) + rows(engine, files) if row["tenant_id"] != tenant.id]

    delete_all(engine, nested)

    assert [row for row in rows(engine, directories) + rows(engine, files) if row["tenant_id"] != tenant.id] == before


def test_only_directories_that_lost_a_row_lose_their_fingerprint(engine, nested, tenant):
    in_a_transaction(engine, tree.write, tree.TreeBatch(listed=[(PRINT, 1, 1, nested.fence, tenant.id, 2, 1)]))

    delete_all(engine, nested)

    left = folders(engine, tenant.id)
    assert {path for path, row in left.items() if row["fingerprint"] is None} == {b"", b"listed"}
    assert left[b"listed"]["version"] > 2


def test_a_finish_that_died_between_any_two_steps_is_done_again(engine, nested, tenant):
    """Each turn goes one transaction further than the last, and dies there."""
    for turn in range(1, 80):
        steps = turn

        def step(function, *args):
            nonlocal steps
            if steps == 0:
                raise InterruptedError
            steps -= 1
            return in_a_transaction(engine, function, *args)

        try:
            one_finish(step, nested)
            break
        except InterruptedError:
            continue

    assert set(folders(engine, tenant.id)) == KEPT
    assert len(rows(engine, files, tenant_id=tenant.id)) == 2 * len(KEPT) - 1
    assert rows(engine, vanished_table) == rows(engine, losses_table) == []


def one_finish(step, scan):
    step(vanished.collect, scan)
    while step(vanished.expand, scan, 1):
        pass
    for note in (losses.note_missing, losses.note_below):
        after = step(note, scan, None, 1)
        while after is not None:
            after = step(note, scan, after, 1)
    while step(delete_next, scan):
        pass
    while step(vanished.delete_noted, scan, 1):
        pass


def delete_next(connection, scan):
    gone = page(connection, scan, 3)
    delete_some(connection, scan, gone)
    return gone


def test_noting_again_notes_nothing_twice_and_deleting_leaves_no_note(engine, nested):
    in_a_transaction(engine, vanished.collect, nested)
    in_a_transaction(engine, vanished.collect, nested)
    with reading(engine) as connection:
        assert noted(connection, nested) == 1

    while in_a_transaction(engine, vanished.expand, nested, 1):
        in_a_transaction(engine, vanished.collect, nested)
    with reading(engine) as connection:
        assert noted(connection, nested) == len(DELETED)

    while in_a_transaction(engine, vanished.delete_noted, nested, 2):
        pass
    with reading(engine) as connection:
        assert noted(connection, nested) == 0


def test_a_gone_file_says_what_the_feed_must_tell(engine, nested, tenant):
    write_tree(
        engine,
        files=[
            file(tenant.id, 2, b"unread", digest=None),
            file(tenant.id, 2, b"link", type="symlink", digest=None, target=b"t"),
        ],
        gone_files=[(nested.fence, "absent", tenant.id, 2, name) for name in (b"unread", b"link")],
    )

    in_a_transaction(engine, losses.note_missing, nested, None, 100)

    gone = {one.path: one for one in in_a_transaction(engine, page, nested, 100)}

    assert {path: one.visible for path, one in gone.items()} == {
        b"listed/lost": True,
        b"listed/unread": False,
        b"listed/link": True,
    }
    assert gone[b"listed/lost"].reason == "absent"


def test_a_file_gone_in_the_root_has_no_folder_in_its_path(engine, tenant, scan):
    write_tree(
        engine,
        new_directories=[directory(tenant.id, 1, b"", None, listed=scan.fence)],
        files=[file(tenant.id, 1, b"f")],
        gone_files=[(scan.fence, "absent", tenant.id, 1, b"f")],
    )

    in_a_transaction(engine, losses.note_missing, scan, None, 10)

    assert [one.path for one in in_a_transaction(engine, page, scan, 10)] == [b"f"]
