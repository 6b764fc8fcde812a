"""Each test starts a small Python program that does what a stack of processes does, well or badly."""

import os
import resource
import signal
import sys
import threading

import pytest

from tests import processes
from tests.processes import MARK

MIB = 1024 * 1024

FOREVER = "import signal; print('ready', flush=True); signal.pause()"
# The child leaves the session and loses its parent, as a daemon does.
DAEMON = f"""
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {FOREVER!r}], start_new_session=True, stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
"""
PARENT = DAEMON.replace("start_new_session=True, ", "") + "child.wait()"


def python(program: str, **options: dict) -> processes.Running:
    return processes.start([sys.executable, "-c", program], **options)


def test_output_exit_code_and_environment_are_the_commands_own() -> None:
    program = "import os, sys; print(sorted(os.environ)); print('said', file=sys.stderr); sys.exit(3)"
    with python(program, env={"ONLY": "this"}) as running:
        ended = running.wait(30)
    assert ended.returncode == 3
    assert MARK.encode() in ended.stdout
    assert b"ONLY" in ended.stdout
    assert b"PATH" not in ended.stdout
    assert ended.stderr == b"said\n"


def test_the_command_leads_a_session_of_its_own() -> None:
    with python(FOREVER) as running:
        assert running.stdout.wait_for(b"ready", 30)
        assert os.getsid(running.pid) == os.getpgid(running.pid) == running.pid


def test_a_signal_reaches_the_command_and_its_group() -> None:
    with python(FOREVER) as running:
        assert running.stdout.wait_for(b"ready", 30)
        running.send(signal.SIGTERM)
        assert running.wait(30).returncode == -signal.SIGTERM
    with python(PARENT) as running:
        assert running.stdout.wait_for(b"\n", 30)
        running.send_group(signal.SIGKILL)
        assert running.wait(30).returncode == -signal.SIGKILL
        assert running.wait_gone(30) == set()


def test_descendants_are_found_below_the_command() -> None:
    with python(PARENT) as running:
        assert running.stdout.wait_for(b"\n", 30)
        child = int(running.stdout.content)
        assert running.descendants() == {child}
        assert running.alive() == {running.pid, child}


def test_a_daemon_that_was_left_behind_is_found_by_its_mark_and_killed_at_the_end() -> None:
    with python(DAEMON) as running:
        daemon = int(running.wait(30).stdout)
        assert running.alive() == {daemon}
        assert running.descendants() == set()
        assert running.wait_gone(0) == {daemon}
    assert running.alive() == set()


def test_a_process_that_hides_its_environment_is_still_found() -> None:
    with python(
        "import os, sys; os.execve(sys.executable, [sys.executable, '-c', " + repr(FOREVER) + "], {})"
    ) as running:
        assert running.stdout.wait_for(b"ready", 30)
        with open(f"/proc/{running.pid}/environ", "rb") as environment:
            assert MARK.encode() not in environment.read()
        assert running.mark.is_on(running.pid)
        assert running.alive() == {running.pid}


def test_the_mark_stays_off_the_tests_own_process() -> None:
    before = resource.getrlimit(resource.RLIMIT_MSGQUEUE)
    with python(FOREVER) as running, python(FOREVER) as other:
        assert resource.getrlimit(resource.RLIMIT_MSGQUEUE) == before
        assert not running.mark.is_on(os.getpid())
        assert running.alive().isdisjoint(other.alive())


def test_a_command_that_does_not_end_in_time_is_an_error_that_tells_its_last_words() -> None:
    with python(FOREVER.replace("flush=True", "flush=True, file=__import__('sys').stderr")) as running:
        assert running.stderr.wait_for(b"ready", 30)
        with pytest.raises(TimeoutError, match="ready"):
            running.wait(0)


def test_waiting_for_words_ends_when_the_output_does() -> None:
    with python("print('something else')") as running:
        assert not running.stdout.wait_for(b"ready", 30)


def test_a_stopped_process_is_killed_too() -> None:
    with python(FOREVER) as running:
        assert running.stdout.wait_for(b"ready", 30)
        running.send(signal.SIGSTOP)
    assert running.wait(0).returncode == -signal.SIGKILL


def test_peaks_remember_memory_that_was_given_back() -> None:
    with python(f"block = b'x' * {80 * MIB}; del block; " + FOREVER) as running:
        assert running.stdout.wait_for(b"ready", 30)
        (peak,) = running.peaks()
    assert (peak.pid, running.peaks()) == (running.pid, [peak])
    assert 80 * MIB < peak.peak_bytes < 160 * MIB


def test_the_sampler_sees_processes_that_end_before_anyone_asks() -> None:
    with python(f"block = b'x' * {80 * MIB}; " + FOREVER) as running:
        assert running.stdout.wait_for(b"ready", 30)
        sampled = threading.Event()
        take = running._take_sample
        running._take_sample = lambda: (take(), sampled.set())
        running.watch_memory()
        assert sampled.wait(30)
        running.send(signal.SIGKILL)
        running.wait(30)
        assert running.peaks()[0].peak_bytes > 80 * MIB


def test_processor_time_counts_children_that_were_waited_for() -> None:
    burn = "import time\nwhile time.process_time() < 0.3: pass"
    with python(f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}])") as running:
        assert 0.3 <= running.wait(60).cpu_s < 3


def test_nothing_is_left_open() -> None:
    before = processes.open_descriptors(), threading.active_count()
    with python("print(1)") as running:
        running.wait(30)
    assert processes.open_descriptors() <= before[0] and threading.active_count() <= before[1]
