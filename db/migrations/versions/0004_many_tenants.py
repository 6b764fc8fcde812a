"""Many tenants."""

import sqlalchemy as sa
from alembic import op

import db.clock

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

WALKED = ("directories", "files", "bytes")


def upgrade() -> None:
    for name in WALKED:  # a worker of 0003 leaves them at zero, which costs nothing but a view of its shards
        op.add_column("shards", sa.Column(name, sa.BigInteger(), server_default=sa.text("0"), nullable=False))
    op.create_index(
        "ix_tenants_due", "tenants", ["next_scan_at"],
        postgresql_where=sa.text("enabled"), sqlite_where=sa.text("enabled = 1"),
    )  # fmt: skip
    op.create_table(
        "removals",
        sa.Column("tenant_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("since", db.clock.Instant(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", name=op.f("pk_removals")),
    )
    op.execute("UPDATE compatibility SET least = '0003'")


def downgrade() -> None:
    op.execute("UPDATE compatibility SET least = '0002'")
    op.drop_table("removals")
    op.drop_index("ix_tenants_due", "tenants")
    for name in reversed(WALKED):
        op.drop_column("shards", name)
