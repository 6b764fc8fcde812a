"""Running a piece of a test as somebody to whom permissions apply, or with a file system mounted, in a child."""

import ctypes
import os
import subprocess
import sys
import traceback
from collections.abc import Callable

NOBODY = 65534


def in_a_child(body: Callable[[], object]) -> None:
    """Run `body` in a forked child; what it raises, the test's assertions too, fails the test here."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(read)
            body()
            status = 0
        except BaseException:  # noqa: BLE001 - told to the parent, whose test fails
            with open(write, "w", closefd=False) as told:
                traceback.print_exc(file=told)
        finally:
            # Not sys.exit: nothing of pytest's may run twice.
            sys.stdout.flush()
            os._exit(status)
    os.close(write)
    with open(read) as told:
        what = told.read()
    _, status = os.waitpid(pid, 0)
    assert status == 0, what or f"the child ended with status {status}"


def as_nobody(body: Callable[[], object]) -> None:
    """Run `body` as a user without rights; who is none of root's runs it as himself."""
    if os.geteuid() != 0:
        body()
        return

    def dropped() -> None:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        body()

    in_a_child(dropped)


CLONE_NEWNS = 0x00020000  # linux/sched.h; os.unshare came with Python 3.12


def with_tmpfs_on(folder: bytes, body: Callable[[], object]) -> None:
    """Run `body` where a file system in memory, with a folder `inner`, is mounted on `folder`. Needs root, mount."""

    def mounted() -> None:
        if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS) != 0:
            raise OSError(ctypes.get_errno(), "unshare")
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        subprocess.run([b"mount", b"-t", b"tmpfs", b"none", folder], check=True)
        os.mkdir(os.path.join(folder, b"inner"))
        body()

    in_a_child(mounted)
