"""The command as a process of its own session, with all that it starts: found, signalled, measured and ended.

    with processes.start(["strandline", "up"], env=environment) as running:
        assert running.stderr.wait_for(b"ready", 30)
        running.send(signal.SIGINT)
        ended = running.wait(30)
        assert ended.returncode == 0 and not running.wait_gone(5)

Linux only: reads /proc. Waits on pidfds, pipes and events, never by sleeping.
"""

import contextlib
import gc
import os
import random
import resource
import select
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Self

MARK = "SL_TEST_MARK"

# Between two samples of memory. VmHWM is a high-water mark, so a sample need only come before a process ends.
SAMPLE_S = 0.1
# How long an ended command's output may still be on its way; left-over processes may hold the pipes open for ever.
DRAIN_S = 1.0
KILL_S = 10.0

_stamping = threading.Lock()


# ---- What /proc says


@dataclass(frozen=True)
class Stat:
    pid: int
    state: str
    parent: int
    session: int
    started: int

    @property
    def ended(self) -> bool:
        """A zombie: it runs no more, though nobody has asked for its exit code."""
        return self.state in "ZX"


def read_stat(pid: int) -> Stat | None:
    text = _read(pid, "stat")
    if not text:
        return None
    # The name stands in brackets and may hold brackets and spaces itself.
    fields = text.rpartition(b")")[2].split()
    return Stat(pid, fields[0].decode(), int(fields[1]), int(fields[3]), int(fields[19]))


def everything() -> Iterator[Stat]:
    for name in os.listdir("/proc"):
        if name.isdigit() and (stat := read_stat(int(name))):
            yield stat


def descendants(pid: int) -> set[int]:
    """All that `pid` started and still stands below it; what was orphaned on the way is found by its mark only."""
    children: dict[int, list[int]] = {}
    for stat in everything():
        if not stat.ended:
            children.setdefault(stat.parent, []).append(stat.pid)
    found: set[int] = set()
    todo = [pid]
    while todo:
        below = children.get(todo.pop(), [])
        found.update(below)
        todo.extend(below)
    return found


def _read(pid: int, name: str) -> bytes:
    """Empty where the process has ended meanwhile or is somebody else's."""
    try:
        with open(f"/proc/{pid}/{name}", "rb") as file:
            return file.read()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return b""


def _field(text: bytes, name: bytes) -> list[bytes]:
    return next((line[len(name) :].split() for line in text.splitlines() if line.startswith(name)), [])


# ---- The mark


@dataclass(frozen=True)
class Mark:
    """What a process inherits from the command and passes on.

    A variable of the environment says it plainly, but Redis and PostgreSQL write their titles over the memory that
    /proc/*/environ shows. So there is also an odd limit on POSIX message queues, which nothing uses or ever changes.
    """

    variable: str
    limit: int

    def is_on(self, pid: int) -> bool:
        return f"{MARK}={self.variable}".encode() in _read(pid, "environ").split(b"\0") or self._limits(pid)

    def _limits(self, pid: int) -> bool:
        return _field(_read(pid, "limits"), b"Max msgqueue size")[:1] == [b"%d" % self.limit]


def new_mark() -> Mark:
    soft, _ = resource.getrlimit(resource.RLIMIT_MSGQUEUE)
    highest = soft if soft > 1 else 819_200
    return Mark(str(uuid.uuid4()), random.randrange(highest // 2, highest))


@contextlib.contextmanager
def _stamped(mark: Mark) -> Iterator[None]:
    """This process carries the limit while it starts the child, which spares code between fork and exec."""
    with _stamping:
        soft, hard = resource.getrlimit(resource.RLIMIT_MSGQUEUE)
        possible = hard == resource.RLIM_INFINITY or mark.limit <= hard
        if possible:
            resource.setrlimit(resource.RLIMIT_MSGQUEUE, (mark.limit, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_MSGQUEUE, (soft, hard))


# ---- Output, memory


class Output:
    """Reads a pipe as it comes, so that the command never blocks on it and a test can wait for a word."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._pipe = pipe
        self._content = bytearray()
        self._closed = False
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._follow, daemon=True)
        self._reader.start()

    @property
    def content(self) -> bytes:
        with self._changed:
            return bytes(self._content)

    def wait_for(self, words: bytes, timeout_s: float) -> bool:
        """Whether the words came, before the time was up and the pipe was closed."""
        with self._changed:
            self._changed.wait_for(lambda: words in self._content or self._closed, timeout_s)
            return words in self._content

    def drain(self, timeout_s: float) -> bytes:
        self._reader.join(timeout_s)
        return self.content

    def _follow(self) -> None:
        with self._pipe:
            while chunk := os.read(self._pipe.fileno(), 65536):
                self._add(chunk)
        self._add(b"", closed=True)

    def _add(self, chunk: bytes, *, closed: bool = False) -> None:
        with self._changed:
            self._content += chunk
            self._closed = closed
            self._changed.notify_all()


@dataclass(frozen=True)
class Peak:
    pid: int
    name: str
    peak_bytes: int


def read_peak(pid: int) -> Peak | None:
    """None for a process that has ended: a zombie has no memory to tell of."""
    status = _read(pid, "status")
    peak, name = _field(status, b"VmHWM:"), _field(status, b"Name:")
    return Peak(pid, b" ".join(name).decode(errors="replace"), int(peak[0]) * 1024) if peak else None


# ---- The command


@dataclass(frozen=True)
class Ended:
    returncode: int
    # User and system time of the command and of all its descendants that were waited for.
    cpu_s: float
    stdout: bytes
    stderr: bytes


class Running:
    """A started command. Leaving the `with` kills all that is left of it."""

    def __init__(self, command: Sequence[str | bytes], env: Mapping[str, str], cwd: str | bytes | None) -> None:
        self.mark = new_mark()
        with _stamped(self.mark):
            self._process = subprocess.Popen(
                command,
                env={**env, MARK: self.mark.variable},
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        self.pid = self._process.pid
        self._pidfd = os.pidfd_open(self.pid)
        assert self._process.stdout and self._process.stderr
        self.stdout, self.stderr = Output(self._process.stdout), Output(self._process.stderr)
        self._ended: Ended | None = None
        # Whether a process carries the mark is settled at its birth, and asked once.
        self._known: dict[tuple[int, int], bool] = {}
        self._peaks: dict[tuple[int, int], Peak] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._sampler: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def alive(self) -> set[int]:
        """All processes that carry the mark, the command's own included, wherever they have gone."""
        return {stat.pid for stat in self._marked()}

    def descendants(self) -> set[int]:
        return descendants(self.pid)

    def send(self, number: signal.Signals) -> None:
        """To the command alone."""
        signal.pidfd_send_signal(self._pidfd, number)

    def send_group(self, number: signal.Signals) -> None:
        """To the command's process group, as a terminal does with Ctrl-C."""
        os.killpg(self.pid, number)

    def wait(self, timeout_s: float) -> Ended:
        """The command's end. What it left behind is not waited for: see `alive` and `wait_gone`."""
        if self._ended is None:
            if not _has_ended(self._pidfd, timeout_s):
                raise TimeoutError(f"still running after {timeout_s} s: {self.stderr.content[-2000:]!r}")
            _, status, usage = os.wait4(self.pid, 0)
            # Popen did not see the end itself.
            self._process.returncode = os.waitstatus_to_exitcode(status)
            self._ended = Ended(
                self._process.returncode,
                usage.ru_utime + usage.ru_stime,
                self.stdout.drain(DRAIN_S),
                self.stderr.drain(DRAIN_S),
            )
        return self._ended

    def wait_gone(self, timeout_s: float) -> set[int]:
        """Waits until no process carries the mark any more, and returns those that do when the time is up."""
        deadline = time.monotonic() + timeout_s
        while left := self.alive():
            if not _wait_for_end(left.pop(), deadline - time.monotonic()):
                return self.alive()
        return set()

    def watch_memory(self) -> None:
        """From here on `peaks` knows also of processes that end meanwhile. It costs some hundredths of a processor."""
        self._sampler = threading.Thread(target=self._sample, daemon=True)
        self._sampler.start()

    def peaks(self) -> list[Peak]:
        """The peak resident memory of each process seen so far, ended ones included, largest first."""
        self._take_sample()
        with self._lock:
            return sorted(self._peaks.values(), key=lambda peak: -peak.peak_bytes)

    def close(self) -> None:
        deadline = time.monotonic() + KILL_S
        while (left := self.alive()) and time.monotonic() < deadline:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            _wait_for_end(left.pop(), deadline - time.monotonic())
        self.wait(KILL_S)
        self._stop.set()
        if self._sampler is not None:
            self._sampler.join()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1

    def _marked(self) -> list[Stat]:
        stats = [stat for stat in everything() if not stat.ended]
        with self._lock:
            return [stat for stat in stats if self._is_mine(stat)]

    def _is_mine(self, stat: Stat) -> bool:
        identity = stat.pid, stat.started
        if identity not in self._known:
            self._known[identity] = self.mark.is_on(stat.pid)
        return self._known[identity]

    def _sample(self) -> None:
        while not self._stop.wait(SAMPLE_S):
            self._take_sample()

    def _take_sample(self) -> None:
        for stat in self._marked():
            if peak := read_peak(stat.pid):
                with self._lock:
                    # The latest and not the largest: before its exec a child still shows its parent's memory.
                    self._peaks[stat.pid, stat.started] = peak


def start(
    command: Sequence[str | bytes], *, env: Mapping[str, str] | None = None, cwd: str | bytes | None = None
) -> Running:
    """Starts the command with exactly this environment (that of the tests where none is given) and the mark."""
    return Running(command, os.environ if env is None else env, cwd)


def _has_ended(pidfd: int, timeout_s: float) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(max(0, round(timeout_s * 1000))))


def _wait_for_end(pid: int, timeout_s: float) -> bool:
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return _has_ended(pidfd, timeout_s)
    finally:
        os.close(pidfd)


def open_descriptors() -> int:
    """Of this process, once garbage of earlier tests has closed its own. The least of some looks: threads that these
    have left may have one open for a moment, and close one for good: so it is held against what it was by `<=`.
    """
    gc.collect()
    looks = []
    for _ in range(5):
        looks.append(len(os.listdir("/proc/self/fd")))
        time.sleep(0.002)
    return min(looks)
