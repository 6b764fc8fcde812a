"""`make rehearsal`: a cluster's day without a cluster, as the manifests in k8s/ say.

Real workers and beat with the commands, settings, probes and grace times of the built manifests, on PostgreSQL and
Valkey with the options that are there; and, in this process, what Kubernetes does with them: kubelets, rollouts,
disruption budgets, an autoscaler whose number is read from the database. Meanwhile trees change and are scanned. One
line a scene; exit 1 where something does not hold.

What is not as in the manifests: the autoscaler's clock goes faster (--faster); shards are small; nodes are names, and
all share the processors of this machine. What a kubelet learns at its next probe is seen at once.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests import servers
from tests.controllers import share
from tests.manifests import build
from tests.rehearsal_report import lost, table
from tests.rehearsal_stage import Rehearsal, staged, stores

OVERLAY = "ci"
FASTER = 20.0


def objects(overlay: str) -> Sequence[dict[str, Any]]:
    """The manifests of an overlay, built."""
    return build(f"overlays/{overlay}").objects


# The scenes


def start(stage: Rehearsal) -> None:
    with stage.scene("start"):
        pass
    stage.load.join()
    asked = stage.load.all_scanned()
    stage.until(lambda: stage.load.have_ended(asked), "each tenant was scanned once")


def scale_up(stage: Rehearsal) -> None:
    """There is work for six pods."""
    most = stage.scalers[stage.bulk.name].rules.most
    stage.scales = True
    with stage.scene(f"scale up to {most}"):
        stage.load.grow()
        stage.until(lambda: stage.bulk.replicas == most, "as many are wanted as may be")


def upgrade(stage: Rehearsal) -> None:
    """Another image, say: all pods are replaced."""
    with stage.scene("rolling upgrade"):
        for deployment in stage.deployments.values():
            deployment.revision += 1
    away = share(stage.bulk.strategy["rollingUpdate"]["maxUnavailable"], stage.bulk.replicas, up=False)
    _never_fewer(stage, away)


def drain(stage: Rehearsal) -> None:
    """The node on which most is worked on."""
    on_nodes = Counter(pod.node for pod in stage.load.read_by(stage.bulk.ready).values())
    [(node, _)] = on_nodes.most_common(1)
    with stage.scene("node drain"):
        stage.nodes.closed.add(node)
        stage.until(lambda: all(pod.gone for pod in stage.pods if pod.node == node), "the node is empty")
        stage.nodes.closed.remove(node)
    _never_fewer(stage, stage.bulk.may_be_away or 0)


def _never_fewer(stage: Rehearsal, away: int) -> None:
    row, fewest = stage.told[-1], stage.fewest[stage.bulk.name]
    stage.hold(fewest >= stage.bulk.replicas - away, f"{row.scene}: {fewest} of {stage.bulk.replicas} were ready once")
    stage.hold(row.again_s, f"{row.scene}: nobody held a shard, so that nothing is shown")


def evict(stage: Rehearsal) -> None:
    """By a node that is short of memory, or gone: nobody is told."""
    held = stage.load.read_by(stage.bulk.ready)
    [(pod, _)] = Counter(held.values()).most_common(1)
    paths = [path for path, its in held.items() if its is pod]
    with stage.scene("eviction by KILL"):
        pod.kill()
        stage.until(lambda: stage.load.read_by(stage.bulk.ready).keys() >= set(paths), "others read what it had read")
    after_s = stage.told[-1].after_death_s
    stage.hold(len(after_s) >= len(paths), f"eviction: {len(paths)} shards were held, {len(after_s)} were taken over")


def scale_down(stage: Rehearsal) -> None:
    """Little is left to do, and who has to go holds it."""
    held, least = stage.load.read_by(stage.bulk.ready), stage.scalers[stage.bulk.name].rules.least
    first = stage.bulk.ranked()[: stage.bulk.replicas // 2]
    kept = {pod: path for path, pod in held.items() if pod in first}
    with stage.scene(f"scale down to {least}"):
        stage.load.nothing_is_due()
        stage.load.cut(but=kept.values())
        stage.until(lambda: stage.bulk.replicas == least, "as few are wanted as may be")
    stage.hold(stage.told[-1].again_s, "scale down: nobody held a shard, so that nothing is shown")


def end(stage: Rehearsal) -> None:
    """All scans end, nothing was lost, and nobody is left."""
    stage.scales = False
    with stage.scene("the rest"):
        stage.load.cut()
        stage.until(stage.load.is_quiet, "all scans end")
        for name, trigger in stage.triggers.items():
            told = trigger.read().told
            stage.hold(told == 0, f"the trigger of {name} says {told:g} when nothing is left to do")
        asked = stage.load.all_scanned()
        stage.until(lambda: stage.load.have_ended(asked), "each tenant is scanned once more")
    stage.wrong += [f"{scan}" for scan in map(stage.document, asked) if scan["state"] != "succeeded"]
    with stage.scene("the end of all"):
        for deployment in stage.deployments.values():
            deployment.replicas = 0
    stage.wrong += lost(stage.load)
    left = stage.connections()
    stage.hold(left == 0, f"{left} connections to the database are left")


SCENES: tuple[Callable[[Rehearsal], None], ...] = (scale_up, upgrade, drain, evict, scale_down)


def play(stage: Rehearsal) -> None:
    """All of it; what does not hold is in `stage.wrong` then."""
    start(stage)
    with stage.load.changing():
        for scene in SCENES:
            scene(stage)
    end(stage)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--faster", type=float, default=FASTER, help="so many times as fast goes the autoscaler's clock"
    )
    parser.add_argument("--logs", type=Path, help="folder for the logs of all pods")
    given = parser.parse_args()
    built, began_s = objects(OVERLAY), time.monotonic()
    with (
        servers.server_folder() as homes,
        tempfile.TemporaryDirectory() as folder,
        stores(built, homes) as (url, broker),
        staged(built, given.faster, Path(folder), url, broker) as stage,
    ):
        try:
            play(stage)
        finally:
            print(f"{stage.terms()}\n{table(stage.told)}", flush=True)
            if given.logs:
                stage.keep_logs(given.logs)
        print(stage.summary())
    print(f"{time.monotonic() - began_s:.0f} s in all, the autoscaler's clock {given.faster:g} times as fast")
    for sentence in stage.wrong:
        print(f"does not hold: {sentence}")
    sys.exit(bool(stage.wrong))


if __name__ == "__main__":
    main()
