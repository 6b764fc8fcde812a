"""A lease lives as long as the process that holds it gets anywhere, however slow, and no longer."""

import os
import threading
import time

import pytest
from sqlalchemy import Engine

from db import shards
from db.engine import writing
from tasks.keeper import Keeper
from tasks.lease import Holder
from tasks.settings import Settings
from tests.recovery import PROMISED_S
from tests.storage import ONLY_SQLITE, add_tenant, claimed, expire, start_scan
from tests.waiting import wait_until

LEASE_S = 1.0


@pytest.fixture
def holder(engine) -> Holder:
    lease = claimed(engine, start_scan(engine, add_tenant(engine)))
    holder = Holder(engine, lease, LEASE_S)
    holder.renew()  # from here on it is as short as that
    return holder


def taken_over(engine: Engine, holder: Holder) -> bool:
    with writing(engine) as connection:
        return shards.claim(connection, holder.lease.scan_id, holder.lease.number, LEASE_S) is not None


def never() -> None:
    raise AssertionError("it did not hang")


def test_who_works_longer_than_a_lease_keeps_it(holder: Holder, engine) -> None:
    with Keeper(holder, 60, never):
        until = time.monotonic() + 3 * LEASE_S
        while time.monotonic() < until:
            sum(range(10**6))  # work that leaves the database alone
            assert not taken_over(engine, holder)

    wait_until(lambda: taken_over(engine, holder), 10, "nobody renews it any more")


def test_who_sleeps_within_one_call_keeps_it_until_that_takes_too_long(holder: Holder, engine) -> None:
    read, written = os.pipe()
    hung = threading.Event()

    def stalled() -> None:
        hung.set()
        os.write(written, b"!")

    with Keeper(holder, LEASE_S, stalled):
        began = time.monotonic()
        os.read(read, 1)

    assert hung.is_set() and time.monotonic() - began > LEASE_S
    os.close(read)
    os.close(written)


@ONLY_SQLITE
def test_who_has_lost_it_is_told_at_its_next_step(holder: Holder, engine) -> None:
    expire(engine, holder.lease)
    assert taken_over(engine, holder)

    with Keeper(holder, 60, never):
        wait_until(lambda: _is_lost(holder), 10, "it is told")


def _is_lost(holder: Holder) -> bool:
    try:
        holder.check()
    except Exception as error:  # noqa: BLE001 -- judged by its name
        return type(error).__name__ == "LeaseLost"
    return False


def test_what_a_killed_process_held_is_due_with_a_second_to_spare_of_the_ten_that_are_promised() -> None:
    lease_s, tick_s = (Settings.model_fields[name].default for name in ("lease_s", "tick_s"))
    assert lease_s + tick_s <= PROMISED_S - 1, "a whole lease may be left, and the tick just over"
