"""How full memory is: read from control groups of both versions, and from what the machine has."""

import ctypes
import mmap
import os
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest

from tasks.memory import cgroup, heap
from tasks.memory.gauge import Gauge, share
from tests.cgroups import limited
from tests.children import in_a_child

MB = 1 << 20
V1 = "36 31 0:33 {top} {point} rw,relatime shared:1 - cgroup cgroup rw,memory\n"
V2 = "41 31 0:38 {top} {point} rw,relatime - cgroup2 cgroup2 rw\n"
PRESSURE = "some avg10=50.00 avg60=1.00 avg300=0.10 total=1\nfull avg10={full} avg60=1.00 avg300=0.00 total=1\n"


def v1(limit: int, *, rss: int = 0, shmem: int = 0, cache: int = 0, kills: int = 0) -> dict[str, str]:
    return {
        "memory.limit_in_bytes": f"{limit}\n",
        "memory.usage_in_bytes": f"{rss + shmem + cache}\n",
        "memory.stat": f"rss 1\nshmem 1\nhierarchical_memory_limit {1 << 63}\n"
        f"total_rss {rss}\ntotal_shmem {shmem}\ntotal_inactive_file {cache}\n",
        "memory.oom_control": f"oom_kill_disable 0\nunder_oom 0\noom_kill {kills}\n",
    }


def v2(
    most: str, *, high: str = "max", anon: int = 0, file: int = 0, kills: int = 0, full: float = 0
) -> dict[str, str]:
    return {
        "memory.max": f"{most}\n",
        "memory.high": f"{high}\n",
        "memory.current": f"{anon + file}\n",
        "memory.stat": f"anon {anon - 60}\nfile {file}\nshmem 10\nslab_unreclaimable 10\nslab_reclaimable 5000\n"
        f"kernel_stack 10\npagetables 20\nsock 10\ninactive_file {file}\n",
        "memory.events": f"low 0\nhigh 0\nmax 0\noom 9\noom_kill {kills}\n",
        "memory.pressure": PRESSURE.format(full=full),
    }


def machine(folder: Path, own: str, mounts: str, groups: Mapping[str, Mapping[str, str]], full: float = 0) -> str:
    """A folder with the files of a kernel; `groups`: path below the folder → file → content."""
    for path, content in {
        "proc/self/cgroup": own, "proc/self/mountinfo": "1 0 0:1 / / rw - ext4 /dev/vda rw\n" + mounts,
        "proc/pressure/memory": PRESSURE.format(full=full),
        **{f"{group}/{name}": text for group, files in groups.items() for name, text in files.items()},
    }.items():  # fmt: skip
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(content)
    return str(folder)


def test_version_2_counts_what_cannot_be_taken_back_and_the_nearest_limit_of_all_above(tmp_path: Path) -> None:
    root = machine(tmp_path, "0::/pods/pod1/worker\n", V2.format(top="/", point="/sys/fs/cgroup"), {
        "sys/fs/cgroup": {"memory.stat": "anon 5\n"},  # the root group has no limit, and few files
        "sys/fs/cgroup/pods": v2("max", anon=700 * MB),
        "sys/fs/cgroup/pods/pod1": v2(str(800 * MB), anon=600 * MB),
        "sys/fs/cgroup/pods/pod1/worker": v2(str(1000 * MB), anon=300 * MB, file=500 * MB, kills=3, full=12.5),
    })  # fmt: skip
    reading = Gauge(root=root).read()

    assert (reading.limited_by, reading.limit, reading.used) == ("control group /pods/pod1", 800 * MB, 600 * MB)
    assert (reading.working_set, reading.oom_kills, reading.stalled) == (300 * MB, 3, 12.5)


def test_a_group_in_which_nobody_waits_is_not_told_of_those_that_wait_elsewhere(tmp_path: Path) -> None:
    groups = {"cg/a": v2("100", full=0.0)}
    root = machine(tmp_path, "0::/a\n", V2.format(top="/", point="/cg"), groups, full=50.0)

    assert Gauge(root=root).read().stalled == 0.0


def test_what_cannot_be_read_limits_nothing(tmp_path: Path) -> None:
    root = machine(tmp_path, "0::/a\n", V2.format(top="/", point="/cg"), {"cg/a": v2("100")})
    (tmp_path / "cg/a/memory.max").unlink()
    (tmp_path / "cg/a/memory.max").mkdir()

    assert Gauge(root=root).read().limited_by == "the machine"


def test_in_version_2_what_slows_down_is_a_limit_too(tmp_path: Path) -> None:
    files = v2(str(1000 * MB), high=str(400 * MB), anon=200 * MB)
    root = machine(tmp_path, "0::/a\n", V2.format(top="/", point="/sys/fs/cgroup"), {"sys/fs/cgroup/a": files})

    assert Gauge(root=root).read().fraction == 0.5


def test_of_both_versions_the_one_that_has_the_memory_controller_counts(tmp_path: Path) -> None:
    mounts = V2.format(top="/", point="/sys/fs/cgroup/unified") + V1.format(top="/", point="/sys/fs/cgroup/memory")
    root = machine(tmp_path, "0::/a\n4:cpu,memory:/b/c\n", mounts, {
        "sys/fs/cgroup/unified/a": v2(str(10 * MB), anon=9 * MB),
        "sys/fs/cgroup/memory/b/c": v1(100 * MB, rss=20 * MB, shmem=30 * MB, cache=40 * MB, kills=2),
        "sys/fs/cgroup/memory/b": v1(1 << 63, rss=70 * MB),
        "sys/fs/cgroup/memory": v1(1 << 63, rss=500 * MB),
    }, full=3.0)  # fmt: skip
    reading = Gauge(root=root).read()

    assert (reading.limited_by, reading.limit, reading.used) == ("control group /b/c", 100 * MB, 50 * MB)
    assert (reading.working_set, reading.oom_kills) == (50 * MB, 2)
    assert reading.stalled == 3.0, "version 1 tells none of its own: the machine's"


def test_version_1_knows_a_limit_above_what_can_be_seen(tmp_path: Path) -> None:
    files = v1(1 << 63, rss=60 * MB)
    files["memory.stat"] = files["memory.stat"].replace(str(1 << 63), str(80 * MB))
    root = machine(tmp_path, "4:memory:/\n", V1.format(top="/", point="/cg"), {"cg": files})

    assert Gauge(root=root).read().fraction == 0.75


def test_in_version_1_a_group_without_a_limit_of_its_own_is_held_to_the_one_above_by_what_all_there_use(
    tmp_path: Path,
) -> None:
    below = v1(1 << 63, rss=10 * MB)
    below["memory.stat"] = below["memory.stat"].replace(str(1 << 63), str(80 * MB))
    groups = {"cg/a/b": below, "cg/a": v1(80 * MB, rss=60 * MB), "cg": v1(1 << 63, rss=500 * MB)}
    root = machine(tmp_path, "4:memory:/a/b\n", V1.format(top="/", point="/cg"), groups)

    reading = Gauge(root=root).read()
    assert (reading.limited_by, reading.fraction, reading.working_set) == ("control group /a", 0.75, 10 * MB)


@pytest.mark.parametrize(
    ("own", "top", "folder"),
    [
        ("/docker/1", "/docker/1", "cg"),  # the machine's paths, and what is mounted is our own group
        ("/docker/1/below", "/docker/1", "cg/below"),
        ("/", "/", "cg"),  # paths of our own
        ("/../2", "/", "cg"),  # moved to beside the container: what is mounted is what we know
        ("/elsewhere", "/docker/1", "cg"),
        ("/docker/12", "/docker/1", "cg"),
        ("/with blank", "/", "cg/with blank"),
    ],
)
def test_a_group_is_found_however_its_path_and_its_mount_are_told(
    tmp_path: Path, own: str, top: str, folder: str
) -> None:
    for mount in (V1.format(top=top, point="/c\\040g"), V2.format(top=top, point="/c\\040g")):
        files = v1(100, rss=10) if " - cgroup " in mount else v2("100", anon=70)
        where = tmp_path / ("v1" if " - cgroup " in mount else "v2")
        root = machine(where, f"5:memory:{own}\n0::{own}\n", mount, {folder.replace("cg", "c g", 1): files})

        at = cgroup.mounted(root)
        assert at is not None
        assert [(one.limit, one.used) for one in cgroup.charges(at, root)] in ([(100, 10)], [(100, 70)])


def test_where_groups_are_to_be_seen_is_looked_for_again_once_none_is_seen_there(tmp_path: Path) -> None:
    mountinfo = Path(
        machine(tmp_path, "0::/a\n", V2.format(top="/", point="/cg"), {"cg/a": v2("100")}), "proc/self/mountinfo"
    )
    gauge = Gauge(root=str(tmp_path))
    assert gauge.read().limit == 100
    there = mountinfo.read_text()
    mountinfo.unlink()
    (tmp_path / "cg/a/memory.max").write_text("200\n")
    assert gauge.read().limit == 200, "not looked for each time, though what it says is read each time"
    (tmp_path / "cg").rename(tmp_path / "moved")
    assert gauge.read().limited_by == "the machine"
    mountinfo.write_text(there.replace("/cg", "/moved"))
    assert gauge.read().limit == 200


def test_where_nothing_limits_the_machine_does(tmp_path: Path) -> None:
    memory = psutil.virtual_memory()
    for root in (machine(tmp_path, "", "", {}), str(tmp_path / "nothing at all")):
        reading = Gauge(root=root).read()
        assert (reading.limited_by, reading.limit) == ("the machine", memory.total)
        assert 0 < reading.used < memory.total


def test_of_a_budget_and_a_group_the_nearer_counts(tmp_path: Path) -> None:
    root = machine(tmp_path, "0::/a\n", V2.format(top="/", point="/cg"), {"cg/a": v2("100", anon=70)})

    assert Gauge(budget=200, root=root).read(own=150).limited_by == "STRANDLINE_MEMORY_LIMIT_MB"
    assert Gauge(budget=200, root=root).read(own=130).limited_by == "control group /a"
    assert Gauge(budget=200, root=str(tmp_path / "no group")).read(own=50)[:3] == (
        "STRANDLINE_MEMORY_LIMIT_MB",
        200,
        50,
    )


def test_what_is_shared_with_a_parent_is_counted_once(tmp_path: Path) -> None:
    held = b"x" * (64 * MB)

    def child() -> None:
        assert share(os.getpid()) < share(os.getppid()) + 16 * MB
        assert share(os.getpid()) < psutil.Process().memory_info().rss - len(held) // 3, "half of it is another's"

    in_a_child(child)


@pytest.mark.needs("root", "memory cgroup")
def test_a_real_group_is_read_and_a_limit_that_changes_is_seen(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(64 * MB))
    os.sync()
    with limited("memory") as group:
        group.write("memory.limit_in_bytes", 512 * MB)

        def inside() -> None:
            group.write("cgroup.procs", os.getpid())
            before = Gauge().read()
            assert before.limited_by.endswith(group.path.name) and before.limit == 512 * MB
            anonymous, shared = mmap.mmap(-1, 48 * MB, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), mmap.mmap(-1, 32 * MB)
            for memory in (anonymous, shared):
                ctypes.memset(ctypes.addressof(ctypes.c_char.from_buffer(memory)), 1, len(memory))
            (tmp_path / "file").read_bytes()  # page cache is none of ours, and what was read is freed
            (tmp_path / "written").write_bytes(bytes(16 * MB))
            heap.trim()  # the C library keeps what it freed, where the test process once freed as much
            after = Gauge().read()
            assert 80 * MB <= after.used - before.used < 90 * MB
            group.write("memory.limit_in_bytes", 256 * MB)
            assert Gauge().read().limit == 256 * MB

        in_a_child(inside)
