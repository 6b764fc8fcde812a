"""The manifests of k8s/ as they are built: objects, the pods that they make, and what network policies let through."""

import functools
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml

K8S = Path(__file__).parent.parent / "k8s"
OVERLAYS = sorted(path.name for path in (K8S / "overlays").iterdir())
# What Kubernetes takes where nothing is said.
GRACE_S = 30

Object = dict[str, Any]


@functools.cache
def _built(folder: Path) -> str:
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def build(folder: str | Path) -> "Manifests":
    """What `kubectl apply -k` would send, objects of one's own; `folder`: within k8s/, or a path."""
    return Manifests(list(yaml.load_all(_built(K8S / folder), yaml.CSafeLoader)))


@dataclass(frozen=True)
class Pod:
    """What a workload makes."""

    kind: str
    name: str
    workload: Object
    labels: Mapping[str, str]
    spec: Object

    @property
    def main(self) -> Object:
        """Its one container."""
        [container] = self.spec["containers"]
        return cast(Object, container)

    @property
    def containers(self) -> Sequence[Object]:
        """With those that come before it."""
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    @property
    def role(self) -> str:
        """The command of strandline that it runs; empty for what is none of ours."""
        return str(self.main["args"][0]) if is_ours(self.main) else ""

    @property
    def grace_s(self) -> float:
        """Seconds from being told to end until it is killed."""
        return float(self.spec.get("terminationGracePeriodSeconds", GRACE_S))


def is_ours(container: Mapping[str, Any]) -> bool:
    """Does it run the image of compose/Dockerfile?"""
    return str(container["image"]).split("@")[0].rpartition("/")[2].split(":")[0] == "strandline"


@dataclass(frozen=True)
class Manifests:
    objects: Sequence[Object]

    def of(self, *kinds: str) -> list[Object]:
        return [one for one in self.objects if one["kind"] in kinds]

    def get(self, kind: str, name: str) -> Object | None:
        return next((one for one in self.of(kind) if one["metadata"]["name"] == name), None)

    @property
    def pods(self) -> list[Pod]:
        return [
            Pod(one["kind"], one["metadata"]["name"], one, template["metadata"].get("labels", {}), template["spec"])
            for one in self.of("Deployment", "StatefulSet", "Job")
            for template in [one["spec"]["template"]]
        ]

    def pod(self, name: str) -> Pod:
        [found] = [pod for pod in self.pods if pod.name == name]
        return found

    def environment(self, container: Mapping[str, Any]) -> dict[str, str]:
        """Its variables, of the objects that are here; secrets are files, and none of them."""
        found: dict[str, str] = {}
        for source in container.get("envFrom", []):
            settings = self.get("ConfigMap", source["configMapRef"]["name"])
            found |= settings["data"] if settings else {}
        return found | {one["name"]: one["value"] for one in container.get("env", []) if "value" in one}

    def slots(self, pod: Pod) -> int:
        """Shards that a worker works on at once."""
        return int(self.environment(pod.main)["STRANDLINE_WORKERS"])

    def scaler(self, pod: Pod) -> Object | None:
        return next((one for one in self.of("ScaledObject") if one["spec"]["scaleTargetRef"]["name"] == pod.name), None)

    def replicas(self, pod: Pod) -> tuple[int, int]:
        """Fewest and most."""
        scaler = self.scaler(pod)
        if scaler is not None:
            return scaler["spec"].get("minReplicaCount", 0), scaler["spec"].get("maxReplicaCount", 100)
        number = pod.workload["spec"].get("replicas", 1)
        return number, number


def matches(selector: Mapping[str, Any] | None, labels: Mapping[str, str]) -> bool:
    """Does a label selector choose these labels? An empty one chooses all, none nothing."""
    if selector is None:
        return False
    given = all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())
    return given and all(_holds(one, labels) for one in selector.get("matchExpressions", []))


def _holds(expression: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    key, operator, values = expression["key"], expression["operator"], expression.get("values", [])
    if operator in ("Exists", "DoesNotExist"):
        return (key in labels) == (operator == "Exists")
    return (labels.get(key) in values) == (operator == "In")


# ---- Network policies: what none chooses is open; what some choose is open for what one of these lets through.


@dataclass(frozen=True)
class Peer:
    """One end of a connection: a pod of ours, or somebody in another namespace, or an address outside (neither)."""

    pod: Pod | None = None
    namespace: str = ""


def let_through(manifests: Manifests, source: Peer, target: Peer, port: int) -> bool:
    """May the source open a TCP connection to that port of the target?"""
    out = source.pod is None or _passes(manifests, source.pod, "Egress", target, port, target.pod)
    return out and (target.pod is None or _passes(manifests, target.pod, "Ingress", source, port, target.pod))


def _passes(manifests: Manifests, chosen: Pod, direction: str, other: Peer, port: int, listens: Pod | None) -> bool:
    policies = [
        one["spec"]
        for one in manifests.of("NetworkPolicy")
        if matches(one["spec"]["podSelector"], chosen.labels) and direction in one["spec"]["policyTypes"]
    ]
    rules = [rule for one in policies for rule in one.get(direction.lower(), [])]
    side = "to" if direction == "Egress" else "from"
    return not policies or any(
        _names(rule.get(side), other) and _has_port(rule.get("ports"), port, listens) for rule in rules
    )


def _names(peers: Sequence[Mapping[str, Any]] | None, other: Peer) -> bool:
    return peers is None or any(_is(one, other) for one in peers)


def _is(peer: Mapping[str, Any], other: Peer) -> bool:
    if "ipBlock" in peer:
        return other.pod is None and not other.namespace  # somewhere outside: which address it has nobody knows here
    if "namespaceSelector" in peer:
        return bool(other.namespace) and matches(
            peer["namespaceSelector"], {"kubernetes.io/metadata.name": other.namespace}
        )
    return other.pod is not None and matches(peer["podSelector"], other.pod.labels)


def _has_port(ports: Sequence[Mapping[str, Any]] | None, port: int, listens: Pod | None) -> bool:
    names = {one.get("name"): one["containerPort"] for one in (listens.main.get("ports", []) if listens else [])}
    return ports is None or any(
        one.get("protocol", "TCP") == "TCP"
        and (
            one.get("port") in (None, port, *[n for n in names if names[n] == port])
            or ("endPort" in one and one["port"] <= port <= one["endPort"])
        )
        for one in ports
    )


def walk(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Each value within, with its path."""
    yield path, value
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from walk(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from walk(inner, f"{path}[{number}]")
