"""Live progress."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

COUNTERS = ("directories", "files", "bytes")


def upgrade() -> None:
    for name in COUNTERS:
        op.add_column("shards", sa.Column(name, sa.BigInteger(), server_default=sa.text("0"), nullable=False))
    # A worker of 0003 leaves the counters at zero, which costs nothing but a view of its shards.
    op.execute("UPDATE compatibility SET least = '0003'")


def downgrade() -> None:
    op.execute("UPDATE compatibility SET least = '0002'")
    for name in reversed(COUNTERS):
        op.drop_column("shards", name)
