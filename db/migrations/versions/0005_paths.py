"""Scans of named paths."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("scans", sa.Column("paths", sa.Text()))  # whoever does not know it scans the whole tree
    op.execute("UPDATE compatibility SET least = '0004'")


def downgrade() -> None:
    op.execute("UPDATE compatibility SET least = '0003'")
    op.drop_column("scans", "paths")
