"""HTTP API."""

import sqlalchemy as sa
from alembic import op

import db.clock

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

SERIAL = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "idempotency",
        sa.Column("caller", sa.String(length=32), nullable=False),
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column("tenant_id", sa.BigInteger(), nullable=False),
        sa.Column("scan_id", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column("fingerprint", sa.LargeBinary(), nullable=False),
        sa.Column("is_new", sa.Boolean(), nullable=False),
        sa.Column("at", db.clock.Instant(), nullable=False),
        sa.ForeignKeyConstraint(["scan_id"], ["scans.id"], name=op.f("fk_idempotency_scan_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("caller", "key", name=op.f("pk_idempotency")),
    )
    op.create_index("ix_idempotency_scan_id", "idempotency", ["scan_id"])
    op.create_index("ix_idempotency_at", "idempotency", ["at"])
    op.create_table(
        "audit",
        sa.Column("id", SERIAL, autoincrement=True, nullable=False),
        sa.Column("at", db.clock.Instant(), nullable=False),
        sa.Column("caller", sa.String(length=32), nullable=False),
        sa.Column("action", sa.String(length=32), nullable=False),
        sa.Column("tenant", sa.String(length=100), nullable=True),
        sa.Column("details", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit")),
    )
    op.create_index("ix_audit_at", "audit", ["at"])
    op.execute("UPDATE compatibility SET least = '0004'")


def downgrade() -> None:
    op.execute("UPDATE compatibility SET least = '0003'")
    op.drop_table("audit")
    op.drop_table("idempotency")
