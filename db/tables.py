"""The tables. Each opens with what one row means.

High-volume tables (directories, files, changes) begin their primary key with the tenant, so that they can be
partitioned by it, and carry no foreign keys: whoever removes a tenant removes its rows.
Names and paths are bytes. Times are `Instant`: timestamptz on PostgreSQL, microseconds since the epoch on SQLite.
"""

from __future__ import annotations

from enum import StrEnum

from sqlalchemy import (
    BigInteger,
    BindParameter,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    bindparam,
    text,
)

from db.clock import Instant
from db.types import ENDED, Gone, ScanState, ShardState, Strategy, Trigger

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# SQLite gives out row ids only to columns declared exactly INTEGER.
Serial = BigInteger().with_variant(Integer, "sqlite")


def _one_of(column: str, values: type | tuple[object, ...]) -> CheckConstraint:
    listed = ", ".join(f"'{value}'" for value in values)  # type: ignore[union-attr]
    return CheckConstraint(f"{column} IN ({listed})", name=column)


def _count(name: str) -> Column[int]:
    return Column(name, BigInteger, nullable=False, server_default=text("0"))


# What is counted of a scan, in its row and in those of its kind.
TALLIED = (
    "directories_unchanged", "added", "modified", "deleted", "moved", "hashed_files", "hashed_bytes", "verified_files",
    "silent_changes", "skipped_total", "errors_total", "shards", "attempts",
)  # fmt: skip

# One customer's folder, how it is scanned, and how far the last complete scan came (the watermark).
tenants = Table(
    "tenants",
    metadata,
    Column("id", Serial, primary_key=True, autoincrement=True),
    Column("name", String(100), nullable=False, unique=True),
    Column("root", LargeBinary, nullable=False, unique=True),  # absolute, without symlinks
    Column("tier", String(32), nullable=False, server_default="standard"),
    Column("interval_s", Integer, nullable=False),  # seconds between scheduled scans
    Column("algorithm", String(16), nullable=False),
    Column("enabled", Boolean, nullable=False, server_default=text("true")),  # false: paused
    Column("created_at", Instant, nullable=False),
    Column("next_scan_at", Instant),  # when the schedule wants the next scan; none: a slot is to be found
    Column("served_at", Instant),  # when a shard of this tenant was last sent; the least recent goes first
    _count("fence"),  # of the newest scan; grows by one with each
    Column("watermark_fence", BigInteger),  # of the last complete scan
    Column("watermark_started_at", Instant),
    Column("watermark_files", BigInteger),
    _count("pruned_fence"),  # changes up to this fence are no longer kept
    Column("filesystem", String(32)),  # identity of the root at the last complete scan: the file system's type …
    Column("root_inode", BigInteger),  # … and the folder's inode
    Column("ignore", Text, nullable=False, server_default="[]"),  # JSON list of patterns, weaker than any rule file
    Column("gitignore", Boolean, nullable=False, server_default=text("false")),  # obey .gitignore files too
    Column("cross_mounts", Boolean, nullable=False, server_default=text("false")),  # enter other file systems below
    Column("large_file", String(16), nullable=False, server_default="full"),  # digest of large ones: see policy.py
    Column("large_file_bytes", BigInteger),  # from so many bytes a file is large; none: never
    Column("deletion_limit", Integer, nullable=False, server_default="30"),  # percent of the files; past it: suspect
    Column("verify_at", Instant),  # the rotating verification has come as far as it should by then …
    _count("verify_place"),  # … and this is where, in 32 bits of the places of directories
    _count("silent_changes"),  # found by verification under an equal stat, since ever
    CheckConstraint("interval_s > 0", name="interval_s"),
    Index("ix_tenants_due", "next_scan_at", postgresql_where=text("enabled"), sqlite_where=text("enabled = 1")),
)

# One numbered pass over a tenant. At most one is queued and one running; its changes are visible once it has ended.
scans = Table(
    "scans",
    metadata,
    Column("id", Uuid(as_uuid=False), primary_key=True),
    Column("tenant_id", BigInteger, ForeignKey("tenants.id", ondelete="CASCADE"), nullable=False),
    Column("fence", BigInteger),  # given at start
    Column("strategy", String(16)),
    Column("reason", Text),  # of the strategy
    Column("trigger", String(16), nullable=False),
    Column("full", Boolean, nullable=False, server_default=text("false")),  # asked for: trust no fingerprint
    Column("verify", Boolean, nullable=False, server_default=text("false")),  # asked for: hash what is equal, too
    Column("paths", Text),  # asked for: only these, see named.py; none: the whole tree
    Column("confirms", BigInteger),  # asked for: what was gone by this fence may go, however much it is
    Column("state", String(16), nullable=False),
    Column("verdict", String(16)),  # finish's decision on deletions, stored before it is applied: delete | keep
    Column("doubt", Text),  # why its deletions are doubted; with the verdict keep it ends suspect
    Column("ending", String(16)),  # decided before the finish: cancelled | failed
    Column("error", Text),  # why
    Column("requested_at", Instant, nullable=False),
    Column("started_at", Instant),
    Column("finished_at", Instant),
    _count("directories"),
    _count("directories_unchanged"),
    _count("files"),
    _count("bytes"),
    _count("other"),
    _count("added"),
    _count("modified"),
    _count("deleted"),
    _count("moved"),
    _count("unchanged"),
    _count("hashed_files"),
    _count("hashed_bytes"),
    _count("verified_files"),  # hashed although their stat was equal
    _count("silent_changes"),  # of these: found to be other than recorded
    _count("verify_from"),  # places of directories whose files are verified, of 2³²: from …
    _count("verify_to"),  # … to before this one
    _count("skipped_total"),
    _count("errors_total"),
    _count("shards"),
    _count("attempts"),
    _count("peak_memory_bytes"),
    UniqueConstraint("tenant_id", "fence"),
    _one_of("state", ScanState),
    _one_of("strategy", Strategy),
    _one_of("trigger", Trigger),
    CheckConstraint("verdict IN ('delete', 'keep')", name="verdict"),
    CheckConstraint("ending IN ('cancelled', 'failed')", name="ending"),
    CheckConstraint(f"(state IN ({', '.join(repr(str(s)) for s in ENDED)})) = (finished_at IS NOT NULL)", name="ended"),
    CheckConstraint("state <> 'running' OR (fence IS NOT NULL AND started_at IS NOT NULL)", name="running"),
    Index("uq_scans_queued", "tenant_id", unique=True, postgresql_where=text("state = 'queued'"),
          sqlite_where=text("state = 'queued'")),
    Index("uq_scans_running", "tenant_id", unique=True, postgresql_where=text("state = 'running'"),
          sqlite_where=text("state = 'running'")),
    Index("ix_scans_tenant_requested", "tenant_id", "requested_at"),
    Index("ix_scans_suspect", "tenant_id", "fence", postgresql_where=text("state = 'suspect'"),
          sqlite_where=text("state = 'suspect'")),
)  # fmt: skip

# The unit of claim and retry: a part of a scan's directories. Number 0 is the finish.
shards = Table(
    "shards",
    metadata,
    Column("scan_id", Uuid(as_uuid=False), ForeignKey("scans.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("tenant_id", BigInteger, nullable=False),
    Column("fence", BigInteger, nullable=False),
    Column("queue", String(16), nullable=False),  # of Celery, where it is sent
    Column("frontier", Text, nullable=False),  # JSON, see tasks/frontier.py; besides it, the directories it owns
    Column("state", String(16), nullable=False),
    Column("attempt", Integer, nullable=False, server_default=text("0")),
    Column("deaths", Integer, nullable=False, server_default=text("0")),  # leases that ran out
    Column("token", Uuid(as_uuid=False)),  # who holds it
    Column("lease_until", Instant),
    Column("sent_until", Instant),  # until then a message is thought to be under way
    Column("not_before", Instant, nullable=False),
    _count("sequence"),  # last number given to a change of this shard
    Column("entry", LargeBinary),  # careful mode: the path about to be touched
    Column("suspect", LargeBinary),  # the path that was named when it died last …
    Column("suspect_deaths", Integer, nullable=False, server_default=text("0")),  # … and how often in a row
    Column("error", Text),  # of the last failed attempt; none where it died without a word
    Column("place", Text),  # which folder the root was to it: file system and inode
    _count("directories"),  # listed, with what was in them: those born in this scan once they are written, others …
    _count("files"),
    _count("bytes"),  # … once the shard is done, since a retry lists them again
    _count("directories_unchanged"),
    _count("hashed_files"),
    _count("hashed_bytes"),
    _count("verified_files"),
    _count("silent_changes"),
    _count("skipped_total"),
    _count("other"),
    _count("errors_total"),
    _count("peak_memory_bytes"),
    _one_of("state", ShardState),
    CheckConstraint("(state = 'leased') = (token IS NOT NULL AND lease_until IS NOT NULL)", name="leased"),
    CheckConstraint("state <> 'waiting' OR number = 0", name="waiting"),
    Index("ix_shards_open", "state", "queue", postgresql_where=text("state IN ('ready', 'leased')"),
          sqlite_where=text("state IN ('ready', 'leased')")),
)  # fmt: skip

# A directory of a tenant's tree, as it was when it was last listed with a difference.
directories = Table(
    "directories",
    metadata,
    Column("tenant_id", BigInteger, primary_key=True, autoincrement=False),
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("parent_id", BigInteger),  # none: the root
    Column("name", LargeBinary, nullable=False),
    Column("path", LargeBinary, nullable=False),
    Column("order_key", LargeBinary, nullable=False),  # path with / as NUL, cut to 1,024 bytes: depth-first order
    Column("inode", BigInteger),
    Column("mount", BigInteger),  # of the root of another file system: statfs's f_type
    Column("fingerprint", LargeBinary),  # 16 bytes over its entries; none: its rows must be compared
    _count("files"),  # files and symlinks in it
    _count("bytes"),  # of these files
    Column("version", BigInteger, nullable=False, server_default=text("1")),  # compare-and-swap
    Column("born", BigInteger, nullable=False),  # fence that found it
    Column("owner", Integer),  # number of the shard of fence `born` that must list it
    Column("listed", BigInteger),  # last fence whose listing differed from the rows
    Column("gone", BigInteger),  # first fence that missed it in its parent's listing
    Column("gone_reason", String(16)),
    Column("ranges", Integer),  # huge: its entries are in so many rows of directory_ranges
    Column("name_hash", BigInteger),  # of its name, if its parent is huge
    UniqueConstraint("tenant_id", "parent_id", "name"),
    Index("ix_directories_order", "tenant_id", "order_key", "id"),
    Index("ix_directories_inode", "tenant_id", "inode"),
    Index("ix_directories_owner", "tenant_id", "owner", postgresql_where=text("owner IS NOT NULL"),
          sqlite_where=text("owner IS NOT NULL")),
    Index("ix_directories_name_hash", "tenant_id", "parent_id", "name_hash",
          postgresql_where=text("name_hash IS NOT NULL"), sqlite_where=text("name_hash IS NOT NULL")),
    Index("ix_directories_gone", "tenant_id", "gone", postgresql_where=text("gone IS NOT NULL"),
          sqlite_where=text("gone IS NOT NULL")),
    _one_of("gone_reason", Gone),
    CheckConstraint("(gone IS NULL) = (gone_reason IS NULL)", name="gone"),
    CheckConstraint("fingerprint IS NULL OR (length(fingerprint) = 16 AND listed IS NOT NULL)", name="fingerprint"),
)  # fmt: skip

# A part of a huge directory: the names whose 32-bit hash falls into range `number` of so many equal ones.
directory_ranges = Table(
    "directory_ranges",
    metadata,
    Column("tenant_id", BigInteger, primary_key=True, autoincrement=False),
    Column("directory_id", BigInteger, primary_key=True, autoincrement=False),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("fingerprint", LargeBinary),
    _count("files"),
    _count("bytes"),
    Column("version", BigInteger, nullable=False, server_default=text("1")),
    Column("listed", BigInteger),
)

# A file or symlink, with the digest of its content and the stat that the digest was proven under.
# (Few checks on files and changes: one for each enumeration made SQLite's inserts take twice as long.)
files = Table(
    "files",
    metadata,
    Column("tenant_id", BigInteger, primary_key=True, autoincrement=False),
    Column("directory_id", BigInteger, primary_key=True, autoincrement=False),
    Column("name", LargeBinary, primary_key=True),
    Column("type", String(8), nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("mtime_ns", BigInteger, nullable=False),
    Column("ctime_ns", BigInteger, nullable=False),
    Column("inode", BigInteger, nullable=False),
    Column("unsettled", String(16)),  # set: this stat equals nothing, look again
    Column("digest", LargeBinary),  # none: a symlink, or a file that was never read (invisible outside)
    Column("algorithm", String(16)),  # says also how much of the content the digest covers
    Column("target", LargeBinary),  # of a symlink
    Column("changed", BigInteger, nullable=False),  # fence that last reported a change of it
    Column("hashed", BigInteger),  # fence that last hashed it; none: the one that added it
    Column("hashed_because", String(64)),  # the fields of stat that had moved then
    Column("gone", BigInteger),
    Column("gone_reason", String(16)),
    Column("name_hash", BigInteger),  # of its name, if its directory is huge
    Index("ix_files_gone", "tenant_id", "directory_id", "name", postgresql_where=text("gone IS NOT NULL"),
          sqlite_where=text("gone IS NOT NULL")),
    Index("ix_files_name_hash", "tenant_id", "directory_id", "name_hash",
          postgresql_where=text("name_hash IS NOT NULL"), sqlite_where=text("name_hash IS NOT NULL")),
    CheckConstraint("(type = 'symlink') = (target IS NOT NULL)", name="target"),
    sqlite_with_rowid=False,
)  # fmt: skip

# One entry of the feed: the whole new state of a path after scan `fence`.
changes = Table(
    "changes",
    metadata,
    Column("tenant_id", BigInteger, primary_key=True, autoincrement=False),
    Column("fence", BigInteger, primary_key=True, autoincrement=False),
    Column("n", BigInteger, primary_key=True, autoincrement=False),  # shard × 2³² + sequence
    Column("directory_id", BigInteger, nullable=False),
    Column("name", LargeBinary, nullable=False),
    Column("kind", String(8), nullable=False),
    Column("path", LargeBinary, nullable=False),
    Column("old_path", LargeBinary),
    Column("type", String(8), nullable=False),
    Column("size", BigInteger),
    Column("digest", LargeBinary),
    Column("algorithm", String(16)),
    Column("target", LargeBinary),
    Column("reason", String(16)),
    UniqueConstraint("tenant_id", "fence", "directory_id", "name"),
    CheckConstraint("(kind = 'moved') = (old_path IS NOT NULL)", name="moved"),
    sqlite_with_rowid=False,
)

# A place that a scan could not look at, and why. At most some hundreds a shard are kept.
scan_errors = Table(
    "scan_errors",
    metadata,
    Column("scan_id", Uuid(as_uuid=False), ForeignKey("scans.id", ondelete="CASCADE"), primary_key=True),
    Column("path_hash", LargeBinary, primary_key=True),  # of path and operation: a long path fits no index
    Column("path", LargeBinary, nullable=False),
    Column("operation", String(32), nullable=False),
    Column("error", Text, nullable=False),
)

# An entry of a tenant's tree that is not touched any more, since whoever did so died.
quarantine = Table(
    "quarantine",
    metadata,
    Column("tenant_id", BigInteger, ForeignKey("tenants.id", ondelete="CASCADE"), primary_key=True),
    Column("path_hash", LargeBinary, primary_key=True),  # a long path fits no index
    Column("path", LargeBinary, nullable=False),
    Column("reason", Text, nullable=False),
    Column("fence", BigInteger, nullable=False),  # of the scan that died of it
    Column("since", Instant, nullable=False),
    Column("until", Instant),  # then it is tried again; none: not before somebody releases it
)

# Scratch of finish: the directories that are gone, with all below them.
vanished = Table(
    "vanished",
    metadata,
    Column("scan_id", Uuid(as_uuid=False), ForeignKey("scans.id", ondelete="CASCADE"), primary_key=True),
    Column("directory_id", BigInteger, primary_key=True, autoincrement=False),
    Column("reason", String(16), nullable=False, server_default="absent"),  # of the topmost
    Column("expanded", Boolean, nullable=False, server_default=text("false")),
)

# Scratch of finish: the files that are gone, and beside them the additions that they may have become (moves).
losses = Table(
    "losses",
    metadata,
    Column("scan_id", Uuid(as_uuid=False), ForeignKey("scans.id", ondelete="CASCADE"), primary_key=True),
    Column("key", LargeBinary, primary_key=True),  # equal for equal content; empty: never paired
    Column("inode", BigInteger, primary_key=True, autoincrement=False),
    Column("gone", Boolean, primary_key=True),  # false: an addition
    Column("directory_id", BigInteger, primary_key=True, autoincrement=False),
    Column("name", LargeBinary, primary_key=True),
    Column("n", BigInteger),  # number of the change: of the addition itself, or of that which this file became
    Column("reason", String(16)),  # of what is gone
    Column("counted", Boolean, nullable=False),  # by the guard
    sqlite_with_rowid=False,
)

# Where the ended scans of a tenant are told, and the secret with which that is signed.
webhooks = Table(
    "webhooks",
    metadata,
    Column("tenant_id", BigInteger, ForeignKey("tenants.id", ondelete="CASCADE"), primary_key=True),
    Column("url", Text, nullable=False),
    Column("secret", String(100), nullable=False),
)

# A scan that has ended and that a webhook is still to be told of; of each tenant, in the order of the numbers.
deliveries = Table(
    "deliveries",
    metadata,
    Column("n", Serial, primary_key=True, autoincrement=True),
    Column("tenant_id", BigInteger, ForeignKey("tenants.id", ondelete="CASCADE"), nullable=False),
    Column("scan_id", Uuid(as_uuid=False), ForeignKey("scans.id", ondelete="CASCADE"), nullable=False, unique=True),
    Column("since", Instant, nullable=False),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("next_at", Instant, nullable=False),  # then it is tried
    Column("claimed_until", Instant),  # until then somebody is at it
    Index("ix_deliveries_tenant", "tenant_id", "n"),
    Index("ix_deliveries_due", "next_at"),
)

# A tenant that was removed and of whom rows are left in the tables that go by its id.
removals = Table(
    "removals",
    metadata,
    Column("tenant_id", BigInteger, primary_key=True, autoincrement=False),
    Column("since", Instant, nullable=False),
)

# What a caller of the API was answered under an Idempotency-Key: the scan that it asked for. Kept for a day.
idempotency = Table(
    "idempotency",
    metadata,
    Column("caller", String(32), primary_key=True),  # short hash of a token
    Column("key", String(255), primary_key=True),
    Column("tenant_id", BigInteger, nullable=False),
    Column("scan_id", Uuid(as_uuid=False), ForeignKey("scans.id", ondelete="CASCADE"), nullable=False),
    Column("fingerprint", LargeBinary, nullable=False),  # of what was asked: another request may not use the key
    Column("is_new", Boolean, nullable=False),  # the scan was made for it, not joined
    Column("at", Instant, nullable=False),
    Index("ix_idempotency_scan_id", "scan_id"),
    Index("ix_idempotency_at", "at"),
)

# Something that somebody changed or asked for: who, what, of which tenant. Never a secret.
audit = Table(
    "audit",
    metadata,
    Column("id", Serial, primary_key=True, autoincrement=True),
    Column("at", Instant, nullable=False),
    Column("caller", String(32), nullable=False),  # short hash of a token, or `local` or `cli`
    Column("action", String(32), nullable=False),
    Column("tenant", String(100)),  # by name: it outlives the tenant
    Column("details", Text, nullable=False),  # JSON
    Index("ix_audit_at", "at"),
)

# What ended scans came to, added up for ever: for counters that survive restarts, and the pruning of old scans. One row
# of each kind and slot: several slots, so that scans which end at once need not wait for one another.
tallies = Table(
    "tallies",
    metadata,
    Column("strategy", String(16), primary_key=True),  # empty: cancelled before it was started
    Column("state", String(16), primary_key=True),
    Column("tier", String(32), primary_key=True),
    Column("took", Integer, primary_key=True, autoincrement=False),  # the bin of its duration, see tallies.BOUNDS_S …
    Column("waited", Integer, primary_key=True, autoincrement=False),  # … and of how long it waited to be started
    Column("slot", Integer, primary_key=True, autoincrement=False),
    _count("scans"),
    _count("took_ms"),
    _count("waited_ms"),
    _count("directories"),  # walked, as is what follows
    _count("files"),
    _count("bytes"),
    *(_count(name) for name in TALLIED),
)

# One row: what may work with this schema besides the release that it was made for.
compatibility = Table(
    "compatibility",
    metadata,
    Column("least", String(32), primary_key=True),  # the oldest release, by the schema that it was made for
)

# Blocks of ids that a process takes at once, so that rows can refer to one another before they are written.
id_blocks = Table(
    "id_blocks",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("next", BigInteger, nullable=False),
)


def said(state: StrEnum) -> BindParameter[str]:
    """The state as a word in the statement, not as a parameter: else SQLite does not see that a partial index is of
    just these rows, and reads those of all scans that ever were.
    """
    return bindparam(None, str(state), literal_execute=True)
