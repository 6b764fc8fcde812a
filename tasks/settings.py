"""Every setting, declared once: name, default, unit and a sentence. Read from STRANDLINE_… by each process's root, or,
as secrets are handed to containers, from the file that STRANDLINE_…_FILE names.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from db.types import UsageError

PREFIX = "STRANDLINE_"
IN_FILE = "_FILE"
# More than any value needs; a device would be read for ever.
MOST_IN_FILE = 1 << 20
# Never shown, not even where they cannot be used.
SECRET = ("redis_sentinel_password", "api_tokens", "flower_auth", "flower_cookie_secret")


def default_state_dir() -> str:
    """`$XDG_DATA_HOME/strandline`, by default `~/.local/share/strandline`."""
    data = os.environ.get("XDG_DATA_HOME") or str(Path("~").expanduser() / ".local" / "share")
    return str(Path(data) / "strandline")


class Settings(BaseModel):
    """The settings of one process."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    state_dir: str = Field(
        default_factory=default_state_dir,
        description="folder of the embedded stack: its database, its lock, its sockets; never on a network mount",
    )
    database_url: str = Field(
        "", description="postgresql+psycopg://… for a cluster; empty: a SQLite file in the state folder"
    )
    redis_url: str = Field("", description="broker and coordination; empty: an embedded server of the state folder")
    redis_prefix: str = Field(
        "strandline:",
        pattern=r"^[A-Za-z0-9_.:/{}-]{1,100}$",
        json_schema_extra={"in_words": "use 1 to 100 letters, digits, '_', '.', ':', '/', '-', '{' or '}'"},
        description="what every key in Redis begins with; clusters that share a Redis need different ones",
    )
    redis_sentinel_master: str = Field("mymaster", min_length=1, description="name of the master that sentinels watch")
    redis_sentinel_password: str = Field("", description="password of the sentinels themselves, where they have one")
    roots: str = Field("", description="folders under which tenant roots may lie, separated by ':'; empty: anywhere")
    workers: int = Field(0, ge=0, le=256, description="processes of one worker at most; 0: one a processor")
    memory_profile: Literal["conservative", "aggressive", "development"] = Field(
        "conservative", description="how full memory may get: conservative, aggressive (own machines) or development"
    )
    memory_limit_mb: int = Field(
        0, ge=0, le=1 << 30, description="MiB that a worker with its children may use; 0: what its control group may"
    )
    memory_governor: Literal["on", "off"] = Field(
        "on", description="off: memory is watched, and nothing is done about it (to compare)"
    )
    hash_chunk_bytes: int = Field(65536, ge=4096, le=64 << 20, description="bytes read at a time while hashing")
    hash_concurrency: int = Field(
        10, ge=1, le=256, description="files open for hashing at once in one worker: it has no more processes than that"
    )
    shard_entries: int = Field(50_000, ge=1, description="entries after which a shard hands on the rest of its work")
    shard_bytes: int = Field(512 << 20, ge=1, description="hashed bytes after which a shard hands on the rest")
    huge_entries: int = Field(20_000, ge=16, description="entries from which a directory is kept in ranges, in parts")
    shard_seconds: float = Field(15.0, gt=0, description="seconds after which a shard hands on the rest")
    lease_s: float = Field(7.0, ge=1, description="seconds after which the shard of a process that died is given on")
    stall_s: float = Field(
        60.0, ge=1, description="seconds for one call, after which a process is taken to hang and ends"
    )
    breaker_failures: int = Field(3, ge=1, description="failed scans of a file or folder after which it is left alone")
    breaker_window_s: float = Field(
        3600.0, gt=0, description="seconds for which a failure counts (at least 4 intervals)"
    )
    breaker_open_s: float = Field(3600.0, gt=0, description="seconds for which what fails is left alone, then probed")
    breaker_tracked: int = Field(100, ge=1, description="entries of the breaker that are kept for a tenant at most")
    window: int = Field(
        1000, ge=1, description="shards sent or running at once at most; else twice what the live workers can run"
    )
    scan_window: int = Field(
        1000, ge=1, description="the same of one scan; else half of what they can run while others wait"
    )
    ageing_s: float = Field(60.0, gt=0, description="seconds within which a scan that others overtake is served too")
    interval_s: int = Field(3600, ge=1, description="seconds between scans of a new tenant")
    stagger_window_s: float = Field(30.0, ge=0, description="shortest time over which due tenants are spread, seconds")
    verify_days: float = Field(30.0, gt=0, description="days within which each file is read again, changed or not")
    verify_days_untrusted: float = Field(7.0, gt=0, description="the same where stat does not show every change")
    verify_bytes: int = Field(10 << 30, ge=1, description="bytes that one scan reads again at most, on schedule")
    webhook_private: bool = Field(
        False, description="true: webhooks may be at addresses that are not public (of this machine, of its network)"
    )
    api_tokens: str = Field(
        "", description='who may ask the API: JSON, the SHA-256 of each token to "admin" or a list of tenant names'
    )
    api_host: str = Field("127.0.0.1", min_length=1, description="address that the API listens on")
    api_port: int = Field(8080, ge=1, le=65535, description="port that the API listens on")
    api_rate: float = Field(100.0, gt=0, description="requests a second that each token may make")
    api_body_bytes: int = Field(1 << 20, ge=1024, description="bytes that the body of a request may have")
    api_streams: int = Field(4000, ge=1, description="readers of server-sent events that one API process serves")
    retention_days: float = Field(
        30.0, gt=0, description="days for which ended scans, their changes in the feed and its cursors are kept"
    )
    audit_days: float = Field(90.0, gt=0, description="days for which it is kept who changed or asked for what")
    tick_s: float = Field(2.0, gt=0, description="seconds between looks for due tenants and for work nobody was sent")

    health_dir: str = Field(
        "", description="folder in which a worker or beat touches `alive` and `ready`, for probes; empty: it tells none"
    )
    log_format: Literal["auto", "json", "text"] = Field(
        "auto", description="how logs are written; auto: text on a terminal and under `up`, else JSON, an object a line"
    )
    flower_auth: str = Field(
        "", pattern=r"^$|^[^:,\s]+:[^,\s]+(,[^:,\s]+:[^,\s]+)*$",
        json_schema_extra={"in_words": "use user:password, several separated by ',', without spaces"},
        description="user:password of Flower, several separated by commas; empty: Flower listens on loopback only",
    )  # fmt: skip
    flower_read_only: bool = Field(True, description="Flower shows, and controls neither workers nor tasks")
    flower_url_prefix: str = Field(
        "", pattern=r"^[A-Za-z0-9_/-]*$", json_schema_extra={"in_words": "use letters, digits, '_', '-' or '/'"},
        description="path below which Flower answers, behind a proxy (such as flower)",
    )  # fmt: skip
    flower_db: str = Field(
        "",
        description="file in which Flower keeps what it saw; empty: in the state folder; none: it keeps nothing",
    )
    flower_cookie_secret: str = Field(
        "", description="what Flower signs its cookies with; empty: derived from STRANDLINE_FLOWER_AUTH"
    )
    metrics_tenants: int = Field(
        0, ge=0, le=100, description="tenants that metrics name, those that are behind most; 0: none is named"
    )


def load(environment: Mapping[str, str] | None = None, **given: Any) -> Settings:
    """The settings of an environment (by default the process's), with `given` values (a command's options) before.

    Raises UsageError for a variable that does not exist, or a value or file that cannot be used, and names it.
    """
    environment = os.environ if environment is None else environment
    known = {PREFIX + name.upper(): name for name in Settings.model_fields}
    for name in sorted(environment):
        if name.startswith(PREFIX) and name.removesuffix(IN_FILE) not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            raise UsageError(f"unknown setting {name}; did you mean {near[0]}? `strandline config list` shows all")
    values = {name: environment[variable] for variable, name in known.items() if variable in environment}
    values |= {
        name: _content(environment, variable) for variable, name in known.items() if variable + IN_FILE in environment
    }
    try:
        return Settings(**values | {name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        name = PREFIX + str(first["loc"][0]).upper()
        if str(first["loc"][0]) in SECRET:
            raise UsageError(f"{name} cannot be used (its value is not shown): {_in_words(first)}") from None
        value = first["input"]
        # (It may be an address with its password that was given to the wrong one.)
        shown = without_passwords(value) if isinstance(value, str) else value
        raise UsageError(f"{name}={shown!r} cannot be used: {_in_words(first)}") from error


def _in_words(error: Mapping[str, Any]) -> str:
    """What is allowed: an expression is not for people."""
    more = Settings.model_fields[str(error["loc"][0])].json_schema_extra
    if error["type"] == "string_pattern_mismatch" and isinstance(more, dict):
        return str(more["in_words"])
    return str(error["msg"])


def _content(environment: Mapping[str, str], variable: str) -> str:
    """What is in the file that holds a setting, without the end of its last line."""
    if variable in environment:
        raise UsageError(f"{variable} and {variable}{IN_FILE} are both set: leave one of them out")
    path = environment[variable + IN_FILE]
    try:
        with open(path, encoding="utf-8") as file:
            return file.read(MOST_IN_FILE).removesuffix("\n")
    except (OSError, ValueError) as error:  # a content that is not UTF-8, too; it may be a secret, and is not shown
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(f"{variable}{IN_FILE}={path!r} cannot be read: {why}") from None


def source(name: str) -> str:
    """Where the value of a setting came from."""
    variable = PREFIX + name.upper()
    return "environment" if variable in os.environ else "file" if variable + IN_FILE in os.environ else "default"


def without_passwords(url: str) -> str:
    """An address, of Redis or of a database, for people; also one that cannot be read."""
    url = re.sub(r"(://[^/?#;@:]*):[^;]*@", r"\1:***@", url)
    return re.sub(r"(?i)([?&][^=&]*password)=[^&;]*", r"\1=***", url)
