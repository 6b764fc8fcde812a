"""Git as a witness of what changed in a tree, from a repository that lies outside of it."""

import os
import subprocess
from pathlib import Path

SETTINGS = {
    "core.fileMode": "false",  # permissions are no part of the index
    "core.symlinks": "true",
    "core.ignoreCase": "false",
    "core.autocrlf": "false",
    "core.safecrlf": "false",
    "core.excludesFile": "/dev/null",
    "core.protectHFS": "false",
    "core.protectNTFS": "false",
    "core.compression": "1",
    "gc.auto": "0",
}
# Stronger than any .gitattributes in the tree: bytes go in as they are.
ATTRIBUTES = "* -text !eol -filter -ident -working-tree-encoding\n"
ENVIRONMENT = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1", "GIT_ATTR_NOSYSTEM": "1"}


class GitView:
    """What changed in `tree` from one look to the next: A, M or D by path; a change of type is M."""

    def __init__(self, git_dir: Path, tree: bytes) -> None:
        self._git_dir, self._work_tree = git_dir, tree
        self._git("init", "--quiet", "--template=")
        (git_dir / "info").mkdir(exist_ok=True)
        (git_dir / "info" / "attributes").write_text(ATTRIBUTES)
        self._last = self._git("hash-object", "-t", "tree", "-w", "--stdin")

    def look(self) -> dict[bytes, str]:
        # Without its index git reads every file again: what it remembers of their stats is not what it is asked for.
        (self._git_dir / "index").unlink(missing_ok=True)
        self._git("add", "--all", "--force")
        before, self._last = self._last, self._git("write-tree")
        listed = self._git("diff-tree", "-r", "-z", "--no-renames", "--name-status", before, self._last)
        letters, paths = listed.split(b"\0")[:-1:2], listed.split(b"\0")[1::2]
        return {path: letter.decode().replace("T", "M") for letter, path in zip(letters, paths, strict=True)}

    def _git(self, *words: str | bytes) -> bytes:
        settings = [word for name, value in SETTINGS.items() for word in ("-c", f"{name}={value}")]
        return subprocess.run(
            ["git", "--git-dir", self._git_dir, "--work-tree", self._work_tree, *settings, *words],
            cwd=self._work_tree, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True,
            env={name: value for name, value in os.environ.items() if not name.startswith("GIT_")} | ENVIRONMENT,
        ).stdout.removesuffix(b"\n")  # fmt: skip
