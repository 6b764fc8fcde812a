"""The state folder of an embedded stack: who may use it, and how other commands find the stack that runs on it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from db.types import UsageError
from tasks.core.filesystem import filesystem_magic
from tasks.core.profile import profile_of

# A unix socket's path may be so long (sun_path, with its closing NUL).
SOCKET_PATH_BYTES = 107
# Below this, SQLite and its log soon fail in the middle of something.
FREE_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Running:
    """What a running stack tells other commands."""

    pid: int
    database_url: str
    redis_url: str
    flower: str | None = None
    api: str | None = None


class StateFolder:
    """A folder, made if need be. Raises UsageError where it cannot be used."""

    def __init__(self, path: str) -> None:
        self.path = Path(path).expanduser().absolute()
        self._lock: int | None = None
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._check()
        except OSError as error:
            raise UsageError(refusal(self.path, error)) from error

    def _check(self) -> None:
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            profile = profile_of(filesystem_magic(fd))
            room = os.fstatvfs(fd)
        finally:
            os.close(fd)
        if profile.network:
            raise UsageError(
                f"the state folder {self.path} is on a network or user-space mount ({profile.name}), where a database "
                "file is not safe: choose a local folder with --state"
            )
        if room.f_bavail * room.f_frsize < FREE_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    @property
    def database_url(self) -> str:
        """The embedded database."""
        return f"sqlite:///{self.path / 'strandline.db'}"

    def lock(self, patience_s: float = 0.0) -> bool:
        """Become the only stack on this folder; False where there is one. Held until the last process of ours ends.

        With some patience, a command that only looked whether there is one is not taken for one.
        """
        deadline = time.monotonic() + patience_s
        while not self._try_lock():
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.02)
        return True

    def _try_lock(self) -> bool:
        try:
            fd = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise UsageError(refusal(self.path, error)) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return False
        self._lock = fd
        return True

    def unlock(self) -> None:
        """Let the next stack have the folder."""
        (self.path / "stack.json").unlink(missing_ok=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def announce(self, running: Running) -> None:
        """Tell other commands where the stack is."""
        part = self.path / "stack.json.part"
        try:
            part.write_text(json.dumps(asdict(running)))
            part.replace(self.path / "stack.json")
        except OSError as error:
            raise UsageError(refusal(self.path, error)) from error

    def running(self) -> Running | None:
        """The stack that runs on this folder, if one does and is ready."""
        try:
            told = Running(**json.loads((self.path / "stack.json").read_text()))
        except (OSError, ValueError, TypeError):
            return None
        if self._lock is None and self.lock():
            self.unlock()  # nobody holds it: what was told is left over from a stack that was killed
            return None
        return told

    def socket(self, name: str) -> Path:
        """Where to put a unix socket: in the folder, or where the path would be too long, in a private one."""
        path = self.path / name
        if len(os.fsencode(path)) <= SOCKET_PATH_BYTES:
            return path
        return Path(tempfile.mkdtemp(prefix="strandline-")) / name


def refusal(path: Path, error: OSError) -> str:
    """Why a state folder cannot be used, and what to do."""
    if error.errno == errno.ENOSPC:
        return f"the state folder {path} is on a full disk: make room, or choose another folder with --state"
    reason = os.strerror(error.errno).lower() if error.errno else str(error)
    return f"the state folder {path} cannot be used: {reason}; choose another with --state"
