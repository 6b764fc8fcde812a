"""Many rows at once: a merge of many gives the same rows as one of few, whichever way they take."""

from datetime import timedelta

import pytest
from sqlalchemy import event

from db import changes, clock, tree
from db.bulk import COPY_FROM_ROWS, merge, run_many, set_values
from db.engine import writing
from db.tables import changes as changes_table
from db.tables import files, metadata, scan_errors, scans
from tests.storage import ONLY_POSTGRES, add_tenant, file, rows, start_scan, write_tree

EVERY_BYTE = bytes(range(256))
FEW, MANY = 3, COPY_FROM_ROWS + 3
BOTH_WAYS = pytest.mark.parametrize("count", [1, FEW, COPY_FROM_ROWS - 1, COPY_FROM_ROWS, MANY])


def name(i):
    return b"%05d" % i + EVERY_BYTE.translate(None, b"\0/")


def odd_file(i, **values):
    """Rows with what a way of writing may stumble over, each in turn."""
    kinds = [
        {"size": 2**63 - 1, "mtime_ns": -(2**63), "digest": EVERY_BYTE},
        {"size": 0, "mtime_ns": -1, "digest": None},
        {"type": "symlink", "digest": None, "target": EVERY_BYTE},
        {"size": 2**31, "mtime_ns": 2**32 + 1, "digest": b""},
    ]
    return file(1, 2**62, name(i), **kinds[i % len(kinds)] | values)


def as_rows(some):
    return [dict(zip(tree.FILE, row, strict=True)) | {"gone": None, "gone_reason": None} for row in some]


@BOTH_WAYS
def test_what_is_merged_is_what_is_there(engine, count):
    some = [odd_file(i) for i in range(count)]

    write_tree(engine, files=some)

    assert rows(engine, files) == as_rows(some)


@BOTH_WAYS
def test_what_is_there_already_is_written_over_and_the_rest_stays(engine, count):
    write_tree(engine, files=[odd_file(i, size=5, mtime_ns=6) for i in range(0, MANY + 4, 2)])
    before = {row["name"]: row for row in rows(engine, files)}
    some = [odd_file(i) for i in range(count)]

    write_tree(engine, files=some)

    expected = before | {row["name"]: row for row in as_rows(some)}
    assert {row["name"]: row for row in rows(engine, files)} == expected


@BOTH_WAYS
def test_nothing_is_done_on_conflict_where_that_is_said(engine, count):
    scan = start_scan(engine, add_tenant(engine))
    kept = [(scan.id, b"%d" % 0, EVERY_BYTE, "open", "kept")]
    noted = [(scan.id, b"%d" % i, EVERY_BYTE, "open", "dénied") for i in range(count)]

    for batch in (kept, noted, noted):
        with writing(engine) as connection:
            changes.write_errors(connection, batch)

    found = rows(engine, scan_errors, scan_id=scan.id)
    assert len(found) == count
    assert {row["error"] for row in found if row["path_hash"] != b"0"} <= {"dénied"}
    assert next(row["error"] for row in found if row["path_hash"] == b"0") == "kept"


@BOTH_WAYS
def test_a_merge_that_fails_leaves_nothing(engine, count):
    some = [odd_file(i) for i in range(count)]
    some[-1] = (*some[-1][:2], None, *some[-1][3:])

    with pytest.raises(Exception, match=r"(?i)null"):
        write_tree(engine, files=some)

    assert rows(engine, files) == []
    write_tree(engine, files=some[:-1])
    assert len(rows(engine, files)) == count - 1


def test_a_transaction_may_merge_into_a_table_more_than_once(engine):
    with writing(engine) as connection:
        for start in (0, MANY, 2 * MANY - 7):
            tree.write(connection, tree.TreeBatch(files=[odd_file(i) for i in range(start, start + MANY)]))

    assert len(rows(engine, files)) == 3 * MANY - 7


@pytest.mark.parametrize("table", sorted(set(metadata.tables) - {"id_blocks"}))
def test_merging_nothing_does_nothing(engine, table):
    with writing(engine) as connection:
        merge(connection, metadata.tables[table], ("x",), [], "")
        assert run_many(connection, "no statement at all", []) == 0


@ONLY_POSTGRES
@pytest.mark.parametrize("count, copies", [(COPY_FROM_ROWS - 1, False), (COPY_FROM_ROWS, True)])
def test_many_rows_are_copied_and_merged_and_few_are_inserted(engine, count, copies):
    said = []
    event.listen(engine, "before_cursor_execute", lambda _c, _cursor, statement, *_rest: said.append(statement))

    write_tree(engine, files=[odd_file(i) for i in range(count)])

    assert any("CREATE TEMPORARY TABLE stage_files" in one for one in said) is copies
    assert any("SELECT" in one and "FROM stage_files" in one for one in said) is copies
    assert any("INSERT INTO files" in one and "FROM unnest(" in one for one in said) is not copies


@BOTH_WAYS
def test_run_many_counts_what_it_matched(engine, count):
    write_tree(engine, files=[odd_file(i) for i in range(count)])
    keys = [(7, name(i)) for i in range(count + 5)]

    with writing(engine) as connection:
        assert run_many(connection, "UPDATE files SET changed = ? WHERE name = ?", keys) == count

    assert {row["changed"] for row in rows(engine, files)} == {7}


@BOTH_WAYS
def test_each_row_gets_its_own_values_and_what_all_get_and_only_where_that_is_wanted(engine, count):
    write_tree(engine, files=[odd_file(i) for i in range(count)])
    before = rows(engine, files)
    given = [(i, EVERY_BYTE[: i % 9], name(i), 1) for i in range(0, count + 5, 2)]

    with writing(engine) as connection:
        set_values(connection, files, ["changed", "digest"], ["name", "tenant_id"], given, where="files.type = 'file'")

    expected = [
        row | {"changed": i, "digest": EVERY_BYTE[: i % 9]} if i % 2 == 0 and row["type"] == "file" else row
        for i, row in enumerate(before)
    ]
    assert rows(engine, files) == expected


def test_ids_of_scans_and_times_are_stored_as_everywhere(engine):
    scan = start_scan(engine, add_tenant(engine))
    at = clock.EPOCH + timedelta(days=20_000, microseconds=1)

    with writing(engine) as connection:
        now = clock.now(connection)
        set_values(connection, scans, ["requested_at"], ["id"], [(at, scan.id)], {"started_at": clock.clock(3600.0)})

    [found] = rows(engine, scans, id=scan.id)
    assert found["requested_at"] == at
    assert timedelta(0) <= found["started_at"] - now - timedelta(hours=1) < timedelta(minutes=1)


@BOTH_WAYS
def test_changes_are_folded_whichever_way_they_are_written(engine, count):
    def change(i, kind, n):
        return (1, 1, n + i, 1, name(i), kind, name(i), "file", 2**63 - 1, EVERY_BYTE, "sha256", None, None)

    for kind, n in (("added", 0), ("modified", 10**6)):
        with writing(engine) as connection:
            changes.write(connection, [change(i, kind, n) for i in range(count)])

    found = rows(engine, changes_table)
    assert [(row["n"], row["kind"], row["size"]) for row in found] == [(i, "added", 2**63 - 1) for i in range(count)]
