"""As many processes as there are processors, or as much of their time as control groups leave."""

import os
from collections.abc import Mapping
from pathlib import Path

import pytest
from celery.utils import sysinfo

from orchestrator.stack.embedded import default_workers
from tasks.settings import Settings, load


@pytest.fixture(autouse=True)
def eight_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))


def workers(monkeypatch: pytest.MonkeyPatch, folder: Path, own: str, groups: Mapping[str, Mapping[str, str]]) -> int:
    """On a machine whose kernel shows these files; `groups`: path below the mount → file → content."""
    for group, files in groups.items():
        for name, text in files.items():
            (folder / group / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / group / name).write_text(text + "\n")
    (folder / "own").write_text(own)
    monkeypatch.setattr(sysinfo, "CGROUP_ROOT", str(folder))
    monkeypatch.setattr(sysinfo, "PROC_SELF_CGROUP", str(folder / "own"))
    return default_workers(load({}))


def v1(quota_us: int, period_us: int = 100_000) -> dict[str, str]:
    return {"cpu.cfs_quota_us": str(quota_us), "cpu.cfs_period_us": str(period_us)}


@pytest.mark.parametrize(
    ("own", "groups", "expected"),
    [
        ("0::/a/b\n", {"a/b": {"cpu.max": "max 100000"}, "a": {"cpu.max": "250000 100000"}}, 3),  # rounded up
        ("0::/a/b\n", {"a/b": {"cpu.max": "150000 100000"}, "a": {"cpu.max": "400000 100000"}}, 2),
        ("0::/a\n", {"a": {"cpu.max": "10000 100000"}}, 1),  # at least one
        ("0::/a\n", {"a": {"cpu.max": "9000000 100000"}}, 8),  # no more than there are
        ("0::/\n", {".": {"cpu.max": "200000 100000"}}, 2),  # a container's own view
        ("0::/docker/1\n", {".": {"cpu.max": "200000 100000"}}, 2),  # the machine's path, and our own group mounted
        ("4:cpu,cpuacct:/a/b\n", {"cpu,cpuacct/a/b": v1(-1), "cpu,cpuacct/a": v1(150_000, 50_000)}, 3),
        ("0::/x\n4:cpu:/a/b\n", {"unified/x": {}, "cpu/a/b": v1(350_000), "cpu/a": v1(900_000)}, 4),  # side by side
        ("4:cpu:/a\n", {"cpu/a": v1(-1)}, 8),
        ("", {}, 8),
    ],
)
def test_the_quota_of_all_groups_above_is_respected(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, own: str, groups: Mapping[str, Mapping[str, str]], expected: int
) -> None:
    assert workers(monkeypatch, tmp_path, own, groups) == expected


def test_a_setting_has_the_last_word() -> None:
    assert default_workers(Settings(workers=64, hash_concurrency=64)) == 64


def test_there_are_no_more_processes_than_files_may_be_open(caplog: pytest.LogCaptureFixture) -> None:
    assert default_workers(Settings(workers=8, hash_concurrency=3)) == 3
    assert "3 processes instead of 8: STRANDLINE_HASH_CONCURRENCY" in caplog.text
