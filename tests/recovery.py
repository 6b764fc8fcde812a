"""`make bench-recovery`: seconds from the kill -9 of a worker that holds a shard until another holds it.

With the settings as shipped: a worker of one child, an idle one beside it, and beat.
"""

import argparse
import os
import signal
import statistics
import tempfile
import time
from pathlib import Path

from tasks.settings import Settings
from tests import field as fields
from tests import servers
from tests.field import SOON_S, Field, cut, large
from tests.waiting import wait_until

PROMISED_S = 10.0


def recovery_s(field: Field) -> float:
    """Of one worker, which is killed while it reads a file; another takes its place afterwards."""
    name, root = field.tenant()
    path = large(root)
    scan_id = field.ask(name)
    killed, _ = field.holder(path)
    attempt = field.shards(scan_id)[-1].attempt
    began = time.monotonic()
    field.process(killed).send(signal.SIGKILL)
    wait_until(lambda: field.shards(scan_id)[-1].attempt > attempt, SOON_S, "another holds it")
    took_s = time.monotonic() - began
    cut(path)
    field.ended(scan_id)
    field.process(killed).close()
    field.begin_worker(killed)
    return took_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    shipped = Settings.model_fields
    tick_s = {"STRANDLINE_TICK_S": str(shipped["tick_s"].default)}
    with (
        servers.for_a_benchmark() as (url, broker),
        tempfile.TemporaryDirectory() as place,
        fields.running(Path(place), url, broker, workers=2, children=1, **tick_s) as field,
    ):
        print(f"lease {shipped['lease_s'].default:g} s, tick {shipped['tick_s'].default:g} s, {os.cpu_count()} CPUs")
        taken = []
        for number in range(rounds):
            taken.append(recovery_s(field))
            print(f"{number + 1:3}. {taken[-1]:5.1f} s")
        print(f"median {statistics.median(taken):.1f} s, at most {max(taken):.1f} s (promised: {PROMISED_S:g} s)")


if __name__ == "__main__":
    main()
