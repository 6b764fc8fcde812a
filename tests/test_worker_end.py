"""How a worker ends where Celery does not come to its end: later with what it holds than without."""

import os
import threading

import pytest

from orchestrator.stack import worker


class Ended(Exception):
    """In place of the process's end."""


@pytest.mark.parametrize(
    ("held", "freed_after_s", "code"),
    [(True, None, os.EX_TEMPFAIL), (False, None, os.EX_OK), (True, 0.5, os.EX_OK)],
    ids=["what is held is waited for until the last", "nothing is", "what was held is given back"],
)
def test_who_holds_something_has_longer(
    held: bool, freed_after_s: float | None, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = {"a shard"} if held else set()
    codes: list[int] = []

    def end(status: int) -> None:
        codes.append(status)
        raise Ended(f"holding {requests}")

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(worker.state, "active_requests", requests)
    monkeypatch.setattr(worker.state, "reserved_requests", set())
    monkeypatch.setattr(worker, "LOOKED_EVERY_S", 0.01)
    monkeypatch.setattr(worker, "LEAVE_S", 0.2)
    monkeypatch.setattr(worker, "WITHIN_S", 1.0 if freed_after_s is None else 60.0)
    if freed_after_s is not None:
        threading.Timer(freed_after_s, requests.clear).start()
    with pytest.raises(Ended) as ended:
        worker._end_at_last()
    assert codes == [code] and str(ended.value) == f"holding {requests}"
