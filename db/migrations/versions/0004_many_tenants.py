"""Many tenants."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(
        "ix_tenants_due", "tenants", ["next_scan_at"],
        postgresql_where=sa.text("enabled"), sqlite_where=sa.text("enabled = 1"),
    )  # fmt: skip
    op.execute("UPDATE compatibility SET least = '0003'")


def downgrade() -> None:
    op.execute("UPDATE compatibility SET least = '0002'")
    op.drop_index("ix_tenants_due", "tenants")
