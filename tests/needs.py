"""What a test may need of the machine: `@pytest.mark.needs("strace")`. Each check says what is missing, or nothing."""

import functools
import os
import shutil
import subprocess
import sys

from tests import containers


def mounting(command: str) -> list[str]:
    """A trial mount in a namespace of its own, of which nothing is left."""
    return ["unshare", "--mount", "--propagation", "private", "sh", "-ec", command]


def of_an_image(kind: str, size_mib: int, *options: str, then: str = "true") -> list[str]:
    """As above, with a file system made in a file on a tmpfs."""
    make = " ".join([f"mkfs.{kind}", *options, "/tmp/image"])
    return mounting(
        f"mount -t tmpfs none /tmp; truncate -s {size_mib}M /tmp/image; {make} >/dev/null; mkdir /tmp/on; "
        f"mount -o loop -t {kind} /tmp/image /tmp/on; {then}"
    )


# The release before this one: the last commit that landed.
FORMER = "a538b26f2186d740ba61cb734e4739c718f80434"

# Tried, not looked up: inside containers much is installed or allowed in name only.
TRIALS = {
    "strace": ["strace", "-qq", "-o", "/dev/null", "true"],
    "mount": mounting("mount -t tmpfs none /tmp"),
    "rsync": ["rsync", "--version"],
    "openssl": ["openssl", "version"],
    "unzip": ["unzip", "-v"],
    "netns": ["unshare", "--net", "true"],
    "pid namespace": ["unshare", "--pid", "--fork", "true"],
    "git": ["git", "version"],
    "kubectl": ["kubectl", "kustomize", "k8s/base"],
    "pgbouncer": ["pgbouncer", "--version"],
    "chromium": ["/usr/bin/chromium", "--version"],
    "history": ["git", "-C", os.path.dirname(__file__), "cat-file", "-e", f"{FORMER}^{{commit}}"],
    "compose": [str(containers.IMAGES / "docker-compose"), "version"],
    "containers": [sys.executable, "-m", "tests.containers"],
    "fuse": [sys.executable, "-c", "import mfusepy; open('/dev/fuse', 'r+b', buffering=0)"],
    "memory cgroup": [sys.executable, "-m", "tests.cgroups", "memory"],
    "pids cgroup": [sys.executable, "-m", "tests.cgroups", "pids"],
    "ext4": of_an_image("ext4", 16, "-q"),
    "xfs": of_an_image("xfs", 320, "-q"),
    "btrfs": of_an_image("btrfs", 128, "-q"),
    "overlay": of_an_image(
        "ext4",
        16,
        "-q",
        then="cd /tmp/on; mkdir lower upper work on; "
        "mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work none on",
    ),
    "vfat": of_an_image("vfat", 16),
    "exfat": of_an_image("exfat", 16),
}

# These alone may be missing under REQUIRE=all: no package brings a kernel module.
MAY_BE_MISSING = {
    "vfat": "the kernels of many machines that CI runs on have no vfat",
    "exfat": "nor exfat; tests.volumes has a FUSE that behaves like it",
    "memory cgroup": "many machines have control groups of version 2 alone, or give none away",
    "pids cgroup": "nor of this sort",
    "history": "a shallow clone has no release before this one",
}
# And this no test here tries, for want of a kernel that can.
NOT_TRIED = {"nfs": "needs a server in the kernel; ESTALE and a clock of its own come from a FUSE"}


@functools.cache
def missing(what: str) -> str | None:
    if what == "root":
        return "not root" if os.geteuid() else None
    command = TRIALS[what]
    if shutil.which(command[0]) is None:
        return f"{command[0]} is not installed"
    trial = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        cwd=os.path.dirname(os.path.dirname(__file__)),
    )  # fmt: skip
    return None if trial.returncode == 0 else trial.stderr.strip() or f"{command[0]} failed"


def may_be_missing() -> list[str]:
    """What is not here and need not be, nor what no test tries, each with the reason."""
    return [f"{what} ({missing(what)})" for what in MAY_BE_MISSING if missing(what)] + [
        f"{what} ({why})" for what, why in NOT_TRIED.items()
    ]
