"""Flower, the real one beside a real worker: who may see it, what it shows, and that it only shows."""

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from db.sending import Sendable
from db.types import UsageError
from orchestrator.dispatch import shown
from orchestrator.stack import flower
from tasks.settings import load
from tests import processes
from tests.command import STRANDLINE
from tests.field import SOON_S, Field, cut, large
from tests.field import field as field
from tests.processes import Running
from tests.waiting import wait_until

USER, PASSWORD = "ops", "s3cr3t-w0rd"


class Flower:
    """A process of it, asked over HTTP."""

    def __init__(self, field: Field, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.env = {
            **os.environ, **field.cluster.env, "STRANDLINE_FLOWER_AUTH": f"{USER}:{PASSWORD},other:word",
            "STRANDLINE_FLOWER_URL_PREFIX": "/watch/", "STRANDLINE_FLOWER_DB": str(folder / "kept" / "flower"),
            "FLOWER_UNAUTHENTICATED_API": "true",
        }  # fmt: skip
        self.running: Running | None = None

    def start(self) -> None:
        self.running = processes.start([STRANDLINE, "flower", "--port", str(self.port)], env=self.env)
        wait_until(lambda: self.status("/watch/healthcheck") == 200, SOON_S, "Flower answers")

    def get(self, path: str, auth: tuple[str, str] | None = (USER, PASSWORD), method: str = "GET") -> httpx.Response:
        return httpx.request(method, f"http://127.0.0.1:{self.port}{path}", auth=auth, timeout=20)

    def status(self, path: str, **how: object) -> int | None:
        try:
            return self.get(path, **how).status_code
        except httpx.TransportError:
            return None

    def tasks(self) -> list[dict]:
        return list(self.get("/watch/api/tasks").json().values())

    def of(self, scan_id: str) -> dict[str, dict]:
        """The tasks of a scan, by what it is shown as."""
        return {one["args"]: one for one in self.tasks() if one["args"] and scan_id in one["args"]}


@pytest.fixture(scope="module")
def watch(field: Field, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flower]:
    made = Flower(field, tmp_path_factory.mktemp("flower"))
    made.start()
    # It knows only what it hears, and listens once it has connected.
    wait_until(lambda: made.get("/watch/api/workers").json(), SOON_S, "it knows the worker")
    wait_until(lambda: any(one["name"] == "strandline.tick" for one in made.tasks()), SOON_S, "it hears events")
    yield made
    made.running.close()


@pytest.mark.parametrize(
    "path", ["/watch/", "/watch/tasks", "/watch/api/workers", "/watch/api/tasks", "/watch/metrics"]
)
def test_nobody_sees_it_without_a_password(watch: Flower, path: str) -> None:
    assert watch.status(path, auth=None) == 401
    assert watch.status(path, auth=(USER, "guessed")) == 401
    assert watch.status(path) == watch.status(path, auth=("other", "word")) == 200


def test_without_a_password_it_says_that_it_lives_and_nothing_else(watch: Flower) -> None:
    answer = watch.get("/watch/healthcheck", auth=None)

    assert (answer.status_code, answer.text) == (200, "OK")
    assert watch.status("/") == watch.status("/tasks") == 404, "it lives below its prefix"


def test_it_shows_and_controls_nothing(watch: Flower, field: Field) -> None:
    worker = next(iter(watch.get("/watch/api/workers").json()))
    for path in (f"worker/shutdown/{worker}", f"worker/pool/restart/{worker}", f"worker/pool/grow/{worker}",
                 f"worker/queue/cancel-consumer/{worker}?queue=bulk", "task/send-task/strandline.tick",
                 "task/async-apply/strandline.tick", "task/revoke/1?terminate=true"):  # fmt: skip
        assert watch.status(f"/watch/api/{path}", method="POST") == 403, path
    assert field.process("worker").alive()


def test_the_password_is_on_no_command_line(watch: Flower) -> None:
    for pid in watch.running.alive():
        assert PASSWORD.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
    assert PASSWORD.encode() not in watch.running.stderr.content


def test_the_page_of_a_worker_shows_how_many_children_memory_allows(watch: Flower) -> None:
    worker = next(iter(watch.get("/watch/api/workers").json()))
    page = watch.get(f"/watch/worker/{worker}").text

    for shown_there in ("Memory limit bytes", "Memory level", "Max concurrency"):
        assert shown_there in page


def test_a_task_tells_its_tenant_scan_and_shard_and_after_two_seconds_how_far_it_is(
    watch: Flower, field: Field
) -> None:
    name, root = field.tenant()
    path = large(root)
    scan_id = field.ask(name)
    first = f"(tenant {name}, scan {scan_id}, shard 1)"

    found = wait_until(
        lambda: (one := watch.of(scan_id).get(first)) and one["state"] == "PROGRESS" and one, SOON_S, "progress"
    )
    assert found["name"] == "strandline.scan_shard" and found["worker"].startswith("worker-")
    cut(path)
    field.ended(scan_id)

    last = f"(tenant {name}, scan {scan_id})"
    ended = wait_until(
        lambda: (seen := watch.of(scan_id)).get(last, {}).get("state") == "SUCCESS" and seen, SOON_S, "the finish"
    )
    assert ended[first]["state"] == "SUCCESS" and ended[last]["name"] == "strandline.finish"


def test_what_it_saw_is_there_after_a_restart(watch: Flower, field: Field) -> None:
    name, _ = field.tenant()
    scan_id = field.scan(name)["scan"]
    wait_until(lambda: len(watch.of(scan_id)) == 2, SOON_S, "it has heard of both")

    watch.running.send(signal.SIGTERM)
    assert watch.running.wait(SOON_S).returncode == 0
    watch.start()

    assert len(watch.of(scan_id)) == 2


# Settings


@pytest.mark.parametrize(
    ("host", "auth", "allowed"),
    [
        ("127.0.0.1", "", True), ("localhost", "", True), ("::1", "", True), ("127.9.9.9", "", True),
        ("0.0.0.0", "", False), ("::", "", False), ("", "", False), ("10.0.0.1", "", False), ("example", "", False),
        ("0.0.0.0", "ops:word", True),
    ],
)  # fmt: skip
def test_without_a_password_it_listens_to_this_machine_alone(host: str, auth: str, allowed: bool) -> None:
    settings = load({"STRANDLINE_FLOWER_AUTH": auth})
    if allowed:
        flower.check(settings, host)
    else:
        with pytest.raises(UsageError, match="set STRANDLINE_FLOWER_AUTH=user:password"):
            flower.check(settings, host)


@pytest.mark.parametrize("auth", ["s3cr3t-w0rd", "a:b,s3cr3t-w0rd", ":s3cr3t-w0rd", "ops:s3cr3t w0rd"])
def test_a_password_that_cannot_be_used_is_not_shown(auth: str) -> None:
    with pytest.raises(UsageError) as caught:
        load({"STRANDLINE_FLOWER_AUTH": auth})

    assert "STRANDLINE_FLOWER_AUTH cannot be used" in str(caught.value) and "w0rd" not in str(caught.value)
    assert "use user:password" in str(caught.value) and "^" not in str(caught.value)


@pytest.mark.parametrize("name", ["REDIS_PREFIX", "FLOWER_URL_PREFIX"])
def test_what_a_setting_may_be_is_said_in_words(name: str) -> None:
    with pytest.raises(UsageError, match=r"cannot be used: use .*letters, digits"):
        load({f"STRANDLINE_{name}": "ä"})


def test_cookies_are_signed_the_same_after_a_restart() -> None:
    one, other = load({"STRANDLINE_FLOWER_AUTH": "a:b"}), load({"STRANDLINE_FLOWER_AUTH": "a:c"})

    assert flower.cookie_secret(one) == flower.cookie_secret(one) != flower.cookie_secret(other)
    assert "a:b" not in flower.cookie_secret(one)
    assert flower.cookie_secret(load({"STRANDLINE_FLOWER_COOKIE_SECRET": "x"})) == "x"


def test_a_file_that_cannot_be_kept_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="set STRANDLINE_FLOWER_DB to a file, or to none"):
        flower.store(load({"STRANDLINE_FLOWER_DB": str(tmp_path / "file" / "flower")}))

    assert flower.store(load({"STRANDLINE_FLOWER_DB": "none"})) is None
    assert flower.store(load({"STRANDLINE_STATE_DIR": str(tmp_path / "state")})) == str(tmp_path / "state" / "flower")


def test_a_message_is_shown_by_names() -> None:
    assert shown(Sendable("0199", 3, 7, "bulk"), "notes") == "(tenant notes, scan 0199, shard 3)"
    assert shown(Sendable("0199", 0, 7, "bulk"), "notes") == "(tenant notes, scan 0199)"
