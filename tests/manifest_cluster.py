"""What the manifests of k8s/ must hold of the cluster as a whole: who scales whom, who reaches whom, who may go."""

import re
from collections.abc import Iterator

import psycopg

from tasks.settings import load
from tests.controllers import share
from tests.manifest_rules import CONNECTIONS_OF_OTHERS, PORTS, Rule, queues_of
from tests.manifests import Manifests, Object, Peer, Pod, let_through

DATABASE, REDIS, PUBLIC = PORTS["postgres"], PORTS["valkey"], 443
# In these namespaces others run, as they usually do.
KEDA, PROMETHEUS, INGRESS = "keda", "monitoring", "ingress-nginx"


def scaling(manifests: Manifests) -> Iterator[str]:
    """Each scaler has a target that has no other number of replicas, and counts as its pods work."""
    for one in manifests.of("ScaledObject"):
        spec, name = one["spec"], f"ScaledObject {one['metadata']['name']}"
        target = manifests.get("Deployment", spec["scaleTargetRef"]["name"])
        if target is None:
            yield f"{name}: there is no Deployment {spec['scaleTargetRef']['name']}"
            continue
        if "replicas" in target["spec"]:
            yield f"{name}: its target has a number of replicas of its own"
        if not spec.get("minReplicaCount", 0) <= spec.get("fallback", {}).get("replicas", -1):
            yield f"{name}: without the database there were fewer than its least"
        pod = manifests.pod(target["metadata"]["name"])
        yield from (f"{name}: {wrong}" for trigger in spec["triggers"] for wrong in _counting(manifests, pod, trigger))


def _counting(manifests: Manifests, pod: Pod, trigger: Object) -> Iterator[str]:
    given = trigger["metadata"]
    if manifests.get("TriggerAuthentication", trigger["authenticationRef"]["name"]) is None:
        yield f"there is no TriggerAuthentication {trigger['authenticationRef']['name']}"
    if given["targetQueryValue"] != str(manifests.slots(pod)):
        yield f"a pod has {manifests.slots(pod)} slots, and is counted for {given['targetQueryValue']}"
    for queue in re.findall(r"queue = '(\w+)'", given["query"]):
        if queue not in queues_of(pod):
            yield f"it counts the work of {queue}, which its target does not take"
    window = load({"STRANDLINE_SCAN_WINDOW": manifests.environment(pod.main)["STRANDLINE_SCAN_WINDOW"]}).scan_window
    if re.findall(r"least\(open, (\d+)\)", given["query"]) != [str(window)]:
        yield f"of a scan {window} shards may be in flight, and it counts another number"


def counted(manifests: Manifests, connection: psycopg.Connection) -> dict[str, float | str]:
    """What each scaler's query gives on a database, or what that answers."""
    found: dict[str, float | str] = {}
    for one in manifests.of("ScaledObject"):
        for trigger in one["spec"]["triggers"]:
            try:
                [row] = connection.execute(trigger["metadata"]["query"]).fetchall()
                found[one["metadata"]["name"]] = float(row[0])
            except psycopg.Error as error:
                found[one["metadata"]["name"]] = f"{type(error).__name__}: {error}"
    return found


def drains(manifests: Manifests) -> Iterator[str]:
    """Of whom there are several one may be drained, and one alone is left alone by budgets."""
    for one in manifests.of("PodDisruptionBudget"):
        spec, name = one["spec"], f"PodDisruptionBudget {one['metadata']['name']}"
        for pod in manifests.pods:
            if spec["selector"]["matchLabels"].items() <= dict(pod.labels).items():
                fewest = manifests.replicas(pod)[0]
                if _may_go(spec, fewest) < 1:
                    yield f"{name}: of {fewest} {pod.name} none may be drained"


def _may_go(budget: Object, replicas: int) -> int:
    if "maxUnavailable" in budget:
        return share(budget["maxUnavailable"], replicas, up=True)
    return replicas - share(budget["minAvailable"], replicas, up=True)


def one_beat(manifests: Manifests) -> Iterator[str]:
    pod = manifests.pod("beat")
    if manifests.replicas(pod) != (1, 1) or pod.workload["spec"]["strategy"] != {"type": "Recreate"}:
        yield "beat is not one, or two while it is replaced"


def reached(manifests: Manifests) -> Iterator[str]:
    """Who needs somebody reaches him, and nobody else does."""
    stores = {name: Peer(next((pod for pod in manifests.pods if pod.name == name), None)) for name in PORTS}
    database, redis = stores["postgres"], stores["valkey"]
    api, flower = Peer(manifests.pod("api")), Peer(manifests.pod("flower"))
    ours = [pod for pod in manifests.pods if pod.role]
    needed = [(Peer(pod), database, DATABASE) for pod in ours]
    needed += [(Peer(pod), redis, REDIS) for pod in ours if pod.role != "migrate"]
    needed += [(Peer(pod), Peer(), PUBLIC) for pod in ours if _tells_webhooks(pod)]
    needed += [(Peer(namespace=INGRESS), api, PORTS["api"]), (Peer(namespace=INGRESS), flower, PORTS["flower"])]
    if manifests.of("ServiceMonitor"):
        needed.append((Peer(namespace=PROMETHEUS), api, PORTS["api"]))
    if manifests.of("ScaledObject") and database.pod:
        needed.append((Peer(namespace=KEDA), database, DATABASE))
    for source, target, port in needed:
        if not let_through(manifests, source, target, port):
            yield f"{_who(source)} does not reach {_who(target)} at {port}"
    if manifests.of("NetworkPolicy") and manifests.get("NetworkPolicy", "default-deny"):
        stranger = Peer(namespace="default")
        refused = [(stranger, Peer(pod), PORTS.get(pod.role or pod.name, 80)) for pod in manifests.pods]
        refused += [(Peer(pod), Peer(), PUBLIC) for pod in manifests.pods if not _tells_webhooks(pod)]
        for source, target, port in refused:
            if let_through(manifests, source, target, port):
                yield f"{_who(source)} reaches {_who(target)} at {port}"


def _tells_webhooks(pod: Pod) -> bool:
    return pod.role == "worker" and "bulk" in queues_of(pod)


def _who(peer: Peer) -> str:
    return peer.pod.name if peer.pod else f"namespace {peer.namespace}" if peer.namespace else "an address outside"


def connections(manifests: Manifests) -> Iterator[str]:
    """PostgreSQL, where it is brought along, has a connection for whoever may want one: two for each slot."""
    if manifests.get("StatefulSet", "postgres") is None:
        return
    words = " ".join(manifests.pod("postgres").main["args"])
    most = int(re.findall(r"max_connections=(\d+)", words)[0])
    workers = [pod for pod in manifests.pods if pod.role == "worker"]
    needed = sum(2 * manifests.slots(pod) * manifests.replicas(pod)[1] for pod in workers) + CONNECTIONS_OF_OTHERS
    if most < needed:
        yield f"PostgreSQL has {most} connections, and {needed} may be wanted"


RULES: list[Rule] = [scaling, drains, one_beat, reached, connections]
