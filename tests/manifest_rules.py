"""What the manifests of k8s/ must hold beyond their schemas: each rule tells what is wrong, in sentences.

A schema takes `2Gigs` for a quantity, and knows neither our settings nor our queues nor who needs the database.
"""

import re
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import click

from db.types import UsageError
from orchestrator.cli import group
from tasks import health
from tasks.app import QUEUES, make_app
from tasks.drain import WITHIN_S
from tasks.settings import IN_FILE, PREFIX, SECRET, load
from tests.containers import TOP
from tests.manifests import K8S, Manifests, Object, Pod, is_ours, matches, walk

Rule = Callable[[Manifests], Iterator[str]]

SUFFIXES = {"": 1, "m": Decimal("0.001"), "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12,
            "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}  # fmt: skip
RESTARTS = {"Deployment": {"Always"}, "StatefulSet": {"Always"}, "Job": {"OnFailure", "Never"}}
PROBES = ("startupProbe", "livenessProbe", "readinessProbe")
# Seconds that a worker has after WITHIN_S to end its children and itself, before it is killed.
TO_BE_GONE_S = 5
# What is in the images that are none of ours, as far as it is called.
IN_IMAGE = {"postgres": {"pg_isready", "sh"}, "valkey": {"valkey-server", "valkey-cli", "sh"}}
PORTS = {"api": 8080, "flower": 5555, "postgres": 5432, "valkey": 6379}
# What answers without a token.
ANSWERED = {"api": {"/livez", "/readyz"}, "flower": {"/healthcheck"}}
# Of PostgreSQL that is brought along: commands, and what administrators open.
CONNECTIONS_OF_OTHERS = 40


def amount(text: Any) -> Decimal:
    """A quantity of Kubernetes. Raises ValueError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([a-zA-Z]*)", str(text))
    if found is None or found[2] not in SUFFIXES:
        raise ValueError(f"{text!r} is no quantity")
    return Decimal(found[1]) * SUFFIXES[found[2]]


def quantities(manifests: Manifests) -> Iterator[str]:
    for one in manifests.objects:
        for path, value in walk(one):
            for section in ("requests", "limits"):
                if path.endswith(f".{section}") and isinstance(value, dict):
                    yield from _unreadable(one, path, value)
            if path.endswith(".sizeLimit"):
                yield from _unreadable(one, path, {"": value})


def _unreadable(one: Object, path: str, values: Object) -> Iterator[str]:
    for name, value in values.items():
        try:
            amount(value)
        except ValueError as error:
            yield f"{_name(one)}: {path} {name}: {error}"


def memory(manifests: Manifests) -> Iterator[str]:
    """What is asked for is what may be used, or a node that is full kills whom it likes; each container says both."""
    for pod in manifests.pods:
        for container in pod.containers:
            given = container.get("resources", {})
            asked, most = given.get("requests", {}), given.get("limits", {})
            if "memory" not in most or asked.get("memory") != most["memory"]:
                yield f"{pod.name}: memory of {container['name']} has no limit that is its request"
            if "cpu" not in asked:
                yield f"{pod.name}: {container['name']} asks for no processor"


def restarts(manifests: Manifests) -> Iterator[str]:
    for pod in manifests.pods:
        policy = pod.spec.get("restartPolicy", "Always")
        if policy not in RESTARTS[pod.kind]:
            yield f"{pod.name}: restartPolicy {policy} is none of a {pod.kind}"


def selectors(manifests: Manifests) -> Iterator[str]:
    """Whatever chooses pods by labels chooses some."""
    for pod in manifests.pods:
        if pod.kind != "Job" and not matches(pod.workload["spec"]["selector"], pod.labels):
            yield f"{_name(pod.workload)}: its selector does not match its own pods"
    chosen = [(one, {"matchLabels": one["spec"]["selector"]}) for one in manifests.of("Service")]
    chosen += [(one, one["spec"]["selector"]) for one in manifests.of("PodDisruptionBudget")]
    for one in manifests.of("NetworkPolicy"):
        chosen.append((one, one["spec"]["podSelector"]))
        chosen += [
            (one, value)
            for path, value in walk(one["spec"])
            if path.endswith(".podSelector") and "namespaceSelector" not in _at(one["spec"], path.rpartition(".")[0])
        ]
    for one, selector in chosen:
        if not any(matches(selector, pod.labels) for pod in manifests.pods):
            yield f"{_name(one)}: its selector {selector} matches no pod"
    for one in manifests.of("ServiceMonitor"):
        if not any(matches(one["spec"]["selector"], found["metadata"]["labels"]) for found in manifests.of("Service")):
            yield f"{_name(one)}: its selector matches no service"


def _at(value: Any, path: str) -> Any:
    for name, number in re.findall(r"([^.\[\]]+)|\[(\d+)\]", path):
        value = value[name] if name else value[int(number)]
    return value


def commands(manifests: Manifests) -> Iterator[str]:
    """What containers and probes call is in the image, and takes its arguments."""
    ours = set(re.findall(r"/usr/local/bin/(\S+)", (TOP / "compose" / "Dockerfile").read_text())) | {"strandline"}
    for pod in manifests.pods:
        for container in pod.containers:
            there = ours if is_ours(container) else IN_IMAGE[pod.name]
            called = [container["command"]] if "command" in container else []
            called += [container[probe]["exec"]["command"] for probe in PROBES if "exec" in container.get(probe, {})]
            for words in called:
                if words[0] not in there:
                    yield f"{pod.name}: {words[0]} is not in its image"
                elif words[0] == "healthy" and words[1] not in (health.ALIVE, health.READY):
                    yield f"{pod.name}: `healthy` knows no {words[1]!r}"
            if is_ours(container):
                yield from _misunderstood(pod, container["args"])


def _misunderstood(pod: Pod, words: list[str]) -> Iterator[str]:
    found = group.get_command(click.Context(group), words[0])
    if found is None:
        yield f"{pod.name}: strandline has no command {words[0]}"
        return
    try:
        found.make_context(words[0], list(words[1:]))
    except click.ClickException as error:
        yield f"{pod.name}: strandline {words[0]}: {error.format_message()}"


def queues(manifests: Manifests) -> Iterator[str]:
    """Whatever messages are sent to is declared, and taken by somebody."""
    declared = {queue.name for queue in make_app(load({PREFIX + "REDIS_URL": "redis://nowhere"})).conf.task_queues}
    taken = {name for pod in manifests.pods if pod.role == "worker" for name in queues_of(pod)}
    yield from (f"a queue without consumer: {name}" for name in sorted(set(QUEUES) - taken))
    yield from (f"a worker takes from {name}, to which nothing is sent" for name in sorted(taken - set(QUEUES)))
    yield from (f"messages go to {name}, which is no queue" for name in sorted(set(QUEUES) - declared))


def queues_of(pod: Pod) -> list[str]:
    """Those that a worker takes from."""
    words = pod.main["args"]
    return str(words[words.index("--queues") + 1]).split(",") if "--queues" in words else list(QUEUES)


def ends(manifests: Manifests) -> Iterator[str]:
    """Who is told to end has the time that it needs."""
    for pod in manifests.pods:
        before = pod.main.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        needed = before + (WITHIN_S + TO_BE_GONE_S if pod.role in ("worker", "api") else 0)
        if pod.grace_s < needed:
            yield f"{pod.name}: it is killed after {pod.grace_s:g} s, and needs up to {needed:g}"


def probes(manifests: Manifests) -> Iterator[str]:
    for pod in manifests.pods:
        if pod.kind == "Job":
            continue
        for name in PROBES:
            probe = pod.main.get(name)
            if probe is None:
                yield f"{pod.name} has no {name}"
            elif probe.get("timeoutSeconds", 1) >= probe.get("periodSeconds", 10):
                yield f"{pod.name}: the {name} may take longer than its period"
            elif "httpGet" in probe and probe["httpGet"]["path"] not in ANSWERED.get(pod.role, ()):
                yield f"{pod.name}: nobody answers {probe['httpGet']['path']}"


def ports(manifests: Manifests) -> Iterator[str]:
    """A port that is named is one that somebody listens on."""
    for pod in manifests.pods:
        named = {one["name"]: one["containerPort"] for one in pod.main.get("ports", [])}
        listens = _listens(pod)
        yield from (
            f"{pod.name}: nobody listens on its port {number}" for number in named.values() if number != listens
        )
        for name in PROBES:
            port = pod.main.get(name, {}).get("httpGet", {}).get("port")
            if port is not None and port not in named and port not in named.values():
                yield f"{pod.name}: the {name} asks port {port}, which it does not have"
        for service in manifests.of("Service"):
            if matches({"matchLabels": service["spec"]["selector"]}, pod.labels):
                for one in service["spec"]["ports"]:
                    target = one.get("targetPort", one["port"])
                    if target not in named and target not in named.values():
                        yield f"{_name(service)}: {pod.name} has no port {target}"
    for monitor in manifests.of("ServiceMonitor"):
        there = {port["name"] for one in manifests.of("Service") for port in one["spec"]["ports"]
                 if matches(monitor["spec"]["selector"], one["metadata"]["labels"])}  # fmt: skip
        for end in monitor["spec"]["endpoints"]:
            if end["port"] not in there:
                yield f"{_name(monitor)}: its service has no port {end['port']}"


def _listens(pod: Pod) -> int | None:
    words = pod.main.get("args", [])
    return int(words[words.index("--port") + 1]) if "--port" in words else PORTS.get(pod.role or pod.name)


def settings(manifests: Manifests) -> Iterator[str]:
    """Each process can be started with the variables that it is given."""
    for pod in manifests.pods:
        for container in filter(is_ours, pod.containers):
            given = manifests.environment(container)
            mounted = {one["mountPath"] for one in container.get("volumeMounts", [])}
            for name, path in given.items():
                if name.endswith(IN_FILE) and path.rpartition("/")[0] not in mounted:
                    yield f"{pod.name}: {name} names {path}, and nothing is mounted there"
            try:
                load({name: value for name, value in given.items() if not name.endswith(IN_FILE)}
                     | {name.removesuffix(IN_FILE): "" for name in given if name.endswith(IN_FILE)})  # fmt: skip
            except UsageError as error:
                yield f"{pod.name}: {error}"


def references(manifests: Manifests) -> Iterator[str]:
    """What is referred to is there. Of the Secret's keys those are that secrets.sh makes."""
    keys = set(re.findall(r"^  (\w+): ", (K8S / "secrets.sh").read_text().partition("stringData:")[2], re.MULTILINE))
    for one in manifests.objects:
        for path, value in walk(one):
            if path.endswith("configMapRef.name") and manifests.get("ConfigMap", value) is None:
                yield f"{_name(one)}: there is no ConfigMap {value}"
            if path.endswith("serviceAccountName") and manifests.get("ServiceAccount", value) is None:
                yield f"{_name(one)}: there is no ServiceAccount {value}"
            if isinstance(value, dict) and {"name", "key"} <= set(value) and value["name"] == "strandline":
                yield from _without_key(one, value["key"], keys)
            if path.endswith(".secret") and isinstance(value, dict):
                for item in value.get("items", [{"key": "all of them"}]):
                    yield from _without_key(one, item["key"], keys)


def _without_key(one: Object, key: str, keys: set[str]) -> Iterator[str]:
    if key not in keys:
        yield f"{_name(one)}: the Secret has no key {key}"


def secrets(manifests: Manifests) -> Iterator[str]:
    """Secrets are in files that are mounted, and not in what is built here."""
    telling = re.compile(r"://[^/@\s]*:[^/@\s]+@|\b(password|passwd|secret|token)s?\s*[=:]", re.IGNORECASE)
    names = {PREFIX + name.upper() for name in SECRET} | {PREFIX + "DATABASE_URL", PREFIX + "REDIS_URL"}
    yield from (f"{_name(one)} is among the manifests" for one in manifests.of("Secret"))
    for one in manifests.of("ConfigMap"):
        for key, value in one["data"].items():
            if key in names or re.search("password|passwd|token$|secret$", key, re.IGNORECASE) or telling.search(value):
                yield f"{_name(one)}: {key} is a secret"
    for pod in manifests.pods:
        for container in pod.containers:
            for variable in container.get("env", []):
                if "secretKeyRef" in variable.get("valueFrom", {}) or variable["name"] in names:
                    yield f"{pod.name}: {variable['name']} is a secret in a variable"


def images(manifests: Manifests) -> Iterator[str]:
    """Named by a version, or by what they are; and the migration is named as its image is."""
    for pod in manifests.pods:
        for container in pod.containers:
            name, _, digest = container["image"].partition("@")
            tag = name.rpartition("/")[2].partition(":")[2]
            if not digest and not re.search(r"\d+\.\d+", tag):
                yield f"{pod.name}: the image {container['image']} may be another tomorrow"
            if pod.role == "migrate" and not digest and not pod.name.endswith(tag.replace(".", "-")):
                yield f"{pod.name}: a Job cannot be changed, and its name does not carry the image's tag {tag}"


def tenants_are_only_read(manifests: Manifests) -> Iterator[str]:
    for pod in manifests.pods:
        for volume in pod.spec.get("volumes", []):
            claim = volume.get("persistentVolumeClaim")
            if claim is None:
                continue
            if not claim.get("readOnly"):
                yield f"{pod.name}: the claim {claim['claimName']} can be written to"
            if "fsGroup" in pod.spec.get("securityContext", {}):
                yield f"{pod.name}: Kubernetes would give files of {claim['claimName']} to its fsGroup"
            for container in pod.containers:
                for mount in container.get("volumeMounts", []):
                    if mount["name"] == volume["name"] and not mount.get("readOnly"):
                        yield f"{pod.name}: {mount['mountPath']} can be written to"


def rights(manifests: Manifests) -> Iterator[str]:
    """Users without rights, read-only roots, nothing of the cluster."""
    for pod in manifests.pods:
        given = pod.spec.get("securityContext", {})
        least = 10_000 if pod.role else 1
        if not given.get("runAsNonRoot") or given.get("runAsUser", 0) < least:
            yield f"{pod.name} does not run as a user of its own"
        if given.get("seccompProfile") != {"type": "RuntimeDefault"}:
            yield f"{pod.name} has no seccomp profile"
        for name in ("automountServiceAccountToken", "enableServiceLinks"):
            if pod.spec.get(name) is not False:
                yield f"{pod.name}: {name} is not off"
        for container in pod.containers:
            allowed = container.get("securityContext", {})
            if allowed.get("allowPrivilegeEscalation") is not False or not allowed.get("readOnlyRootFilesystem"):
                yield f"{pod.name}: {container['name']} may write to its root, or gain rights"
            if allowed.get("capabilities") != {"drop": ["ALL"]}:
                yield f"{pod.name}: {container['name']} has capabilities"


def schema_first(manifests: Manifests) -> Iterator[str]:
    """One Job migrates; whoever needs the schema waits for it, and nobody else migrates."""
    jobs = [pod for pod in manifests.pods if pod.role == "migrate" and pod.kind == "Job"]
    if len(jobs) != 1 or jobs[0].main["args"] != ["migrate"]:
        yield "there is not one Job that migrates"
    for pod in manifests.pods:
        before = [one["args"] for one in pod.spec.get("initContainers", []) if is_ours(one)]
        needs_it = pod.role in ("worker", "api")
        if before != ([["migrate", "--wait"]] if needs_it else []):
            yield f"{pod.name} {'does not wait' if needs_it else 'never asks the database, and waits'} for the schema"


def _name(one: Object) -> str:
    return f"{one['kind']} {one['metadata']['name']}"


RULES: list[Rule] = [
    quantities, memory, restarts, selectors, commands, queues, ends, probes, ports, settings, references, secrets,
    images, tenants_are_only_read, rights, schema_first,
]  # fmt: skip
