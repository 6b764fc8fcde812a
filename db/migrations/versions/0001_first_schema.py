"""First schema."""

import sqlalchemy as sa
from alembic import op

import db.clock

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "changes",
        sa.Column("tenant_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("fence", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("n", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("directory_id", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.LargeBinary(), nullable=False),
        sa.Column("kind", sa.String(length=8), nullable=False),
        sa.Column("path", sa.LargeBinary(), nullable=False),
        sa.Column("old_path", sa.LargeBinary(), nullable=True),
        sa.Column("type", sa.String(length=8), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=True),
        sa.Column("digest", sa.LargeBinary(), nullable=True),
        sa.Column("algorithm", sa.String(length=16), nullable=True),
        sa.Column("target", sa.LargeBinary(), nullable=True),
        sa.Column("reason", sa.String(length=16), nullable=True),
        sa.CheckConstraint("(kind = 'moved') = (old_path IS NOT NULL)", name=op.f("ck_changes_moved")),
        sa.PrimaryKeyConstraint("tenant_id", "fence", "n", name=op.f("pk_changes")),
        sa.UniqueConstraint(
            "tenant_id", "fence", "directory_id", "name", name=op.f("uq_changes_tenant_id_fence_directory_id_name")
        ),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "directories",
        sa.Column("tenant_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("parent_id", sa.BigInteger(), nullable=True),
        sa.Column("name", sa.LargeBinary(), nullable=False),
        sa.Column("path", sa.LargeBinary(), nullable=False),
        sa.Column("order_key", sa.LargeBinary(), nullable=False),
        sa.Column("inode", sa.BigInteger(), nullable=True),
        sa.Column("mount", sa.BigInteger(), nullable=True),
        sa.Column("fingerprint", sa.LargeBinary(), nullable=True),
        sa.Column("files", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("bytes", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("version", sa.BigInteger(), server_default=sa.text("1"), nullable=False),
        sa.Column("born", sa.BigInteger(), nullable=False),
        sa.Column("owner", sa.Integer(), nullable=True),
        sa.Column("listed", sa.BigInteger(), nullable=True),
        sa.Column("gone", sa.BigInteger(), nullable=True),
        sa.Column("gone_reason", sa.String(length=16), nullable=True),
        sa.CheckConstraint("gone_reason IN ('absent', 'ignored', 'replaced')", name=op.f("ck_directories_gone_reason")),
        sa.CheckConstraint("(gone IS NULL) = (gone_reason IS NULL)", name=op.f("ck_directories_gone")),
        sa.CheckConstraint(
            "fingerprint IS NULL OR (length(fingerprint) = 16 AND listed IS NOT NULL)",
            name=op.f("ck_directories_fingerprint"),
        ),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_directories")),
        sa.UniqueConstraint("tenant_id", "parent_id", "name", name=op.f("uq_directories_tenant_id_parent_id_name")),
    )
    with op.batch_alter_table("directories", schema=None) as batch_op:
        batch_op.create_index(
            "ix_directories_gone",
            ["tenant_id", "gone"],
            unique=False,
            postgresql_where=sa.text("gone IS NOT NULL"),
            sqlite_where=sa.text("gone IS NOT NULL"),
        )
        batch_op.create_index("ix_directories_inode", ["tenant_id", "inode"], unique=False)
        batch_op.create_index("ix_directories_order", ["tenant_id", "order_key", "id"], unique=False)
        batch_op.create_index(
            "ix_directories_owner",
            ["tenant_id", "owner"],
            unique=False,
            postgresql_where=sa.text("owner IS NOT NULL"),
            sqlite_where=sa.text("owner IS NOT NULL"),
        )

    op.create_table(
        "directory_ranges",
        sa.Column("tenant_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("directory_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("ranges", sa.Integer(), nullable=False),
        sa.Column("fingerprint", sa.LargeBinary(), nullable=True),
        sa.Column("version", sa.BigInteger(), server_default=sa.text("1"), nullable=False),
        sa.Column("listed", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("tenant_id", "directory_id", "number", name=op.f("pk_directory_ranges")),
    )
    op.create_table(
        "files",
        sa.Column("tenant_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("directory_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("name", sa.LargeBinary(), nullable=False),
        sa.Column("type", sa.String(length=8), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("mtime_ns", sa.BigInteger(), nullable=False),
        sa.Column("ctime_ns", sa.BigInteger(), nullable=False),
        sa.Column("inode", sa.BigInteger(), nullable=False),
        sa.Column("unsettled", sa.String(length=16), nullable=True),
        sa.Column("digest", sa.LargeBinary(), nullable=True),
        sa.Column("algorithm", sa.String(length=16), nullable=True),
        sa.Column("policy", sa.String(length=16), nullable=True),
        sa.Column("target", sa.LargeBinary(), nullable=True),
        sa.Column("changed", sa.BigInteger(), nullable=False),
        sa.Column("gone", sa.BigInteger(), nullable=True),
        sa.Column("gone_reason", sa.String(length=16), nullable=True),
        sa.CheckConstraint("(type = 'symlink') = (target IS NOT NULL)", name=op.f("ck_files_target")),
        sa.PrimaryKeyConstraint("tenant_id", "directory_id", "name", name=op.f("pk_files")),
        sqlite_with_rowid=False,
    )
    with op.batch_alter_table("files", schema=None) as batch_op:
        batch_op.create_index(
            "ix_files_gone",
            ["tenant_id", "gone"],
            unique=False,
            postgresql_where=sa.text("gone IS NOT NULL"),
            sqlite_where=sa.text("gone IS NOT NULL"),
        )

    op.create_table(
        "id_blocks",
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("next", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_id_blocks")),
    )
    op.create_table(
        "tenants",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("root", sa.LargeBinary(), nullable=False),
        sa.Column("tier", sa.String(length=32), server_default="standard", nullable=False),
        sa.Column("interval_s", sa.Integer(), nullable=False),
        sa.Column("algorithm", sa.String(length=16), nullable=False),
        sa.Column("enabled", sa.Boolean(), server_default=sa.text("(true)"), nullable=False),
        sa.Column("created_at", db.clock.Instant(), nullable=False),
        sa.Column("next_scan_at", db.clock.Instant(), nullable=True),
        sa.Column("served_at", db.clock.Instant(), nullable=True),
        sa.Column("fence", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("watermark_fence", sa.BigInteger(), nullable=True),
        sa.Column("watermark_started_at", db.clock.Instant(), nullable=True),
        sa.Column("watermark_files", sa.BigInteger(), nullable=True),
        sa.Column("pruned_fence", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("filesystem", sa.String(length=32), nullable=True),
        sa.Column("root_inode", sa.BigInteger(), nullable=True),
        sa.CheckConstraint("interval_s > 0", name=op.f("ck_tenants_interval_s")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tenants")),
        sa.UniqueConstraint("name", name=op.f("uq_tenants_name")),
        sa.UniqueConstraint("root", name=op.f("uq_tenants_root")),
    )
    op.create_table(
        "scans",
        sa.Column("id", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column("tenant_id", sa.BigInteger(), nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=True),
        sa.Column("strategy", sa.String(length=16), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("trigger", sa.String(length=16), nullable=False),
        sa.Column("full", sa.Boolean(), server_default=sa.text("(false)"), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("verdict", sa.String(length=16), nullable=True),
        sa.Column("ending", sa.String(length=16), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("requested_at", db.clock.Instant(), nullable=False),
        sa.Column("started_at", db.clock.Instant(), nullable=True),
        sa.Column("finished_at", db.clock.Instant(), nullable=True),
        sa.Column("directories", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("directories_unchanged", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("files", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("bytes", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("other", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("added", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("modified", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("deleted", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("moved", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("unchanged", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("hashed_files", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("hashed_bytes", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("skipped_total", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("errors_total", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("shards", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("attempts", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("peak_memory_bytes", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.CheckConstraint(
            "(state IN ('succeeded', 'partial', 'suspect', 'failed', 'cancelled')) = (finished_at IS NOT NULL)",
            name=op.f("ck_scans_ended"),
        ),
        sa.CheckConstraint("ending IN ('cancelled', 'failed')", name=op.f("ck_scans_ending")),
        sa.CheckConstraint(
            "state <> 'running' OR (fence IS NOT NULL AND started_at IS NOT NULL)", name=op.f("ck_scans_running")
        ),
        sa.CheckConstraint(
            "state IN ('queued', 'running', 'succeeded', 'partial', 'suspect', 'failed', 'cancelled')",
            name=op.f("ck_scans_state"),
        ),
        sa.CheckConstraint(
            "strategy IN ('full_initial', 'incremental', 'full_fallback', 'full_deletions', 'full_forced', 'verify', 'paths')",
            name=op.f("ck_scans_strategy"),
        ),
        sa.CheckConstraint("trigger IN ('request', 'schedule')", name=op.f("ck_scans_trigger")),
        sa.CheckConstraint("verdict IN ('delete', 'keep')", name=op.f("ck_scans_verdict")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_scans_tenant_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_scans")),
        sa.UniqueConstraint("tenant_id", "fence", name=op.f("uq_scans_tenant_id_fence")),
    )
    with op.batch_alter_table("scans", schema=None) as batch_op:
        batch_op.create_index("ix_scans_tenant_requested", ["tenant_id", "requested_at"], unique=False)
        batch_op.create_index(
            "uq_scans_queued",
            ["tenant_id"],
            unique=True,
            postgresql_where=sa.text("state = 'queued'"),
            sqlite_where=sa.text("state = 'queued'"),
        )
        batch_op.create_index(
            "uq_scans_running",
            ["tenant_id"],
            unique=True,
            postgresql_where=sa.text("state = 'running'"),
            sqlite_where=sa.text("state = 'running'"),
        )

    op.create_table(
        "scan_errors",
        sa.Column("scan_id", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column("path_hash", sa.LargeBinary(), nullable=False),
        sa.Column("path", sa.LargeBinary(), nullable=False),
        sa.Column("operation", sa.String(length=32), nullable=False),
        sa.Column("error", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["scan_id"], ["scans.id"], name=op.f("fk_scan_errors_scan_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("scan_id", "path_hash", name=op.f("pk_scan_errors")),
    )
    op.create_table(
        "shards",
        sa.Column("scan_id", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("tenant_id", sa.BigInteger(), nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("queue", sa.String(length=16), nullable=False),
        sa.Column("frontier", sa.Text(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("attempt", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("deaths", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("token", sa.Uuid(as_uuid=False), nullable=True),
        sa.Column("lease_until", db.clock.Instant(), nullable=True),
        sa.Column("sent_until", db.clock.Instant(), nullable=True),
        sa.Column("not_before", db.clock.Instant(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("entry", sa.LargeBinary(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("directories_unchanged", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("hashed_files", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("hashed_bytes", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("other", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("errors_total", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("peak_memory_bytes", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.CheckConstraint(
            "(state = 'leased') = (token IS NOT NULL AND lease_until IS NOT NULL)", name=op.f("ck_shards_leased")
        ),
        sa.CheckConstraint("state <> 'waiting' OR number = 0", name=op.f("ck_shards_waiting")),
        sa.CheckConstraint(
            "state IN ('waiting', 'ready', 'leased', 'done', 'quarantined', 'dropped')", name=op.f("ck_shards_state")
        ),
        sa.ForeignKeyConstraint(["scan_id"], ["scans.id"], name=op.f("fk_shards_scan_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("scan_id", "number", name=op.f("pk_shards")),
    )
    with op.batch_alter_table("shards", schema=None) as batch_op:
        batch_op.create_index(
            "ix_shards_open",
            ["state", "queue"],
            unique=False,
            postgresql_where=sa.text("state IN ('ready', 'leased')"),
            sqlite_where=sa.text("state IN ('ready', 'leased')"),
        )

    op.create_table(
        "vanished",
        sa.Column("scan_id", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column("directory_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("expanded", sa.Boolean(), server_default=sa.text("(false)"), nullable=False),
        sa.ForeignKeyConstraint(["scan_id"], ["scans.id"], name=op.f("fk_vanished_scan_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("scan_id", "directory_id", name=op.f("pk_vanished")),
    )
    op.execute("INSERT INTO id_blocks (name, next) VALUES ('directories', 1)")


def downgrade() -> None:
    op.drop_table("vanished")
    with op.batch_alter_table("shards", schema=None) as batch_op:
        batch_op.drop_index(
            "ix_shards_open",
            postgresql_where=sa.text("state IN ('ready', 'leased')"),
            sqlite_where=sa.text("state IN ('ready', 'leased')"),
        )

    op.drop_table("shards")
    op.drop_table("scan_errors")
    with op.batch_alter_table("scans", schema=None) as batch_op:
        batch_op.drop_index(
            "uq_scans_running", postgresql_where=sa.text("state = 'running'"), sqlite_where=sa.text("state = 'running'")
        )
        batch_op.drop_index(
            "uq_scans_queued", postgresql_where=sa.text("state = 'queued'"), sqlite_where=sa.text("state = 'queued'")
        )
        batch_op.drop_index("ix_scans_tenant_requested")

    op.drop_table("scans")
    op.drop_table("tenants")
    op.drop_table("id_blocks")
    with op.batch_alter_table("files", schema=None) as batch_op:
        batch_op.drop_index(
            "ix_files_gone", postgresql_where=sa.text("gone IS NOT NULL"), sqlite_where=sa.text("gone IS NOT NULL")
        )

    op.drop_table("files")
    op.drop_table("directory_ranges")
    with op.batch_alter_table("directories", schema=None) as batch_op:
        batch_op.drop_index(
            "ix_directories_owner",
            postgresql_where=sa.text("owner IS NOT NULL"),
            sqlite_where=sa.text("owner IS NOT NULL"),
        )
        batch_op.drop_index("ix_directories_order")
        batch_op.drop_index("ix_directories_inode")
        batch_op.drop_index(
            "ix_directories_gone",
            postgresql_where=sa.text("gone IS NOT NULL"),
            sqlite_where=sa.text("gone IS NOT NULL"),
        )

    op.drop_table("directories")
    op.drop_table("changes")
