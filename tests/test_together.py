"""What many ask for at one time is done in one go, and each is answered as if it were alone."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import event

from db.tables import audit, idempotency
from orchestrator.api import work
from orchestrator.api.problems import Away
from orchestrator.api.work import MOST_TOGETHER, REQUEST_THREADS, Together
from tests.api import Api
from tests.api import api as api
from tests.storage import add_tenant, rows
from tests.waiting import wait_until

# Threads


class Held:
    """Work that waits until it is let go, and remembers what it was given together."""

    def __init__(self, answer: Callable[[str], str | Exception] = str.upper) -> None:
        self.begun: list[list[str]] = []
        self.go = threading.Event()
        self._answer = answer

    def __call__(self, items: Sequence[str]) -> Sequence[str | Exception]:
        self.begun.append(list(items))
        assert self.go.wait(20)
        return [self._answer(item) for item in items]


def all_of(held: Held, items: Sequence[str]) -> list[str | BaseException]:
    """What each is answered where all are asked at once, and the threads are let go once all wait."""

    async def ask() -> list[str | BaseException]:
        together = Together(held, lambda item: item[0])
        asked = asyncio.gather(*(together.do(item) for item in items), return_exceptions=True)
        asyncio.get_running_loop().call_later(0, held.go.set)
        return await asked

    return asyncio.run(ask())


def test_what_waits_for_a_thread_is_done_together_each_kind_for_itself() -> None:
    held, items = Held(), [f"{kind}{n}" for n in range(20) for kind in "ab"]

    assert all_of(held, items) == [item.upper() for item in items]

    assert sorted(item for some in held.begun for item in some) == sorted(items)
    assert len(held.begun) <= REQUEST_THREADS + 2
    assert all(len({item[0] for item in some}) == 1 for some in held.begun)
    assert all(some == sorted(some, key=items.index) for some in held.begun), "first come, first served"


def test_no_more_are_done_together_than_a_transaction_may_be_long() -> None:
    held, items = Held(), [f"a{n}" for n in range(3 * MOST_TOGETHER)]

    assert all_of(held, items) == [item.upper() for item in items]

    assert max(map(len, held.begun)) == MOST_TOGETHER


def test_each_gets_its_own_error_and_all_get_that_of_the_whole() -> None:
    def answer(item: str) -> str | Exception:
        if item == "b0":
            raise KeyError(item)
        return ValueError(item) if item == "a1" else item

    found = dict(zip(["a0", "a1", "a2", "b0"], all_of(Held(answer), ["a0", "a1", "a2", "b0"]), strict=True))

    assert (found["a0"], found["a2"]) == ("a0", "a2")
    assert isinstance(found["a1"], ValueError) and isinstance(found["b0"], KeyError)


def test_who_waited_for_too_long_is_told_and_what_was_not_begun_is_not_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "ANSWERED_WITHIN_S", 0.2)
    held, items = Held(), [f"a{n}" for n in range(REQUEST_THREADS + 3)]

    async def ask() -> None:
        together = Together(held, lambda item: item[0])
        found = await asyncio.gather(*(together.do(item) for item in items), return_exceptions=True)
        assert all(isinstance(one, Away) for one in found)
        held.go.set()
        assert await together.do("last") == "LAST"

    asyncio.run(ask())

    assert {item for some in held.begun for item in some} == {*items[:REQUEST_THREADS], "last"}


# Requests


class Gate:
    """Holds each write of the API's until it is opened; `commits`: how many transactions there were."""

    def __init__(self, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
        access = api.app.state.service.access
        monkeypatch.setattr(work, "ANSWERED_WITHIN_S", 60)  # however slow the machine is
        self.open, self.waiting, self.commits = threading.Event(), 0, 0
        plain = access.write

        def write(*args: object, **more: object) -> object:
            self.waiting += 1
            assert self.open.wait(20)
            return plain(*args, **more)

        monkeypatch.setattr(access, "write", write)
        event.listen(access._engine, "commit", self._count)

    def _count(self, _connection: object) -> None:
        self.commits += 1


def test_of_many_requests_each_is_answered_as_if_it_were_alone(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    names, gate = [add_tenant(api.engine, f"t{n}").name for n in range(8)], Gate(api, monkeypatch)

    def ask(name: str, key: str, body: dict | None = None) -> tuple[int, str | None, list | None]:
        answer = api.post(f"/v1/tenants/{name}/scans", headers={"Idempotency-Key": key}, json=body)
        document = answer.json()
        return answer.status_code, document.get("scan") or document.get("field"), document.get("paths")

    with ThreadPoolExecutor(40) as pool:
        first = [pool.submit(ask, "t0", f"first {n}") for n in range(REQUEST_THREADS)]
        wait_until(lambda: gate.waiting == REQUEST_THREADS, 10, "both threads are held")
        good = [pool.submit(ask, name, f"good {name} {n}", {"paths": [f"p{n}"]}) for name in names[1:] for n in "12"]
        same = [pool.submit(ask, "t1", "the same key") for _ in range(2)]
        bad = [pool.submit(ask, "nobody", "k"), pool.submit(ask, "t2", "k2", {"paths": ["/elsewhere"]})]
        enqueuing = api.app.state.service.enqueuing
        wait_until(lambda: len(enqueuing._waiting) == len(good) + len(same) + len(bad), 10, "all others wait")
        gate.open.set()
        answers = {name: [one.result() for one in some] for name, some in
                   {"first": first, "good": good, "same": same, "bad": bad}.items()}  # fmt: skip

    assert [one[0] for one in answers["bad"]] == [404, 422]
    assert sorted(one[0] for one in answers["first"]) == [200, 202]
    scans = {one[1] for one in answers["good"]}
    assert len(scans) == 7 and {one[0] for one in answers["good"]} <= {200, 202}
    assert len({one[1] for one in answers["same"]}) == 1 and answers["same"][0][1] in scans
    keys = {row["key"] for row in rows(api.engine, idempotency)}
    assert {"the same key", "first 0", "good t7 2"} <= keys and not {"k", "k2"} & keys
    asked = [row["tenant"] for row in rows(api.engine, audit, action="scan")]
    assert sorted(asked) == sorted(["t0"] * 2 + names[1:] * 2 + ["t1"])


def test_many_requests_are_few_transactions(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    names, gate = [add_tenant(api.engine, f"t{n}").name for n in range(20)], Gate(api, monkeypatch)

    with ThreadPoolExecutor(len(names)) as pool:
        asked = [pool.submit(api.post, f"/v1/tenants/{name}/scans") for name in names]
        wait_until(
            lambda: len(api.app.state.service.enqueuing._waiting) == len(names) - REQUEST_THREADS, 10, "all wait"
        )
        gate.open.set()
        assert {one.result().status_code for one in asked} == {202}

    assert gate.commits < len(names) / 2, "those of whoever follows the feed among them"
