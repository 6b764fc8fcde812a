"""Whatever is typed or set: an answer, or a sentence and exit 1 or 2; never a traceback, and never a secret.

Commands run in this process, by `main`: what they do not catch fails the test by itself.
"""

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import click
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from db.types import UsageError
from orchestrator.cli import group
from tasks.settings import PREFIX, SECRET, Settings, load
from tests.command import STRANDLINE, Command, run_here
from tests.trees import Dir, File, build

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "64"))
fuzzed = settings(
    max_examples=EXAMPLES, deadline=None, database=None, derandomize=EXAMPLES <= 64,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip

# What a shell can hand over: any bytes but 0.
anything = st.binary(max_size=40).map(lambda raw: os.fsdecode(raw.replace(b"\0", b"")))
told = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
nasty = st.sampled_from([
    "", " ", "-", "--", "-1", "0", "1e400", "nan", "inf", "9" * 30, "[", "{}", "null", '{"a": 1}', "%", "%s", "{0}",
    "..", "../..", "a/../b", "a//b", "/dev/null", "/dev/null/x", "x" * 5000, "\x1b[2J", "\n", "\u202e", "\ufeff",
    "é\u0301", "true", "01a1fd78-1b1d-71bb-b400-3cb0c6523ae5", "t.1", "3.7", "99999999.99999999", "1.-1",
    "http://127.0.0.1:1/", "https://[::1", "http://a..b/", "ftp://x/", "https://user:pass@127.0.0.1/",
])  # fmt: skip
addresses = st.sampled_from([
    "sqlite://", "sqlite:////dev/null/x", "sqlite:///.", "sqlite:///x?mode=ro", "mysql://x/y", "postgresql://x/y",
    "postgresql+psycopg://127.0.0.1:1/x?connect_timeout=1", "postgresql+psycopg://u:p@127.0.0.1:99999/x",
    "postgresql+psycopg://127.0.0.1:1/x?nonsense=1", "postgresql+psycopg:///x?host=/nowhere", "postgresql+psycopg://[::1",
    "redis://127.0.0.1:1/0", "redis://:secret@127.0.0.1:1", "rediss://127.0.0.1:1?ssl_ca_certs=/nowhere", "redis://",
    "unix:///nowhere", "unix://x", "sentinel://127.0.0.1:1;redis://127.0.0.1:1", "redis://127.0.0.1:1/x", "amqp://x",
])  # fmt: skip
value = st.one_of(nasty, anything, told)


def leaves(of: click.Group, *words: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(of)
    for name in of.list_commands(context):
        command = of.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from leaves(command, *words, name)
        else:
            yield (*words, name), command


LEAVES = dict(leaves(group))
# They would run on: what they are given is refused before that, and is tried below.
RUNNING_ON = [("up",), ("worker",), ("beat",), ("api",), ("flower",)]
ASKING = {words: command for words, command in LEAVES.items() if words not in RUNNING_ON}
LEFT_OUT = {"--state", "--follow", "--every"}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the state of a stack that runs, its tenant `notes`, and another that could be one."""
    folder = tmp_path_factory.mktemp("fuzz")
    command = Command(folder / "state", {"STRANDLINE_TICK_S": "0.2"})
    for name in ("notes", "other"):
        build(os.fsencode(folder / name), Dir({b"f": File(b"1"), b"sub": Dir({b"\xff": File(b"2")})}))
    with command.up("--dir", str(folder / "notes")):
        yield folder


@st.composite
def typed(draw: st.DrawFn, words: tuple[str, ...], command: click.Command, folder: Path) -> list[str]:
    """A command line that may mean something: each option there is, perhaps, and a value that may even be right."""
    right = st.sampled_from(["notes", "notes", "sub", "f", "5", "sha256", "priority", str(folder / "other")])
    given_, behind = [*words, *(["--once"] if words == ("top",) else [])], []  # (it would go on, as asked)
    for parameter in command.params:
        one = draw(st.one_of(right, right, value))
        if isinstance(parameter, click.Argument):
            behind.append(one)
        elif isinstance(parameter, click.Option) and draw(st.integers(0, 3)) == 0:
            names = [name for name in (*parameter.opts, *parameter.secondary_opts) if name.startswith("--")]
            name = draw(st.sampled_from(names))
            if name not in LEFT_OUT:
                given_ += [name] if parameter.is_flag else [name, one]
    extra = draw(st.lists(value, max_size=1)) if draw(st.integers(0, 9)) == 0 else []
    return [*given_, *draw(st.sampled_from([[], ["--"]])), *behind, *extra]


def said(words: Sequence[str], env: Mapping[str, str]) -> str:
    """What the command said; it ended as it should."""
    done = run_here([STRANDLINE, *words], env, 60)
    assert done.returncode in (0, 1, 2), done
    assert done.returncode == 0 or done.stdout or done.stderr, done
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("words", ASKING, ids=" ".join)
def test_whatever_is_typed_is_answered_or_refused_in_words(stack: Path, words: tuple[str, ...]) -> None:
    @settings(fuzzed, max_examples=max(8, EXAMPLES // 8))
    @given(typed(words, ASKING[words], stack))
    def each(line: list[str]) -> None:
        said(line, {"STRANDLINE_STATE_DIR": str(stack / "state"), "STRANDLINE_STALL_S": "10"})

    each()


@pytest.mark.parametrize("words", RUNNING_ON, ids=" ".join)
def test_what_cannot_be_started_says_why(tmp_path: Path, words: tuple[str, ...]) -> None:
    """No database is at hand, and no folder that could be indexed: each line is refused, whatever else it says."""

    @settings(fuzzed, max_examples=max(8, EXAMPLES // 8))
    @given(st.data())
    def each(data: st.DataObject) -> None:
        line = data.draw(typed(words, LEAVES[words], tmp_path / "nowhere"))
        nothing = ["--dir", "/dev/null/nothing"] if words == ("up",) else []
        said([*words, *nothing, *line[len(words) :]], {"STRANDLINE_STATE_DIR": str(tmp_path / "state")})

    each()


class Impatient:
    """A clock for whoever would wait: instead he ends well."""

    monotonic = time.monotonic

    @staticmethod
    def sleep(_: float) -> None:
        raise SystemExit(0)


variables = st.sampled_from(sorted(PREFIX + name.upper() for name in Settings.model_fields))
environments = st.dictionaries(
    st.one_of(variables, variables, told.map(lambda text: PREFIX + text.replace("=", "").upper())),
    st.one_of(value, addresses), min_size=1, max_size=4,
)  # fmt: skip


@settings(fuzzed, max_examples=10 * EXAMPLES)
@given(environments)
def test_every_environment_is_understood_or_refused_by_name(environment: dict[str, str]) -> None:
    try:
        load(environment)
    except UsageError as error:
        assert any(name in str(error) for name in environment), error
        secret = [environment.get(PREFIX + name.upper(), "") for name in SECRET]
        assert not any(text in str(error) for text in secret if len(text) > 8), error


@settings(fuzzed)
@given(
    environments, addresses, addresses,
    st.sampled_from(["config list", "status", "top --once", "tenant list", "scans notes", "breaker list",
                     "enqueue notes", "migrate", "worker", "beat", "api", "flower"]),
)  # fmt: skip
def test_whatever_is_set_no_traceback_reaches_anybody(
    environment: dict[str, str], database: str, redis: str, line: str
) -> None:
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch:
        for module in ("tasks.redis.policy", "db.schema"):  # where a server that is away is waited for
            patch.setattr(f"{module}.time", Impatient)
        env = {"STRANDLINE_STATE_DIR": os.path.join(folder, "state"), **environment,
               "STRANDLINE_DATABASE_URL": database, "STRANDLINE_REDIS_URL": redis}  # fmt: skip
        text = said(line.split(), env)
        assert "secret" not in text.replace("cookie_secret", "").replace("COOKIE_SECRET", ""), text
