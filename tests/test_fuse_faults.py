"""Rows 16 and 17 of the catalogue of faults: file systems that die, hang or crawl, and files that kill their reader.

One worker, with a lease and a patience of two seconds, for all.
"""

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import trees
from tests.field import SOON_S, Field
from tests.field import field as field  # the fixture
from tests.fuse_control import Control, Rule
from tests.trees import Dir, File, build
from tests.volumes import Volume, run
from tests.waiting import wait_until

FIELD = {"children": 3, "STRANDLINE_SHARD_ENTRIES": "10", "STRANDLINE_LEASE_S": "2", "STRANDLINE_STALL_S": "2"}
pytestmark = [pytest.mark.chaos, pytest.mark.needs("root", "fuse", "mount")]
fault = pytest.mark.fault
Mounted = Callable[..., Volume]

GOOD = {b"%d" % n: File(b"%d" % n) for n in range(20)}
FEW = {b"%d" % n: File(b"few %d" % n) for n in range(3)}
TREE = Dir({b"a": Dir({b"bad": File(b"bad"), **GOOD}), b"b": Dir({b"c": Dir(GOOD)}), b"good": File(b"good")})


def tenant_on(field: Field, volume: Volume, name: str) -> tuple[str, Path]:
    """A tenant with a folder of that volume as its root."""
    build(os.fsencode(volume.behind / name), TREE)
    return field.tenant(root=volume.path / name)[0], volume.path / name


def without_bad(root: Path) -> trees.State:
    return {path: entry for path, entry in trees.listing(os.fsencode(root)).items() if path != b"a/bad"}


@dataclass
class Places:
    """A tenant whose root is on a FUSE, and one that crosses into it below its root; both are indexed."""

    field: Field
    volume: Volume
    whole: str
    part: str
    roots: dict[str, bytes]

    @property
    def point(self) -> bytes:
        return self.roots[self.part] + b"/point"

    def bind(self) -> None:
        run("mount", "--bind", str(self.volume.path), os.fsdecode(self.point))

    def unbind(self) -> None:
        run("umount", "-l", os.fsdecode(self.point))

    def scanned(self) -> tuple[dict, dict]:
        """Both scanned, and a third tenant meanwhile; nothing may be deleted."""
        asked = [self.field.ask(name) for name in (self.whole, self.part)]
        self.field.others_go_on()
        for scan_id in asked:  # no more than one that runs alone begins with, and one for each that is done
            states = [shard.state for shard in self.field.shards(scan_id)]
            assert states.count("leased") <= 2 + states.count("done")
        whole, part = (self.field.ended(scan_id) for scan_id in asked)
        assert (whole["deleted"], part["deleted"]) == (0, 0)
        return whole, part


@pytest.fixture
def places(field: Field, mounted: Mounted) -> Iterator[Places]:
    volume = mounted("fuse")
    # More than a shard takes: the range of another begins somewhere in it.
    build(os.fsencode(volume.behind), Dir({b"%d" % n: Dir(FEW) for n in range(10, 16)} | FEW))
    own = volume.parts / "own"
    build(os.fsencode(own), Dir({b"point": Dir(), b"z": Dir(FEW), **FEW}))
    whole, root = field.tenant(root=volume.path)
    part, other = field.tenant(root=own, cross_mounts=True)
    found = Places(field, volume, whole, part, {whole: root, part: other})
    found.bind()
    field.quiet(found.roots)
    yield found
    found.unbind()


@fault(16, "SIGKILL of the FUSE under a root and below another (ENOTCONN); then, mounted anew, SIGSTOP")
def test_a_file_system_that_dies_or_hangs_ends_scans_soon_and_deletes_nothing(places: Places) -> None:
    field, volume = places.field, places.volume
    volume.server.kill()
    volume.server.wait()
    whole, part = places.scanned()
    assert whole["state"] == "failed" and "transport endpoint is not connected" in whole["error"]
    assert part["state"] == "partial"
    assert [(one["path"], one["error"]) for one in part["errors"]] == [("point", "transport endpoint is not connected")]
    places.unbind()
    volume.remount()
    places.bind()

    os.kill(volume.server.pid, signal.SIGSTOP)
    try:
        whole, part = places.scanned()
    finally:
        os.kill(volume.server.pid, signal.SIGCONT)
    assert (whole["state"], whole["error"]) == ("failed", "no answer from the root for 2 s")
    assert part["state"] == "partial"
    assert [one["path"] for one in part["skipped"]] == ["point"] and "no answer" in part["skipped"][0]["reason"]
    assert field.quarantined(places.part).keys() == {b"point"} and not field.quarantined(places.whole)

    for name in places.roots:
        field.command("quarantine", "release", name, "--all")
    field.quiet(places.roots)


@fault(16, "a folder that never answers whoever lists it, in mid-scan, and then SIGSTOP of the whole FUSE")
def test_a_file_system_that_hangs_in_mid_scan_ends_it_soon_and_deletes_nothing(places: Places) -> None:
    field, volume = places.field, places.volume
    volume.control(Control([Rule("12", "readdir", do=[["hang"]])]))
    os.unlink(volume.behind / "10" / "1")
    scan_id = field.ask(places.whole, full=True)
    wait_until(lambda: field.reader("worker", os.fsencode(volume.path / "12"), -1), SOON_S, "somebody lists it")

    os.kill(volume.server.pid, signal.SIGSTOP)
    try:
        field.others_go_on()
        document = field.ended(scan_id)
    finally:
        os.kill(volume.server.pid, signal.SIGCONT)
        volume.control(Control())

    assert (document["state"], document["error"]) == ("failed", "no answer from the root for 2 s")
    assert document["deleted"] == 0
    field.command("quarantine", "release", places.whole, "--all")
    field.quiet(places.roots, {b"10/1", b"point/10/1"})


@fault(16, "a root that never answers whoever looks at it a second time, when all shards are done")
def test_a_root_that_hangs_at_the_end_of_a_scan_costs_no_file(places: Places) -> None:
    field, volume = places.field, places.volume
    build(os.fsencode(volume.behind / "15" / "new"), File(b"new"))
    volume.control(Control([Rule("15/new", "read", do=[["hang"]])]))
    scan_id = field.ask(places.whole)
    wait_until(lambda: field.reader("worker", os.fsencode(volume.path / "15" / "new"), -1), SOON_S, "all else is done")

    volume.control(Control([Rule("", "stat", do=[["hang"]])]))
    try:
        field.others_go_on()
        document = field.ended(scan_id)
    finally:
        volume.control(Control())
    assert {shard.state for shard in field.shards(scan_id)[1:]} == {"done"}, "it was the end of the scan that found it"
    assert (document["state"], document["error"]) == ("failed", "no answer from the root for 2 s")
    assert document["deleted"] == 0
    field.command("quarantine", "release", places.whole, "--all")
    field.quiet(places.roots)


@fault(16, "50 ms for each call, where a lease and the patience with a hung one are 2 s")
def test_a_file_system_that_is_slow_is_not_taken_for_one_that_hangs(places: Places) -> None:
    build(os.fsencode(places.volume.behind / "new"), Dir(GOOD))
    places.volume.control(Control(latency_s=0.05))

    for document in places.scanned():
        assert document["state"] == "succeeded" and document["attempts"] == document["shards"], document
        assert document["added"] == len(GOOD) and document["duration_s"] > 4

    places.volume.control(Control())
    places.field.quiet(places.roots)


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
