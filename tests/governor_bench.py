"""`make bench-governor`: what the memory governor costs of a scan's processor time, on against off.

Machines are noisy, in the course of seconds: so both run at once, each on a processor of its own, and then the other
way round. CPU is that of all processes of the command. Each scan is a first one.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests import trees
from tests.bench import AGED_S, cost_of
from tests.command import Command

PINNED = "import os, sys; os.sched_setaffinity(0, {int(sys.argv[1])}); os.execv(sys.argv[2], sys.argv[2:])"


def both(sides: Sequence[Command], root: bytes, processors: Sequence[int]) -> list[float]:
    """CPU seconds of a first scan by each, at once."""
    for side in sides:
        shutil.rmtree(side.state, ignore_errors=True)
    with ThreadPoolExecutor(len(sides)) as pool:
        return list(pool.map(cpu_s, sides, [root] * len(sides), processors))


def cpu_s(side: Command, root: bytes, processor: int) -> float:
    python, env = Path(side.argv()[0]).parent / "python", [f"{name}={value}" for name, value in side.env.items()]
    scan = side.argv("scan", root, "--json", "--workers", "1")
    return cost_of([str(python), "-c", PINNED, str(processor), "/usr/bin/env", *env, *scan]).cpu_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folders", type=int, default=2000)
    parser.add_argument("--files", type=int, default=50, help="in each folder")
    parser.add_argument("--rounds", type=int, default=10)
    said = parser.parse_args()
    first, second, *_ = sorted(os.sched_getaffinity(0))
    ratios = []
    with tempfile.TemporaryDirectory(prefix="strandline-bench-") as made:
        root = os.fsencode(made) + b"/tree"
        trees.make_many(root, said.folders, said.files)
        print(f"{said.folders * said.files:,} files; letting them age", flush=True)
        time.sleep(AGED_S)
        sides = [Command(Path(made) / one, {"STRANDLINE_MEMORY_GOVERNOR": one}) for one in ("on", "off")]
        for number in range(said.rounds):
            here, there = both(sides, root, (first, second)), both(sides, root, (second, first))
            on, off = (sum(pair) for pair in zip(here, there, strict=True))
            ratios.append(on / off)
            print(f"{number + 1:3}. on {on:.2f} s, off {off:.2f} s: × {ratios[-1]:.3f}", flush=True)
    median = statistics.median(ratios)
    print(f"governor on against off: × {median:.3f} at the median of {said.rounds} rounds (promised: 1.02)")


if __name__ == "__main__":
    main()
