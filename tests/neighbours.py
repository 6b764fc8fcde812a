"""`make bench-neighbours`: what a tenant notices of a huge one, of slow and hung mounts, and of those of higher tiers.

A real worker and beat on PostgreSQL, with the settings as shipped but for the size of shards. Each figure is the median
of rounds in which alone and beside follow one another.
"""

import argparse
import contextlib
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from db import scans
from db.engine import write
from db.tables import shards as shards_table
from tasks.settings import Settings
from tests import field as fields
from tests import servers, trees
from tests.field import Field
from tests.fuse_control import Control
from tests.trees import Dir, File
from tests.volumes import Volumes
from tests.waiting import wait_until

LONG_S = 900
SMALL, SMALL_EVERY_S = 50, {"due together": 0.0, "one by one": 0.25}
# A shard is a folder of so many files.
FOLDERS, FILES = 5_000, 10
NORMAL = 10
CALL_S = 0.05
# Of the highest tier so many, which is more than can be in flight.
HIGHEST = 8


@contextlib.contextmanager
def cluster(children: int, **settings: str) -> Iterator[Field]:
    tick_s = {"STRANDLINE_TICK_S": str(Settings.model_fields["tick_s"].default)}
    with (
        servers.for_a_benchmark() as (url, broker),
        tempfile.TemporaryDirectory() as place,
        fields.running(Path(place), url, broker, children=children, **tick_s | settings) as field,
    ):
        yield field


def scheduled(field: Field, names: Sequence[str], every_s: float) -> list[str]:
    """A scan of each, as by the schedule, one after the other or (0) all at once; their ids."""
    ids = {row.name: row.id for row in field.rows("SELECT id, name FROM tenants")}
    for some in [[name] for name in names] if every_s else [names]:
        write(field.engine, scans.request_scheduled, [ids[name] for name in some])
        field.session.tick()
        time.sleep(every_s)
    found = field.rows(
        "SELECT tenant_id, id FROM scans WHERE state IN ('queued', 'running') OR finished_at IS NOT NULL"
    )
    newest = {row.tenant_id: str(row.id) for row in sorted(found, key=lambda row: str(row.id))}
    return [newest[ids[name]] for name in names]


def took_s(field: Field, asked: Sequence[str]) -> list[float]:
    """Seconds from the request of each scan to its end, sorted."""
    ended = [field.ended(scan_id, LONG_S) for scan_id in asked]
    assert {document["state"] for document in ended} == {"succeeded"}, ended
    said = field.rows("SELECT id, finished_at - requested_at AS took FROM scans WHERE finished_at IS NOT NULL")
    taken = {str(row.id): row.took.total_seconds() for row in said}
    return sorted(taken[scan_id] for scan_id in asked)


def p95(values: Sequence[float]) -> float:
    return sorted(values)[int(len(values) * 0.95)]


def beside_a_huge_one(rounds: int) -> None:
    """Fifty tenants with a shard each, due together and one by one, alone and beside one with thousands."""
    with cluster(4, STRANDLINE_SHARD_ENTRIES=str(FILES + 4)) as field:
        small = [field.tenant(Dir({b"%d" % n: File(b"%d" % n) for n in range(5)}))[0] for _ in range(SMALL)]
        huge, root = field.tenant(Dir())
        trees.make_many(root, FOLDERS, FILES)
        for scan_id in [field.ask(name) for name in (*small, huge)]:
            field.ended(scan_id, LONG_S)
        note_when_held(field)
        pairs: dict[str, list[tuple[float, float]]] = {}
        for number in range(rounds):
            alone = waits(field, small)
            [its] = scheduled(field, [huge], 0.0)
            wait_until(lambda its=its: done(field, its) > 100, LONG_S, "it is well under way")
            before, began = done(field, its), time.monotonic()
            beside = waits(field, small)
            speed = (done(field, its) - before) / (time.monotonic() - began)
            assert field.state(its) == "running", "it was there all the time"
            field.session.cancel(its)
            field.ended(its, LONG_S)
            for what, value in alone.items():
                pairs.setdefault(what, []).append((value, beside[what]))
                print(f"{number + 1:3}. {what}: alone {value:.2f} s, beside {beside[what]:.2f} s")
            print(f"     meanwhile {speed:.0f} shards/s of the huge one")
        for what, found in pairs.items():
            tell(f"p95 of 50 small tenants, {what}", found)


def note_when_held(field: Field) -> None:
    """From now on the database notes when each shard is taken by a process."""
    for statement in (
        "CREATE TABLE held (scan_id uuid NOT NULL, at timestamptz NOT NULL)",
        """CREATE FUNCTION note_held() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
           INSERT INTO held VALUES (NEW.scan_id, clock_timestamp()); RETURN NULL; END $$""",
        """CREATE TRIGGER each_held AFTER UPDATE OF state ON shards FOR EACH ROW
           WHEN (NEW.state = 'leased' AND OLD.state != 'leased') EXECUTE FUNCTION note_held()""",
    ):
        write(field.engine, lambda connection, statement=statement: connection.exec_driver_sql(statement))


def waits(field: Field, names: Sequence[str]) -> dict[str, float]:
    """95 of 100 wait no longer: from the request until work on it begins, and until it has ended."""
    found = {}
    for how, every_s in SMALL_EVERY_S.items():
        asked = scheduled(field, names, every_s)
        found[f"{how}, until it has ended"] = p95(took_s(field, asked))
        held = field.rows(
            "SELECT id, min(at) - requested_at AS waited FROM scans JOIN held ON scan_id = id GROUP BY id"
        )
        waited = {str(row.id): row.waited.total_seconds() for row in held}
        found[f"{how}, until it begins"] = p95([waited[scan_id] for scan_id in asked])
    return found


def done(field: Field, scan_id: str) -> int:
    s = shards_table.name
    return int(field.rows(f"SELECT count(*) AS n FROM {s} WHERE scan_id = :id AND state = 'done'", id=scan_id)[0].n)


def beside_bad_mounts(rounds: int) -> None:
    """Ten tenants, alone and beside one on a FUSE of 50 ms a call and one on a FUSE that is stopped."""
    with cluster(8) as field, Volumes() as volumes, contextlib.ExitStack() as stack:
        names = []
        for _ in range(NORMAL):
            name, root = field.tenant(Dir())
            trees.make_many(root, 200, 20)
            names.append(name)
        slow, stopped = (stack.enter_context(volumes.mounted("fuse")) for _ in range(2))
        for volume in (slow, stopped):
            trees.make_many(os.fsencode(volume.behind), 40, 20)
        bad = [field.tenant(root=volume.path)[0] for volume in (slow, stopped)]
        for name in (*names, *bad):
            assert field.scan(name)["state"] == "succeeded"
        pairs = []
        for number in range(rounds):
            alone = statistics.median(took_s(field, [field.ask(name, full=True) for name in names]))
            slow.control(Control(latency_s=CALL_S))
            os.kill(stopped.server.pid, signal.SIGSTOP)
            theirs = [field.ask(name, full=True) for name in bad]
            wait_until(lambda theirs=theirs: all(leased(field, one) for one in theirs), LONG_S, "both are under way")
            beside = statistics.median(took_s(field, [field.ask(name, full=True) for name in names]))
            held = [leased(field, one) for one in theirs]
            os.kill(stopped.server.pid, signal.SIGCONT)
            slow.control(Control())
            for one in theirs:
                field.ended(one, LONG_S)
            pairs.append((alone, beside))
            print(f"{number + 1:3}. alone {alone:.2f} s, beside {beside:.2f} s; slow and stopped hold {held} slots")
        tell("median scan of ten normal tenants", pairs)


def below_the_highest(rounds: int) -> None:
    """One of the lowest tier, while those of the highest have more to do than all processes can: an ageing period for
    each round.
    """
    ageing_s = Settings.model_fields["ageing_s"].default
    with cluster(4, STRANDLINE_SHARD_ENTRIES=str(FILES + 4)) as field:
        highest = [field.tenant(Dir(), tier="priority") for _ in range(HIGHEST)]
        lowest, root = field.tenant(Dir(), tier="background")
        for _, place in highest:
            trees.make_many(place, FOLDERS * rounds // HIGHEST, FILES)
        trees.make_many(root, FOLDERS // 5, FILES)
        note_when_held(field)
        theirs = scheduled(field, [name for name, _ in highest], 0.0)
        wait_until(lambda: all(done(field, one) > 10 for one in theirs), LONG_S, "they are well under way")
        [its] = scheduled(field, [lowest], 0.0)
        time.sleep(rounds * ageing_s)
        assert {field.state(one) for one in (*theirs, its)} == {"running"}, "there was work for all, all the time"
        [asked] = field.rows("SELECT requested_at AS at, clock_timestamp() AS now FROM scans WHERE id = :id", id=its)
        held = [row.at for row in field.rows("SELECT at FROM held WHERE scan_id = :id ORDER BY at", id=its)]
        [load] = field.rows("SELECT count(*) AS n FROM held WHERE scan_id != :id AND at > :at", id=its, at=asked.at)
        gaps = [(after - before).total_seconds() for before, after in pairwise([asked.at, *held, asked.now])]
        print(f"lowest tier: {len(held)} shards beside {load.n} of the highest, in {sum(gaps):.0f} s")
        waited = f"{statistics.median(gaps):.1f} s at the median, {max(gaps):.1f} s at most"
        print(f"it waited for {waited}; promised are {ageing_s:.0f} s")
        for scan_id in (*theirs, its):
            field.session.cancel(scan_id)


def leased(field: Field, scan_id: str) -> int:
    return [shard.state for shard in field.shards(scan_id)].count("leased")


def tell(what: str, pairs: Sequence[tuple[float, float]]) -> None:
    alone, beside = (statistics.median(one) for one in zip(*pairs, strict=True))
    ratio = statistics.median(beside / alone for alone, beside in pairs)
    print(f"{what}: alone {alone:.2f} s, beside {beside:.2f} s: × {ratio:.2f} at the median of {len(pairs)} rounds")


MEASURED: dict[str, Callable[[int], None]] = {
    "huge": beside_a_huge_one,
    "mounts": beside_bad_mounts,
    "tiers": below_the_highest,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=MEASURED)
    given = parser.parse_args()
    for name, measure in MEASURED.items():
        if given.only in (None, name):
            measure(given.rounds)


if __name__ == "__main__":
    main()
