"""What keeps pods as a Deployment says, without a cluster: a rollout, a budget, nodes that are drained. One pass each.

By the rules of Kubernetes: kubernetes/pkg/controller/deployment/rolling.go, …/disruption/disruption.go, and whom a
ReplicaSet ends first, controller_utils.go.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.pods import Pod, Template


def share(written: int | str, pods: int, *, up: bool) -> int:
    """A number of pods that may be written as a part of them: rounded up for more, down for fewer."""
    if isinstance(written, int):
        return written
    return (math.ceil if up else math.floor)(pods * int(written.removesuffix("%")) / 100)


@dataclass
class Deployment:
    """So many pods of a template; `begin` starts one of a revision."""

    template: Template
    replicas: int
    strategy: Mapping[str, Any]
    may_be_away: int | None  # by its disruption budget; None: it has none
    begin: Callable[[Template, int], Pod]
    revision: int = 1
    pods: list[Pod] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.template.name

    @property
    def active(self) -> list[Pod]:
        """Those that are not told to end."""
        return [pod for pod in self.pods if not pod.ending and not pod.gone]

    @property
    def ready(self) -> list[Pod]:
        return [pod for pod in self.active if pod.ready]

    @property
    def is_as_it_shall_be(self) -> bool:
        """All there, all of the newest revision, all ready, and nobody still ending."""
        current = [pod for pod in self.ready if pod.revision == self.revision]
        return len(current) == self.replicas == len([pod for pod in self.pods if not pod.gone])

    def ranked(self) -> list[Pod]:
        """Who is ended first when there are too many: who is not ready, who shares a node, who came last."""
        on_node = Counter(pod.node for pod in self.active)
        return sorted(self.active, key=lambda pod: (pod.ready, -on_node[pod.node], -pod.began_s))

    def sync(self) -> None:
        """One pass."""
        new = [pod for pod in self.active if pod.revision == self.revision]
        old = [pod for pod in self.ranked() if pod.revision != self.revision]
        if self.strategy.get("type") == "Recreate":
            self._recreate(new, old)
            return
        rolling = self.strategy["rollingUpdate"]  # both said: a default would be a quarter of each
        surge = share(rolling["maxSurge"], self.replicas, up=True)
        away = share(rolling["maxUnavailable"], self.replicas, up=False)
        room = self.replicas + (surge if old else 0) - len(self.active)
        for _ in range(min(room, self.replicas - len(new))):
            self.pods.append(self.begin(self.template, self.revision))
        spare = len(self.ready) - (self.replicas - away)
        for pod in old:
            if not pod.ready or spare > 0:
                spare -= pod.ready
                pod.end()
        if not old:
            for pod in self.ranked()[: max(0, len(self.active) - self.replicas)]:
                pod.end()

    def _recreate(self, new: Sequence[Pod], old: Sequence[Pod]) -> None:
        for pod in [*old, *new[self.replicas :]]:
            pod.end()
        if len(new) < self.replicas and all(pod.gone for pod in self.pods if pod.revision != self.revision):
            self.pods.append(self.begin(self.template, self.revision))

    def evict(self, pod: Pod) -> bool:
        """As asked for by a drain: refused where too many would be away."""
        if self.may_be_away is not None:
            least = self.replicas - self.may_be_away
            if len(self.ready) - (1 if pod.ready else 0) < least:
                return False
        pod.end()
        return True


@dataclass
class Nodes:
    """Where pods are: spread over the nodes that take some."""

    names: Sequence[str]
    closed: set[str] = field(default_factory=set)

    def choose(self, name: str, revision: int, pods: Iterable[Pod]) -> str:
        """The node with the fewest of its kind, and then of all."""
        there = [pod for pod in pods if not pod.gone]
        alike = Counter(pod.node for pod in there if (pod.template.name, pod.revision) == (name, revision))
        every = Counter(pod.node for pod in there)
        open_ones = [node for node in self.names if node not in self.closed]
        return min(open_ones, key=lambda node: (alike[node], every[node], node))

    def evict(self, deployments: Iterable[Deployment]) -> None:
        """One pass over the nodes that are being drained."""
        for one in deployments:
            for pod in [pod for pod in one.active if pod.node in self.closed]:
                one.evict(pod)
