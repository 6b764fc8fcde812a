"""Starting and stopping: nothing of ours outlives its parent, and what was cut off is carried on."""

import json
import os
import re
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator import interrupts
from tests import processes, trees
from tests.command import Command, each_change_once
from tests.trees import Dir, File, apply_feed, build, listing
from tests.waiting import wait_until

MANY = (100, 100)  # folders, files in each


@pytest.fixture
def cli(tmp_path: Path) -> Command:
    return Command(tmp_path / "state")


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Iterator[bytes]:
    root = os.fsencode(tmp_path_factory.mktemp("many"))
    trees.make_many(root, *MANY)
    yield root


@pytest.fixture
def small(tmp_path: Path) -> bytes:
    root = os.fsencode(tmp_path / "small")
    build(root, Dir({b"a": Dir({b"f": File(b"1")}), b"g": File(b"2")}))
    return root


def files_in(state: Path) -> int:
    try:
        with sqlite3.connect(f"file:{state}/strandline.db?mode=ro", uri=True) as connection:
            return connection.execute("SELECT count(*) FROM files").fetchone()[0]
    except sqlite3.OperationalError:
        return 0


@pytest.mark.chaos
@pytest.mark.parametrize("how", ["Ctrl-C", "TERM", "kill -9"])
def test_a_first_scan_cut_off_leaves_no_process_and_is_carried_on(cli: Command, many: bytes, how: str) -> None:
    with cli.start("scan", many) as scan:
        wait_until(lambda: files_in(cli.state) > 1000, 30, "the scan is in the middle")
        if how == "Ctrl-C":
            scan.send_group(signal.SIGINT)
        else:
            scan.send(signal.SIGTERM if how == "TERM" else signal.SIGKILL)
        ended = scan.wait(5)
        assert ended.returncode == {"Ctrl-C": 130, "TERM": 130, "kill -9": -9}[how], ended.stderr
        assert scan.wait_gone(5) == set()
    assert 0 < files_in(cli.state) < MANY[0] * MANY[1]

    name = json.loads(cli.run("tenant", "list", "--json").stdout)["name"]
    document = cli.scan(many)

    assert document["state"] == "succeeded"
    everything = listing(many)
    assert cli.index(name) == everything
    feed = cli.feed(name)
    assert each_change_once(feed) and len(feed) == len(everything)
    assert apply_feed(feed) == everything


def test_after_a_scan_no_process_remains(cli: Command, small: bytes) -> None:
    with cli.start("scan", small) as scan:
        assert scan.wait(30).returncode == 0
        assert scan.alive() == set()


def test_a_second_stack_on_one_folder_says_so_and_other_commands_join_the_first(cli: Command, small: bytes) -> None:
    with cli.up("--dir", small) as stack:
        second = cli.run("up")
        assert second.returncode == 2
        assert f"process {stack.pid}" in second.stderr and str(cli.state) in second.stderr

        assert cli.scan(small)["strategy"] == "incremental"
        [queued] = cli.json("enqueue", "small", "--wait")
        assert queued["state"] == "succeeded"
        [status] = cli.json("status")
        assert len(status["workers"]) == 1 and status["flower"].startswith("http://127.0.0.1:")

        stack.send_group(signal.SIGINT)
        assert stack.wait(25).returncode == 0
        assert stack.wait_gone(5) == set()


@pytest.mark.chaos
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_stack_that_is_told_to_end_or_killed_takes_everything_with_it(
    cli: Command, small: bytes, how: signal.Signals
) -> None:
    with cli.up("--dir", small) as stack:
        assert len(stack.alive()) >= 6  # parent, broker, worker with children, beat, Flower
        stack.send(how)
        assert stack.wait(25).returncode == (0 if how == signal.SIGTERM else -9)
        assert stack.wait_gone(5) == set()
    # What is left over of a killed stack is no obstacle to the next.
    assert cli.scan(small)["state"] == "succeeded"


def test_two_scans_at_once_share_one_stack(cli: Command, small: bytes, tmp_path: Path) -> None:
    other = os.fsencode(tmp_path / "other")
    build(other, Dir({b"x": File(b"x")}))
    with cli.start("scan", small) as first, cli.start("scan", other) as second:
        assert {first.wait(60).returncode, second.wait(60).returncode} == {0}
    assert cli.index("small") == listing(small) and cli.index("other") == listing(other)


def test_what_dies_in_a_stack_is_started_again(cli: Command, small: bytes) -> None:
    with cli.up("--dir", small) as stack:
        [document] = cli.json("status")
        os.kill(document["workers"][0]["pid"], signal.SIGKILL)
        assert stack.stderr.wait_for(b"starting it again", 10)
        assert cli.scan(small)["state"] == "succeeded"


def test_in_json_each_line_of_a_stack_is_an_object(cli: Command, small: bytes) -> None:
    cli.env = {"STRANDLINE_LOG_FORMAT": "json"}
    with cli.up("--dir", small) as stack:
        [document] = cli.json("status")
        os.kill(document["workers"][0]["pid"], signal.SIGKILL)
        assert stack.stderr.wait_for(b"worker ended (status 9), starting it again", 10)
        stack.send(signal.SIGINT)
        lines = [json.loads(line) for line in stack.wait(25).stderr.splitlines()]

    assert {"timestamp", "level", "logger", "event"} <= set.intersection(*map(set, lines))
    assert {"shard done", "worker ended (status 9), starting it again"} <= {line["event"] for line in lines}


def test_once_stops_after_the_first_scan(cli: Command, small: bytes) -> None:
    done = cli.run("up", "--dir", os.fsdecode(small), "--dir", os.fsdecode(small), "--once")
    assert done.returncode == 0, done.stderr
    assert "shutdown" not in done.stderr, "that the worker was told to end is no news"
    addresses, scanned = done.stdout.split("small: succeeded")  # once, though it was named twice
    assert re.findall(r"^(\w+): +\S+$", addresses, re.MULTILINE) == ["API", "Flower", "Database"] and "files" in scanned


def test_the_schedule_scans_by_itself(cli: Command, small: bytes) -> None:
    assert cli.run("tenant", "add", "small", os.fsdecode(small), "--interval", "1").returncode == 0
    with cli.up():
        ended = wait_until(
            lambda: [one for one in cli.json("scans", "small") if one["state"] == "succeeded"], 40, "a scheduled scan"
        )
        assert ended[-1]["trigger"] == "schedule"
    assert cli.index("small") == listing(small)


def test_a_scan_whose_worker_is_killed_goes_on_without_waiting_for_its_lease(cli: Command, many: bytes) -> None:
    with cli.start("scan", many, "--json") as scan:
        wait_until(lambda: files_in(cli.state) > 1000, 30, "the scan is in the middle")
        pools = [pid for pid in scan.descendants() if processes.descendants(pid)]
        os.kill(pools[0], signal.SIGKILL)
        ended = scan.wait(40)  # the lease is 60 s
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["state"] == "succeeded"


def test_who_reads_only_the_beginning_is_no_error(cli: Command, many: bytes) -> None:
    name = cli.scan(many)["tenant"]
    shell = ["bash", "-c", '"$@" | head -1', "-", *cli.argv("files", name)]
    done = subprocess.run(shell, capture_output=True, text=True)
    assert (done.stderr, len(done.stdout.splitlines())) == ("", 1)
    shell = ["bash", "-c", '"$@" > /dev/full', "-", *cli.argv("tenant", "list")]
    done = subprocess.run(shell, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("strandline: ") and "Traceback" not in done.stderr


def test_term_ends_a_stack_that_a_script_started_in_the_background(cli: Command, small: bytes) -> None:
    # A shell without job control starts what runs in the background with Ctrl-C ignored.
    shell = ["sh", "-c", '"$@" & wait', "-", *cli.argv("up", "--dir", small)]
    with processes.start(shell) as stack:
        assert stack.stdout.wait_for(b"Press Ctrl-C", 30), stack.stderr.content
        os.kill(json.loads((cli.state / "stack.json").read_text())["pid"], signal.SIGTERM)
        assert stack.wait_gone(25) == set()


class Finalized:
    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_that_python_swallows_is_not_forgotten() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        interrupts.catch()
        interrupts.check()
        Finalized()  # an exception in a finalizer is printed and goes no further
        with pytest.raises(KeyboardInterrupt):
            interrupts.check()
        interrupts.taken()
        interrupts.check()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
