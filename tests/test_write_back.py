"""What a shard writes besides the index."""

import pytest

from db import scans, tree
from db.engine import reading
from tasks import write_back
from tasks.lease import Holder
from tasks.memory.governor import Governor
from tasks.settings import Settings
from tasks.write_back import WriteBack
from tests.storage import add_tenant, claimed, start_scan


def test_past_the_notes_that_are_kept_a_mount_is_still_noted_since_the_finish_asks_for_it(
    engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write_back, "ERRORS_KEPT", 2)
    scan = start_scan(engine, add_tenant(engine))
    write = WriteBack(Holder(engine, claimed(engine, scan), 60), scan, tree.Ids(engine), Governor(Settings()))
    for name in (b"1", b"2", b"3"):
        write.error(name, "list", "denied")
    write.error(b"m", scans.MOUNT, "a mount came")
    write.flush()

    with reading(engine) as connection:
        assert [path for path, _, _ in scans.errors_of(connection, scan.id, 10)] == [b"1", b"2", b"m"]
        assert scans.mount_of(connection, scan.id) == b"m"
