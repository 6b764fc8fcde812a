"""Triggered by programs: scans of named paths, webhooks."""

import sqlalchemy as sa
from alembic import op

import db.clock

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("scans", sa.Column("paths", sa.Text()))  # whoever does not know it scans the whole tree
    op.create_table(
        "webhooks",
        sa.Column("tenant_id", sa.BigInteger(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("secret", sa.String(100), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_webhooks_tenant_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("tenant_id", name=op.f("pk_webhooks")),
    )
    op.create_table(
        "deliveries",
        sa.Column("n", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("tenant_id", sa.BigInteger(), nullable=False),
        sa.Column("scan_id", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column("since", db.clock.Instant(), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("next_at", db.clock.Instant(), nullable=False),
        sa.Column("claimed_until", db.clock.Instant()),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name=op.f("fk_deliveries_tenant_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["scan_id"], ["scans.id"], name=op.f("fk_deliveries_scan_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("n", name=op.f("pk_deliveries")),
        sa.UniqueConstraint("scan_id", name=op.f("uq_deliveries_scan_id")),
    )
    op.create_index("ix_deliveries_tenant", "deliveries", ["tenant_id", "n"])
    op.create_index("ix_deliveries_due", "deliveries", ["next_at"])
    op.execute("UPDATE compatibility SET least = '0004'")


def downgrade() -> None:
    op.execute("UPDATE compatibility SET least = '0003'")
    op.drop_table("deliveries")
    op.drop_table("webhooks")
    op.drop_column("scans", "paths")
