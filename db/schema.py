"""The version of the schema: checked by one raw query, migrated only where it differs (importing Alembic is dear).

A release works with its own schema, and with a later one that says so (table `compatibility`): schemas change in two
steps, first by what the release before can pass over, and one release later by what it could not.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from db import row_security
from db.engine import patient, reading, write
from db.failures import Failure, failure_of
from db.types import DatabaseError

log = logging.getLogger(__name__)

# The newest migration. A test asserts that this is what the files in db/migrations say.
HEAD = "0005"
# All that this release can bring forward.
KNOWN = (None, "0001", "0002", "0003", "0004", "0005")
LOOKED_EVERY_S = 1.0
RETRY_S = 2.0


def version(engine: Engine) -> str | None:
    """The schema version of the database, None where it holds nothing of ours.

    Raises DatabaseError where the database cannot be read at all.
    """
    try:
        return _version(engine)
    except DBAPIError as error:
        raise unusable(engine, error) from error


def _version(engine: Engine) -> str | None:
    with reading(engine) as connection:
        if not engine.dialect.has_table(connection, "alembic_version"):
            return None
        row = connection.exec_driver_sql("SELECT version_num FROM alembic_version").first()
        return None if row is None else str(row[0])


def migrate(engine: Engine) -> bool:
    """Bring the schema to HEAD; True if there was something to do. All or nothing, one process at a time.

    Raises DatabaseError where the schema is newer than this program.
    """
    found = version(engine)
    if may_use(engine, found):
        return False
    _refuse_newer(engine, found)
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))

    def upgrade(connection: Connection) -> None:
        _only_one(connection)
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        if connection.dialect.name == "postgresql":
            row_security.prepare(connection)

    try:
        write(patient(engine), upgrade)
    except DBAPIError as error:
        raise unusable(engine, error) from error
    return True


def require_current(engine: Engine) -> None:
    """Raise DatabaseError unless the schema is one that this program may work with."""
    found = version(engine)
    if not may_use(engine, found):
        _refuse_newer(engine, found)
        raise DatabaseError(f"{_other(engine, found)}: run `strandline migrate` first")


def await_answer(engine: Engine, meanwhile: Callable[[], None] = lambda: None) -> None:
    """Return once the server answers. While it does not that is said, again and again, and `meanwhile` is done.

    Raises DatabaseError where time does not mend it: a file that cannot be used, a request that is refused.
    """
    while True:
        try:
            _version(engine)
            return
        except DBAPIError as error:
            why = unusable(engine, error)
            if engine.dialect.name == "sqlite" or failure_of(error) is not Failure.LATER:
                raise why from error
        log.warning("%s; trying again in %.0f s", why, RETRY_S)
        meanwhile()
        time.sleep(RETRY_S)


def await_current(engine: Engine, waiting: Callable[[str], object]) -> None:
    """Return once the schema is one that this program may work with; `waiting` hears what for, whenever that changes.
    A database that is away is waited for too. Raises DatabaseError where the schema is newer than this program.
    """
    told = None
    while True:
        try:
            found = version(engine)
            if may_use(engine, found):
                return
        except DatabaseError as error:
            why = str(error)
        else:
            _refuse_newer(engine, found)
            why = _other(engine, found)
        if why != told:
            waiting(why)
            told = why
        time.sleep(LOOKED_EVERY_S)


def may_use(engine: Engine, found: str | None) -> bool:
    """May this program work with a schema of that version: its own, or a later one that it is told it may pass for?"""
    try:
        return _may_use(engine, found)
    except DBAPIError as error:
        raise unusable(engine, error) from error


def too_new(engine: Engine) -> str | None:
    """The schema's version where this program may not work with it any more. Raises DBAPIError, as any statement of a
    worker does where its database is away.
    """
    found = _version(engine)
    return None if _may_use(engine, found) else str(found)


def _may_use(engine: Engine, found: str | None) -> bool:
    if found == HEAD or found in KNOWN:
        return found == HEAD
    with reading(engine) as connection:
        if not engine.dialect.has_table(connection, "compatibility"):
            return False
        least = connection.exec_driver_sql("SELECT least FROM compatibility").scalar()
        return least is not None and str(least) <= HEAD


def _other(engine: Engine, found: str | None) -> str:
    return f"the database {where(engine)} has schema {found or 'none'}, this program needs {HEAD}"


def _refuse_newer(engine: Engine, found: str | None) -> None:
    if found not in KNOWN:
        raise DatabaseError(
            f"the database {where(engine)} has schema {found}, which is newer than this program (it knows {HEAD}): "
            "upgrade strandline, or use another database or --state folder"
        )


def _only_one(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(hashtext('strandline migrate'))")


def where(engine: Engine) -> str:
    """The database, for a message; without its password."""
    if engine.dialect.name == "sqlite":
        return str(engine.url.database)
    # The driver takes passwords as parameters too.
    shown = engine.url.difference_update_query([name for name in engine.url.query if "password" in name])
    return shown.render_as_string(hide_password=True)


def unusable(engine: Engine, error: DBAPIError) -> DatabaseError:
    """The sentence for an error of the driver: what, where, what to do."""
    said = str(error.orig).strip().splitlines()[0] if error.orig is not None else str(error)
    advice = "see that it runs and can be reached"
    if failure_of(error) is Failure.FULL:
        advice = "its disk is full: make room there"
    if engine.dialect.name == "sqlite":
        advice = "see that the folder can be written to"
        if "not a database" in said or "malformed" in said:
            advice = "the file is damaged: move it away (the next scan builds a new index) or restore a copy"
        elif "full" in said or "disk I/O" in said:
            advice = "the disk is full or failing: make room, or use another --state folder"
    return DatabaseError(f"the database {where(engine)} cannot be used: {said}; {advice}")
