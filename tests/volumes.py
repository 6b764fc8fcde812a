"""Real file systems for tests, each mounted in a folder of its own, and unmounted whatever happens.

    with Volumes() as volumes, volumes.mounted("xfs") as volume:
        (volume.path / "file").touch()

A process of its own waits for the tests to end, or to be killed, and unmounts what they left.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tests.fuse_control import Control
from tests.waiting import wait_until

UNMOUNT_S = 10.0
MIB = 1 << 20

# The deepest first. Lazily: whoever still holds a descriptor there keeps nothing from being cleared away.
CLEAR_AWAY = """
read -r _
awk -v below="$1/" 'index($5, below) == 1 { print $5 }' /proc/self/mountinfo | sort -r |
while read -r mounted; do umount -l "$mounted"; done
rm -rf --one-file-system "$1"
"""


@dataclass
class Volume:
    """A file system, mounted on `path`. What it is made of lies in the folder `parts`."""

    kind: str
    path: Path
    parts: Path
    mount: Callable[[], None]
    server: subprocess.Popen[bytes] | None = None  # of a FUSE

    def unmount(self) -> None:
        """For good, so that it can be mounted again; waits for whoever has something open there."""
        run = ["umount", str(self.path)]
        wait_until(
            lambda: subprocess.run(run, stderr=subprocess.DEVNULL).returncode == 0, UNMOUNT_S, f"{self.path} is free"
        )
        self._await_server()

    def remount(self) -> None:
        """What the kernel remembered of it is forgotten."""
        self.unmount()
        self.mount()

    def abandon(self) -> None:
        for place in (self.path, self.parts / "layers"):
            subprocess.run(["umount", "-l", str(place)], stderr=subprocess.DEVNULL)
        self._await_server()

    def _await_server(self) -> None:
        if self.server is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.server.wait(UNMOUNT_S)
            self.server.kill()
            self.server.wait()
            self.server = None

    # ---- FUSE only

    @property
    def behind(self) -> Path:
        """The folder that a FUSE shows."""
        return self.parts / "behind"

    def control(self, control: Control) -> None:
        """From the next call on the FUSE behaves so."""
        new = self.parts / "control.new"
        new.write_text(control.dump())
        new.rename(self.parts / "control.json")


class Volumes:
    """The folder below which all file systems of a test run are mounted."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="strandline-volumes-")).resolve()
        self.folder.chmod(0o755)
        self._clearing = subprocess.Popen(
            ["sh", "-c", CLEAR_AWAY, "clear-away", str(self.folder)], stdin=subprocess.PIPE, start_new_session=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._clearing.communicate(timeout=60)

    @contextlib.contextmanager
    def mounted(self, kind: str, size_mib: int | None = None) -> Iterator[Volume]:
        parts = Path(tempfile.mkdtemp(prefix=f"{kind}-", dir=self.folder))
        parts.chmod(0o755)
        path = parts / "mounted"
        path.mkdir()
        volume = Volume(kind, path, parts, lambda: None)
        try:
            KINDS[kind](volume, size_mib)
            volume.mount()
            yield volume
        finally:
            volume.abandon()
            shutil.rmtree(parts, ignore_errors=True)


def run(*command: str | Path) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{command}: {done.stdout}{done.stderr}")


# ---- The kinds


def on_a_loop(maker: list[str], size_mib: int) -> Callable[[Volume, int | None], None]:
    def prepare(volume: Volume, size: int | None) -> None:
        image = volume.parts / "image"
        make_image(image, maker, size or size_mib)
        volume.mount = lambda: run("mount", "-o", "loop", image, volume.path)

    return prepare


def make_image(image: Path, maker: list[str], size_mib: int) -> None:
    image.touch()
    os.truncate(image, size_mib * MIB)  # sparse
    run(*maker, image)


def tmpfs(volume: Volume, size: int | None) -> None:
    volume.mount = lambda: run("mount", "-t", "tmpfs", "-o", f"size={size or 64}m", "none", volume.path)


def overlay(volume: Volume, size: int | None) -> None:
    """Upper and lower on an ext4 of their own; the lower one holds a file that the tests do not touch."""
    layers, image = volume.parts / "layers", volume.parts / "image"
    layers.mkdir()
    make_image(image, ["mkfs.ext4", "-q"], size or 64)
    run("mount", "-o", "loop", image, layers)
    for name in ("lower", "upper", "work"):
        (layers / name).mkdir()
    (layers / "lower" / "from-below").write_bytes(b"lower")
    options = ",".join(f"{name}dir={layers / name}" for name in ("lower", "upper", "work"))
    volume.mount = lambda: run("mount", "-t", "overlay", "-o", options, "none", volume.path)


def fuse(control: Control) -> Callable[[Volume, int | None], None]:
    def prepare(volume: Volume, _: int | None) -> None:
        volume.behind.mkdir()
        volume.control(control)

        def mount() -> None:
            words = [volume.behind, volume.path, volume.parts / "control.json"]
            with open(volume.parts / "log", "ab") as log:
                volume.server = subprocess.Popen(
                    [sys.executable, "-m", "tests.fuse", *words], cwd=Path(__file__).parent.parent,
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                )  # fmt: skip
            wait_until(lambda: volume.path.is_mount() or volume.server.poll() is not None, UNMOUNT_S, "FUSE is mounted")
            if volume.server.poll() is not None:
                raise OSError((volume.parts / "log").read_text())

        volume.mount = mount

    return prepare


# As exfat and vfat are: 2 s, no ctime, inodes that live as long as the mount, folders whose times a rename leaves.
EXFAT_LIKE = Control(granularity_s=2, directory_times="frozen", ctime="mtime", inodes="mount")

KINDS: dict[str, Callable[[Volume, int | None], None]] = {
    "ext4": on_a_loop(["mkfs.ext4", "-q"], 64),
    "ext4-1s": on_a_loop(["mkfs.ext4", "-q", "-I", "128"], 64),  # inodes without room for parts of a second
    "xfs": on_a_loop(["mkfs.xfs", "-q"], 320),
    "btrfs": on_a_loop(["mkfs.btrfs", "-q"], 128),
    "tmpfs": tmpfs,
    "overlay": overlay,
    "vfat": on_a_loop(["mkfs.vfat"], 64),
    "exfat": on_a_loop(["mkfs.exfat"], 64),
    "fuse": fuse(Control()),
    "fuse-exfat": fuse(EXFAT_LIKE),
}
