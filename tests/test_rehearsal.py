"""How many pods there are by the manifests' rules; the number that is read for it; and a day with all of it."""

import itertools
import random
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from db.types import Trigger as AskedBy
from tests import rehearsal
from tests.controllers import Deployment, Nodes, share
from tests.field import SOON_S, Field, cut, large
from tests.field import field as field  # the fixture
from tests.pods import Template
from tests.rehearsal_load import Load
from tests.rehearsal_stage import BEAT, BULKS, INTERACTIVES, NODES, of_kind, staged, stores
from tests.scaler import At, Behavior, Past, Policy, Rules, Scaler, desired, recommended
from tests.trees import Dir, File
from tests.trigger import Trigger
from tests.waiting import wait_until

# The autoscaler

TWICE = Behavior(0.0, [Policy("Percent", 100, 30.0)])
HALF = Behavior(300.0, [Policy("Percent", 50, 60.0)])
RULES = Rules("", 4.0, 1, 6, TWICE, HALF)


@pytest.mark.parametrize(
    ("number", "current", "pods"),
    [(0, 1, 1), (1, 1, 1), (4, 1, 1), (5, 1, 2), (9, 2, 3), (24, 1, 6), (100, 6, 6), (0, 6, 1), (21, 5, 5), (23, 5, 6),
     (22, 6, 6), (21, 6, 6), (20, 6, 5)],
)  # fmt: skip
def test_a_number_asks_for_as_many_pods_as_it_fills_and_a_tenth_more_or_less_for_none(
    number: float, current: int, pods: int
) -> None:
    assert recommended(number, 4.0, current, 1, 6) == pods


def days(scaler: Scaler, numbers: list[tuple[float, float]]) -> list[int]:
    """What comes of numbers that are read at these times."""
    pods = [1]
    for at_s, number in numbers:
        pods.append(scaler.look(number, pods[-1], at_s))
    return pods


def test_pods_are_doubled_at_most_in_each_period_and_halved_once_the_last_five_minutes_wanted_fewer() -> None:
    looks = [(15.0 * n, 24.0) for n in range(6)]
    assert days(Scaler(RULES), looks) == [1, 2, 2, 4, 4, 6, 6]

    scaler = Scaler(RULES)
    days(scaler, looks)
    ends = [(at_s, scaler.look(0, 6, at_s)) for at_s in (90.0, 180.0, 374.0, 375.5)]
    assert [pods for _, pods in ends] == [6, 6, 6, 3], "75 s was the last time that six were wanted"
    assert [scaler.look(0, 3, at_s) for at_s in (390.0, 434.0)] == [3, 3], "within a minute no more than half"
    assert scaler.look(0, 3, 436.0) == 1


def test_who_wanted_many_once_lately_keeps_them() -> None:
    past = Past([At(100.0, 5)])
    assert desired(0, 6, RULES, past, 399.0) == 5 and desired(0, 6, RULES, past, 401.0) == 3


def test_a_clock_that_goes_faster_makes_the_same_of_the_same() -> None:
    numbers = [(0.0, 24.0), (15.0, 24.0), (30.0, 24.0), (60.0, 24.0), (75.0, 0.0), (361.0, 0.0), (376.0, 0.0)]
    fast = [(at_s / 20, number) for at_s, number in numbers]
    assert days(Scaler(RULES.faster(20)), fast) == days(Scaler(RULES), numbers)


numbers = st.lists(st.tuples(st.floats(0.1, 100), st.floats(0, 200)), max_size=40)


@given(numbers, st.integers(1, 3), st.integers(0, 10))
def test_there_are_never_fewer_than_the_least_nor_more_than_the_most_nor_a_step_that_is_too_large(
    steps: list[tuple[float, float]], least: int, more: int
) -> None:
    rules = Rules("", 4.0, least, least + more, TWICE, HALF)
    scaler, pods, now_s = Scaler(rules), least, 0.0
    for after_s, number in steps:
        now_s += after_s
        before, pods = pods, scaler.look(number, pods, now_s)
        assert least <= pods <= least + more
        assert before // 2 <= pods <= 2 * before
        assert pods <= before or number > 4 * before, "more, and there is not the work for it"
        assert pods >= before or number < 4 * before, "fewer, and there is the work for them"


@pytest.mark.needs("kubectl")
def test_pods_are_played_as_the_manifests_build_them() -> None:
    """Else only the day itself would tell, which CI does not wait for."""
    built = rehearsal.objects(rehearsal.OVERLAY)
    config = {name: one["data"] for name, one in of_kind(built, "ConfigMap").items()}
    pods = [Template.of(of_kind(built, "Deployment")[name], config) for name in (BEAT, INTERACTIVES, BULKS)]
    assert [pod.first for pod in pods] == [[], [["migrate", "--wait"]], [["migrate", "--wait"]]]
    assert [pod.args[0] for pod in pods] == ["beat", "worker", "worker"] and {pod.grace_s for pod in pods} == {30}


def test_the_rules_are_those_of_the_manifests() -> None:
    assert of_kind(rehearsal.objects(rehearsal.OVERLAY), "ScaledObject")
    for scaled in of_kind(rehearsal.objects(rehearsal.OVERLAY), "ScaledObject").values():
        rules = Rules.of(scaled)
        assert (rules.target, rules.least, rules.most, rules.up, rules.down) == (4.0, 1, 6, TWICE, HALF)


# Rollouts, budgets and nodes


@dataclass(eq=False)
class Puppet:
    """A pod without a process; it is ready when the test says so, and gone as soon as it is told."""

    revision: int
    node: str
    began_s: float
    ready: bool = False
    ending: bool = False

    @property
    def gone(self) -> bool:
        return self.ending

    def end(self) -> None:
        self.ending, self.ready = True, False


def deployment(replicas: int, surge: int | str = "25%", away: int | str = 0, budget: int = 1) -> Deployment:
    """All of whose pods are ready."""
    nodes, born = Nodes(NODES), itertools.count()
    strategy = {"rollingUpdate": {"maxSurge": surge, "maxUnavailable": away}}
    template = SimpleNamespace(name="worker")

    def begin(_: object, revision: int) -> Puppet:
        return Puppet(revision, nodes.names[len(found.active) % len(nodes.names)], next(born))

    found = Deployment(template, replicas, strategy, budget, begin)
    found.sync()
    for pod in found.pods:
        pod.ready = True
    return found


@given(st.integers(1, 9), st.sampled_from([1, 2, "25%", "100%"]), st.sampled_from([0, 1, "25%"]), st.randoms())
def test_a_rollout_ends_and_there_are_never_more_nor_fewer_pods_than_it_may_have(
    replicas: int, surge: int | str, away: int | str, rng: random.Random
) -> None:
    found = deployment(replicas, surge, away)
    most, least = replicas + share(surge, replicas, up=True), replicas - share(away, replicas, up=False)
    found.revision = 2
    for _ in range(10 * replicas):
        found.sync()
        assert len(found.active) <= most and len(found.ready) >= least
        starting = [pod for pod in found.active if not pod.ready]
        if starting:
            rng.choice(starting).ready = True
    found.sync()
    assert found.is_as_it_shall_be and {pod.revision for pod in found.active} == {2}


def test_a_drain_takes_the_next_pod_only_when_the_last_ones_successor_is_ready() -> None:
    found = deployment(4)
    assert found.evict(found.pods[0]) and not found.evict(found.pods[1])
    found.sync()
    assert not found.evict(found.pods[1]), "its successor has begun, and is not ready"
    found.active[-1].ready = True
    assert found.evict(found.pods[1])


def test_who_is_not_ready_goes_first_then_who_shares_a_node_then_who_came_last() -> None:
    found = deployment(4)
    assert [pod.node for pod in found.pods] == [NODES[0], NODES[1], NODES[2], NODES[0]]
    found.pods[1].ready = False
    assert [found.pods.index(pod) for pod in found.ranked()] == [1, 3, 0, 2]
    found.replicas = 1
    found.sync()
    assert found.active == [found.pods[2]]


def test_a_pod_is_begun_where_the_fewest_of_its_kind_are_and_not_on_a_node_that_is_drained() -> None:
    nodes, pods = Nodes(NODES), []
    for _ in range(6):
        node = nodes.choose("worker", 1, pods)
        pods.append(SimpleNamespace(node=node, revision=1, template=SimpleNamespace(name="worker"), gone=False))
    assert Counter(pod.node for pod in pods) == dict.fromkeys(NODES, 2)
    nodes.closed.add(NODES[0])
    assert nodes.choose("worker", 1, pods) == NODES[1]


# The number that is read

# A folder with a file is a shard: it counts as four entries itself.
FIELD = {"workers": 0, "STRANDLINE_SHARD_ENTRIES": "5", "STRANDLINE_SCAN_WINDOW": "16"}
FOLDER = Dir({b"large": File(b"not yet")})
FEW, MANY, WINDOW = 6, 20, 16
QUEUES = {"worker-interactive": ("interactive", AskedBy.REQUEST), "worker-bulk": ("bulk", AskedBy.SCHEDULE)}


@pytest.fixture
def two(field: Field) -> Field:
    """At once is worked on two shards."""
    if "worker" not in field.cluster.processes:
        field.begin_worker("worker", 2)
    return field


@pytest.mark.needs("kubectl")
@pytest.mark.parametrize("name", [pytest.param("worker-interactive", marks=pytest.mark.large), "worker-bulk"])
def test_the_triggers_number_follows_ready_and_leased_shards_and_is_zero_after_them(two: Field, name: str) -> None:
    field = two
    queue, asked_by = QUEUES[name]
    rules = Rules.of(of_kind(rehearsal.objects(rehearsal.OVERLAY), "ScaledObject")[name])
    trigger, load = (
        Trigger(field.cluster.env["STRANDLINE_DATABASE_URL"], rules.query, [queue]),
        Load(field, field.folder, 0),
    )
    tenant, root = field.tenant(Dir({b"%02d" % n: FOLDER for n in range(FEW)}))
    other, its_root = field.tenant(Dir({b"%02d" % n: FOLDER for n in range(MANY)}))
    for known in (tenant, other):
        assert field.scan(known)["state"] == "succeeded"
    assert trigger.read() == (0, [])

    paths = [large(root + b"/%02d" % n) for n in range(FEW)]
    scan_id = load.request(tenant, asked_by)
    wait_until(lambda: trigger.read().scans == [(FEW - 2, 2)], SOON_S, "two are worked on, and the others are ready")
    for left in range(FEW, 0, -1):
        assert trigger.read().told == left
        read = wait_until(lambda: [path for path in paths if field.reader("worker", path)], SOON_S, "one is read")
        cut(read[0])
        paths.remove(read[0])
        wait_until(lambda left=left: trigger.read().open < left, SOON_S, "one more has ended")
    assert field.ended(scan_id)["state"] == "succeeded" and trigger.read() == (0, [])

    paths = [large(its_root + b"/%02d" % n) for n in range(MANY)]
    scan_id = load.request(other, asked_by)
    wait_until(lambda: trigger.read().open >= MANY, SOON_S, "all are open")
    assert trigger.read().told == WINDOW, "of one scan no more than may be in flight"
    for path in paths:
        cut(path)
    assert field.ended(scan_id)["state"] == "succeeded" and trigger.read() == (0, [])


# The day


@pytest.mark.large
@pytest.mark.needs("kubectl")
@pytest.mark.timeout(1200)
def test_a_day_of_drains_scaling_an_upgrade_and_an_eviction_costs_nothing(tmp_path: Path, server_folder: Path) -> None:
    built, began_s = rehearsal.objects(rehearsal.OVERLAY), time.monotonic()
    with (
        stores(built, server_folder) as (url, broker),
        staged(built, rehearsal.FASTER, tmp_path, url, broker) as stage,
    ):
        try:
            rehearsal.play(stage)
        finally:
            stage.keep_logs(tmp_path / "logs")
            print(f"\n{stage.terms()}\n{rehearsal.table(stage.told)}")
        print(f"{stage.summary()}; {time.monotonic() - began_s:.0f} s")
        assert stage.wrong == []
