"""Asking for scans: what many ask for at one time is one transaction, since most of what one costs is its own begin,
end and way to the database. Alone or among others a request is answered alike.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import Connection

from db.scans import Scan
from db.types import StrandlineError
from orchestrator import asking
from orchestrator.api.access import Access
from orchestrator.api.coordination import Coordination
from orchestrator.api.models import ScanRequest
from orchestrator.api.problems import Away, Problem
from orchestrator.api.service import encoded, known_of
from orchestrator.api.tokens import Caller
from orchestrator.documents import scan_document
from orchestrator.roots import named_paths
from tasks import traces


class Asked(NamedTuple):
    """What somebody asks for, of which tenant, under which key."""

    caller: Caller
    name: str
    wanted: ScanRequest
    key: asking.Key | None


class Enqueued(NamedTuple):
    """The scan, whether it is a new one, and its document as it is sent."""

    scan: Scan
    is_new: bool
    sent: bytes


class Enqueuing:
    """Of one API process."""

    def __init__(self, access: Access, redis: Coordination) -> None:
        self._access, self._redis = access, redis

    def ask_all(self, some: Sequence[Asked]) -> Sequence[Enqueued | Exception]:
        """Of one caller, in one transaction; where something about one of them is wrong, each in its own."""
        began = traces.now()
        found: Sequence[Enqueued | Exception] = self._together(some) if len(some) > 1 else []
        found = found or [self._alone(one) for one in some]
        for one, enqueued in zip(some, found, strict=True):
            if isinstance(enqueued, Enqueued):
                traces.over("request", enqueued.scan.id, began, tenant=one.name)
        self._redis.nudge()
        return found

    def _together(self, some: Sequence[Asked]) -> Sequence[Enqueued]:
        """Nothing, where one of them spoils it for all."""
        # In one order, whoever asks, so that two of these do not wait for one another's tenants.
        order = sorted(range(len(some)), key=lambda place: some[place].name)

        def ask(connection: Connection) -> dict[int, Enqueued]:
            return {place: _ask(connection, some[place]) for place in order}

        try:
            found = self._access.write(some[0].caller, ask)
        except Away:
            raise
        except (Problem, StrandlineError):
            return []
        return [found[place] for place in range(len(some))]

    def _alone(self, one: Asked) -> Enqueued | Exception:
        try:
            try:
                return self._access.write(one.caller, _ask, one)
            except asking.AskedBefore:
                with self._access.read(one.caller) as connection:
                    return _asked_before(connection, one)
        except Exception as error:  # noqa: BLE001 - of this one; the others are answered
            return error


def _ask(connection: Connection, one: Asked) -> Enqueued:
    tenant = known_of(connection, one.caller, one.name)
    paths = named_paths(tenant.root, _encoded(one.wanted.paths))
    scan, is_new = asking.ask(
        connection, one.caller.name, tenant, full=one.wanted.full, verify=one.wanted.verify, paths=paths, key=one.key
    )  # fmt: skip
    return Enqueued(scan, is_new, encoded(scan_document(connection, scan, tenant.name)))


def _asked_before(connection: Connection, one: Asked) -> Enqueued:
    assert one.key is not None
    tenant = known_of(connection, one.caller, one.name)
    scan, is_new = asking.asked_before(connection, one.caller.name, tenant, one.key)
    return Enqueued(scan, is_new, encoded(scan_document(connection, scan, tenant.name)))


def _encoded(paths: Sequence[str]) -> list[bytes]:
    try:
        return [os.fsencode(path) for path in paths]
    except UnicodeError:
        raise Problem(422, "a path holds half a character", field="paths") from None
