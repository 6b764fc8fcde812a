"""What a shard writes besides the index."""

import tracemalloc

import pytest

from db import scan_notes, tree
from db.engine import reading
from db.tables import directories
from db.types import KnownDirectory
from tasks import write_back
from tasks.core.compare import Comparison
from tasks.lease import Holder
from tasks.memory.governor import Governor
from tasks.settings import Settings
from tasks.write_back import WriteBack
from tests.storage import add_tenant, claimed, rows, start_scan


def test_past_the_notes_that_are_kept_a_mount_is_still_noted_since_the_finish_asks_for_it(
    engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write_back, "ERRORS_KEPT", 2)
    scan = start_scan(engine, add_tenant(engine))
    write = WriteBack(Holder(engine, claimed(engine, scan), 60), scan, tree.Ids(engine), Governor(Settings()))
    for name in (b"1", b"2", b"3"):
        write.error(name, "list", "denied")
    write.error(b"m", scan_notes.MOUNT, "a mount came")
    write.flush()

    with reading(engine) as connection:
        assert [path for path, _, _ in scan_notes.errors_of(connection, scan.id, 10)] == [b"1", b"2", b"m"]
        assert scan_notes.mount_of(connection, scan.id) == b"m"


def test_many_folders_in_one_whose_path_is_long_wait_without_their_paths(engine) -> None:
    many, scan = 5_000, start_scan(engine, add_tenant(engine))
    assert scan.fence is not None
    write = WriteBack(Holder(engine, claimed(engine, scan), 60), scan, tree.Ids(engine), Governor(Settings()))
    path = b"/".join([b"d" * 199] * 20)
    above = KnownDirectory(1 << 40, path, tree.order_key(path), None, 1, None, scan.fence)
    found = Comparison(new_children=[(b"%05d" % number, number) for number in range(many)])

    tracemalloc.start()
    try:
        for todo in write.children(above, found):
            last = todo.known
        waiting, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        write.flush()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert waiting < 1_000 * many and peak < 2_000 * many
    [row] = rows(engine, directories, id=last.id)
    assert (row["path"], row["order_key"]) == (path + b"/%05d" % (many - 1), last.key)
