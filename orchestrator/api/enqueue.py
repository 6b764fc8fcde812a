"""Asking for scans: what many ask for at one time is one transaction, since most of what one costs is its own begin,
end and way to the database. Alone or among others a request is answered alike.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import Connection

from db.scans import Scan
from db.tenants import Known
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
        try:
            return self._access.write(some[0].caller, _ask, some)
        except Away:
            raise
        except (Problem, StrandlineError):
            return []

    def _alone(self, one: Asked) -> Enqueued | Exception:
        try:
            try:
                [found] = self._access.write(one.caller, _ask, [one])
                return found
            except asking.AskedBefore:
                with self._access.read(one.caller) as connection:
                    return _asked_before(connection, one)
        except Exception as error:  # noqa: BLE001 - of this one; the others are answered
            return error


def _ask(connection: Connection, some: Sequence[Asked]) -> Sequence[Enqueued]:
    caller = some[0].caller
    known = known_of(connection, caller, {one.name for one in some})
    # In one order, whoever asks, so that two of these do not wait for one another's tenants.
    order = sorted(range(len(some)), key=lambda place: some[place].name)
    found = asking.ask_all(connection, caller.name, [_meant(known[some[place].name], some[place]) for place in order])
    answers = {
        place: _enqueued(connection, scan, is_new, some[place].name)
        for place, (scan, is_new) in zip(order, found, strict=True)
    }
    return [answers[place] for place in range(len(some))]


def _meant(tenant: Known, one: Asked) -> asking.Asked:
    try:
        paths = named_paths(tenant.root, [os.fsencode(path) for path in one.wanted.paths])
    except UnicodeError:
        raise Problem(422, "a path holds half a character", field="paths") from None
    return asking.Asked(tenant, one.wanted.full, one.wanted.verify, paths, one.key)


def _asked_before(connection: Connection, one: Asked) -> Enqueued:
    assert one.key is not None
    tenant = known_of(connection, one.caller, [one.name])[one.name]
    return _enqueued(connection, *asking.asked_before(connection, one.caller.name, tenant, one.key), one.name)


def _enqueued(connection: Connection, scan: Scan, is_new: bool, tenant: str) -> Enqueued:
    return Enqueued(scan, is_new, encoded(scan_document(connection, scan, tenant)))
