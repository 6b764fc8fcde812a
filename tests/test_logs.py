"""Logs: one line for each thing, that a machine can read and that tells no secret, however hostile a name is."""

import io
import json
import logging
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.stack.processes import Child, Logs
from tasks import logs, repeats
from tasks.core.escapes import shown
from tasks.logs import Handler, clean
from tasks.repeats import KNOWN, Repeats

SECRET = "s3cr3t-w0rd"


class Log:
    """A logger of its own, and what it wrote."""

    def __init__(self, text: bool) -> None:
        self.stream, self.now_s = io.StringIO(), 0.0
        self.handler = Handler(self.stream, lambda: self.now_s)
        self.handler.setFormatter(logs.formatter(text))
        self.logger = logging.getLogger(f"tests.logs.{id(self)}")
        self.logger.propagate = False
        self.logger.setLevel("INFO")
        self.logger.addHandler(self.handler)
        self.events = structlog.stdlib.get_logger(self.logger.name)

    @property
    def lines(self) -> list[str]:
        return self.stream.getvalue().splitlines()

    @property
    def last(self) -> dict:
        return json.loads(self.lines[-1])


@pytest.fixture
def log() -> Iterator[Log]:
    made = Log(text=False)
    yield made
    made.logger.removeHandler(made.handler)


@pytest.fixture
def text() -> Iterator[Log]:
    made = Log(text=True)
    yield made
    made.logger.removeHandler(made.handler)


def test_json_is_an_object_a_line_with_the_ids_that_are_bound(log: Log) -> None:
    with logs.bound(tenant="notes", scan="0199", shard=3, fence=7, attempt=1):
        log.logger.info("listed %d of %s", 5, "many")
        log.events.info("shard done", files=2)
    log.logger.info("no more")

    first, second, third = map(json.loads, log.lines)
    assert (first["event"], first["level"], first["pid"]) == ("listed 5 of many", "info", os.getpid())
    assert first["timestamp"].endswith("Z") and first["logger"] == log.logger.name
    for line in (first, second):
        assert [line[name] for name in ("tenant", "scan", "shard", "fence", "attempt")] == ["notes", "0199", 3, 7, 1]
    assert (second["event"], second["files"]) == ("shard done", 2)
    assert "tenant" not in third


def test_text_is_a_line_for_people(text: Log) -> None:
    with logs.bound(tenant="notes"):
        text.events.info("shard done", files=2, moved=0, reason=None)

    [line] = text.lines
    assert line[8] == "." and line[13:] == f"info    shard done  [{text.logger.name}] files=2 tenant=notes"


def test_an_error_keeps_its_traceback_in_one_object(log: Log) -> None:
    try:
        raise ValueError(f"a\nb \x1b[31m redis://u:{SECRET}@h")
    except ValueError:
        log.logger.exception("it failed")

    [line] = log.lines
    found = json.loads(line)
    assert found["event"] == "it failed" and found["exception"].startswith("Traceback")
    assert "ValueError: a" in found["exception"] and "\x1b" not in line and SECRET not in line


@settings(deadline=None)
@given(name=st.binary(max_size=60))
def test_whatever_a_file_is_called_it_stays_on_its_line(name: bytes) -> None:
    for as_text in (True, False):
        log = Log(as_text)
        log.events.warning("quarantined", path=name)
        log.logger.warning("quarantined %s", os.fsdecode(name))
        written = log.stream.getvalue()
        log.logger.removeHandler(log.handler)

        assert written.count("\n") == 2 == len(written.splitlines())
        assert all(c.isprintable() for c in written.replace("\n", "")), ascii(written)
        written.encode()  # no lone surrogates


@settings(deadline=None)
@given(text_=st.text())
def test_escaped_text_can_be_printed_and_plain_text_stays(text_: str) -> None:
    assert shown(text_).isprintable() and (shown(text_) == text_) == text_.isprintable()


@pytest.mark.parametrize(
    "said",
    [
        f"postgresql+psycopg://clerk:{SECRET}@host/db failed",
        f"redis://:{SECRET}@host:6379/0",
        f"sentinel://:{SECRET}@one:1;sentinel://:{SECRET}@two:2",
        f"redis://:{SECRET}@odd@host/0",
        f"connect(host='h', password='{SECRET}')",
        f'{{"password": "{SECRET}", "user": "a"}}',
        f"GET /?api_token={SECRET}&x=1",
        f"Authorization: Bearer {SECRET}",
        f"'authorization': 'Basic {SECRET}'",
        f"STRANDLINE_FLOWER_COOKIE_SECRET={SECRET}",
        f"sslpassword={SECRET} host=h",
    ],
)
def test_what_looks_like_a_secret_is_not_written(log: Log, said: str) -> None:
    log.logger.warning("%s", said)
    log.events.warning("it failed", error=said, where=[said])

    assert SECRET not in log.stream.getvalue() and "***" in log.lines[0]


def test_what_is_no_secret_is_written_as_it_is() -> None:
    for said in ("http://127.0.0.1:5555/flower", "sqlite:////srv/a@b.db", "unix:///run/x.sock", "a: b = c", "tokens"):
        assert clean(said) == said


# What repeats


def test_an_error_that_repeats_is_left_out_and_counted(log: Log) -> None:
    for number in range(repeats.MOST + 7):
        log.logger.warning("no answer from %d", number)
    log.logger.info("something else")
    assert len(log.lines) == repeats.MOST + 1

    log.now_s += repeats.WINDOW_S
    log.logger.info("later")

    assert log.lines[-2].count("7 more of this within a minute were left out: no answer from %d") == 1
    assert json.loads(log.lines[-2])["level"] == "warning" and log.last["event"] == "later"
    log.logger.warning("no answer from %d", 99)
    assert log.last["event"] == "no answer from 99", "a new minute has begun"


def test_other_errors_are_not_left_out_for_it_and_nothing_but_errors_is(log: Log) -> None:
    for _ in range(2 * repeats.MOST):
        log.logger.warning("again")
    log.logger.warning("another")
    for _ in range(2 * repeats.MOST):
        log.logger.info("fine")

    assert Counter(json.loads(line)["event"] for line in log.lines) == {
        "again": repeats.MOST, "another": 1, "fine": 2 * repeats.MOST,
    }  # fmt: skip


def test_what_was_left_out_is_said_at_the_end(log: Log) -> None:
    for _ in range(repeats.MOST + 2):
        log.logger.error("again")

    log.handler.close()

    assert "2 more of this" in log.last["event"]


@settings(deadline=None)
@given(
    said=st.lists(st.tuples(st.integers(0, 4), st.floats(0, 40)), max_size=200), most=st.integers(1, 4),
)  # fmt: skip
def test_all_is_said_or_counted_and_no_more_than_so_many_in_any_window(
    said: list[tuple[int, float]], most: int
) -> None:
    told: Counter[int] = Counter()
    admitted: dict[int, list[float]] = {}
    counting: Repeats[int] = Repeats(lambda key, left_out: told.update({key: left_out}), most, 60.0)
    now_s = 0.0

    for key, pause_s in said:
        now_s += pause_s
        if counting.admits(key, now_s):
            admitted.setdefault(key, []).append(now_s)
    counting.end()

    for key, number in Counter(key for key, _ in said).items():
        moments = admitted[key]
        assert len(moments) + told[key] == number
        # windows follow one another: within any 60 s there are at most two
        assert all(sum(at <= other < at + 60 for other in moments) <= 2 * most for at in moments)
    assert not counting._windows


def test_ever_different_errors_take_no_more_memory() -> None:
    told: list[int] = []
    counting: Repeats[int] = Repeats(lambda key, _: told.append(key), most=1)
    counting.admits(-1, 0.0)
    counting.admits(-1, 0.0)

    for key in range(2 * KNOWN):
        assert counting.admits(key, 1.0)

    assert len(counting._windows) == KNOWN and told == [-1]


# What children write


def copied(written: bytes, as_json: bool) -> list[str]:
    """What becomes of it on its way through the parent."""
    ends, stream = os.pipe(), io.StringIO()
    os.write(ends[1], written)
    os.close(ends[1])
    copying = Logs(stream, as_json)
    copying.follow(Child("worker", 1, ends[0]))
    copying.pump(1)
    copying.pump(1)
    return stream.getvalue().splitlines()


def test_lines_of_children_have_their_name_in_front_and_empty_ones_are_left_out() -> None:
    assert copied(b"one\n\n  \ntwo\nhalf", as_json=False) == ["worker | one", "worker | two", "worker | half"]


def test_in_json_what_a_child_wrote_is_an_object_too() -> None:
    given = '{"event": "as it was",  "n": 1}'
    hostile = "[" * 10_000
    lines = copied(f"{given}\n\nredis://:{SECRET}@h \x1b[31m\n7\n{hostile}\n".encode() + b"\xff", as_json=True)

    first, *made = lines
    assert first == given
    found = [json.loads(line) for line in made]
    assert [one["event"] for one in found] == [r"redis://:***@h \x1b[31m", "7", hostile, r"\xff"]
    assert {(one["logger"], one["level"], one["timestamp"][-1]) for one in found} == {("worker", "warning", "Z")}


# A process


def test_celery_and_warnings_are_written_by_ours(capfd: pytest.CaptureFixture[str]) -> None:
    program = (
        "import logging, sys, warnings; from tasks import logs, settings; from tasks.app import make_app;"
        "configured = settings.load(); logs.configure(configured, 'INFO');"
        "make_app(configured.model_copy(update={'redis_url': 'redis://h'})).log.setup('DEBUG', redirect_stdouts=True);"
        "logging.getLogger('celery.worker').info('from Celery'); warnings.warn('beware');"
        "logging.getLogger('celery.worker').debug('too much'); print('to stdout')"
    )
    assert os.spawnl(os.P_WAIT, sys.executable, sys.executable, "-c", program) == 0

    out, err = capfd.readouterr()
    assert out == "to stdout\n"
    first, second = map(json.loads, err.splitlines())
    assert (first["event"], first["logger"]) == ("from Celery", "celery.worker") and "beware" in second["event"]


def test_who_logs_imports_nothing_to_draw_with_and_who_draws_still_can() -> None:
    program = "import sys, tasks.logs; print('rich' in sys.modules); import orchestrator.cli.screen, rich.table"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    assert (done.stdout, done.returncode) == ("False\n", 0), done.stderr
