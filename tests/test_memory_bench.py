"""What `make bench-memory` measures with, and how it judges."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests import memory_bench, memory_group, memory_report, memory_samples, memory_trees, trees
from tests.memory_large import FILES_PER_FOLDER, LARGE
from tests.memory_report import Outcome
from tests.memory_samples import Sample, Sampler
from tests.waiting import wait_until

GOOD = Outcome(1024, "small", 100_000, 6_400_000, 10, "succeeded", 3, 3, 0, 100, 200, 300, 4, 4, 4, 0, "LOW")
HOLDS_30_MB = "import sys; held = bytearray(30 << 20); print('ready', flush=True); sys.stdin.read()"


def broken(*outcomes: Outcome) -> list[str]:
    return [what for holds, what in memory_report.judged(outcomes) if not holds]


def test_what_was_promised_is_judged() -> None:
    assert not broken(GOOD, replace(GOOD, files=1_000_000, peak_mb=219))
    assert len(broken(replace(GOOD, state="running", oom_kills=1))) == 2
    assert broken(replace(GOOD, data="pdfs", peak_mb=450)) and not broken(replace(GOOD, peak_mb=599))
    assert broken(replace(GOOD, peak_mb=600)) and not broken(replace(GOOD, limit_mb=256, peak_mb=600))
    [grown] = broken(GOOD, replace(GOOD, files=1_000_000, peak_mb=220))
    assert "grows by 20 MB" in grown


def test_of_large_things_the_larger_is_judged_by_the_smaller() -> None:
    few = replace(GOOD, limit_mb=256, data="deletions", number=5_000, changes=6_000)
    many = replace(few, number=50_000, changes=51_000, peak_mb=220)
    again = replace(many, scan=2, changes=50_000, peak_mb=300)

    assert not broken(few, many, again)
    [grown] = broken(few, replace(many, peak_mb=221), again)
    assert "peak +21 MB" in grown
    [lost] = broken(few, many, replace(again, changes=49_999))
    assert "49,999 changes of 50,000" in lost
    assert len({one.name for one in (few, many, again)}) == 3


@pytest.mark.parametrize("name", LARGE)
def test_a_large_thing_is_made_as_it_is_said(tmp_path: Path, name: str) -> None:
    large, number = LARGE[name], FILES_PER_FOLDER if name == "changes" else 30
    memory_trees.make(tmp_path, f"{name}:{number}")
    root = memory_trees.path_of(tmp_path, f"{name}:{number}")
    before = names_and_stamps(root)
    assert len(before) == memory_trees.files_of(f"{name}:{number}") == large.changes(number, 1)
    if large.change is not None:
        large.change(root, number)
        after = names_and_stamps(root)
        assert len(before - after) == large.changes(number, 2)


def names_and_stamps(root: bytes) -> set[tuple[bytes, int]]:
    return {
        (folder + b"/" + os.fsencode(one.name), one.stat(follow_symlinks=False).st_ctime_ns)
        for folder, _, entries in trees.folders(root)
        for one in entries
        if one.is_file(follow_symlinks=False)
    }


def test_each_large_thing_is_measured_in_two_sizes_under_its_own_limit() -> None:
    runs = memory_bench.runs_of(["small", "large"], [10], scale=0.01)

    assert [run.number for run in runs if run.data == "names"] == [2_000, 20_000]
    assert memory_bench.in_order(runs, None) == [(1024, runs[0]), (256, runs[0]), *((256, run) for run in runs[1:])]
    assert memory_bench.in_order(runs[:2], [64]) == [(64, runs[0]), (64, runs[1])]


def test_outcomes_and_samples_are_read_as_they_were_written(tmp_path: Path) -> None:
    samples = [
        Sample(0.5, 100.0, 120.0, 2.0, "", {"main": 30.0, "child 1": 20.0}),
        Sample(1.0, 90.0, 120.0, 2.0, "HIGH", {"main": 30.0, "child 2": 20.5}),
    ]
    memory_report.write(tmp_path, GOOD)
    memory_samples.write(tmp_path / "samples.csv", samples)

    assert memory_report.read(tmp_path) == [GOOD]
    assert memory_samples.read(tmp_path / "samples.csv") == samples


def test_of_many_samples_the_peaks_are_kept() -> None:
    samples = [Sample(float(n), 500.0 if n == 617 else n % 7, 0, 0, "") for n in range(1001)]

    kept = memory_samples.thinned(samples, 400)

    assert len(kept) == 400 and max(one.used for one in kept) == 500
    assert kept == sorted(kept, key=lambda one: one.second)
    assert memory_samples.thinned(samples[:400], 400) == samples[:400]


@pytest.mark.needs("root", "memory cgroup")
def test_a_program_is_in_the_group_from_its_first_page_on() -> None:
    with memory_group.limited_to(256) as group:
        entering = memory_group.program(group, sys.executable)
        with subprocess.Popen(
            [sys.executable, "-c", entering, "-c", HOLDS_30_MB], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as one:
            assert one.stdin and one.stdout and one.stdout.readline() == b"ready\n"
            with Sampler(group, lambda: "LOW", 0.01) as sampler:
                wait_until(lambda: sampler.samples, 20, "it looks")
            last = sampler.samples[-1]
            one.stdin.close()

        assert list(last.shares) == ["main"] and last.children == 0 and last.level == "LOW"
        assert 30 < last.shares["main"] < 50 and abs(last.used - last.shares["main"]) < 5 and last.usage >= last.used
        assert memory_group.oom_kills(group) == 0


@pytest.mark.needs("root", "memory cgroup")
def test_what_the_kernel_kills_there_is_counted() -> None:
    with memory_group.limited_to(16) as group:
        entering = memory_group.program(group, sys.executable)
        done = subprocess.run([sys.executable, "-c", entering, "-c", HOLDS_30_MB], capture_output=True)

        assert done.returncode == -9 and memory_group.oom_kills(group) == 1
