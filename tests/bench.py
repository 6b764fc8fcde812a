"""`make bench`: what a scan costs, beside `find` on the same tree in the same run.

CPU is that of all processes of the command (they are all waited for), less that of scanning an empty folder with the
same database. Each figure is the median of several rounds; find and the scans take turns, since machines are noisy.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests import processes, trees
from tests.command import Command

FIND = ["-printf", "%s %T@ %C@ %i\\n"]
# Files touched within the last minute are flushed to disk before they are hashed.
AGED_S = 62


@dataclass
class Cost:
    cpu_s: float
    wall_s: float
    answered_s: float  # until the first byte of the answer
    output: bytes


def cost_of(argv: list[str | bytes], discard: bool = False) -> Cost:
    began = time.monotonic()
    process = subprocess.Popen(
        argv, stdout=subprocess.DEVNULL if discard else subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    first = process.stdout.read(1) if process.stdout else b""
    answered = time.monotonic() - began
    rest = process.stdout.read() if process.stdout else b""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{argv} ended with {process.returncode}")
    return Cost(usage.ru_utime + usage.ru_stime, time.monotonic() - began, answered, first + rest)


def scan(cli: Command, root: bytes) -> Cost:
    return cost_of(cli.argv("scan", root, "--json"))


def ratio_of_rounds(name: str, root: bytes, empty: bytes, cli: Command, rounds: int, fresh: bool) -> None:
    ratios = []
    for _ in range(rounds):
        if fresh:
            shutil.rmtree(cli.state, ignore_errors=True)
            scan(cli, empty)
        find = cost_of(["find", root, *FIND], discard=True).cpu_s
        nothing = scan(cli, empty).cpu_s
        whole = scan(cli, root).cpu_s
        ratios.append((whole - nothing) / find)
        print(f"  find {find:.2f} s, empty {nothing:.2f} s, {name} {whole:.2f} s: ratio {ratios[-1]:.2f}", flush=True)
    print(
        f"{name}: median {statistics.median(ratios):.2f} × find (of {min(ratios):.2f} to {max(ratios):.2f})", flush=True
    )


def memory(cli: Command, root: bytes) -> None:
    shutil.rmtree(cli.state, ignore_errors=True)
    for name in ("first scan", "scan with nothing changed"):
        with processes.start(cli.argv("scan", root, "--json")) as running:
            running.watch_memory()
            running.wait(600)
            peaks = ", ".join(f"{peak.name} {peak.peak_bytes >> 20} MB" for peak in running.peaks())
        print(f"peak memory by process, {name}: {peaks}", flush=True)


def second_run(folder: Path, rounds: int) -> None:
    root, cli = os.fsencode(folder / "thousand"), Command(folder / "state-thousand")
    trees.make_many(root, 50, 20)
    scan(cli, root)
    costs = [scan(cli, root) for _ in range(rounds)]
    answered, wall = (
        statistics.median(values) for values in ([c.answered_s for c in costs], [c.wall_s for c in costs])
    )
    print(f"1,000 files, second run: summary after {answered:.2f} s, prompt after {wall:.2f} s (medians)", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folders", type=int, default=5000)
    parser.add_argument("--files", type=int, default=20, help="in each folder")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="strandline-bench-") as made:
        folder = Path(made)
        root, empty = os.fsencode(folder / "tree"), os.fsencode(folder / "empty")
        trees.make_many(root, given.folders, given.files)
        os.mkdir(empty)
        print(f"{given.folders * given.files:,} files in {given.folders:,} folders; letting them age", flush=True)
        second_run(folder, given.rounds)
        time.sleep(AGED_S)
        cli = Command(folder / "state")
        ratio_of_rounds("first scan", root, empty, cli, given.rounds, fresh=True)
        ratio_of_rounds("nothing changed", root, empty, cli, given.rounds, fresh=False)
        document = json.loads(scan(cli, root).output)
        print(json.dumps(document))
        memory(cli, root)


if __name__ == "__main__":
    main()
