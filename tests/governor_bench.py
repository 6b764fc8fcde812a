"""`make bench-governor`: what the memory governor costs of a scan's processor time, on against off.

Machines are noisy, in the course of a second, and no process is like another: so one process does both in turns, in
scans of less than two tenths of a second, and how sure the figure is is told with it. What looks at memory four times a
second does so four times in a second of its own scans. PostgreSQL and Redis are real; the processor time is this
process's alone, without theirs. Of that a third starts the scan and hands out its shards, as beat's ticks do.
"""

import argparse
import gc
import math
import os
import statistics
import tempfile
import time
from collections.abc import Sequence

from sqlalchemy import Engine

from db import schema
from tasks import settings as all_settings
from tasks.app import YOUNG_OBJECTS, App, make_app
from tasks.memory.governor import Governor
from tests import servers, trees
from tests.bench import AGED_S
from tests.in_process import scan_once
from tests.storage import add_tenant, remove_tenant

# Of each side; a round has some looks at memory in it.
SCANS_A_ROUND = 20
SURE = 1.96  # standard deviations: 19 times of 20


class Side:
    """A governor of its own, whose clock goes on only while it is used."""

    def __init__(self, app: App, engine: Engine, on_or_off: str) -> None:
        self._app, self._engine, self._ran_s = app, engine, 0.0
        self._began_s: float | None = None
        settings = app.runtime.settings.model_copy(update={"memory_governor": on_or_off})
        self._governor = Governor(settings, self._clock_s)

    def _clock_s(self) -> float:
        return self._ran_s + (0.0 if self._began_s is None else time.monotonic() - self._began_s)

    def scan(self, root: bytes) -> float:
        """CPU seconds of a first scan."""
        tenant = add_tenant(self._engine, root=root)
        self._app.runtime.__dict__["governor"] = self._governor
        gc.collect()
        self._began_s, began_s = time.monotonic(), time.process_time()
        scan_once(self._engine, tenant.id)
        taken_s = time.process_time() - began_s
        self._ran_s, self._began_s = self._clock_s(), None
        remove_tenant(self._engine, tenant.id)
        return taken_s


def median_between(ratios: Sequence[float]) -> tuple[float, float, float]:
    """The median, and what it is between 19 times of 20, whatever the distribution: order statistics of the binomial.

    Source: Conover, Practical Nonparametric Statistics, 3rd edition, 3.2.
    """
    ordered, count = sorted(ratios), len(ratios)
    outside = max(0, math.floor((count - SURE * math.sqrt(count)) / 2))
    return statistics.median(ordered), ordered[outside], ordered[count - 1 - outside]


def ratio(on: Side, off: Side, root: bytes) -> float:
    """Of one round. Whoever comes first comes second the next time."""
    taken_s = {on: 0.0, off: 0.0}
    for number in range(SCANS_A_ROUND):
        for side in (on, off) if number % 2 else (off, on):
            taken_s[side] += side.scan(root)
    return taken_s[on] / taken_s[off]


def measure(app: App, engine: Engine, root: bytes, rounds: int) -> None:
    on, off = Side(app, engine, "on"), Side(app, engine, "off")
    ratio(on, off, root)  # what a process does once is done
    ratios: list[float] = []
    for number in range(1, rounds + 1):
        ratios.append(ratio(on, off, root))
        if number % 10 == 0:
            median, low, high = median_between(ratios)
            print(f"{number:4} rounds: × {median:.4f} at the median ({low:.4f} to {high:.4f})", flush=True)
    median, low, high = median_between(ratios)
    print(
        f"governor on against off: × {median:.4f} at the median of {rounds} rounds of {SCANS_A_ROUND} scans each, "
        f"between {low:.4f} and {high:.4f} nineteen times of twenty (promised: 1.02)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folders", type=int, default=12)
    parser.add_argument("--files", type=int, default=50, help="in each folder")
    parser.add_argument("--rounds", type=int, default=100)
    said = parser.parse_args()
    with (
        servers.for_a_benchmark() as (url, broker),
        tempfile.TemporaryDirectory(prefix="strandline-bench-") as made,
    ):
        root = os.path.join(os.fsencode(made), b"tree")
        trees.make_many(root, said.folders, said.files)
        app = make_app(all_settings.load({}, database_url=url, redis_url=broker.url))
        engine = app.runtime.engine
        schema.migrate(engine)
        gc.freeze()  # as a child of a worker does
        gc.set_threshold(YOUNG_OBJECTS)
        print(f"{said.folders * said.files:,} files; letting them age", flush=True)
        time.sleep(AGED_S)
        measure(app, engine, root, said.rounds)
        engine.dispose()


if __name__ == "__main__":
    main()
