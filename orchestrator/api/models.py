"""What requests and answers look like: the documents of orchestrator/documents.py, with examples."""

from __future__ import annotations

from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from db.tenants import ALGORITHMS, LARGE_FILE, SMALLEST_LARGE_FILE, TIERS
from db.types import FileType, Kind, ScanState, Strategy, Trigger
from orchestrator.api import patterns

Item = TypeVar("Item")
Name = Annotated[str, StringConstraints(pattern=patterns.NAME)]
Pattern = Annotated[str, StringConstraints(min_length=1, max_length=4096, pattern=patterns.LINE)]
BIGGEST = 2**63 - 1

SCAN = "01a1fdb8-f35d-7bf1-930d-64e01096fc6e"
CURSOR = "Mi40Mjk0OTY3Mjk2LjY0ZTAxMDk2ZmM2ZQ"
AT = "2026-11-21T10:48:39.253560Z"
DIGEST = "b88643a4841990fe2dab304e52004ae4fa9c1da51874ad0572a2be8793e43889"


def _shown(*examples: dict[str, Any], extra: Literal["forbid", "ignore"] = "ignore") -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": list(examples)}, extra=extra)


# What is asked


class _Policy(BaseModel):
    interval_s: int | None = Field(None, ge=1, le=366 * 86400, description="seconds between scans")
    tier: Literal[TIERS] | None = Field(None, description="what is due of the first is scanned first")  # type: ignore[valid-type]
    algorithm: Literal[ALGORITHMS] | None = Field(None, description="hash of contents")  # type: ignore[valid-type]
    ignore: list[Pattern] | None = Field(
        None, max_length=10_000, description="what to leave out, as in .gitignore; weaker than any .strandlineignore"
    )
    gitignore: bool | None = Field(None, description="obey .gitignore files too")
    cross_mounts: bool | None = Field(None, description="enter file systems mounted below")
    large_file: Literal[LARGE_FILE] | None = Field(None, description="how large files are digested")  # type: ignore[valid-type]
    large_file_bytes: int | None = Field(
        None, ge=SMALLEST_LARGE_FILE, le=BIGGEST, description="from so many bytes a file is large"
    )
    deletion_limit: int | None = Field(None, ge=1, le=100, description="percent; past it deletions must be confirmed")

    def given(self) -> dict[str, Any]:
        """The columns that are to be set."""
        return {name: value for name, value in self.model_dump().items() if value is not None}


class NewTenant(_Policy):
    """A tenant to be registered; it is scanned on schedule, for the first time within an interval."""

    model_config = _shown({"name": "notes", "root": "/srv/notes", "interval_s": 600, "tier": "priority"},
                          extra="forbid")  # fmt: skip

    name: Name
    root: str = Field(min_length=1, max_length=4096, description="a folder below one of STRANDLINE_ROOTS")


class TenantChange(_Policy):
    """What to change of a tenant: what is left out stays. A scan that runs is begun anew where it goes by it."""

    model_config = _shown({"interval_s": 60}, {"enabled": False}, {"ignore": ["*.log", "/cache/"]}, extra="forbid")

    root: str | None = Field(None, min_length=1, max_length=4096, description="the folder is at another place now")
    enabled: bool | None = Field(None, description="false: no scans on schedule; what is asked for is still done")


class ScanRequest(BaseModel):
    """A scan to be done now."""

    model_config = _shown({"full": False}, {"paths": ["letters/draft.md"]}, {"paths": [], "full": True}, extra="forbid")

    paths: list[str] = Field(
        [],
        max_length=10_000,
        description="look at these alone, relative to the root, and at all below them; none: at everything",
    )
    full: bool = Field(False, description="trust no fingerprint: compare every row")
    verify: bool = Field(False, description="trust no stat: read every file again")


class NewWebhook(BaseModel):
    """Where ended scans are to be told."""

    model_config = _shown({"url": "https://example.com/hook"}, extra="forbid")

    url: str = Field(min_length=1, max_length=2000, description="https://HOST/PATH, at a public address")


# What is answered


class WebhookDocument(BaseModel):
    """Where ended scans are told: by POST, signed as Standard Webhooks has it (standardwebhooks.com)."""

    model_config = _shown({"url": "https://example.com/hook", "waiting": 2, "waiting_since": AT, "failed_attempts": 3,
                           "next_attempt_at": AT})  # fmt: skip

    url: str
    waiting: int = Field(description="ended scans that are still to be told")
    waiting_since: str | None = Field(description="when the first of them ended")
    failed_attempts: int = Field(
        description="how often it was tried to tell that; the workers' logs say what was wrong"
    )
    next_attempt_at: str | None = Field(description="when it is tried next")


class MadeWebhook(WebhookDocument):
    """The same where it is made."""

    model_config = _shown({"url": "https://example.com/hook", "waiting": 0, "waiting_since": None, "failed_attempts": 0,
                           "next_attempt_at": None, "secret": "whsec_UVD3kUpIRJiCwTyvIr2CdtUi35QiBDgq"})  # fmt: skip

    secret: str = Field(description="what signs; shown where it is made, and never again")


class FieldError(BaseModel):
    """One thing that cannot be used."""

    field: str
    detail: str


class ProblemDocument(BaseModel):
    """An error (RFC 9457)."""

    model_config = _shown({"type": "about:blank", "title": "Not Found", "status": 404,
                           "detail": "there is no tenant 'notes'"})  # fmt: skip

    type: str
    title: str
    status: int
    detail: str
    field: str | None = Field(None, description="what cannot be used")
    errors: list[FieldError] = Field([], description="where more than one thing cannot")


class Page(BaseModel, Generic[Item]):
    """Some of a list; `next`: ask on with this, none: that was the last."""

    items: list[Item]
    next: str | None


class Watermark(BaseModel):
    """The last complete scan."""

    fence: int
    started_at: str | None
    files: int | None


class TenantDocument(BaseModel):
    """A tenant: whose folder is scanned, where and how often."""

    model_config = _shown({
        "name": "notes", "root": "/srv/notes", "tier": "standard", "interval_s": 3600, "algorithm": "sha256",
        "ignore": ["*.log"], "gitignore": False, "cross_mounts": False, "large_file": "full", "large_file_bytes": None,
        "deletion_limit": 30, "enabled": True, "created_at": AT, "next_scan_at": AT, "fence": 2,
        "watermark": {"fence": 2, "started_at": AT, "files": 31}, "filesystem": "ext4", "cannot_see": None,
        "verified_until": AT, "silent_changes": 0,
    })  # fmt: skip

    name: str
    root: str
    root_b64: str | None = Field(None, description="the exact bytes, where they are not UTF-8")
    tier: str
    interval_s: int
    algorithm: str
    ignore: list[str]
    gitignore: bool
    cross_mounts: bool
    large_file: str
    large_file_bytes: int | None
    deletion_limit: int
    enabled: bool
    created_at: str
    next_scan_at: str | None
    fence: int
    watermark: Watermark | None
    filesystem: str | None
    cannot_see: str | None = Field(description="what stat does not show on this file system")
    verified_until: str | None
    silent_changes: int


class PathDocument(BaseModel):
    """A path, relative to the root."""

    path: str
    path_b64: str | None = Field(None, description="its exact bytes, where they are not UTF-8")


class Skipped(PathDocument):
    """A place that was left out on purpose."""

    reason: str


class ScanError(PathDocument):
    """A place that could not be looked at."""

    error: str
    operation: str


class ProgressDocument(BaseModel):
    """How far a running scan has come."""

    model_config = _shown({
        "directories": 120, "files": 4100, "bytes": 81920000, "hashed_files": 12, "hashed_bytes": 40960, "shards": 5,
        "shards_done": 1, "shards_leased": 2, "shards_ready": 1, "finishing": False, "files_per_s": 51200.5,
        "expected_files": 100000, "eta_s": 1.9,
    })  # fmt: skip

    directories: int
    files: int
    bytes: int
    hashed_files: int
    hashed_bytes: int
    shards: int
    shards_done: int
    shards_leased: int
    shards_ready: int
    finishing: bool
    files_per_s: float
    expected_files: int | None
    eta_s: float | None


class ScanDocument(BaseModel):
    """A scan: one numbered pass over a tenant."""

    model_config = _shown({
        "tenant": "notes", "scan": SCAN, "fence": 2, "strategy": "incremental", "reason": "watermark valid",
        "trigger": "request", "state": "succeeded", "error": None, "requested_at": AT, "started_at": AT,
        "finished_at": AT, "duration_s": 0.24, "directories": 19, "directories_unchanged": 18, "files": 31,
        "bytes": 995, "other": 0, "added": 1, "modified": 0, "deleted": 0, "moved": 0, "unchanged": 30,
        "hashed_files": 1, "hashed_bytes": 9, "verified_files": 0, "silent_changes": 0, "skipped": [],
        "skipped_total": 0, "errors": [], "errors_total": 0, "shards": 2, "attempts": 2,
        "peak_memory_bytes": 91226112, "cursor": CURSOR,
    })  # fmt: skip

    tenant: str
    scan: str
    fence: int | None
    strategy: Strategy | None
    reason: str | None
    trigger: Trigger
    paths: list[PathDocument] = Field([], description="the first of those that it was asked for alone")
    paths_total: int = Field(0, description="of these there are so many; none: the scan is of everything")
    state: ScanState
    error: str | None
    requested_at: str
    started_at: str | None
    finished_at: str | None
    duration_s: float | None
    directories: int
    directories_unchanged: int
    files: int
    bytes: int
    other: int
    added: int
    modified: int
    deleted: int
    moved: int
    unchanged: int
    hashed_files: int
    hashed_bytes: int
    verified_files: int
    silent_changes: int
    skipped: list[Skipped]
    skipped_total: int
    errors: list[ScanError]
    errors_total: int
    shards: int
    attempts: int
    peak_memory_bytes: int
    cursor: str | None = Field(description="the feed's place behind this scan, once it has ended")
    progress: ProgressDocument | None = Field(None, description="of a scan that runs")


class ChangeDocument(BaseModel):
    """A change: the whole new state of its path."""

    model_config = _shown({
        "cursor": CURSOR, "kind": "added", "path": "todo.md", "type": "file", "size": 9, "digest": DIGEST,
        "algorithm": "sha256", "fence": 2, "scan": SCAN, "at": AT,
    })  # fmt: skip

    cursor: str
    kind: Kind
    path: str
    path_b64: str | None = None
    old_path: str | None = Field(None, description="of what was moved")
    old_path_b64: str | None = None
    type: FileType
    size: int | None
    digest: str | None = None
    algorithm: str | None = None
    target: str | None = Field(None, description="of a symlink")
    target_b64: str | None = None
    reason: str | None = Field(None, description="`ignored`: deleted since it is left out now")
    fence: int
    scan: str
    at: str | None


class ChangesPage(Page[ChangeDocument]):
    """Some of the feed; `cursor`: the place behind them, to ask or to follow from later."""

    cursor: str | None


class FileDocument(BaseModel):
    """An object of the index."""

    model_config = _shown({
        "path": "todo.md", "type": "file", "size": 9, "mtime_ns": 1763690000000000000, "digest": DIGEST,
        "algorithm": "sha256", "changed_in": 2,
    })  # fmt: skip

    path: str
    path_b64: str | None = None
    type: FileType
    size: int
    mtime_ns: int
    digest: str | None = None
    algorithm: str | None = None
    target: str | None = None
    target_b64: str | None = None
    changed_in: int


class FilesPage(Page[FileDocument]):
    """Some of the index; the first page has the cursor of the feed to follow from once all is read."""

    cursor: str | None = None


class Explanation(BaseModel):
    """Why a path was or was not hashed, skipped or reported."""

    model_config = _shown({"tenant": "notes", "path": "todo.md", "status": "unchanged",
                           "explanation": "hashed in scan number 2, which added it"})  # fmt: skip

    tenant: str
    path: str
    path_b64: str | None = None
    status: str
    explanation: str


class BreakerEntry(BaseModel):
    """A place that failed lately, and how it is treated."""

    model_config = _shown({"tenant": "notes", "path": "letters", "covers": "directory", "state": "open", "failures": 4,
                           "failed_at": AT, "open_until": AT, "error": "permission denied"})  # fmt: skip

    tenant: str
    path: str
    path_b64: str | None = None
    covers: str
    state: str
    failures: int
    failed_at: str | None
    open_until: str | None
    error: str


class Forgotten(BaseModel):
    """How many entries were forgotten."""

    model_config = _shown({"forgotten": 1})

    forgotten: int


class Alive(BaseModel):
    """This process answers."""

    model_config = _shown({"status": "alive"})

    status: Literal["alive"]


class Ready(BaseModel):
    """Whether requests can be served, and what this depends on: `ok`, or what is wrong."""

    model_config = _shown({"status": "ready", "database": "ok", "redis": "ok"})

    status: Literal["ready", "not ready", "draining"]
    database: str
    redis: str = Field(description="without Redis scans are asked for and listed all the same")
