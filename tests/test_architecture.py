"""The source itself: who imports whom, who touches files, and that every setting is told of."""

import ast
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from db.types import UsageError
from tasks import settings
from tasks.settings import Settings

TOP = Path(__file__).parent.parent
OURS = {"db", "tasks", "orchestrator", "tests"}
INFRASTRUCTURE = {"celery", "kombu", "redis", "sqlalchemy", "billiard", "alembic", "psycopg"}
# What opens, stats or lists; the rest of tasks/ must ask tasks.core for it.
TOUCHES_FILES = {"open", "stat", "lstat", "scandir", "readlink", "listdir", "walk", "fwalk", "read_text", "read_bytes"}
MAY_TOUCH_FILES = {f"tasks/core/{name}.py" for name in ("filesystem", "hashing", "listing", "rule_sources", "walk")}
MAY_TOUCH_FILES |= {
    "tasks/redis/script.py",  # its own Lua
    "tasks/settings.py",  # what is handed over in files
    "tasks/health.py",  # what probes look at
    *(f"tasks/memory/{name}.py" for name in ("cgroup", "family", "gauge", "heap")),  # the kernel's
}  # fmt: skip
# Commands talk to a terminal, and so do the processes that `up` and the containers start.
MAY_PRINT = ("orchestrator/cli/", "orchestrator/stack/embedded.py", "orchestrator/stack/processes.py")


def sources(*folders: str) -> Iterator[tuple[str, ast.Module]]:
    for folder in folders:
        found = sorted((TOP / folder).rglob("*.py"))
        assert found, f"nothing to check in {folder}"
        for path in found:
            yield path.relative_to(TOP).as_posix(), ast.parse(path.read_text())


def imports(module: ast.Module) -> set[str]:
    """Full names, also of imports within functions: `from db import tree` is db and db.tree."""
    names: set[str] = set()
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute, so that their direction can be read"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def ours(module: ast.Module) -> set[str]:
    return {name for name in imports(module) if name.split(".")[0] in OURS}


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def calls(module: ast.Module) -> Iterator[tuple[str | None, str]]:
    """(object, function) of each call by name: ("os", "open") for `os.open(…)`, (None, "open") for `open(…)`."""
    for node in ast.walk(module):
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name):
                yield None, node.func.id
            elif isinstance(node.func, ast.Attribute):
                yield (node.func.value.id if isinstance(node.func.value, ast.Name) else ""), node.func.attr


@pytest.mark.parametrize(
    ("importer", "allowed"),
    [("db", {"db"}), ("tasks", {"db", "tasks"}), ("orchestrator", {"db", "tasks", "orchestrator"})],
)
def test_imports_point_one_way(importer: str, allowed: set[str]) -> None:
    wrong = {
        (path, name) for path, module in sources(importer) for name in ours(module) if name.split(".")[0] not in allowed
    }

    assert not wrong


def test_the_core_knows_no_queue_no_cache_no_database_and_nothing_above_it() -> None:
    wrong = {
        (path, name)
        for path, module in sources("tasks/core")
        for name in imports(module)
        if name.split(".")[0] in INFRASTRUCTURE
        or (within(name, "tasks") and not within(name, "tasks.core"))
        or (within(name, "db") and not within(name, "db.types"))
    }

    assert not wrong


def test_the_words_that_all_share_import_nothing_of_ours() -> None:
    [module] = [module for path, module in sources("db") if path == "db/types.py"]

    assert not ours(module)


def test_only_what_talks_to_a_terminal_prints() -> None:
    printing = {
        path for path, module in sources("db", "tasks", "orchestrator") if (None, "print") in set(calls(module))
    }

    assert not {path for path in printing if not path.startswith(MAY_PRINT)}


def test_in_tasks_only_the_core_opens_stats_and_lists() -> None:
    touching = {
        path
        for path, module in sources("tasks")
        for owner, function in calls(module)
        if (owner == "os" and function in TOUCHES_FILES)
        or (owner is None and function == "open")
        or function in ("read_text", "read_bytes")
    }

    assert touching <= MAY_TOUCH_FILES
    assert "tasks/core/filesystem.py" in touching, "this test sees nothing any more"


def test_every_write_can_be_done_again() -> None:
    once = {path for path, module in sources("db", "tasks", "orchestrator") if (None, "writing") in set(calls(module))}

    assert once == {"db/engine.py", "db/migrations/env.py"}  # what `write` is made of, and the command of developers


def test_nothing_sleeps_in_the_core() -> None:
    assert not [path for path, module in sources("tasks/core") if ("time", "sleep") in set(calls(module))]


# ---- Settings


def variables() -> list[str]:
    return [settings.PREFIX + name.upper() for name in Settings.model_fields]


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_says_in_a_sentence_what_it_means(name: str) -> None:
    assert len((Settings.model_fields[name].description or "").split()) >= 4


@pytest.mark.parametrize("variable", variables())
def test_the_readme_tells_of_every_setting(variable: str) -> None:
    assert variable in (TOP / "README.md").read_text()


def test_an_unknown_variable_is_refused_with_the_nearest_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRANDLINE_SHARD_ENTRYS", "5")

    with pytest.raises(UsageError, match=r"STRANDLINE_SHARD_ENTRYS; did you mean STRANDLINE_SHARD_ENTRIES\?"):
        settings.load()


def test_an_unknown_variable_is_refused_however_far_from_any_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRANDLINE_", "")

    with pytest.raises(UsageError, match="unknown setting STRANDLINE_;"):
        settings.load()


def test_variables_of_others_are_none_of_our_business(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_STRANDLINE_THING", "5")

    settings.load()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("STRANDLINE_WORKERS", "many"),
        ("STRANDLINE_WORKERS", "-1"),
        ("STRANDLINE_WORKERS", ""),
        ("STRANDLINE_HASH_CHUNK_BYTES", "1"),
        ("STRANDLINE_INTERVAL_S", "0"),
        ("STRANDLINE_TICK_S", "0"),
        ("STRANDLINE_LEASE_S", "nan"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused_by_name(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)

    with pytest.raises(UsageError, match=f"^{variable}='{value}' cannot be used: "):
        settings.load()


def test_what_a_command_was_given_comes_before_the_environment_and_that_before_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("STRANDLINE_WINDOW", "7")
    monkeypatch.setenv("STRANDLINE_WORKERS", "3")

    loaded = settings.load(workers=2, state_dir=None)

    assert (loaded.workers, loaded.window, loaded.interval_s) == (2, 7, 3600)
    assert loaded.state_dir == settings.default_state_dir()
    assert (settings.source("window"), settings.source("interval_s")) == ("environment", "default")


def test_the_state_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", os.fspath(tmp_path))

    assert settings.load().state_dir == os.fspath(tmp_path / "strandline")


def test_an_environment_that_is_given_is_read_in_place_of_the_process_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRANDLINE_WINDOW", "7")

    loaded = settings.load({"STRANDLINE_WORKERS": "3"})

    assert (loaded.workers, loaded.window) == (3, 1000)


def test_a_setting_is_read_from_the_file_that_is_named_for_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "url").write_bytes("redis://:gehäuse@db/0\r\n".encode())
    monkeypatch.setenv("STRANDLINE_REDIS_URL_FILE", os.fspath(tmp_path / "url"))

    assert settings.load().redis_url == "redis://:gehäuse@db/0"
    assert settings.source("redis_url") == "file"


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORKERS": "1", "WORKERS_FILE": "/dev/null"}, "^STRANDLINE_WORKERS and STRANDLINE_WORKERS_FILE are both set"),
        ({"WORKERS_FILE": "/nowhere"}, "^STRANDLINE_WORKERS_FILE='/nowhere' cannot be read: No such file"),
        ({"WORKERS_FILE": "/"}, "^STRANDLINE_WORKERS_FILE='/' cannot be read: Is a directory"),
        ({"WORKERS_FILE": ""}, "^STRANDLINE_WORKERS_FILE='' cannot be read: "),
        ({"WORKERS_FILE": "a\0b"}, "cannot be read: "),
        ({"WORKERS_FILE": sys.executable}, "cannot be read: it is not UTF-8 text$"),
        ({"WORKERS_FILE": "/dev/null"}, "^STRANDLINE_WORKERS='' cannot be used: "),
        ({"WORKER_FILE": "/dev/null"}, "^unknown setting STRANDLINE_WORKER_FILE; did you mean STRANDLINE_WORKERS"),
        ({"_FILE": "/dev/null"}, "^unknown setting STRANDLINE__FILE"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_by_name(environment: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        settings.load({settings.PREFIX + name: value for name, value in environment.items()})


@pytest.mark.parametrize("name", [name for name, field in Settings.model_fields.items() if field.annotation is float])
def test_no_time_is_without_end(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    variable = settings.PREFIX + name.upper()
    monkeypatch.setenv(variable, "inf")

    with pytest.raises(UsageError, match=variable):
        settings.load()
