"""Live progress in a running cluster, and the commands that show it: `status`, `scans`, `top`."""

import json
import os
import re
import signal
from collections.abc import Iterator

import pytest
from click.testing import CliRunner
from sqlalchemy import func, select

from db.engine import reading
from db.progress import COUNTED
from db.tables import shards
from orchestrator.cli import group
from orchestrator.progress import Progress, Reader
from tasks.redis import progress as live
from tasks.redis.keys import Keys
from tests.command import STRANDLINE
from tests.field import SOON_S, Field, cut, large
from tests.field import field as field
from tests.terminals import ALTERNATE, BACK, Terminal
from tests.waiting import wait_until

FOLDERS, FILES, SIZE = 40, 4, 12 << 20
KEYS = Keys("strandline:")


def reader(field: Field) -> Reader:
    return Reader(field.engine, field.redis(), KEYS)


@pytest.fixture(scope="module")
def under_way(field: Field) -> Iterator[tuple[str, str]]:
    """A tenant whose scan reads a file without end, and that scan."""
    name, root = field.tenant()
    path = large(root)
    scan_id = field.ask(name)
    field.holder(path, past=64 << 20)
    yield name, scan_id
    cut(path)
    field.ended(scan_id)


def test_progress_grows_and_comes_back_after_a_flush_and_is_the_scans_totals_at_the_end(field: Field) -> None:
    name, root = field.tenant()
    for folder in range(FOLDERS):
        os.mkdir(root + b"/more %d" % folder)
        for number in range(FILES):
            large(root + b"/more %d" % folder, b"%d" % number, SIZE)
    reading_it, scan_id = reader(field), field.ask(name)

    def seen(part: float) -> Progress | None:
        found = reading_it.of_scan(scan_id)
        assert found is not None, "it has ended already"
        return found if found.hashed_bytes >= part * FOLDERS * FILES * SIZE else None

    samples = [wait_until(lambda part=part: seen(part), 60, "it comes on") for part in (0.1, 0.2)]
    field.redis().flushall()
    emptied = reading_it.of_scan(scan_id)
    wait_until(lambda: live.read(field.redis(), KEYS, [scan_id])[scan_id], 10, "its shards tell again")
    samples += [wait_until(lambda part=part: seen(part), 60, "it comes on") for part in (0.3, 0.4)]

    for counted in COUNTED:
        values = [getattr(one, counted) for one in samples]
        assert values == sorted(values), counted
        assert getattr(emptied, counted) >= 0
    assert samples[-1].files > samples[0].files > 0 and samples[-1].shards_leased
    assert all(one.files_per_s >= 0 and one.eta_s is None for one in samples), "there is nothing to compare with"
    document = field.ended(scan_id)
    assert document["state"] == "succeeded" and reading_it.of_scan(scan_id) is None
    with reading(field.engine) as connection:
        sums = connection.execute(
            select(*(func.sum(shards.c[one]) for one in COUNTED)).where(shards.c.scan_id == scan_id)
        ).one()
    assert dict(zip(COUNTED, map(int, sums), strict=True)) == {one: document[one] for one in COUNTED}
    assert [field for field in field.redis().hkeys(KEYS.progress(scan_id)) if field.isdigit()] == []


def test_status_and_scans_show_a_scan_that_runs(field: Field, under_way: tuple[str, str]) -> None:
    name, scan_id = under_way
    [status] = field.cluster.read("status")
    [running] = [one for one in status["scans"] if one["scan"] == scan_id]
    assert name in status["running"] and running["tenant"] == name and running["age_s"] > 0
    [scan] = [one for one in field.cluster.read("scans", name) if one["state"] == "running"]
    later = scan["progress"]
    for counted in COUNTED:
        assert later[counted] >= running["progress"][counted]
    assert later["hashed_bytes"] >= 64 << 20 and later["shards_leased"] == 1 and not later["finishing"]

    def workers() -> list[tuple[int, int]]:
        return [(one["processes"], one["busy"]) for one in field.cluster.read("status")[0]["workers"]]

    wait_until(lambda: workers() == [(2, 1)], SOON_S, "the worker answers in time")
    for words in (["status"], ["scans", name]):
        assert re.search(r"[\d.]+ [MG]iB\) · \d+ files/s", said(field, *words))


def said(field: Field, *words: str) -> str:
    """What a command says in this process, where stdout is no terminal."""
    done = CliRunner(env=field.cluster.env).invoke(group, words)
    assert done.exit_code == 0, done.output
    return done.output


def test_top_is_one_look_where_stdout_is_no_terminal(field: Field, under_way: tuple[str, str]) -> None:
    name, scan_id = under_way
    text = said(field, "top")
    assert re.search(rf"^{name} +standard +full_initial +\d+s ", text, re.MULTILINE), text
    assert "\x1b" not in text and text.startswith("strandline  ")
    wait_until(lambda: "workers 1; processes 2, 1 busy" in said(field, "top"), SOON_S, "the worker answers in time")
    [document] = field.cluster.read("top", "--once")
    assert document["tenants"] >= 1 and document["trouble"] == {"database": None, "redis": None, "workers": None}
    assert scan_id in [one["scan"] for one in document["scans"]]
    assert set(document["backlog"]) == {"waiting", "ready", "leased"} and document["running"] >= 1


def test_top_prints_documents_until_it_is_interrupted(field: Field, under_way: tuple[str, str]) -> None:
    with field.cluster.start("top", "--json", "--every", "0.2") as top:
        assert wait_until(lambda: top.stdout.content.count(b"\n") >= 3, 30, "three looks")
        top.send_group(signal.SIGINT)
        assert top.wait(10).returncode == 130
    seen = [json.loads(line)["scans"][-1]["progress"] for line in top.stdout.content.splitlines()[:3]]
    assert seen[0]["hashed_bytes"] < seen[-1]["hashed_bytes"]


@pytest.mark.parametrize("end", [b"q", b"\x03", None], ids=["q", "Ctrl-C", "TERM"])
def test_top_on_a_terminal_leaves_it_as_it_was(field: Field, under_way: tuple[str, str], end: bytes | None) -> None:
    env = {**os.environ, **field.cluster.env} | ({"NO_COLOR": "1"} if end is None else {})
    with Terminal([STRANDLINE, "top", "--every", "0.2"], env, rows=24, columns=100) as terminal:
        assert terminal.wait_for(b"STRATEGY", 30), terminal.content
        assert ALTERNATE in terminal.content and BACK not in terminal.content and not terminal.is_as_before()
        if end is None:
            terminal.process.terminate()
        else:
            terminal.press(end)
        assert terminal.wait(10) == 0, terminal.content[-500:]
        assert terminal.is_as_before() and b"Traceback" not in terminal.content
    assert end is not None or not re.search(rb"\x1b\[[\d;]*3[0-7]m", terminal.content), "NO_COLOR"


def test_top_follows_the_size_of_its_terminal_and_a_dumb_one_gets_one_look(
    field: Field, under_way: tuple[str, str]
) -> None:
    name, _ = under_way
    said = ("COLUMNS", "LINES")  # what is in the environment of a test run is believed before the terminal
    env = {name: value for name, value in os.environ.items() if name not in said} | field.cluster.env
    with (
        Terminal([STRANDLINE, "top"], env | {"TERM": "dumb"}) as dumb,
        Terminal([STRANDLINE, "top", "--every", "0.2"], env, rows=24, columns=100) as terminal,
    ):
        assert terminal.wait_for(b"STRATEGY", 30) and name.encode() in terminal.content
        assert terminal.wait_for(b"1 busy", SOON_S), "the workers have answered"
        terminal.resize(20, 40)

        def drawn_anew() -> bool:
            terminal.wait_for(b"SHARDS", 1, len(terminal.content))
            headings = re.findall(rb"RUNNING(?:(?!RUNNING).)*?SHARDS", terminal.content, re.DOTALL)
            return b"STRATEGY" not in headings[-1]

        wait_until(drawn_anew, SOON_S, "a column is left out")
        assert dumb.wait(30) == 0
        assert b"\x1b" not in dumb.content and b"RUNNING" in dumb.content


def test_a_line_of_progress_is_written_while_somebody_waits(field: Field) -> None:
    name, root = field.tenant()
    path = large(root)
    env = {**os.environ, **field.cluster.env}
    with Terminal([STRANDLINE, "enqueue", name, "--wait"], env, columns=120) as terminal:
        assert terminal.wait_for(b" hashed (", 30) and terminal.wait_for(b"GiB", 30), terminal.content
        cut(path)
        terminal.wait(30)
    assert b"Traceback" not in terminal.content
