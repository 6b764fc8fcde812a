"""`make bench-herd`: ten thousand tenants on the real schedule, dispatcher, PostgreSQL, broker; shards cost nothing.

Whoever takes a message here settles its shard by a few statements for many; all else is the program's own. It prints
how many scans were started each second (and writes that to a file), what a tick takes, and how much the broker holds;
and what ten due tenants cost among a hundred and among ten thousand.
"""

import argparse
import base64
import csv
import json
import multiprocessing
import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from multiprocessing.synchronize import Event as EventOfProcesses
from pathlib import Path
from typing import Any

import redis
from sqlalchemy import Connection, Engine, event, func, insert, select, text, update

from db import clock, schema, shards
from db.engine import connect, reading, write, writing
from db.tables import scans as scans_table
from db.tables import shards as shards_table
from db.tables import tenants as tenants_table
from db.types import ScanState, ShardState
from orchestrator import tick as ticks
from orchestrator.schedule import next_slot
from tasks import settings as all_settings
from tasks.app import App, make_app, nudge
from tasks.redis import presence
from tests import servers

SLOTS = 64
AT_ONCE = 200
# From what makes the tenants to their first slot.
LEAD_S = 2.0
STARTS_WITHIN_S = 60.0
LOOK_EVERY_S = 0.02


@dataclass
class Herd:
    """So many tenants of one interval, and what was seen of them."""

    app: App
    engine: Engine
    broker: redis.Redis
    ticks_s: list[float] = field(default_factory=list)
    statements: list[int] = field(default_factory=list)
    unread: list[int] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    def populate(self, number: int, interval_s: int, lead_s: float = 0) -> None:
        """Tenants who have their slots, the first ones after `lead_s`."""
        with writing(self.engine) as connection:
            now = clock.now(connection) + timedelta(seconds=lead_s)
            connection.execute(text("TRUNCATE tenants, scans, shards, directories CASCADE"))
            alike = {"created_at": now, "tier": "standard", "algorithm": "sha256", "interval_s": interval_s}
            connection.execute(
                insert(tenants_table).values(**alike),
                [{"id": n, "name": f"t{n}", "root": b"/herd/%d" % n,
                  "next_scan_at": next_slot(n, interval_s, now, self.app.runtime.settings.stagger_window_s)}
                 for n in range(1, number + 1)],
            )  # fmt: skip
        with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("ANALYZE")

    # What workers do

    def tick(self) -> None:
        """One, and what it took."""
        with counted(self.engine) as count:
            began = time.monotonic()
            ticks.tick(self.app, self.engine, self.app.runtime.settings)
        self.ticks_s.append(time.monotonic() - began)
        self.statements.append(count[0])

    def take_ticks(self) -> None:
        """Beat's and those that were asked for."""
        while not self.ended.is_set():
            self.broker.brpop(["strandline:control"], timeout=self.app.runtime.settings.tick_s)
            self.tick()

    def look(self) -> None:
        """How much does the broker hold?"""
        while not self.ended.wait(LOOK_EVERY_S):
            self.unread.append(self.broker.llen("strandline:bulk"))

    @contextmanager
    def served(self) -> Iterator[None]:
        """A process that takes shards, as workers do; it does so by now."""
        spawn = multiprocessing.get_context("spawn")
        begun = spawn.Event()
        other = spawn.Process(target=take_shards, args=(self.app.runtime.settings.model_dump(), begun), daemon=True)
        other.start()
        try:
            assert begun.wait(STARTS_WITHIN_S), "the process that takes shards does not begin"
            yield
        finally:
            other.terminate()
            other.join()

    def run(self, seconds: float) -> None:
        """Tick for so long; what was measured before is forgotten."""
        for measured in (self.ticks_s, self.statements, self.unread):
            measured.clear()
        self.ended.clear()
        threads = [threading.Thread(target=one) for one in (self.take_ticks, self.look)]
        for thread in threads:
            thread.start()
        time.sleep(seconds)
        self.ended.set()
        for thread in threads:
            thread.join()

    def starts(self, since: datetime) -> dict[int, int]:
        """Scans that were started, by second; the first and the last second, which are parts, left out."""
        with reading(self.engine) as connection:
            began = connection.execute(select(scans_table.c.started_at).where(scans_table.c.started_at > since))
            counted = Counter(int(row.started_at.timestamp()) for row in began)
        return {second: counted[second] for second in range(min(counted) + 1, max(counted))}


def take_shards(settings: dict[str, Any], begun: EventOfProcesses) -> None:
    """Settle what is sent, until one is ended: a worker to whom all shards are nothing."""
    app = make_app(all_settings.load({}, **settings))
    told_s = 0.0
    while True:
        if time.monotonic() - told_s > presence.TOLD_EVERY_S:
            told_s = time.monotonic()
            presence.tell(app.runtime.redis, app.runtime.keys, "herd", SLOTS)
            begun.set()
        if found := taken(app.runtime.redis, 0.5):
            write(app.runtime.engine, settle, found)
            nudge(app)


def taken(client: redis.Redis, wait_s: float) -> list[tuple[str, int]]:
    """The shards (scan, number) whose messages are there, or come soon."""
    first: Any = client.brpop(["strandline:bulk"], timeout=wait_s)
    more: Any = client.rpop("strandline:bulk", AT_ONCE) if first else None
    messages = [first[1], *(more or [])] if first else []
    found = (json.loads(base64.b64decode(json.loads(message)["body"]))[0] for message in messages)
    return [(scan_id, number[0] if number else shards.FINISH) for scan_id, *number in found]


def settle(connection: Connection, taken: list[tuple[str, int]]) -> None:
    """Done, all of them at once; a scan whose shards are done may finish, and one that has finished has succeeded."""
    s, ids = shards_table.c, [scan_id for scan_id, _ in taken]
    done = update(shards_table).where(s.scan_id.in_(ids), s.state == ShardState.READY, s.sent_until.is_not(None))
    connection.execute(done.values(state=ShardState.DONE, sent_until=None))
    waiting = update(shards_table).where(s.scan_id.in_(ids), s.state == ShardState.WAITING)
    connection.execute(waiting.values(state=ShardState.READY))
    finished = [scan_id for scan_id, number in taken if number == shards.FINISH]
    if finished:
        ending = update(scans_table).where(scans_table.c.id.in_(finished))
        connection.execute(ending.values(state=ScanState.SUCCEEDED, finished_at=clock.clock()))


@contextmanager
def counted(engine: Engine) -> Iterator[list[int]]:
    """How many statements this thread sends."""
    me, count = threading.get_ident(), [0]

    def one_more(*_: object) -> None:
        count[0] += threading.get_ident() == me

    event.listen(engine, "before_cursor_execute", one_more)
    try:
        yield count
    finally:
        event.remove(engine, "before_cursor_execute", one_more)


def cost_of(herd: Herd, number: int, due: int, rounds: int) -> float:
    """Seconds of a tick at the median, with so many due tenants of so many."""
    herd.populate(number, 86_400)
    herd.ticks_s.clear()
    for _ in range(rounds):
        with writing(herd.engine) as connection:
            some = select(tenants_table.c.id).order_by(func.random()).limit(due)
            come = update(tenants_table).where(tenants_table.c.id.in_(some.scalar_subquery()))
            connection.execute(come.values(next_scan_at=clock.clock(-1.0)))
        herd.tick()
        while found := taken(herd.broker, 0.01):
            write(herd.engine, settle, found)
            ticks.tick(herd.app, herd.engine, herd.app.runtime.settings)
    return statistics.median(herd.ticks_s)


@contextmanager
def herd_of() -> Iterator[Herd]:
    """Nobody yet, on servers of its own."""
    with servers.for_a_benchmark() as (url, broker):
        app = make_app(all_settings.load({}, database_url=url, redis_url=broker.url))
        engine = connect(url, pool_size=4)
        schema.migrate(engine)
        app.runtime.__dict__["engine"] = engine
        presence.tell(app.runtime.redis, app.runtime.keys, "herd", SLOTS)
        yield Herd(app, engine, redis.Redis.from_url(broker.url))
        app.close()
        engine.dispose()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tenants", type=int, default=10_000)
    parser.add_argument("--interval", type=int, default=30)
    parser.add_argument("--windows", type=int, default=10)
    parser.add_argument("--csv", type=Path, default=Path("build/herd.csv"))
    given = parser.parse_args()
    with herd_of() as herd:
        few, many = (cost_of(herd, number, 10, 30) for number in (100, given.tenants))
        print(
            f"a tick with 10 due: {few * 1000:.1f} ms of 100 tenants, "
            f"{many * 1000:.1f} ms of {given.tenants:,}: × {many / few:.2f}"
        )
        with herd.served():
            herd.populate(given.tenants, given.interval, LEAD_S)
            herd.run(given.interval + LEAD_S)  # first scans, which make a root each, and everything's first time
            with reading(herd.engine) as connection:
                since = clock.now(connection)
            herd.run(given.interval * given.windows)
        report(herd, herd.starts(since), given.csv)


def report(herd: Herd, starts: dict[int, int], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("second", "starts"), *((n - min(starts), count) for n, count in starts.items())])
    mean, peak, took = statistics.mean(starts.values()), max(starts.values()), sorted(herd.ticks_s)
    print(
        f"{sum(starts.values()):,} scans in {len(starts)} s: "
        f"{mean:.0f} starts a second, at most {peak}: × {peak / mean:.2f}"
    )
    print(
        f"{len(took):,} ticks: median {statistics.median(took) * 1000:.0f} ms, "
        f"95 % {took[int(len(took) * 0.95)] * 1000:.0f} ms, at most {took[-1] * 1000:.0f} ms; "
        f"statements: median {statistics.median(herd.statements):.0f}"
    )
    print(f"the broker held at most {max(herd.unread)} messages for shards, the window is {2 * SLOTS}")


if __name__ == "__main__":
    main()
