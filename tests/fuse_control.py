"""What the FUSE of `tests.fuse` is told: how it differs from the folder behind it, and what goes wrong where."""

import json
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True)
class Rule:
    """What happens at an operation: `do` is done in the folder behind, then it fails with `error`, if one is given.

    `path` is relative to the root ("" is the root itself) and may hold `*`. `operation` is stat, open, read, opendir,
    readdir or readlink; a readdir comes to this after so many entries, a read at so many bytes or beyond. At most
    `times` times, if that is given: the kernel asks once more for a page that it could not read ahead.
    """

    path: str
    operation: str
    error: str | None = None  # a name of errno
    after: int = 0
    times: int | None = None
    # unlink PATH, rename FROM TO, append PATH TEXT, truncate PATH SIZE; kill whoever asks; hang until this rule is gone
    do: list[list[str]] = field(default_factory=list)


@dataclass(frozen=True)
class Control:
    rules: list[Rule] = field(default_factory=list)
    latency_s: float = 0.0  # of each call
    granularity_s: int = 0  # of all stamps; 0: nanoseconds
    directory_times: str = "true"  # or frozen
    ctime: str = "true"  # or mtime, frozen
    inodes: str = "true"  # or mount, lookup: other numbers at each of them

    def dump(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def load(cls, text: str) -> "Control":
        values = json.loads(text)
        return cls(**values | {"rules": [Rule(**rule) for rule in values["rules"]]})
