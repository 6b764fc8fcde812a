"""compose/: the files are as Compose wants them, and the stack in real containers loses nothing whatever comes."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest
import yaml

from db import schema
from tests import trees
from tests.containers import FORMER, IMAGE, NEXT, SOON_S, TOP, VARIABLE, Stack, running
from tests.trees import Dir, File
from tests.waiting import wait_until

pytestmark = [pytest.mark.containers, pytest.mark.timeout(900)]
needs_compose = pytest.mark.needs("compose")
needs_containers = pytest.mark.needs("containers")

PROFILES = [(), ("--profile", "monitoring")]
SERVICES = ("postgres", "valkey", "beat", "worker", "api", "flower")
ROLLED = ("worker", "api", "beat", "flower")
STEPS = (("migrate",), ("worker",), ("api",), ("beat", "flower"))
FILES = 100_000
BASE = re.findall(r"^ARG BASE=(.*)$", (TOP / "compose" / "Dockerfile").read_text(), re.MULTILINE)[0]
LIMIT_BYTES = 512 << 20


# The files


@pytest.fixture
def config(tmp_path: Path) -> Stack:
    (tmp_path / "data").mkdir()
    return Stack(tmp_path / "compose", tmp_path / "data")


@needs_compose
@pytest.mark.parametrize("profile", PROFILES)
def test_compose_takes_the_file(config: Stack, profile: tuple[str, ...]) -> None:
    config.compose(*profile, "config", "--quiet")


@needs_compose
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


@needs_compose
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


# Where there is no podman


def test_where_podman_cannot_be_had_that_is_said_and_fails_where_all_is_required() -> None:
    words = [sys.executable, "-m", "pytest", "-m", "containers", f"{__file__}::test_a_user_s_first_minutes"]
    given = {name: value for name, value in os.environ.items() if name != VARIABLE}

    done = subprocess.run(words, cwd=TOP, env=given | {"REQUIRE": "all"}, capture_output=True, text=True)

    assert done.returncode == 1 and "needs containers: only `make containers` runs these" in done.stdout
    assert "REQUIRE=all: a skip is a failure" in done.stdout


@pytest.mark.parametrize(("missing", "said"), [("id", "that needs root"), ("unshare", "namespaces are not to be had")])
def test_why_podman_cannot_be_had_is_told(missing: str, said: str, tmp_path: Path) -> None:
    stub = tmp_path / missing
    stub.write_text("#!/bin/sh\necho 1000\nexit 1\n")
    stub.chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}

    done = subprocess.run([TOP / ".ci" / "images", tmp_path / "images"], env=env, capture_output=True, text=True)

    assert done.returncode == 3 and said in done.stderr, done.stderr


# The stack


@pytest.fixture(scope="module")
def data() -> Path:
    """Readable for others, as a share would be. It ends with the namespace: where a disk is told of each file that is
    gone, to remove so many took two minutes.
    """
    data = Path(tempfile.mkdtemp(dir="/dev/shm"))
    data.chmod(0o755)
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


@needs_containers
def test_a_user_s_first_minutes(stack: Stack) -> None:
    said = stack.smoke("/data/notes")

    assert "/data/notes: succeeded, 300 files" in said and "300 changes in the feed" in said
    assert re.search(r"lag of the schedule: [\d.]+ s", said) and said.endswith("all is well\n")


@needs_containers
def test_how_large_it_is_and_how_soon_it_is_healthy(stack: Stack) -> None:
    """Printed, for docs/operations.md."""
    [image] = json.loads(stack.podman("image", "inspect", IMAGE))
    base = json.loads(stack.podman("image", "inspect", BASE))[0]["Size"]
    places = "/opt/strandline/lib/python3*/site-packages/*"
    sizes = stack.execute("api", "sh", "-c", f"du -sk {places} | sort -rn | head -4").splitlines()
    parts = [(base >> 10, "the root")] + [(int(size), Path(path).name) for size, path in map(str.split, sizes)]
    told = ", ".join(f"{name} {size >> 10} MB" for size, name in sorted(parts, reverse=True))

    print(f"\nimage: {image['Size'] >> 20} MB; largest: {told}; all healthy {stack.healthy_after_s:.0f} s after `up`")
    assert image["Size"] - base < 200 << 20 and len(image["RootFS"]["Layers"]) < 10


@needs_containers
@pytest.mark.parametrize("service", SERVICES)
def test_nobody_in_a_container_may_do_anything(stack: Stack, service: str) -> None:
    """Not even root, whose the folders are, could write there."""
    places = "/usr/made /data/made" if service in ("worker", "api") else "/usr/made"
    said = stack.execute(service, "sh", "-c", "id -u; grep CapEff /proc/self/status").split()
    as_root = ("exec", "--user", "0", stack.containers(service)[0], "sh", "-c")
    written = stack.podman(*as_root, f"for one in {places}; do touch $one && echo $one; done; true")

    assert int(said[0]) > 0 and said[1:] == ["CapEff:", "0" * 16] and written == ""
    assert stack.inspect(stack.containers(service)[0])["HostConfig"]["Memory"] > 0


@needs_containers
def test_secrets_are_told_nowhere(stack: Stack) -> None:
    names = ("postgres_password", "valkey_password", "api_token")
    secrets = [(stack.folder / "secrets" / name).read_text().strip() for name in names]
    secrets.append((stack.folder / "secrets" / "flower_auth").read_text().strip().partition(":")[2])
    told = stack.compose("logs", "--no-color") + stack.strandline("config", "list")
    for one in stack.ask("/containers/json?all=true"):
        told += json.dumps(stack.inspect(one["Id"]))
    for service in SERVICES:
        told += stack.execute(service, "cat", "/proc/1/environ", "/proc/1/cmdline")

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
    wait_until(lambda: stack.sql(done) > 0, SOON_S, "it is under way")
    return str(asked["scan"])


@needs_containers
def test_a_worker_that_is_killed_and_a_valkey_that_is_away_cost_no_file(stack: Stack, many: Path) -> None:
    scan_id = under_way(stack, "many")
    first, _ = stack.containers("worker")
    os.kill(main_process(stack, first), signal.SIGKILL)
    stack.compose("stop", "valkey")
    time.sleep(20)
    stack.compose("start", "valkey")

    scan = stack.ended("many", scan_id)

    assert (scan["state"], scan["added"], scan["errors"]) == ("succeeded", FILES, [])
    wait_until(lambda: len(stack.containers("worker")) == 2, SOON_S, "the killed one was started again")


@needs_containers
def test_a_worker_that_is_told_to_end_does_so_in_time_and_loses_nothing(stack: Stack, many: Path) -> None:
    scan_id = under_way(stack, "many", "--full", "--verify")
    first, _ = stack.containers("worker")
    began = time.monotonic()
    stack.podman("stop", "--time", "30", first)
    took_s = time.monotonic() - began

    assert took_s < 25 and stack.inspect(first)["State"]["ExitCode"] == 0
    stack.podman("start", first)
    scan = stack.ended("many", scan_id)
    changed = (scan["added"], scan["modified"], scan["deleted"])
    assert scan["state"] == "succeeded" and changed == (0, 0, 0), "nor was anything lost above"


def connections(stack: Stack) -> dict[str, int]:
    """How many the containers of each service hold together."""
    found = {}
    for service in ROLLED:
        networks = [stack.inspect(one)["NetworkSettings"]["Networks"] for one in stack.containers(service)]
        addresses = ", ".join(f"'{one['strandline_inside']['IPAddress']}'" for one in networks)
        found[service] = stack.sql(f"SELECT count(*) FROM pg_stat_activity WHERE client_addr IN ({addresses})")
    return found


@needs_containers
def test_half_a_gigabyte_is_enough_for_many_files(stack: Stack, many: Path) -> None:
    """What both workers have done above, and one alone now."""
    first, second = stack.containers("worker")
    stack.podman("stop", "--time", "30", second)
    [asked] = stack.documents("enqueue", "many", "--full", "--verify")
    scan = stack.ended("many", asked["scan"])
    stack.podman("start", second)

    peak, killed = stack.memory(first)
    own = scan["peak_memory_bytes"] >> 20
    print(f"\n{FILES:,} files by one worker: {scan['duration_s']:.0f} s; {own} MB, {peak >> 20} with files' pages")
    assert (scan["state"], scan["files"], killed) == ("succeeded", FILES, 0)
    assert stack.inspect(first)["HostConfig"]["Memory"] == LIMIT_BYTES and peak <= LIMIT_BYTES


@contextlib.contextmanager
def scanning(stack: Stack, tenant: str) -> Iterator[None]:
    """Scans of all its files, one behind the other, whoever is away meanwhile; all have ended when this has."""
    whose = f"(SELECT id FROM tenants WHERE name = '{tenant}')"
    waiting = f"SELECT count(*) FROM scans WHERE tenant_id = {whose} AND state = ANY (%s)"
    over = threading.Event()

    def keep_on() -> None:
        while not over.wait(0.5):
            # The API is one of those who are away; and a migration's locks may end what only looks.
            with contextlib.suppress(AssertionError, IndexError, psycopg.OperationalError):
                if stack.sql(waiting % "'{queued,running}'") == 0:
                    stack.strandline("enqueue", tenant, "--full", "--verify")

    under_way(stack, tenant, "--full", "--verify")
    thread = threading.Thread(target=keep_on)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    wait_until(lambda: stack.sql(waiting % "'{queued,running}'") == 0, 2 * SOON_S, "all scans end")


def images(stack: Stack) -> set[str]:
    """Those that what runs of ours is made of."""
    return {stack.inspect(name)["ImageName"] for service in ROLLED for name in stack.containers(service)}


def by(stack: Stack, image: str, *services: str) -> tuple[datetime, datetime]:
    """From when to when those were replaced by some of that image; `migrate` runs to its end."""
    stack.env["STRANDLINE_IMAGE"] = image
    began = datetime.now(UTC)
    if services == ("migrate",):
        stack.compose("run", "--rm", "-T", "--no-deps", "migrate")
    else:
        stack.up("--no-deps", *services)
    return began, datetime.now(UTC)


@needs_containers
def test_an_upgrade_with_a_migration_under_load_costs_no_file(stack: Stack, many: Path) -> None:
    by(stack, FORMER, *ROLLED)
    assert images(stack) == {FORMER} and stack.sql("SELECT version_num FROM alembic_version") == schema.HEAD
    stack.documents("enqueue", "many", "--wait")
    known = {one["scan"] for one in stack.documents("scans", "many")}
    for number in range(10):
        trees.remove(os.fsencode(many / "003" / f"{number:03}"))
        trees.build(os.fsencode(many / "003" / f"{10 + number:03}"), Dir({b"new": File(b"new %d" % number)}))

    running, steps = "SELECT count(*) FROM scans WHERE state = 'running'", {}
    with scanning(stack, "many"):
        for services in STEPS:
            wait_until(lambda: stack.sql(running), SOON_S, "a scan is under way, and not just over")
            steps[services] = by(stack, NEXT, *services)

    assert images(stack) == {NEXT} and stack.sql("SELECT version_num FROM alembic_version") == "9000"
    scans = [one for one in stack.documents("scans", "many") if one["scan"] not in known]
    assert {one["state"] for one in scans} == {"succeeded"} and [one for one in scans if one["errors"]] == []
    assert [sum(one[kind] for one in scans) for kind in ("added", "modified", "deleted")] == [10, 0, 1000]
    spans = [tuple(map(datetime.fromisoformat, (one["started_at"], one["finished_at"]))) for one in scans]
    for services, (began, ended) in steps.items():
        assert any(first < ended and last > began for first, last in spans), f"nothing was scanned during {services}"
    exact(stack, "many", many)  # all of the feed, from before the worker was killed
    [again] = stack.documents("enqueue", "many", "--wait")
    assert (again["state"], again["added"], again["modified"], again["deleted"]) == ("succeeded", 0, 0, 0)
    print(f"\nconnections to PostgreSQL: {connections(stack)}")


@needs_containers
def test_all_of_it_stops_cleanly(stack: Stack) -> None:
    names = [one["Names"][0] for one in stack.ask("/containers/json")]
    stack.compose("stop", "--timeout", "60")

    codes = {name: stack.inspect(name)["State"]["ExitCode"] for name in names}
    assert set(codes.values()) == {0}, f"{codes}\n{stack.compose('logs', '--no-color', '--tail', '50')}"
    stack.up()
    stack.smoke("/data/notes")
