"""Whether a process lives and takes work, told by the ages of two files: a probe in a container asks nobody else.

`alive` is touched whenever the main loop turns, also while it tries to connect: a broker that is away is no reason to
be started again. `ready` is there while work is taken, and is touched as well.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from pathlib import Path

from db.types import UsageError

log = logging.getLogger(__name__)

ALIVE, READY = "alive", "ready"
TOUCHED_EVERY_S = 5.0


class Health:
    """The files of one process, in a folder of its own; none where it is given none."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder) if folder else None
        self._failed = False

    def begin(self) -> None:
        """Alive, and not ready yet, whatever another process left there. Raises UsageError where it cannot be told."""
        if self._folder is None:
            return
        try:
            (self._folder / READY).unlink(missing_ok=True)
            _touch(self._folder / ALIVE)
        except OSError as error:
            raise UsageError(
                f"STRANDLINE_HEALTH_DIR={str(self._folder)!r} cannot be written to: {error.strerror}"
            ) from error

    def alive(self) -> None:
        """The main loop turns."""
        self._tell(ALIVE)

    def ready(self) -> None:
        """Work is taken (and so it lives)."""
        self._tell(ALIVE)
        self._tell(READY)

    def busy(self) -> None:
        """Work is not taken, or not any more."""
        if self._folder is not None:
            with contextlib.suppress(OSError):  # then its age tells
                (self._folder / READY).unlink(missing_ok=True)

    def while_waiting(self, wait: Callable[[], object]) -> Callable[[], object]:
        """`wait`, which is called while something is waited for, as a turn of the main loop."""

        def turn() -> object:
            self.alive()
            return wait()

        return turn

    def _tell(self, name: str) -> None:
        if self._folder is None:
            return
        try:
            _touch(self._folder / name)
        except OSError as error:
            if not self._failed:  # whoever looks will take this process for dead: here is why
                log.error("%s cannot be touched: %s", self._folder / name, error)
            self._failed = True


def _touch(path: Path) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))
    os.utime(path)
