"""The stage of a rehearsal: Deployments and their pods, autoscalers, nodes and load, on PostgreSQL and Valkey."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from dataclasses import field as each
from pathlib import Path
from typing import Any

from tasks.app import BULK, INTERACTIVE
from tests import field as fields
from tests.cluster import Cluster
from tests.command import tmpfs_folder
from tests.controllers import Deployment, Nodes
from tests.field import Field
from tests.pods import Pod, Template
from tests.rehearsal_load import SHARD_ENTRIES, Load
from tests.rehearsal_report import Row, left, note_moves, now_s, put_back_by
from tests.scaler import Rules, Scaler
from tests.servers import PostgresServer, RedisServer, postgres_kinds
from tests.storm_report import seen
from tests.trigger import Trigger
from tests.waiting import wait_until

NODES = ("node-a", "node-b", "node-c")
INTERACTIVES, BULKS, BEAT = "worker-interactive", "worker-bulk", "beat"
SOON_S = 300  # a rollout is four rounds of pods, and each takes half a minute where others work too
LOOKED_EVERY_S = 0.3
# How a process may end that held nothing yet: by the signal itself, or when Celery's start has taken too long.
TOLD_WHILE_IT_BEGAN = (-signal.SIGTERM, os.EX_TEMPFAIL)

Built = Sequence[dict[str, Any]]


def of_kind(built: Built, kind: str) -> dict[str, dict[str, Any]]:
    """By name."""
    return {one["metadata"]["name"]: one for one in built if one["kind"] == kind}


@dataclass
class Rehearsal(Field):
    """Deployments and their pods. `turn` is one pass of all who look after them."""

    deployments: dict[str, Deployment] = each(default_factory=dict)
    scalers: dict[str, Scaler] = each(default_factory=dict)
    triggers: dict[str, Trigger] = each(default_factory=dict)
    window: int = 0  # shards of one scan that a trigger may count
    scales: bool = False
    nodes: Nodes = each(default_factory=lambda: Nodes(NODES))
    volumes: dict[str, Path] = each(default_factory=dict)
    load: Load = each(init=False)
    told: list[Row] = each(default_factory=list)
    wrong: list[str] = each(default_factory=list)
    numbers: list[tuple[float, str, float, int]] = each(default_factory=list)  # when, whose, read, and made of it
    fewest: dict[str, int] = each(default_factory=dict)  # pods that were ready at once, since the scene began
    _looked_s: float = 0.0

    def __post_init__(self) -> None:
        self.load = Load(self, self.volumes["tenants"], seed=22)

    @property
    def pods(self) -> list[Pod]:
        return [pod for one in self.deployments.values() for pod in one.pods]

    @property
    def bulk(self) -> Deployment:
        return self.deployments[BULKS]

    def begin(self, template: Template, revision: int) -> Pod:
        node = self.nodes.choose(template.name, revision, self.pods)
        name = f"{template.name}-{len(self.deployments[template.name].pods)}"
        settings = {"STRANDLINE_SHARD_ENTRIES": str(SHARD_ENTRIES)} if template.name != BEAT else {}
        return Pod(name, template, revision, node, self.folder / "pods" / name, self.volumes, **settings)

    def turn(self) -> None:
        for pod in self.pods:
            pod.look()
        self._scale()
        self.nodes.evict(self.deployments.values())
        for deployment in self.deployments.values():
            deployment.sync()
            self.fewest[deployment.name] = min(self.fewest.get(deployment.name, 99), len(deployment.ready))
        if time.monotonic() - self._looked_s > LOOKED_EVERY_S:
            self._looked_s = time.monotonic()
            self.load.let_others_go_first(self.pods)
            self.load.ask()

    def _scale(self) -> None:
        for name, scaler in self.scalers.items():
            if self.scales and scaler.is_due(time.monotonic()):
                number = self.triggers[name].read()
                if number.told != number.of_each_at_most(self.window):
                    self.wrong.append(f"the trigger of {name} said {number.told:g} of {number.scans}")
                deployment = self.deployments[name]
                deployment.replicas = scaler.look(number.told, deployment.replicas, time.monotonic())
                self.numbers.append((time.time(), name, number.told, deployment.replicas))

    def until(self, holds: Callable[[], object], what: str, deadline_s: float = SOON_S) -> None:
        """Go on until it holds."""

        def look() -> object:
            self.turn()
            return holds()

        wait_until(look, deadline_s, what)

    def calm(self) -> bool:
        return all(one.is_as_it_shall_be for one in self.deployments.values())

    def hold(self, holds: object, sentence: str) -> None:
        if not holds:
            self.wrong.append(sentence)

    # Scenes

    @contextlib.contextmanager
    def scene(self, name: str) -> Iterator[None]:
        """What happens in the block, and until all pods are as they shall be and nothing that was left is left."""
        since_s, began_s = now_s(self), time.monotonic()
        before, gone = self.pods, [pod for pod in self.pods if pod.gone]
        self.fewest = {}
        yield
        self.until(self.calm, f"{name}: all pods are as they shall be")
        self.until(lambda: all(one.again for one in left(self, since_s, now_s(self))[0]), "what was put back is taken")
        new = [pod for pod in self.pods if pod not in before]
        ended = [pod for pod in self.pods if pod.gone and pod not in gone]
        self._note(Row(name, time.monotonic() - began_s, new, ended), since_s)

    def _note(self, row: Row, since_s: float) -> None:
        released, from_dead = left(self, since_s, now_s(self))
        killed_s = next((pod.killed_s for pod in row.ended if pod.killed), since_s)
        row.again_s = [one.again - one.at for one in released]
        row.after_death_s = [one.at - killed_s for one in from_dead]
        self.told.append(row)
        told = {one for pod in row.ended for one in put_back_by(pod)}
        noted = {(str(one.scan_id), one.number, one.attempt) for one in released}
        if told - noted:
            self.wrong.append(f"{row.scene}: {told - noted} were put back, says a pod; not so the database")
        self._hold(row)

    def _hold(self, row: Row) -> None:
        """What must hold of each scene."""
        for pod in row.ended:
            self.wrong += pod.wrong
            status = 0 if pod.process is None else pod.process.wait(1).returncode
            if not pod.killed and status != 0 and not (pod.ready_after_s is None and status in TOLD_WHILE_IT_BEGAN):
                self.wrong.append(f"{pod.name} ended with {status}")
        killed = [pod for pod in row.ended if pod.killed]
        if not killed and row.after_death_s:
            self.wrong.append(f"{row.scene}: somebody died, who held {len(row.after_death_s)} shards")
        self.wrong += row.too_late()

    # At the end

    def connections(self) -> int:
        """To the database, but for ours."""
        self.engine.dispose()
        query = "SELECT count(*) AS n FROM pg_stat_activity WHERE datname = current_database()"
        return self.rows(query)[0].n - 1

    def keep_logs(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for pod in self.pods:
            (folder / pod.name).write_bytes(pod.log)
        pods = [(pod.name, pod.revision, pod.node, pod.ready_after_s, pod.gone_after_s) for pod in self.pods]
        (folder / "pods").write_text("".join(f"{one}\n" for one in pods))
        (folder / "numbers").write_text("".join(f"{one}\n" for one in self.numbers))
        moves = self.rows("SELECT * FROM moves ORDER BY at")
        (folder / "wrong").write_text("".join(f"{one}\n" for one in self.wrong))
        for name, writer in self.load.writers.items():
            its = seen(self, name)
            scans = [(one.fence, one.started_at, one.finished_at, one.strategy) for one in its.scans]
            told = [*scans, *its.feed, *writer.journal.everything()]
            (folder / f"told-{name}").write_text("".join(f"{one}\n" for one in told))
        (folder / "moves").write_text("".join(f"{tuple(one)}\n" for one in moves))

    def terms(self) -> str:
        """What the manifests say of the pods that take bulk."""
        bulk, rules = self.bulk, self.scalers[BULKS].rules
        return (
            f"{BULKS}: {rules.least} to {rules.most} pods, one for each {rules.target:g} shards; grace "
            f"{bulk.template.grace_s:g} s; a rollout {dict(bulk.strategy['rollingUpdate'])}; a drain may take "
            f"{bulk.may_be_away} at once"
        )

    def summary(self) -> str:
        """What there was to get wrong."""
        found = self.rows(
            "SELECT (SELECT count(*) FROM scans WHERE state = 'succeeded') AS scans, "
            "(SELECT count(*) FROM moves WHERE state = 'leased') AS attempts, (SELECT count(*) FROM changes) AS changes"
        )[0]
        most = max(told for _, _, told, _ in self.numbers)
        return (
            f"{found.scans} scans succeeded, {found.attempts} times a shard was taken, {found.changes} changes told; "
            f"the triggers were asked {len(self.numbers)} times, and said {most:g} at most"
        )


# How it is set


@contextlib.contextmanager
def stores(built: Built, folder: Path) -> Iterator[tuple[str, RedisServer]]:
    """The address of an empty database on the newest PostgreSQL there is, and a Valkey, with the options that they are
    given in a cluster.
    """
    homes = [Path(tempfile.mkdtemp(dir=folder)) for _ in range(2)]
    for home in homes:
        home.chmod(0o755)
    sets = of_kind(built, "StatefulSet")
    postgres, valkey = (sets[name]["spec"]["template"]["spec"]["containers"][0] for name in ("postgres", "valkey"))
    _, _, *options = valkey["command"]  # the server, and a file with its password
    at = options.index("--dir")
    with (
        PostgresServer(postgres_kinds()[-1], homes[0], *postgres["args"][1::2]) as server,
        server.database() as url,
        RedisServer(homes[1], *options[:at], *options[at + 2 :]) as broker,
    ):
        yield url, broker


@contextlib.contextmanager
def staged(built: Built, faster: float, folder: Path, database_url: str, broker: RedisServer) -> Iterator[Rehearsal]:
    """All Deployments of workers and beat, none of whose pods has begun. The tenants' trees are in memory, where a file
    without end takes none of it when it is read.
    """
    with tempfile.TemporaryDirectory(dir=tmpfs_folder()) as tenants:
        yield from _staged(built, faster, folder, Path(tenants), database_url, broker)


def _staged(
    built: Built, faster: float, folder: Path, tenants: Path, database_url: str, broker: RedisServer
) -> Iterator[Rehearsal]:
    volumes = {"secrets": folder / "secrets", "tenants": tenants}
    volumes["secrets"].mkdir()
    for name, value in (("database_url", database_url), ("redis_url", broker.url)):
        (volumes["secrets"] / name).write_text(value)
    addresses = {"STRANDLINE_DATABASE_URL": database_url, "STRANDLINE_REDIS_URL": broker.url}
    cluster = Cluster(folder / "unused", addresses | {"STRANDLINE_STATE_DIR": str(folder / "never")})
    cluster.processes = {}
    [job] = of_kind(built, "Job").values()
    done = cluster.run(*job["spec"]["template"]["spec"]["containers"][0]["args"])
    assert done.returncode == 0, done.stderr
    with fields.on(cluster, broker, folder, Rehearsal, volumes=volumes) as rehearsal:
        note_moves(rehearsal)
        _deploy(rehearsal, built, faster, database_url)
        try:
            yield rehearsal
        finally:
            for pod in rehearsal.pods:
                pod.close()


def _deploy(rehearsal: Rehearsal, built: Built, faster: float, database_url: str) -> None:
    config = {name: one["data"] for name, one in of_kind(built, "ConfigMap").items()}
    scaled = {one["spec"]["scaleTargetRef"]["name"]: one for one in of_kind(built, "ScaledObject").values()}
    for name in (BEAT, INTERACTIVES, BULKS):
        written = of_kind(built, "Deployment")[name]
        template = Template.of(written, config)
        replicas = written["spec"].get("replicas", 1)  # one, where a scaler says
        if name in scaled:
            rules = Rules.of(scaled[name]).faster(faster)
            rehearsal.scalers[name], replicas = Scaler(rules), rules.least
            queues = {INTERACTIVE, BULK} & set(template.args[template.args.index("--queues") + 1].split(","))
            rehearsal.triggers[name] = Trigger(database_url, rules.query, queues)
            rehearsal.window = int(template.env["STRANDLINE_SCAN_WINDOW"])
        rehearsal.deployments[name] = Deployment(
            template, replicas, written["spec"]["strategy"], _budget(built, written), rehearsal.begin
        )


def _budget(built: Built, deployment: dict[str, Any]) -> int | None:
    labels = deployment["spec"]["template"]["metadata"]["labels"].items()
    found = [
        one["spec"]["maxUnavailable"]
        for one in of_kind(built, "PodDisruptionBudget").values()
        if one["spec"]["selector"]["matchLabels"].items() <= labels
    ]
    return found[0] if found else None
