"""Pods without a cluster: real processes, begun, asked and ended as a kubelet does, by what a Deployment says of them.

Their containers are sessions of processes; what is mounted into them are folders here. Nothing is started again within
a pod: one whose process ends by itself is an error.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import processes
from tests.command import STRANDLINE
from tests.manifest_rules import amount
from tests.manifests import GRACE_S
from tests.processes import Running

ROOT = Path(__file__).parent.parent
MOUNTED = {"scratch", "secrets", "tenants"}


@dataclass(frozen=True)
class Probe:
    """A command of the image that tells by its end how a container is."""

    command: Sequence[str]
    every_s: float
    timeout_s: float
    failures: int  # one after the other, after which it counts

    @classmethod
    def of(cls, written: Mapping[str, Any]) -> Probe:
        return cls(
            written["exec"]["command"], written["periodSeconds"], written["timeoutSeconds"], written["failureThreshold"]
        )

    def succeeds(self, env: Mapping[str, str]) -> bool:
        try:
            return subprocess.run(self.command, env=env, capture_output=True, timeout=self.timeout_s).returncode == 0
        except subprocess.TimeoutExpired:
            return False


@dataclass(frozen=True)
class Template:
    """What a Deployment says of its pods, with paths of theirs."""

    name: str
    first: Sequence[Sequence[str]]  # commands of init containers
    args: Sequence[str]
    env: Mapping[str, str]
    mounts: Mapping[str, str]  # from the path in the container to the volume, and the folder in it
    grace_s: float
    memory_mb: int
    startup: Probe
    liveness: Probe
    readiness: Probe

    @classmethod
    def of(cls, deployment: Mapping[str, Any], config: Mapping[str, Mapping[str, str]]) -> Template:
        """`config`: what ConfigMaps hold, by their names."""
        spec = deployment["spec"]["template"]["spec"]
        [container] = spec["containers"]
        mounts = {one["mountPath"]: f"{one['name']}/{one.get('subPath', '')}" for one in container["volumeMounts"]}
        assert {mount.split("/")[0] for mount in mounts.values()} <= MOUNTED, f"no folder stands in for one of {mounts}"
        probes = {name: Probe.of(container[f"{name}Probe"]) for name in ("startup", "liveness", "readiness")}
        return cls(
            deployment["metadata"]["name"], [one["args"] for one in spec.get("initContainers", [])], container["args"],
            _environment(container, config), mounts, spec.get("terminationGracePeriodSeconds", GRACE_S),
            int(amount(container["resources"]["limits"]["memory"])) >> 20, **probes,
        )  # fmt: skip


def _environment(container: Mapping[str, Any], config: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    found = of_the_image()
    for source in container.get("envFrom", ()):
        found |= config[source["configMapRef"]["name"]]
    return found | {one["name"]: one["value"] for one in container.get("env", ())}


def of_the_image() -> dict[str, str]:
    """The settings that the image brings."""
    return dict(re.findall(r"(STRANDLINE_\w+)=(\S+)", (ROOT / "compose/Dockerfile").read_text()))


class Pod:
    """From its first init container to the end of its last process. `look` is one turn of the kubelet."""

    def __init__(self, name: str, template: Template, revision: int, node: str, folder: Path,
                 volumes: Mapping[str, Path], **settings: str) -> None:  # fmt: skip
        self.name, self.template, self.revision, self.node = name, template, revision, node
        self._folders = {"scratch": folder / "scratch", **volumes}
        self.env = self._environment(settings)
        self._first = list(template.first)
        self._container: Running | None = None
        self.process: Running | None = None
        self.wrong: list[str] = []
        self.ready = False
        self._started = False
        self._looked_s = 0.0
        self._failed = 0
        self.began_s = time.monotonic()
        self.ready_after_s: float | None = None
        self._told_s: float | None = None
        self.killed_s: float | None = None  # by the clock on the wall
        self.gone_after_s: float | None = None

    def _environment(self, settings: Mapping[str, str]) -> dict[str, str]:
        """Nothing of ours is in a container but what it is given; there, the control group tells how much memory."""
        programs = [str(Path(sys.executable).parent), str(ROOT / "compose"), os.environ["PATH"]]
        given = {"PATH": ":".join(programs), "PYTHONUNBUFFERED": "1", "TMPDIR": "/tmp"} | dict(self.template.env)
        limit = {"STRANDLINE_MEMORY_LIMIT_MB": str(self.template.memory_mb)}
        return {name: self._there(value) for name, value in given.items()} | limit | settings

    def _there(self, value: str) -> str:
        """A path of the container, as one of ours."""
        for path, mount in self.template.mounts.items():
            if value == path or value.startswith(path + "/"):
                volume, _, below = mount.partition("/")
                folder = self._folders[volume] / below
                folder.mkdir(parents=True, exist_ok=True)
                return str(folder) + value[len(path) :]
        return value

    # What others ask

    @property
    def ending(self) -> bool:
        return self._told_s is not None

    @property
    def killed(self) -> bool:
        return self.killed_s is not None

    @property
    def gone(self) -> bool:
        return self.gone_after_s is not None

    @property
    def log(self) -> bytes:
        return b"" if self.process is None else self.process.stderr.content

    # What is done with it

    def end(self) -> None:
        """It is told to end, by a signal to its first process alone."""
        if self.ending:
            return
        self._told_s, self.ready = time.monotonic(), False
        if self._container is not None:
            self._send(signal.SIGTERM)

    def kill(self) -> None:
        """All its processes at once, and nobody is told."""
        self._told_s = self._told_s or time.monotonic()
        self.killed_s, self.ready = time.time(), False
        assert self._container is not None
        for pid in self._container.alive():
            _send(pid, signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        assert self._container is not None
        _send(self._container.pid, number)

    def look(self) -> None:
        if self.gone:
            return
        if self._told_s is not None:
            self._see_its_end(time.monotonic() - self._told_s)
        elif self._container is None or (self.process is None and self._has_ended()):
            self._go_on()
        elif self.process is not None:
            self._see_its_health()

    def _see_its_end(self, since_s: float) -> None:
        if self._container is None or (self._has_ended() and not self._container.alive()):
            self.gone_after_s = since_s
            self.close()
        elif since_s > self.template.grace_s and not self.killed:
            self.wrong.append(f"{self.name} was not gone after its grace of {self.template.grace_s:g} s")
            self.kill()

    def _go_on(self) -> None:
        """The next init container, or after the last one the process itself."""
        if self._container is not None:
            ended = self._container.wait(1)
            self._container.close()
            if ended.returncode != 0:
                self.wrong.append(f"an init container of {self.name} failed: {ended.stderr!r}")
        args = self._first.pop(0) if self._first else self.template.args
        is_last = args is self.template.args
        self._container = processes.start([STRANDLINE, *args], env=self.env)
        self.process = self._container if is_last else None

    def _see_its_health(self) -> None:
        """Readiness is asked for at each turn until it comes, without a kubelet's period: the time is the pod's own."""
        if self._has_ended():
            assert self.process is not None
            self.wrong.append(f"{self.name} ended by itself: {self.process.stderr.content[-1000:]!r}")
            self._told_s = time.monotonic()
            return
        template = self.template
        self._started = self._started or template.startup.succeeds(self.env)
        if self._started and not self.ready:
            self.ready = template.readiness.succeeds(self.env)
            if self.ready and self.ready_after_s is None:
                self.ready_after_s = time.monotonic() - self.began_s
        if self._started and time.monotonic() - self._looked_s > template.liveness.every_s:
            self._looked_s = time.monotonic()
            self._failed = 0 if template.liveness.succeeds(self.env) else self._failed + 1
            self.ready = template.readiness.succeeds(self.env)
            if self._failed >= template.liveness.failures:
                self.wrong.append(f"{self.name} would have been started again: its liveness failed")

    def _has_ended(self) -> bool:
        assert self._container is not None
        stat = processes.read_stat(self._container.pid)
        return stat is None or stat.ended

    def close(self) -> None:
        """Whatever is left of it."""
        if self._container is not None:
            self._container.close()


def children(pods: Iterable[Pod]) -> dict[int, Pod]:
    """All their processes but the first of each."""
    sessions = {pod.process.pid: pod for pod in pods if pod.process is not None and not pod.gone}
    found = {one.pid: sessions[one.session] for one in processes.everything() if one.session in sessions}
    return {pid: pod for pid, pod in found.items() if pid not in sessions}


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return  # it has ended meanwhile
