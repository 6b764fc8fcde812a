"""Redis as it is in the field: addresses, TLS, passwords, Sentinel, a prefix; and what is refused at the start."""

import os
import signal
import socket
import subprocess
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import redis

from db.types import StrandlineError, UsageError
from tasks import settings as all_settings
from tasks.consumer import Doubt
from tasks.redis import mark, policy
from tasks.redis.connection import Address, unix_url
from tasks.redis.keys import Keys
from tasks.redis.outage import Outage
from tasks.redis.transport import INTERVAL_MAX_S, Connection
from tests import certificates
from tests.cluster import Cluster, running
from tests.command import STRANDLINE, Command
from tests.proxy import Proxy
from tests.servers import RedisServer, redis_binary
from tests.trees import Dir, File, build, listing
from tests.waiting import wait_until

SECRET = "s3cr:t@/?#;%+"
# What is due is not spread over half a minute.
AT_ONCE = {"STRANDLINE_STAGGER_WINDOW_S": "0"}
QUOTED = "s3cr%3At%40%2F%3F%23%3B%25%2B"


def address(url: str, **settings: str) -> Address:
    return Address.of(all_settings.load({}, redis_url=url, **settings))


# ---- Addresses


@pytest.mark.parametrize(
    ("url", "broker", "shown"),
    [
        ("redis://h", "redis://h:6379/0", "redis://h:6379"),
        (f"redis://u:{QUOTED}@h:1/3", f"redis://u:{QUOTED}@h:1/3", "redis://h:1"),
        ("redis://[::1]:1?db=2", "redis://[::1]:1/2", "redis://[::1]:1"),
        ("unix:///a%3Bb?db=2", "redis+socket:///a%3Bb?virtual_host=2", "unix:///a;b"),
        (f"unix:///s?password={QUOTED}", f"redis+socket://:{QUOTED}@/s?virtual_host=0", "unix:///s"),
        ("sentinel://:p@a;sentinel://b:1/", "sentinel://:p@a:26379/0;sentinel://:p@b:1/0",
         "sentinel://a:26379;sentinel://b:1"),
    ],
)  # fmt: skip
def test_an_address_is_the_same_for_coordination_and_broker(url: str, broker: str, shown: str) -> None:
    found = address(url)
    assert (found.broker_url, str(found)) == (broker, shown)
    parsed = Connection(found.broker_url, transport_options=found.broker_options("p:")).channel
    assert parsed is not None and SECRET not in repr(found)


def test_tls_believes_only_certificates_unless_told_otherwise(tmp_path: Path) -> None:
    import ssl

    assert address("redis://h").broker_tls is None
    strict, lax = address("rediss://h"), address("rediss://h?ssl_cert_reqs=none")
    assert strict.broker_tls == {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_check_hostname": True}
    assert lax.broker_tls == {"ssl_cert_reqs": ssl.CERT_NONE, "ssl_check_hostname": False}
    ca = certificates.make(tmp_path).ca
    assert address(f"sentinel://h?ssl_ca_certs={ca}").broker_tls == {**strict.broker_tls, "ssl_ca_certs": str(ca)}


@pytest.mark.parametrize(
    "url",
    [
        "", "localhost", f"http://:{SECRET}@h", f"redis://:{SECRET}@h", "redis://", "redis://h:port", "redis://h/name",
        "redis://:s3cr@h;redis://h", "unix://relative", "unix:///s?ssl_cert_reqs=none", "redis://h?ssl_cert_reqs=none",
        "redis://:s3cr@h?socket_timeout=1", "rediss://h?ssl_cert_reqs=perhaps", "rediss://h?ssl_ca_certs=/s3cr/none",
    ],
)  # fmt: skip
def test_an_address_that_cannot_be_used_is_refused_by_name_without_its_password(url: str) -> None:
    with pytest.raises(UsageError, match=r"^STRANDLINE_REDIS_URL cannot be used: ") as refused:
        address(url)
    assert "s3cr" not in str(refused.value)


@pytest.mark.parametrize("prefix", ["", "a*", "a b", "[ab]:", "x" * 101])
def test_a_prefix_that_redis_would_take_for_a_pattern_is_refused(prefix: str) -> None:
    with pytest.raises(UsageError, match="STRANDLINE_REDIS_PREFIX"):
        all_settings.load({}, redis_prefix=prefix)


def test_no_password_is_ever_shown_by_config_list(tmp_path: Path) -> None:
    for url in (
        f"redis://u:{QUOTED}@h",
        "redis://u:s3cr/t@h",
        "unix:///s?password=s3cr",
        "sentinel://:s3cr@a;sentinel://:s3cr@b",
    ):
        environment = {
            "STRANDLINE_REDIS_URL": url, "STRANDLINE_REDIS_SENTINEL_PASSWORD": "s3cr",
            "STRANDLINE_DATABASE_URL": "postgresql+psycopg://u:s3cr@h/d",
        }  # fmt: skip
        found = Command(tmp_path / "state", environment).read("config", "list")
        assert "s3cr" not in str(found) and str(found).count("***") >= 3


def test_attempts_to_connect_are_never_far_apart() -> None:
    waits: list[float] = []

    def note(_error: Exception, interval: float) -> None:
        waits.append(interval)
        if len(waits) == 20:
            raise StopIteration

    connection = Connection(f"redis://127.0.0.1:{_closed_port()}", transport_options={})
    with pytest.MonkeyPatch.context() as patch, pytest.raises(StopIteration):
        patch.setattr("kombu.utils.functional.sleep", lambda _: None)
        connection.ensure_connection(note, None)
    assert waits[:3] == [1, 2, 3] and max(waits) == INTERVAL_MAX_S


def _closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# ---- The policy


@pytest.mark.parametrize(
    ("found", "fit"), [("noeviction", True), (None, True), ("allkeys-lru", False), ("volatile-ttl", False)]
)
def test_only_a_server_that_throws_nothing_away_is_fit(found: str | None, fit: bool) -> None:
    sentence = policy.refusal(found, "redis://h:1")
    assert (sentence is None) == fit
    assert fit or (found in sentence and "noeviction" in sentence and "redis://h:1" in sentence)


def test_the_policy_is_found_by_whatever_a_user_may_ask(own_redis, caplog: pytest.LogCaptureFixture) -> None:
    with own_redis("--maxmemory-policy", "allkeys-lfu") as server, redis.from_url(server.url) as admin:
        found = []
        for number, rules in enumerate((["+@all"], ["+@all", "-config"], ["+@all", "-config", "-info"])):
            admin.execute_command("ACL", "SETUSER", f"u{number}", "on", ">p", "~*", "&*", *rules)
            at = address(server.url.replace("://", f"://u{number}:p@"))
            with at.client() as client:
                found.append(policy.policy_of(client))
        assert found == ["allkeys-lfu", "allkeys-lfu", None]
        with at.client() as client:
            policy.await_fit(client, at)
        assert "tells nobody" in caplog.text


# ---- The processes


@pytest.fixture
def sqlite(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/test.db"


def tree(tmp_path: Path) -> bytes:
    root = os.fsencode(tmp_path / "root")
    build(root, Dir({b"f": File(b"1"), b"d": Dir({b"g": File(b"2")})}))
    return root


def scans(cluster: Cluster, root: bytes) -> None:
    """A scan goes through, all by beat, messages and workers."""
    assert cluster.run("tenant", "add", "notes", os.fsdecode(root), "--interval", "1").returncode == 0
    wait_until(lambda: cluster.index("notes") == listing(root), 30, "the schedule has scanned")


@pytest.mark.needs("openssl")
def test_tls_a_user_and_a_database_of_its_own(own_redis, sqlite: str, tmp_path: Path) -> None:
    made = certificates.make(tmp_path)
    with own_redis() as server, redis.from_url(server.url) as admin, Proxy(server.port, made.context()) as proxy:
        admin.execute_command("ACL", "SETUSER", "strand", "on", f">{SECRET}", "~field:*", "&*", "+@all")
        admin.execute_command("ACL", "SETUSER", "default", "off")
        url = (
            f"rediss://strand:{QUOTED}@127.0.0.1:{proxy.port}/1?ssl_ca_certs={made.ca}"
            f"&ssl_certfile={made.server}&ssl_keyfile={made.key}"
        )
        with running(tmp_path, sqlite, url, STRANDLINE_REDIS_PREFIX="field:", **AT_ONCE) as cluster:
            scans(cluster, tree(tmp_path))
            status = cluster.run("status", "--json")
            assert '"processes": 2' in status.stdout
            said = b"".join(one.stdout.content + one.stderr.content for one in cluster.processes.values())
            for secret in (SECRET, QUOTED, "s3cr"):
                assert secret.encode() not in said and secret not in status.stdout + status.stderr
            cluster.env = cluster.env | {"STRANDLINE_REDIS_URL": url.replace(QUOTED, "s3cr-wrong")}
            done = cluster.run("worker")
            assert done.returncode == 2 and "STRANDLINE_REDIS_URL" in done.stderr and "s3cr" not in done.stderr


class Sentinel(RedisServer):
    """The same program, watching a master: it finds another within seconds."""

    def __init__(self, folder: Path, master: RedisServer, password: str):
        super().__init__(folder)
        self.master, self.password = master, password

    @property
    def url(self) -> str:
        return f"redis://:{self.password}@127.0.0.1:{self.port}"

    def start(self) -> None:
        self.port = _closed_port()
        configuration = self.folder / "sentinel.conf"
        configuration.write_text(
            f"port {self.port}\nbind 127.0.0.1\ndir {self.folder}\nrequirepass {self.password}\n"
            f"sentinel monitor tide 127.0.0.1 {self.master.port} 1\n"
            "sentinel down-after-milliseconds tide 500\nsentinel failover-timeout tide 5000\n"
            "sentinel auth-pass tide master-pass\n"
        )
        self.process = self._spawn(redis_binary(), configuration, "--sentinel")
        wait_until(self._answers_or_ended, 30, "the sentinel answers")


@pytest.mark.chaos
def test_a_sentinel_names_the_master_and_after_it_died_another(
    own_redis, sqlite: str, server_folder: Path, tmp_path: Path
) -> None:
    secret = ("--requirepass", "master-pass", "--masterauth", "master-pass")
    with own_redis(*secret) as master, own_redis(*secret) as replica:
        with redis.Redis(port=replica.port, password="master-pass") as client:
            client.replicaof("127.0.0.1", master.port)
            wait_until(lambda: client.info("replication")["master_link_status"] == "up", 20, "the replica follows")
        with Sentinel(Path(tempfile.mkdtemp(dir=server_folder)), master, "sentinel-pass") as watching:
            watcher = redis.Redis(port=watching.port, password="sentinel-pass")
            wait_until(lambda: watcher.sentinel_slaves("tide"), 20, "the sentinel knows the replica")
            url = (
                f"sentinel://:master-pass@127.0.0.1:{watching.port};sentinel://:master-pass@127.0.0.1:{_closed_port()}"
            )
            given = AT_ONCE | {
                "STRANDLINE_REDIS_SENTINEL_MASTER": "tide",
                "STRANDLINE_REDIS_SENTINEL_PASSWORD": "sentinel-pass",
            }
            with running(tmp_path, sqlite, url, **given) as cluster:
                root = tree(tmp_path)
                scans(cluster, root)

                master.kill()
                build(root, Dir({b"new": File(b"3")}))

                wait_until(lambda: cluster.index("notes") == listing(root), 60, "the schedule scans by the other")
                assert all(process.alive() for process in cluster.processes.values())


def test_clusters_with_different_prefixes_share_a_redis_and_see_nothing_of_each_other(
    own_redis, sqlite: str, tmp_path: Path
) -> None:
    root = tree(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    with own_redis() as server, redis.from_url(server.url) as client:
        with (
            running(tmp_path, sqlite, server.url, STRANDLINE_REDIS_PREFIX="a:", **AT_ONCE) as works,
            running(
                other, f"sqlite:///{other}/test.db", server.url, workers=0, beats=0, STRANDLINE_REDIS_PREFIX="b:"
            ) as waits,
        ):
            assert waits.run("tenant", "add", "notes", os.fsdecode(root)).returncode == 0
            [asked] = waits.json("enqueue", "notes")
            scans(works, root)

            assert len(works.json("status")[0]["workers"]) == 1
            assert waits.json("status")[0]["workers"] == []
            assert waits.json("scans", "notes")[0]["state"] == asked["state"] == "running"
            assert client.llen("b:interactive") == 1
        assert {key[:2] for key in client.scan_iter()} == {b"a:", b"b:"}


@pytest.mark.fault(6, "started with maxmemory-policy allkeys-lru")
def test_nothing_starts_on_a_redis_that_throws_keys_away(own_redis, sqlite: str, tmp_path: Path) -> None:
    with (
        own_redis("--maxmemory-policy", "allkeys-lru") as server,
        running(tmp_path, sqlite, server.url, workers=0, beats=0) as cluster,
    ):
        cluster.env = cluster.env | {"STRANDLINE_STATE_DIR": str(tmp_path / "state")}
        cluster_alone = {name: value for name, value in cluster.env.items() if name != "STRANDLINE_DATABASE_URL"}
        for words, env in ((["worker"], cluster.env), (["beat"], cluster.env), (["up"], cluster_alone)):
            done = subprocess.run(
                [STRANDLINE, *words], env={**os.environ, **env}, capture_output=True, text=True, timeout=60
            )
            assert done.returncode == 2, done.stderr
            assert "maxmemory-policy allkeys-lru" in done.stderr and "noeviction" in done.stderr
            assert "Traceback" not in done.stderr


@pytest.mark.chaos
def test_a_worker_that_finds_no_redis_says_so_and_starts_once_there_is_one(
    own_redis, sqlite: str, tmp_path: Path
) -> None:
    with own_redis() as server, running(tmp_path, sqlite, server.url, workers=0, beats=0) as cluster:
        server.kill()
        worker = cluster.begin("worker", "worker", "--workers", "1")
        assert worker.stderr.wait_for(b"does not answer", 30)
        server.start()
        os.kill(server.pid, signal.SIGSTOP)  # accepts, and never answers
        assert worker.stderr.wait_for(b"Timeout", 30)
        os.kill(server.pid, signal.SIGCONT)
        assert worker.stderr.wait_for(b"ready", 30), worker.stderr.content


def test_an_embedded_stack_gives_a_configured_redis_some_time_and_then_says_what_is_wrong() -> None:
    at = address(f"redis://:s3cr@127.0.0.1:{_closed_port()}")
    with (
        at.client() as client,
        pytest.raises(StrandlineError, match=r"does not answer.*STRANDLINE_REDIS_URL") as refused,
    ):
        policy.await_fit(client, at, patience_s=0)
    assert "s3cr" not in str(refused.value) and unix_url("/a?b") == "unix:///a%3Fb"


# ---- What a process says and does while Redis is away


def test_an_outage_is_said_once_and_so_is_its_end(caplog: pytest.LogCaptureFixture) -> None:
    now = [100.0]
    outage = Outage(lambda: now[0])
    for _ in range(3):
        outage.failed("nothing can be sent", redis.TimeoutError("no answer"))
    assert outage.paused
    now[0] += 60
    assert not outage.paused, "it is tried again"
    outage.over()
    outage.over()
    assert [one.getMessage() for one in caplog.records] == [
        "nothing can be sent, Redis does not do as asked: no answer",
        "Redis is well again after 60 s",
    ]


def test_a_worker_whose_connections_break_at_once_connects_ever_more_slowly(redis_client: redis.Redis) -> None:
    step, slept, now = Doubt(None), [], [0.0]
    step.clock_s, step.sleep = lambda: now[0], slept.append
    runtime = SimpleNamespace(redis=redis_client, keys=Keys("p:"), outage=Outage(lambda: 0.0))
    consumer = SimpleNamespace(app=SimpleNamespace(runtime=runtime))
    redis_client.set("p:mark", "1")
    step.start(consumer)
    assert redis_client.exists("p:mark"), "a new worker has lost nothing"
    for _ in range(7):
        step.start(consumer)
    now[0] += 60  # this one held
    step.start(consumer)
    step.start(consumer)
    assert slept == [1, 2, 3, 4, 5, 5, 5, 1]
    assert not redis_client.exists("p:mark")


def test_what_was_sent_is_forgotten_once_where_the_mark_is_gone(redis_client: redis.Redis) -> None:
    forgotten: list[int] = []
    for _ in range(3):
        mark.look(redis_client, Keys("p:"), lambda: forgotten.append(1))
    assert forgotten == [1]
    redis_client.flushall()
    mark.look(redis_client, Keys("p:"), lambda: forgotten.append(2))
    assert forgotten == [1, 2]
