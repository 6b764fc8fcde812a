"""A terminal of any size with a command on it, as a person has it.

with Terminal([STRANDLINE, "top"], env, rows=24, columns=80) as terminal:
    assert terminal.wait_for(b"tenants", 10)
    terminal.press(b"q")
    assert terminal.wait(10) == 0 and terminal.is_as_before()
"""

import contextlib
import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

ALTERNATE, BACK = b"\x1b[?1049h", b"\x1b[?1049l"  # another screen, and the one before again
HIDDEN, SEEN = b"\x1b[?25l", b"\x1b[?25h"  # the cursor


class Terminal:
    """What the command wrote is `content`. Leaving the `with` kills it."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], *, rows: int = 24, columns: int = 80) -> None:
        self._ours, self._theirs = pty.openpty()
        self.resize(rows, columns)
        self._before = termios.tcgetattr(self._theirs)
        self.content = b""
        self.process = subprocess.Popen(
            command, env={"TERM": "xterm", **env}, stdin=self._theirs, stdout=self._theirs, stderr=self._theirs,
            preexec_fn=self._lead,
        )  # fmt: skip

    def _lead(self) -> None:
        os.setsid()
        fcntl.ioctl(self._theirs, termios.TIOCSCTTY, 0)  # so that Ctrl-C is a signal to the command

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()
        os.close(self._ours)
        os.close(self._theirs)

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def press(self, keys: bytes) -> None:
        os.write(self._ours, keys)

    def wait_for(self, words: bytes, timeout_s: float, since: int = 0) -> bool:
        """Whether these words come, after the first `since` bytes."""
        deadline = time.monotonic() + timeout_s
        while words not in self.content[since:]:
            if not self._read(deadline - time.monotonic()):
                return False
        return True

    def wait(self, timeout_s: float) -> int:
        """The command's end, with all that it wrote."""
        deadline = time.monotonic() + timeout_s
        while self.process.poll() is None and time.monotonic() < deadline:
            self._read(0.05)
        while self._read(0):
            pass
        return self.process.wait(0)

    def is_as_before(self) -> bool:
        """Modes, screen and cursor are what they were when the command began."""
        modes = termios.tcgetattr(self._theirs) == self._before
        screen = self.content.count(ALTERNATE) == self.content.count(BACK)
        return modes and screen and self.content.rfind(SEEN) >= self.content.rfind(HIDDEN)

    def _read(self, timeout_s: float) -> bool:
        if not select.select([self._ours], [], [], max(0.0, timeout_s))[0]:
            return False
        self.content += os.read(self._ours, 65536)
        return True
