"""A horizontal autoscaler as Kubernetes has it, without Kubernetes: how many pods there shall be. Pure.

By the rules that a ScaledObject of KEDA hands on to it (Kubernetes: pkg/controller/podautoscaler/horizontal.go): a
number divided by what one pod is for; what was recommended lately, so that it does not sway; what was changed lately,
so that it is not too fast.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

# So near to what is wanted nothing is changed.
TOLERANCE = 0.1
# Between two looks of the autoscaler (--horizontal-pod-autoscaler-sync-period), each of which asks KEDA, which asks the
# database. KEDA's own pollingInterval is for what is scaled from none.
LOOKS_EVERY_S = 15.0


@dataclass(frozen=True)
class Policy:
    """In `period_s` seconds so many pods more or fewer, or so many of a hundred."""

    kind: str
    value: int
    period_s: float


@dataclass(frozen=True)
class Behavior:
    """In one direction: of what was recommended in the last `window_s` seconds the most careful counts."""

    window_s: float
    policies: Sequence[Policy]

    def faster(self, times: float) -> Behavior:
        policies = [replace(one, period_s=one.period_s / times) for one in self.policies]
        return Behavior(self.window_s / times, policies)


@dataclass(frozen=True)
class Rules:
    """What a ScaledObject says."""

    query: str
    target: float
    least: int
    most: int
    up: Behavior
    down: Behavior
    looks_every_s: float = LOOKS_EVERY_S

    @classmethod
    def of(cls, scaled: Mapping[str, Any]) -> Rules:
        """Raises KeyError where one of the values that we rely on is left to a default."""
        spec = scaled["spec"]
        [trigger] = spec["triggers"]
        behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
        return cls(
            trigger["metadata"]["query"], float(trigger["metadata"]["targetQueryValue"]), spec["minReplicaCount"],
            spec["maxReplicaCount"], _behavior(behavior["scaleUp"]), _behavior(behavior["scaleDown"]),
        )  # fmt: skip

    def faster(self, times: float) -> Rules:
        """The same in a world where time goes so many times as fast."""
        up, down, looks_every_s = self.up.faster(times), self.down.faster(times), self.looks_every_s / times
        return replace(self, up=up, down=down, looks_every_s=looks_every_s)


def _behavior(written: Mapping[str, Any]) -> Behavior:
    policies = [Policy(one["type"], one["value"], one["periodSeconds"]) for one in written["policies"]]
    return Behavior(written["stabilizationWindowSeconds"], policies)


class At(NamedTuple):
    """So many pods, recommended or (more or fewer) changed at that time."""

    at_s: float
    pods: int


@dataclass(frozen=True)
class Past:
    recommended: Sequence[At] = ()
    changed: Sequence[At] = ()

    def changed_since(self, since_s: float) -> int:
        """Pods more than then, or fewer."""
        return sum(one.pods for one in self.changed if one.at_s > since_s)


def recommended(number: float, target: float, current: int, least: int, most: int) -> int:
    """By the number alone."""
    near = current > 0 and abs(number / (target * current) - 1) <= TOLERANCE
    return max(least, min(most, current if near else math.ceil(number / target)))


def desired(number: float, current: int, rules: Rules, past: Past, now_s: float) -> int:
    """How many pods there shall be, where there are `current` ones."""
    asked = recommended(number, rules.target, current, rules.least, rules.most)
    lately = [
        [asked, *(one.pods for one in past.recommended if one.at_s > now_s - way.window_s)]
        for way in (rules.up, rules.down)
    ]
    steady = min(max(current, min(lately[0])), max(lately[1]))
    if steady > current:
        return min(steady, max(current, _most_now(current, rules.up, past, now_s)))
    return max(steady, min(current, _least_now(current, rules.down, past, now_s)))


def _most_now(current: int, up: Behavior, past: Past, now_s: float) -> int:
    found = []
    for policy in up.policies:
        then = current - past.changed_since(now_s - policy.period_s)
        found.append(math.ceil(then * (1 + policy.value / 100)) if policy.kind == "Percent" else then + policy.value)
    return max(found)


def _least_now(current: int, down: Behavior, past: Past, now_s: float) -> int:
    found = []
    for policy in down.policies:
        then = current - past.changed_since(now_s - policy.period_s)
        found.append(int(then * (1 - policy.value / 100)) if policy.kind == "Percent" else then - policy.value)
    return min(found)


class Scaler:
    """Looks at a number now and then, and remembers what it made of it."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.past = Past()
        self._looked_s = -math.inf

    def is_due(self, now_s: float) -> bool:
        return now_s - self._looked_s >= self.rules.looks_every_s

    def look(self, number: float, current: int, now_s: float) -> int:
        """How many pods there shall be from now on."""
        self._looked_s = now_s
        pods = desired(number, current, self.rules, self.past, now_s)
        asked = recommended(number, self.rules.target, current, self.rules.least, self.rules.most)
        changed = [*self.past.changed, At(now_s, pods - current)] if pods != current else self.past.changed
        self.past = Past([*self.past.recommended, At(now_s, asked)], changed)
        return pods
