"""Old and new workers side by side, for one release: each takes what it understands, and gives back what is newer.

A message carries the version of whoever sent it in a header (releases before this one sent none, and pass over it). The
database says which is the oldest release that may work with its schema (see db/schema.py).
"""

from __future__ import annotations

import logging
import time
from typing import Any

from celery import current_task

from db import schema, sending, shards
from db.engine import write
from tasks.app import Runtime

log = logging.getLogger(__name__)

# Grows when a worker of the release before would do the wrong thing with a message, or with the shard that it names.
VERSION = 1
_HEADER = "strandline_version"
# The schema is looked at again after so long.
LOOK_EVERY_S = 10.0


class TooOld(Exception):
    """This worker may not work with the database's schema."""


def headers() -> dict[str, Any]:
    """What is sent along with each message."""
    return {_HEADER: VERSION}


def takes(runtime: Runtime, scan_id: object, number: object) -> bool:
    """May this worker take the shard that a message names? False: it is put back for another, or means nothing.

    Raises TooOld where the schema is too new to write anything at all.
    """
    if not (isinstance(scan_id, str) and shards.is_scan_id(scan_id) and type(number) is int and 0 <= number < 1 << 31):
        log.warning("a message names no shard: %.100r %.100r", scan_id, number)
        return False
    _require_schema(runtime)
    if _is_newer():
        log.warning("a message for shard %d of scan %s is of a later release, and put back", number, scan_id)
        write(runtime.engine, sending.put_back, scan_id, number)
        return False
    return True


def _is_newer() -> bool:
    # One that says nonsense is taken for newer, too.
    version = (current_task.request.headers or {}).get(_HEADER, VERSION) if current_task else VERSION
    return not isinstance(version, int) or version > VERSION


def _require_schema(runtime: Runtime) -> None:
    if time.monotonic() < runtime.schema_until_s:
        return
    found = schema.too_new(runtime.engine)
    if found is not None:
        log.error("the schema is %s, too new for this worker, which knows %s: upgrade it", found, schema.HEAD)
        raise TooOld
    runtime.schema_until_s = time.monotonic() + LOOK_EVERY_S
