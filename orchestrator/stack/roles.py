"""The long-running processes, each as a function that does not return before its process is told to end."""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
import warnings
from typing import Any

from celery import signals
from celery.exceptions import CPendingDeprecationWarning, SecurityWarning

from orchestrator.beat import Beat
from orchestrator.stack.processes import be_killed_first, die_with_parent
from tasks import logs, wanted
from tasks.app import QUEUES, App
from tasks.consumer import Doubt, Healthy, Presence
from tasks.loading import all_stays
from tasks.memory.pool import TaskPool


def preload() -> None:
    """Import what a worker needs before it is forked, so that it is imported once."""
    with all_stays():
        import kombu.transport.redis  # noqa: F401

        import tasks.finish
        import tasks.scan_shard  # noqa: F401

    gc.collect()
    gc.freeze()  # a child that looks through what its parent opened since leaves these pages shared


def worker(
    app: App, *, processes: int, serving: bool, level: str, ours: str | None = None, queues: str | None = None
) -> None:
    """A worker with a prefork pool. Its children die with it, also by kill -9.

    `serving`: somebody watches, so that it sends events. `level` is the least that is logged, `ours` that of our own
    lines: one a shard and a scan is wanted where Celery's for every message are not.
    """
    main = os.getpid()
    # It warns of root because of pickle; messages here are JSON and hold ids only.
    warnings.filterwarnings("ignore", category=SecurityWarning)

    @signals.worker_process_init.connect(weak=False)
    def tie(**_: Any) -> None:
        die_with_parent(main)
        be_killed_first()

    # Celery warns of what its version 6 will do with tasks that run while the broker is away; ours go on without.
    warnings.filterwarnings("ignore", category=CPendingDeprecationWarning)
    logs.configure(app.runtime.settings, level, ours=ours)
    app.conf.worker_send_task_events = serving  # its children look at that
    app.steps["consumer"].update((Doubt, Presence, Healthy))
    chosen = app.subclass_with_self("orchestrator.stack.worker:Worker", name="Worker")(
        autoscale=(processes, 1), pool=TaskPool, loglevel=level, queues=queues or ",".join(QUEUES),
        hostname=f"worker-{main}@{socket.gethostname()}", task_events=serving, quiet=True,
        without_mingle=True, without_gossip=True, without_heartbeat=not serving,
    )  # fmt: skip

    @signals.worker_shutting_down.connect(weak=False)
    def end(**_: Any) -> None:
        chosen.begin_end()  # at once: Celery's loop may take a while to hear of the signal

    chosen.start()
    sys.exit(chosen.exitcode or 0)


def beat(app: App, *, level: str) -> None:
    """Beat with its few static entries; it keeps nothing on disk."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    logs.configure(app.runtime.settings, level)
    try:
        Beat(app=app, loglevel=level, scheduler_cls="orchestrator.beat:Scheduler", quiet=True).run()
    finally:
        app.runtime.health.busy()


def api(app: App, listening: socket.socket, *, level: str) -> None:
    """The HTTP API on a socket that listens; with TERM it ends what is under way, and the process with it."""
    wanted.spare_no_others()
    with all_stays():
        from orchestrator.api.serve import serve  # FastAPI takes a while to import, and the others do without

    logs.configure(app.runtime.settings, level)
    serve(app.runtime.settings, app, listening, level=level)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # a thread may hang in somebody's mount
