"""compose/: the files are as Compose wants them, and the stack in real containers loses nothing whatever comes."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests import trees
from tests.containers import SOON_S, TOP, Stack, running
from tests.trees import Dir, File
from tests.waiting import wait_until

pytestmark = [pytest.mark.containers, pytest.mark.timeout(900)]

PROFILES = [(), ("--profile", "monitoring")]
SERVICES = ("postgres", "valkey", "beat", "worker", "api", "flower")
FILES = 100_000


# The files


@pytest.fixture
def config(tmp_path: Path) -> Stack:
    (tmp_path / "data").mkdir()
    return Stack(tmp_path / "compose", tmp_path / "data")


@pytest.mark.parametrize("profile", PROFILES)
def test_compose_takes_the_file(config: Stack, profile: tuple[str, ...]) -> None:
    config.compose(*profile, "config", "--quiet")


@pytest.mark.parametrize(
    ("given", "planted"),
    [
        ("restart: unless-stopped", "restarts: unless-stopped"),
        ("condition: service_completed_successfully", "condition: service_succeeded"),
        ("migrate: {condition: service_completed_successfully}", "migration: {condition: service_healthy}"),
        ("mem_limit: 256m", "mem_limit: 256 mebibytes"),
        ("secrets: [database_url, redis_url, api_tokens]", "secrets: [database_url, redis_url, tokens]"),
        ("networks: [inside, outside]", "networks: [inside, outsides]"),
        ("interval: 10s", "interval: ten seconds"),
        ("deploy: {replicas: 2}", "deploy: {replicas: two}"),
    ],
)
def test_compose_refuses_a_planted_mistake(config: Stack, given: str, planted: str) -> None:
    path = config.folder / "compose.yaml"
    text = path.read_text()
    assert given in text
    path.write_text(text.replace(given, planted, 1))

    done = subprocess.run(
        [config.env["COMPOSE"], "-f", str(path), "config", "--quiet"], env=config.env, capture_output=True, text=True
    )

    assert done.returncode != 0, planted


def test_without_a_folder_of_tenants_it_says_so(config: Stack) -> None:
    del config.env["STRANDLINE_DATA"]
    done = subprocess.run(
        [config.env["COMPOSE"], "-f", "compose.yaml", "config"], env=config.env, cwd=config.folder,
        capture_output=True, text=True,
    )  # fmt: skip

    assert done.returncode != 0 and "STRANDLINE_DATA" in done.stderr


def test_every_image_is_pinned_and_every_service_bounded() -> None:
    services = yaml.safe_load((TOP / "compose" / "compose.yaml").read_text())["services"]

    for name, service in services.items():
        image = re.sub(r"^\$\{[^:]+:-(.*)\}$", r"\1", service["image"])
        assert re.search(r":v?\d+\.\d+", image), name
        assert "mem_limit" in service and service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"] and service["user"] not in ("root", "0"), name
        assert "healthcheck" in service or name == "migrate", name


# The stack


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Readable for others, as a share would be."""
    data = tmp_path_factory.mktemp("data")
    for folder in (data, *list(data.parents)[:-2]):
        folder.chmod(folder.stat().st_mode | 0o055)
    return data


@pytest.fixture(scope="module")
def stack(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    trees.build(os.fsencode(data / "notes"), Dir({b"%d.md" % n: File(b"note %d" % n) for n in range(300)}))
    with running(Stack(tmp_path_factory.mktemp("stack") / "compose", data)) as stack:
        yield stack


def exact(stack: Stack, tenant: str, root: Path) -> None:
    """Index and feed are the tree."""
    tree = trees.listing(os.fsencode(root))
    assert trees.index(stack.documents("files", tenant)) == tree
    assert trees.apply_feed(stack.documents("changes", tenant)) == tree


def test_a_user_s_first_minutes(stack: Stack) -> None:
    said = stack.smoke("/data/notes")

    assert "/data/notes: succeeded, 300 files" in said and "300 changes in the feed" in said
    assert re.search(r"lag of the schedule: [\d.]+ s", said) and said.endswith("all is well\n")


@pytest.mark.parametrize("service", SERVICES)
def test_nobody_in_a_container_may_do_anything(stack: Stack, service: str) -> None:
    places = "/made /data/made" if service in ("worker", "api") else "/made"
    program = f"id -u; grep CapEff /proc/self/status; for one in {places}; do touch $one && echo written; done; true"
    said = stack.compose("exec", "-T", service, "sh", "-c", program).split()

    assert int(said[0]) > 0 and said[1:] == ["CapEff:", "0" * 16]
    assert stack.inspect(stack.containers(service)[0])["HostConfig"]["Memory"] > 0


def test_secrets_are_told_nowhere(stack: Stack) -> None:
    names = ("postgres_password", "valkey_password", "api_token")
    secrets = [(stack.folder / "secrets" / name).read_text().strip() for name in names]
    secrets.append((stack.folder / "secrets" / "flower_auth").read_text().strip().partition(":")[2])
    told = stack.compose("logs", "--no-color") + stack.strandline("config", "list")
    for name in stack.podman("ps", "--all", "--format", "{{.Names}}").split():
        told += stack.podman("inspect", name)
    for service in SERVICES:
        told += stack.compose("exec", "-T", service, "cat", "/proc/1/environ", "/proc/1/cmdline")

    assert "STRANDLINE_DATABASE_URL_FILE" in told
    assert [secret for secret in secrets if secret in told] == []


@pytest.fixture(scope="module")
def many(stack: Stack, data: Path) -> Path:
    """A tenant of many files, not scanned yet."""
    root = data / "many"
    trees.make_many(os.fsencode(root), FILES // 100, 100)
    stack.strandline("tenant", "add", "many", "/data/many")
    return root


def main_process(stack: Stack, container: str) -> int:
    return int(stack.inspect(container)["State"]["Pid"])


def under_way(stack: Stack, tenant: str, *options: str) -> str:
    """The id of a scan that was asked for and of which some shards are done."""
    [asked] = stack.documents("enqueue", tenant, *options)
    done = f"SELECT count(*) FROM shards WHERE scan_id = '{asked['scan']}' AND state = 'done'"
    wait_until(lambda: int(stack.sql(done)) > 0, SOON_S, "it is under way")
    return str(asked["scan"])


def test_a_worker_that_is_killed_and_a_valkey_that_is_away_cost_no_file(stack: Stack, many: Path) -> None:
    scan_id = under_way(stack, "many")
    first, _ = stack.containers("worker")
    os.kill(main_process(stack, first), signal.SIGKILL)
    stack.compose("stop", "valkey")
    time.sleep(20)
    stack.compose("start", "valkey")

    scan = stack.ended("many", scan_id)

    assert (scan["state"], scan["added"], scan["errors"]) == ("succeeded", FILES, [])
    exact(stack, "many", many)
    wait_until(lambda: len(stack.containers("worker")) == 2, SOON_S, "the killed one was started again")
    for name in stack.containers("worker"):
        assert stack.inspect(name)["State"]["OOMKilled"] is False


def test_a_worker_that_is_told_to_end_does_so_in_time_and_loses_nothing(stack: Stack, many: Path) -> None:
    scan_id = under_way(stack, "many", "--full", "--verify")
    first, _ = stack.containers("worker")
    began = time.monotonic()
    stack.podman("stop", "--time", "30", first)
    took_s = time.monotonic() - began

    assert took_s < 25 and stack.inspect(first)["State"]["ExitCode"] == 0
    stack.podman("start", first)
    scan = stack.ended("many", scan_id)
    assert (scan["state"], scan["added"], scan["modified"], scan["deleted"]) == ("succeeded", 0, 0, 0)
    exact(stack, "many", many)


def test_all_of_it_stops_cleanly(stack: Stack) -> None:
    names = stack.podman("ps", "--format", "{{.Names}}").split()
    stack.compose("stop", "--timeout", "60")

    codes = {name: stack.inspect(name)["State"]["ExitCode"] for name in names}
    assert set(codes.values()) == {0}, codes
    stack.up()
    stack.smoke("/data/notes")
