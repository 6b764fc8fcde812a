"""Exactness."""

import sqlalchemy as sa
from alembic import op

import db.clock

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "losses",
        sa.Column("scan_id", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column("key", sa.LargeBinary(), nullable=False),
        sa.Column("inode", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("gone", sa.Boolean(), nullable=False),
        sa.Column("directory_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("name", sa.LargeBinary(), nullable=False),
        sa.Column("n", sa.BigInteger(), nullable=True),
        sa.Column("reason", sa.String(length=16), nullable=True),
        sa.Column("counted", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["scan_id"], ["scans.id"], name=op.f("fk_losses_scan_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("scan_id", "key", "inode", "gone", "directory_id", "name", name=op.f("pk_losses")),
        sqlite_with_rowid=False,
    )
    op.add_column("directories", sa.Column("ranges", sa.Integer(), nullable=True))
    op.add_column("directories", sa.Column("name_hash", sa.BigInteger(), nullable=True))
    op.create_index(
        "ix_directories_name_hash",
        "directories",
        ["tenant_id", "parent_id", "name_hash"],
        unique=False,
        postgresql_where=sa.text("name_hash IS NOT NULL"),
        sqlite_where=sa.text("name_hash IS NOT NULL"),
    )
    op.add_column("directory_ranges", sa.Column("files", sa.BigInteger(), server_default=sa.text("0"), nullable=False))
    op.add_column("directory_ranges", sa.Column("bytes", sa.BigInteger(), server_default=sa.text("0"), nullable=False))
    op.drop_column("directory_ranges", "ranges")
    op.add_column("files", sa.Column("hashed", sa.BigInteger(), nullable=True))
    op.add_column("files", sa.Column("hashed_because", sa.String(length=64), nullable=True))
    op.add_column("files", sa.Column("name_hash", sa.BigInteger(), nullable=True))
    op.drop_index("ix_files_gone", table_name="files")
    op.create_index(
        "ix_files_gone",
        "files",
        ["tenant_id", "directory_id", "name"],
        unique=False,
        postgresql_where=sa.text("gone IS NOT NULL"),
        sqlite_where=sa.text("gone IS NOT NULL"),
    )
    op.create_index(
        "ix_files_name_hash",
        "files",
        ["tenant_id", "directory_id", "name_hash"],
        unique=False,
        postgresql_where=sa.text("name_hash IS NOT NULL"),
        sqlite_where=sa.text("name_hash IS NOT NULL"),
    )
    op.drop_column("files", "policy")
    op.add_column("scans", sa.Column("verify", sa.Boolean(), server_default=sa.text("(false)"), nullable=False))
    op.add_column("scans", sa.Column("confirms", sa.BigInteger(), nullable=True))
    op.add_column("scans", sa.Column("doubt", sa.Text(), nullable=True))
    op.add_column("scans", sa.Column("verified_files", sa.BigInteger(), server_default=sa.text("0"), nullable=False))
    op.add_column("scans", sa.Column("silent_changes", sa.BigInteger(), server_default=sa.text("0"), nullable=False))
    op.add_column("scans", sa.Column("verify_from", sa.BigInteger(), server_default=sa.text("0"), nullable=False))
    op.add_column("scans", sa.Column("verify_to", sa.BigInteger(), server_default=sa.text("0"), nullable=False))
    op.add_column("shards", sa.Column("place", sa.Text(), nullable=True))
    op.add_column("shards", sa.Column("verified_files", sa.BigInteger(), server_default=sa.text("0"), nullable=False))
    op.add_column("shards", sa.Column("silent_changes", sa.BigInteger(), server_default=sa.text("0"), nullable=False))
    op.add_column("shards", sa.Column("skipped_total", sa.BigInteger(), server_default=sa.text("0"), nullable=False))
    op.add_column("tenants", sa.Column("ignore", sa.Text(), server_default="[]", nullable=False))
    op.add_column("tenants", sa.Column("gitignore", sa.Boolean(), server_default=sa.text("(false)"), nullable=False))
    op.add_column("tenants", sa.Column("cross_mounts", sa.Boolean(), server_default=sa.text("(false)"), nullable=False))
    op.add_column("tenants", sa.Column("large_file", sa.String(length=16), server_default="full", nullable=False))
    op.add_column("tenants", sa.Column("large_file_bytes", sa.BigInteger(), nullable=True))
    op.add_column("tenants", sa.Column("deletion_limit", sa.Integer(), server_default="30", nullable=False))
    op.add_column("tenants", sa.Column("verify_at", db.clock.Instant(), nullable=True))
    op.add_column("tenants", sa.Column("verify_place", sa.BigInteger(), server_default=sa.text("0"), nullable=False))
    op.add_column("tenants", sa.Column("silent_changes", sa.BigInteger(), server_default=sa.text("0"), nullable=False))
    op.add_column("vanished", sa.Column("reason", sa.String(length=16), server_default="absent", nullable=False))


def downgrade() -> None:
    op.drop_column("vanished", "reason")
    op.drop_column("tenants", "silent_changes")
    op.drop_column("tenants", "verify_place")
    op.drop_column("tenants", "verify_at")
    op.drop_column("tenants", "deletion_limit")
    op.drop_column("tenants", "large_file_bytes")
    op.drop_column("tenants", "large_file")
    op.drop_column("tenants", "cross_mounts")
    op.drop_column("tenants", "gitignore")
    op.drop_column("tenants", "ignore")
    op.drop_column("shards", "skipped_total")
    op.drop_column("shards", "silent_changes")
    op.drop_column("shards", "verified_files")
    op.drop_column("shards", "place")
    op.drop_column("scans", "verify_to")
    op.drop_column("scans", "verify_from")
    op.drop_column("scans", "silent_changes")
    op.drop_column("scans", "verified_files")
    op.drop_column("scans", "doubt")
    op.drop_column("scans", "confirms")
    op.drop_column("scans", "verify")
    op.add_column("files", sa.Column("policy", sa.VARCHAR(length=16), nullable=True))
    op.drop_index(
        "ix_files_name_hash",
        table_name="files",
        postgresql_where=sa.text("name_hash IS NOT NULL"),
        sqlite_where=sa.text("name_hash IS NOT NULL"),
    )
    op.drop_index("ix_files_gone", table_name="files")
    op.create_index(
        "ix_files_gone",
        "files",
        ["tenant_id", "gone"],
        unique=False,
        postgresql_where=sa.text("gone IS NOT NULL"),
        sqlite_where=sa.text("gone IS NOT NULL"),
    )
    op.drop_column("files", "name_hash")
    op.drop_column("files", "hashed_because")
    op.drop_column("files", "hashed")
    op.add_column("directory_ranges", sa.Column("ranges", sa.INTEGER(), server_default="1", nullable=False))
    op.drop_column("directory_ranges", "bytes")
    op.drop_column("directory_ranges", "files")
    op.drop_index(
        "ix_directories_name_hash",
        table_name="directories",
        postgresql_where=sa.text("name_hash IS NOT NULL"),
        sqlite_where=sa.text("name_hash IS NOT NULL"),
    )
    op.drop_column("directories", "name_hash")
    op.drop_column("directories", "ranges")
    op.drop_table("losses")
