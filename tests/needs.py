"""What a test may need of the machine: `@pytest.mark.needs("strace")`. Each check says what is missing, or nothing."""

import functools
import os
import shutil
import subprocess

# Tried, not looked up: inside containers much is installed or allowed in name only.
TRIALS = {
    "strace": ["strace", "-qq", "-o", "/dev/null", "true"],
    "mount": ["unshare", "--mount", "--propagation", "private", "mount", "-t", "tmpfs", "none", "/tmp"],
    "netns": ["unshare", "--net", "true"],
    "fuse": ["sh", "-c", "exec 3<>/dev/fuse"],
    "git": ["git", "version"],
    "rsync": ["rsync", "--version"],
}


@functools.cache
def missing(what: str) -> str | None:
    if what == "root":
        return "not root" if os.geteuid() else None
    command = TRIALS[what]
    if shutil.which(command[0]) is None:
        return f"{command[0]} is not installed"
    trial = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    return None if trial.returncode == 0 else trial.stderr.strip() or f"{command[0]} failed"
