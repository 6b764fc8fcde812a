"""Rows 16 and 17 of the catalogue of faults: file systems that die, hang or crawl, and files that kill their reader.

One worker, with a lease and a patience of two seconds, for all.
"""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import trees
from tests.field import Field
from tests.field import field as field  # the fixture
from tests.fuse_control import Control, Rule
from tests.trees import Dir, File, build
from tests.volumes import Volume

FIELD = {"children": 3, "STRANDLINE_LEASE_S": "2", "STRANDLINE_STALL_S": "2"}
pytestmark = [pytest.mark.needs("root", "fuse")]
fault = pytest.mark.fault
Mounted = Callable[..., Volume]

GOOD = {b"%d" % n: File(b"%d" % n) for n in range(20)}
TREE = Dir({b"a": Dir({b"bad": File(b"bad"), **GOOD}), b"b": Dir({b"c": Dir(GOOD)}), b"good": File(b"good")})


def tenant_on(field: Field, volume: Volume, name: str) -> tuple[str, Path]:
    """A tenant with a folder of that volume as its root."""
    build(os.fsencode(volume.behind / name), TREE)
    return field.tenant(root=volume.path / name)[0], volume.path / name


def without_bad(root: Path) -> trees.State:
    return {path: entry for path, entry in trees.listing(os.fsencode(root)).items() if path != b"a/bad"}


@fault(17, "a FUSE that kills whoever reads one file, and one that never answers whoever reads another")
def test_files_that_kill_or_hang_their_reader_are_left_alone_and_all_else_is_indexed(
    field: Field, mounted: Mounted
) -> None:
    volume = mounted("fuse")
    kills, killing = tenant_on(field, volume, "kills")
    hangs, hanging = tenant_on(field, volume, "hangs")
    wicked = Control([Rule("kills/a/bad", "read", do=[["kill"]]), Rule("hangs/a/bad", "read", do=[["hang"]])])
    volume.control(wicked)

    scans = {name: field.ask(name) for name in (kills, hangs)}
    field.others_go_on()
    documents = {name: field.ended(scan_id) for name, scan_id in scans.items()}

    volume.control(Control())
    reasons = {kills: "whoever looked at it died, 2 times", hangs: "no answer from 'a/bad' for 2 s, 2 times"}
    for name, root in ((kills, killing), (hangs, hanging)):
        document, reason = documents[name], reasons[name]
        assert (document["state"], document["deleted"]) == ("partial", 0), document
        assert document["skipped"] == [{"path": "a/bad", "reason": f"in quarantine: {reason}"}]
        [explained] = field.cluster.read("explain", name, "a/bad")
        assert explained["status"] == "quarantined" and reason in explained["explanation"]
        assert f"'a/bad' is in quarantine: {reason}".encode() in field.process("worker").stderr.content
        assert field.cluster.index(name) == without_bad(root)

    volume.control(wicked)  # from now on it is not touched
    for name in (kills, hangs):
        later = field.scan(name, full=True, verify=True)
        assert later["attempts"] == later["shards"] and later["skipped_total"] == 1, later
    volume.control(Control())
    for name in (kills, hangs):
        field.command("quarantine", "release", name, "a/bad")
    field.quiet({kills: os.fsencode(killing), hangs: os.fsencode(hanging)})
