"""k8s/: what is built holds what it must, and each mistake that was planted is seen."""

import re
import stat
import subprocess
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from sqlalchemy import Engine

from tests import crds, manifest_cluster, manifest_rules
from tests.manifests import K8S, OVERLAYS, Manifests, Object, _built, build
from tests.storage import ONLY_POSTGRES, add_tenant, claimed, complete, start_scan

pytestmark = pytest.mark.needs("kubectl")

RULES = [*manifest_rules.RULES, *manifest_cluster.RULES]


def findings(manifests: Manifests) -> list[str]:
    found = [sentence for rule in RULES for sentence in rule(manifests)]
    return found + [f"{one['kind']}: {wrong}" for one in manifests.objects for wrong in crds.wrong(one)]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_holds_all_rules(overlay: str) -> None:
    manifests = build(f"overlays/{overlay}")
    assert len(manifests.pods) >= 6 and findings(manifests) == []


# ---- Planted mistakes

Plant = Callable[[Manifests], Any]


def container(manifests: Manifests, name: str) -> Object:
    return manifests.pod(name).main


def spec(manifests: Manifests, kind: str, name: str) -> Object:
    found = manifests.get(kind, name)
    assert found is not None, name
    return found["spec"]


def settings(manifests: Manifests) -> Object:
    [found] = manifests.of("ConfigMap")
    return found["data"]


def trigger(manifests: Manifests) -> Object:
    return spec(manifests, "ScaledObject", "worker-bulk")["triggers"][0]["metadata"]


def without(manifests: Manifests, kind: str, name: str) -> None:
    manifests.objects.remove(manifests.get(kind, name))


def writable(manifests: Manifests) -> None:
    [mount] = [one for one in container(manifests, "worker-bulk")["volumeMounts"] if one["name"] == "tenants"]
    del mount["readOnly"]


PLANTED: list[tuple[str, Plant, str]] = [
    ("2Gigs", lambda m: container(m, "api")["resources"]["limits"].update(memory="2Gigs"), "'2Gigs' is no quantity"),
    ("cpu: -500m", lambda m: container(m, "beat")["resources"]["requests"].update(cpu="-500m"),
     "'-500m' is no quantity"),
    ("restartPolicy: Sometimes", lambda m: m.pod("worker-bulk").spec.update(restartPolicy="Sometimes"),
     "restartPolicy Sometimes"),
    ("a Job that is always restarted", lambda m: m.pod("migrate-0-1-0").spec.update(restartPolicy="Always"),
     "restartPolicy Always"),
    ("a selector without match",
     lambda m: spec(m, "Deployment", "api")["selector"]["matchLabels"].update({"app.kubernetes.io/name": "apis"}),
     "does not match its own pods"),
    ("a service without pods", lambda m: spec(m, "Service", "flower").update(selector={"app": "flower"}),
     "matches no pod"),
    ("a policy for nobody",
     lambda m: spec(m, "NetworkPolicy", "webhooks").update(podSelector={"matchLabels": {"app": "worker"}}),
     "matches no pod"),
    ("a monitor without service",
     lambda m: spec(m, "ServiceMonitor", "strandline").update(selector={"matchLabels": {"app": "api"}}),
     "matches no service"),
    ("a probe's command that is not in the image",
     lambda m: container(m, "worker-bulk")["livenessProbe"]["exec"].update(command=["pgrep", "strandline"]),
     "pgrep is not in its image"),
    ("a probe for what is not told",
     lambda m: container(m, "beat")["livenessProbe"]["exec"].update(command=["healthy", "well"]),
     "`healthy` knows no 'well'"),
    ("a probe of a page that is not there",
     lambda m: container(m, "api")["readinessProbe"]["httpGet"].update(path="/healthz"), "nobody answers /healthz"),
    ("an option that the program does not know",
     lambda m: container(m, "worker-bulk")["args"].append("--concurrency=4"),
     "No such option"),
    ("a command that the program does not know", lambda m: container(m, "beat").update(args=["scheduler"]),
     "no command scheduler"),
    ("a queue without consumer",
     lambda m: container(m, "worker-bulk").update(args=["worker", "--queues", "control"]),
     "a queue without consumer: bulk"),
    ("a consumer of what is no queue",
     lambda m: container(m, "worker-bulk").update(args=["worker", "--queues", "bulk,slow"]), "takes from slow"),
    ("a grace shorter than soft shutdown",
     lambda m: m.pod("worker-bulk").spec.update(terminationGracePeriodSeconds=10), "killed after 10 s"),
    ("an API whose end Services hear of too late",
     lambda m: container(m, "api")["lifecycle"]["preStop"].update(sleep={"seconds": 25}), "needs up to 45"),
    ("replicas beside a scaler", lambda m: spec(m, "Deployment", "worker-bulk").update(replicas=3),
     "number of replicas of its own"),
    ("a scaler without target",
     lambda m: spec(m, "ScaledObject", "worker-bulk")["scaleTargetRef"].update(name="workers"),
     "there is no Deployment workers"),
    ("a scaler that counts others' work",
     lambda m: trigger(m).update(query=trigger(m)["query"].replace("'bulk'", "'interactive'")),
     "does not take"),
    ("a scaler for pods of another size", lambda m: trigger(m).update(targetQueryValue="8"), "counted for 8"),
    ("a tenant that drives the scaler alone",
     lambda m: settings(m).update(STRANDLINE_SCAN_WINDOW="1000"), "counts another number"),
    ("a budget that blocks every drain",
     lambda m: spec(m, "PodDisruptionBudget", "api").update(maxUnavailable=0), "none may be drained"),
    ("a budget of as many as there are",
     lambda m: [spec(m, "PodDisruptionBudget", "api").pop("maxUnavailable"),
                spec(m, "PodDisruptionBudget", "api").update(minAvailable="100%")], "none may be drained"),
    ("a floating tag", lambda m: container(m, "api").update(image="registry.example.com/strandline:latest"),
     "another tomorrow"),
    ("an image without tag", lambda m: container(m, "valkey").update(image="docker.io/valkey/valkey"),
     "another tomorrow"),
    ("a migration of another release", lambda m: container(m, "migrate-0-1-0").update(image="strandline:0.2.0"),
     "does not carry the image's tag"),
    ("a secret in a ConfigMap",
     lambda m: settings(m).update(STRANDLINE_FLOWER_AUTH="ops:hunter22"), "STRANDLINE_FLOWER_AUTH is a secret"),
    ("an address with its password in a ConfigMap",
     lambda m: settings(m).update(ADDRESS="redis://:hunter22@valkey:6379"), "ADDRESS is a secret"),
    ("a secret in a variable",
     lambda m: container(m, "api")["env"].append({"name": "STRANDLINE_API_TOKENS", "valueFrom": {
         "secretKeyRef": {"name": "strandline", "key": "api_tokens"}}}), "is a secret in a variable"),
    ("a Secret among the manifests",
     lambda m: m.objects.append({"kind": "Secret", "apiVersion": "v1", "metadata": {"name": "strandline"}}),
     "among the manifests"),
    ("a key that the Secret does not have",
     lambda m: m.pod("flower").spec["volumes"][-1]["secret"]["items"][0].update(key="flower_password"), "has no key"),
    ("a policy that cuts a worker from its database",
     lambda m: spec(m, "NetworkPolicy", "to-stores")["podSelector"]["matchExpressions"][1]["values"].append(
         "worker-bulk"), "worker-bulk does not reach postgres"),
    ("a database that lets nobody in",
     lambda m: spec(m, "NetworkPolicy", "to-postgres")["ingress"][0]["from"].pop(0), "does not reach postgres"),
    ("a database that KEDA does not reach",
     lambda m: spec(m, "NetworkPolicy", "to-postgres")["ingress"][0]["from"].pop(1),
     "namespace keda does not reach postgres"),
    ("a policy for another port",
     lambda m: spec(m, "NetworkPolicy", "to-stores")["egress"][1]["ports"][0].update(port=6380),
     "does not reach valkey"),
    ("a policy that lets everybody in",
     lambda m: spec(m, "NetworkPolicy", "to-flower")["ingress"][0].pop("from"), "namespace default reaches flower"),
    ("a writable tenant volume", writable, "/data can be written to"),
    ("a writable claim",
     lambda m: [one["persistentVolumeClaim"].pop("readOnly") for one in m.pod("api").spec["volumes"]
                if "persistentVolumeClaim" in one], "the claim tenants can be written to"),
    ("a group that would be given all files of the tenants",
     lambda m: m.pod("worker-bulk").spec["securityContext"].update(fsGroup=10001), "to its fsGroup"),
    ("a missing limit", lambda m: container(m, "flower")["resources"].pop("limits"), "has no limit"),
    ("a limit above the request",
     lambda m: container(m, "flower")["resources"]["limits"].update(memory="1Gi"), "no limit that is its request"),
    ("a probe slower than its period",
     lambda m: container(m, "worker-bulk")["livenessProbe"].update(timeoutSeconds=30), "longer than its period"),
    ("a missing probe", lambda m: container(m, "beat").pop("livenessProbe"), "beat has no livenessProbe"),
    ("a config key that the program does not know", lambda m: settings(m).update(STRANDLINE_SCAN_WINDOWS="16"),
     "unknown setting STRANDLINE_SCAN_WINDOWS"),
    ("a value that the program refuses", lambda m: settings(m).update(STRANDLINE_LOG_FORMAT="xml"),
     "STRANDLINE_LOG_FORMAT='xml'"),
    ("a file where nothing is mounted",
     lambda m: settings(m).update(STRANDLINE_REDIS_URL_FILE="/run/secrets/redis_url"), "nothing is mounted there"),
    ("a port that nobody listens on",
     lambda m: container(m, "api")["ports"][0].update(containerPort=8000), "nobody listens on its port 8000"),
    ("a service for a port that is not there",
     lambda m: spec(m, "Service", "api")["ports"][0].update(targetPort="https"), "api has no port https"),
    ("a root that can be written to",
     lambda m: container(m, "api")["securityContext"].update(readOnlyRootFilesystem=False), "may write to its root"),
    ("a user with rights", lambda m: m.pod("flower").spec["securityContext"].update(runAsUser=0), "user of its own"),
    ("variables of services, which the program would take for its own",
     lambda m: m.pod("api").spec.pop("enableServiceLinks"), "enableServiceLinks is not off"),
    ("a token of the cluster", lambda m: m.pod("beat").spec.pop("automountServiceAccountToken"),
     "automountServiceAccountToken is not off"),
    ("a worker that migrates", lambda m: m.pod("worker-bulk").spec["initContainers"][0].update(args=["migrate"]),
     "does not wait for the schema"),
    ("a beat that is away during a migration",
     lambda m: m.pod("beat").spec.update(initContainers=m.pod("worker-bulk").spec["initContainers"]),
     "beat never asks the database, and waits"),
    ("two beats", lambda m: spec(m, "Deployment", "beat").update(replicas=2), "beat is not one"),
    ("too few connections", lambda m: container(m, "postgres").update(args=["-c", "max_connections=50"]),
     "50 connections"),
    ("a field that KEDA does not know",
     lambda m: spec(m, "ScaledObject", "worker-bulk").update(maxReplicas=5), "maxReplicas"),
    ("a rule that Prometheus does not take",
     lambda m: spec(m, "PrometheusRule", "strandline")["groups"][0]["rules"][0].pop("expr"), "expr"),
    ("no account", lambda m: without(m, "ServiceAccount", "strandline"), "no ServiceAccount strandline"),
]  # fmt: skip


@pytest.mark.parametrize(("plant", "seen"), [pytest.param(*rest, id=name) for name, *rest in PLANTED])
def test_a_planted_mistake_is_seen(plant: Plant, seen: str) -> None:
    manifests = build("overlays/ci")
    plant(manifests)
    assert any(seen in sentence for sentence in findings(manifests)), findings(manifests)


def test_messages_are_sent_only_to_queues_that_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest_rules, "QUEUES", (*manifest_rules.QUEUES, "webhooks"))
    found = findings(build("overlays/ci"))
    assert "messages go to webhooks, which is no queue" in found and "a queue without consumer: webhooks" in found


# ---- What scales


@ONLY_POSTGRES
def test_scalers_count_what_is_ready_or_leased_and_of_each_scan_no_more_than_its_window(
    engine: Engine, migrated_url: str
) -> None:
    for name, number in (("huge", 500), ("small", 3)):
        start_scan(engine, add_tenant(engine, name), number)
    leased = start_scan(engine, add_tenant(engine, "worked-on"), 2)
    claimed(engine, leased)
    complete(engine, claimed(engine, leased, 2))
    role = f"keda_{uuid.uuid4().hex}"
    statements = re.findall(r"```sql\n(.*?)```", (K8S / "README.md").read_text(), re.DOTALL)[0].replace("keda", role)
    manifests, address = build("overlays/production"), migrated_url.replace("+psycopg", "")
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute(statements)
        try:
            assert manifest_cluster.counted(manifests, connection) == {"worker-bulk": 20, "worker-interactive": 0}
            with psycopg.connect(address.replace("strandline@", f"{role}@"), autocommit=True) as keda:
                assert manifest_cluster.counted(manifests, keda)["worker-bulk"] == 20
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    keda.execute("SELECT * FROM tenants")
            trigger(manifests)["query"] = trigger(manifests)["query"].replace("shards", "shard")
            assert "UndefinedTable" in str(manifest_cluster.counted(manifests, connection)["worker-bulk"])
        finally:
            connection.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


# ---- The same as elsewhere


def test_the_rules_are_those_of_compose() -> None:
    [rules] = build("overlays/production").of("PrometheusRule")
    assert rules["spec"] == yaml.safe_load((K8S.parent / "compose" / "prometheus" / "alerts.yml").read_text())


def test_secrets_are_made_by_a_script_that_needs_nothing() -> None:
    script = K8S / "secrets.sh"
    assert script.stat().st_mode & stat.S_IXUSR
    made = [yaml.safe_load(subprocess.run([script], capture_output=True, check=True, text=True).stdout) for _ in "ab"]
    first, second = (one["stringData"] for one in made)
    assert set(first) == set(second) and first["redis_url"] != second["redis_url"]
    assert first["postgres_password"] in first["database_url"] and first["valkey_password"] in first["valkey_conf"]
    assert made[0]["metadata"] == {"name": "strandline", "namespace": "strandline"}


def test_another_size_of_workers_is_built_as_the_readme_says(tmp_path: Path) -> None:
    text = (K8S / "README.md").read_text()
    [snippet] = re.findall(r"```yaml\n(resources: .*?)```", text, re.DOTALL)
    more = yaml.safe_load(snippet)
    top = tmp_path / "k8s"
    subprocess.run(["cp", "-r", K8S, top], check=True)
    mine = top / "overlays" / "mine"
    subprocess.run(["cp", "-r", top / "overlays" / "production", mine], check=True)
    overlay = yaml.safe_load((mine / "kustomization.yaml").read_text())
    overlay["resources"], overlay["components"] = more["resources"], overlay["components"] + more["components"]
    (mine / "kustomization.yaml").write_text(yaml.dump(overlay))
    manifests = build(mine)
    assert manifests.pod("worker-large").main["image"] == manifests.pod("worker-bulk").main["image"]
    assert findings(manifests) == []

    overlay["components"] = ["../../components/network-policy", "../../components/postgres", "../../components/valkey"]
    del overlay["patches"]
    (mine / "kustomization.yaml").write_text(yaml.dump(overlay))
    _built.cache_clear()
    manifests = build(mine)
    assert findings(manifests) == [] and manifests.of("ScaledObject") == []
