"""The two commands on a machine that lacks something: a sentence that names it, and exit 2."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """As much of a fresh clone as making the environment looks at."""
    folder = tmp_path / "a clone"
    folder.mkdir()
    for name in ("Makefile", "pyproject.toml", "requirements.lock", "requirements-test.lock"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / ".ci", folder / ".ci")
    return folder


def make(clone: Path, target: str, python: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "PYTHON": python}
    return subprocess.run(["make", target], cwd=clone, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("target", ["run", "test"])
def test_a_python_without_venv_is_told_by_the_package_that_is_missing(clone: Path, target: str) -> None:
    python = clone / "python-without-venv"
    python.write_text(f'#!/bin/sh\ncase "$*" in *ensurepip*|*venv*) exit 1;; esac\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    done = make(clone, target, str(python))
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert done.returncode == 2 and f"install python{version}-venv" in done.stderr, done
    assert not (clone / ".venv").exists()


def test_no_python_is_told_too(clone: Path) -> None:
    done = make(clone, "run", "/nowhere/python3")
    assert done.returncode == 2 and "Python 3.11 or newer is needed" in done.stderr


@pytest.mark.parametrize(
    ("given", "state"),
    [
        ({}, ".strandline"),
        ({"STRANDLINE_STATE_DIR": "of the environment"}, "of the environment"),
        ({"STRANDLINE_STATE_DIR": "of the environment", "STATE": "given"}, "given"),
    ],
)
def test_the_state_folder_is_the_one_that_is_given_or_set(clone: Path, given: dict[str, str], state: str) -> None:
    (clone / ".venv/bin").mkdir(parents=True)
    python = clone / ".venv/bin/python"
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    environment = {"PATH": os.environ["PATH"], "DIR": "/some/folder", "ONCE": "", "STATE": ""} | given
    done = subprocess.run([".ci/up"], cwd=clone, env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines()[-2:] == ["--state", state], done


def test_make_alone_lists_every_target(clone: Path) -> None:
    listed = make(clone, "help", sys.executable).stdout
    lines = (ROOT / "Makefile").read_text().splitlines()
    targets = [line.split(":")[0] for line in lines if line[:1].isalpha() and "  ## " in line]
    assert {"run", "test", "check", "ci", "bench", "replay", "lock", "clean"} <= set(targets)
    assert all(f"make {target} " in listed for target in targets)
