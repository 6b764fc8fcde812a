"""What each error of a database means, by its code alone."""

import sqlite3

import psycopg
import pytest
from sqlalchemy.exc import DBAPIError, OperationalError, ProgrammingError

from db.failures import Failure, failure_of

REPEAT, LATER, FULL, OURS = Failure.REPEAT, Failure.LATER, Failure.FULL, Failure.OURS

STATES = {
    "40P01": REPEAT,  # deadlock_detected
    "40001": REPEAT,  # serialization_failure
    "55P03": REPEAT,  # lock_not_available
    "40003": LATER,  # statement_completion_unknown: who knows whether it was committed
    "08006": LATER,  # connection_failure
    "08P01": LATER,  # what PgBouncer says of its own limits
    "57P01": LATER,  # admin_shutdown
    "57P02": LATER,  # crash_shutdown
    "57P03": LATER,  # cannot_connect_now: starting up
    "57014": LATER,  # query_canceled: the statement timeout
    "53300": LATER,  # too_many_connections
    "53200": LATER,  # out_of_memory
    "25006": LATER,  # read_only_sql_transaction: a standby since a failover
    "25P03": LATER,  # idle_in_transaction_session_timeout
    "58030": LATER,  # io_error
    "28P01": LATER,  # invalid_password: it was changed, and the new one is on its way
    "53100": FULL,  # disk_full
    "42P01": OURS,  # undefined_table
    "42601": OURS,  # syntax_error
    "42501": OURS,  # insufficient_privilege
    "22001": OURS,  # string_data_right_truncation
    "22P02": OURS,  # invalid_text_representation
    "23505": OURS,  # unique_violation
    "25P02": OURS,  # in_failed_sql_transaction
    "0A000": OURS,  # feature_not_supported
    "XX001": OURS,  # data_corrupted
}
CODES = {
    sqlite3.SQLITE_BUSY: LATER,
    sqlite3.SQLITE_BUSY_SNAPSHOT: LATER,
    sqlite3.SQLITE_LOCKED: LATER,
    sqlite3.SQLITE_READONLY: LATER,
    sqlite3.SQLITE_CANTOPEN: LATER,
    sqlite3.SQLITE_NOMEM: LATER,
    sqlite3.SQLITE_FULL: FULL,
    sqlite3.SQLITE_IOERR: FULL,
    sqlite3.SQLITE_IOERR_WRITE: FULL,
    sqlite3.SQLITE_ERROR: OURS,
    sqlite3.SQLITE_CONSTRAINT_UNIQUE: OURS,
    sqlite3.SQLITE_CORRUPT: OURS,
    sqlite3.SQLITE_NOTADB: OURS,
}


@pytest.mark.parametrize(("state", "failure"), STATES.items())
def test_a_state_of_postgresql_says_what_to_do(state: str, failure: Failure) -> None:
    error = psycopg.Error("said")
    error.sqlstate = state

    assert failure_of(DBAPIError("SELECT 1", (), error)) is failure


@pytest.mark.parametrize(("code", "failure"), CODES.items())
def test_a_code_of_sqlite_says_what_to_do(code: int, failure: Failure) -> None:
    error = sqlite3.OperationalError("said")  # so Python calls even a wrong statement
    error.sqlite_errorcode = code

    assert failure_of(OperationalError("SELECT 1", (), error)) is failure


def test_no_connection_is_trouble_of_the_field_and_a_misused_driver_is_not() -> None:
    assert failure_of(OperationalError(None, None, psycopg.OperationalError("connection refused"))) is LATER
    lost = DBAPIError("SELECT 1", (), psycopg.InterfaceError("closed"), connection_invalidated=True)
    assert failure_of(lost) is LATER
    assert failure_of(ProgrammingError("SELECT 1", (), psycopg.ProgrammingError("wrong arguments"))) is OURS
    assert failure_of(ProgrammingError("SELECT ?", (), sqlite3.ProgrammingError("wrong arguments"))) is OURS
