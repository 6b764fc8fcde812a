"""Asking for scans and waiting for them: what `scan`, `up` and `enqueue --wait` have in common."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import redis
from sqlalchemy import Connection, Engine

from db import scans, tenants
from db.audit import CLI
from db.engine import reading, write
from db.scans import Scan
from db.tenants import Tenant
from db.types import ENDED, StrandlineError, UsageError
from orchestrator import asking, interrupts
from orchestrator.change import add_tenant
from orchestrator.progress import Progress, Reader
from orchestrator.roots import name_for
from orchestrator.tick import tick
from tasks import traces
from tasks.app import App
from tasks.outage import Away, Outage
from tasks.redis import progress
from tasks.settings import Settings

LOOK_EVERY_S = 0.02
SHOW_EVERY_S = 0.25


class Session:
    """A process that asks for scans and keeps them going. `pump(seconds)` is what it does while it waits.

    `patient`: while it waits, it outlasts a database that is away.
    """

    def __init__(self, app: App, settings: Settings, pump: Callable[[float], None], *, patient: bool = False) -> None:
        self._outage = Outage() if patient else None
        self.engine: Engine = app.runtime.engine
        self._redis: redis.Redis = app.runtime.redis
        self._keys = app.runtime.keys
        self._app = app
        self._settings = settings
        self._pump = pump
        self._reader = Reader(self.engine, self._redis, self._keys)

    def tenant_for(self, root: bytes, name: str | None, algorithm: str | None = None) -> Tenant:
        """The tenant of a root, registered if need be. Raises UsageError where name and root do not belong together."""
        return write(self.engine, self._tenant_for, root, name, algorithm)

    def tenants_for(self, roots: Sequence[bytes]) -> list[Tenant]:
        """The tenants of several roots, all of them or none registered. Raises UsageError."""
        return write(self.engine, lambda connection: [self._tenant_for(connection, one, None, None) for one in roots])

    def _tenant_for(self, connection: Connection, root: bytes, name: str | None, algorithm: str | None) -> Tenant:
        known = tenants.by_root(connection, root) if name is None else tenants.by_name(connection, name)
        if known is not None and known.root != root:
            raise UsageError(
                f"tenant {known.name!r} has another root, {known.root.decode('utf-8', 'backslashreplace')!r}; "
                "choose another --tenant, or none"
            )
        if known is not None:
            return known
        taken = {tenant.name for tenant in tenants.list_all(connection)}
        given = {"algorithm": algorithm} if algorithm else {}
        return add_tenant(
            connection, CLI, name if name is not None else name_for(root, taken), root, given, self._settings
        )  # fmt: skip

    def ask(self, tenant: Tenant, *, full: bool = False, verify: bool = False, paths: Sequence[bytes] = ()) -> str:
        """Request a scan (of `paths`, relative to the root, alone), start it where none is running, send its first
        shards; its id.
        """
        began = traces.now()
        scan = write(self.engine, asking.ask, CLI, asking.Asked(tenant, full, verify, paths))
        traces.over("request", scan.id, began, tenant=tenant.name)
        self.tick()
        return scan.id

    def confirm(self, scan_id: str) -> str:
        """Request a scan that deletes what was gone by a suspect one; its id. Raises UsageError."""
        with reading(self.engine) as connection:
            suspect = scans.with_tenant(connection, scan_id)  # it has ended, and stays as it is
        if suspect is None:
            raise UsageError(
                f"scan {scan_id} cannot be confirmed: only a suspect scan can, and there is none of that id"
            )
        scan, _ = write(self.engine, asking.confirm, CLI, *suspect)
        self.tick()
        return scan.id

    def tick(self) -> None:
        """One pass of the tick, in this process."""
        tick(self._app, self.engine, self._settings)

    def wait(self, scan_id: str, show: Callable[[Progress], None] | None = None) -> Scan:
        """Return the scan once it has ended; ticks now and then, so that nothing that was lost is waited for."""
        ticked_s = shown_s = time.monotonic()
        while True:
            interrupts.check()
            with self._outlasting():
                scan, tenant = self._look(scan_id)
                if scan.state in ENDED:
                    return scan
                now_s = time.monotonic()
                if now_s - shown_s > SHOW_EVERY_S:
                    shown_s = now_s
                    self._show(scan, tenant, show)
                if now_s - ticked_s > self._settings.tick_s:
                    ticked_s = now_s
                    self.tick()
            self._pump(LOOK_EVERY_S)

    @contextmanager
    def _outlasting(self) -> Iterator[None]:
        if self._outage is None:
            yield
            return
        with suppress(Away), self._outage.noted(self.engine):
            yield

    def _look(self, scan_id: str) -> tuple[Scan, Tenant]:
        with reading(self.engine) as connection:
            scan = scans.get(connection, scan_id)
            tenant = tenants.by_id(connection, scan.tenant_id) if scan is not None else None
        if scan is None or tenant is None:
            raise StrandlineError(f"scan {scan_id} is gone: its tenant was removed")
        return scan, tenant

    def _show(self, scan: Scan, tenant: Tenant, show: Callable[[Progress], None] | None) -> None:
        error = progress.read_error(self._redis, self._keys, scan.id)
        if error is not None:
            raise StrandlineError(f"the scan of {tenant.name} cannot go on: {error}")
        found = self._reader.of_scan(scan.id) if show is not None else None
        if show is not None and found is not None:
            show(found)

    def cancel(self, scan_id: str) -> bool:
        """Let a queued or running scan end cancelled; False where it has ended already, or is about to."""
        with reading(self.engine) as connection:
            found = scans.with_tenant(connection, scan_id)
        ended = found is not None and write(self.engine, asking.cancel, CLI, scan_id, found[1])
        if ended:
            self.tick()
        return ended

    def cancel_and_wait(self, scan_id: str, seconds: float) -> None:
        """Cancel, and give the finish so long; what is left then is ended by the next stack."""
        self.cancel(scan_id)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with reading(self.engine) as connection:
                scan = scans.get(connection, scan_id)
            if scan is None or scan.state in ENDED:
                return
            self._pump(LOOK_EVERY_S)
