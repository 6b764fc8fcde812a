"""What a process loads for good is not looked through for garbage."""

import gc
import importlib
from pathlib import Path

import pytest

from tasks.loading import all_stays


def test_what_is_loaded_is_spared_and_other_garbage_is_collected_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "loaded_for_good.py").write_text("many = [[] for _ in range(1000)]\n")
    monkeypatch.syspath_prepend(tmp_path)
    spared = gc.get_freeze_count()
    with all_stays():
        assert not gc.isenabled()
        importlib.import_module("loaded_for_good")

    assert gc.isenabled()
    assert gc.get_freeze_count() >= spared + 1000


def test_where_all_was_loaded_before_what_others_have_made_since_may_be_garbage() -> None:
    spared = gc.get_freeze_count()
    with all_stays():
        importlib.import_module("gc")

    assert gc.isenabled()
    assert gc.get_freeze_count() <= spared


def test_garbage_is_collected_after_what_could_not_be_loaded() -> None:
    with pytest.raises(ModuleNotFoundError), all_stays():
        importlib.import_module("no_such_module_anywhere")

    assert gc.isenabled()
