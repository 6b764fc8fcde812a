"""Nothing lost."""

import sqlalchemy as sa
from alembic import op

import db.clock

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    compatibility = op.create_table(
        "compatibility",
        sa.Column("least", sa.String(length=32), nullable=False),
        sa.PrimaryKeyConstraint("least", name=op.f("pk_compatibility")),
    )
    op.bulk_insert(compatibility, [{"least": "0002"}])
    op.create_table(
        "quarantine",
        sa.Column("tenant_id", sa.BigInteger(), nullable=False),
        sa.Column("path_hash", sa.LargeBinary(), nullable=False),
        sa.Column("path", sa.LargeBinary(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("since", db.clock.Instant(), nullable=False),
        sa.Column("until", db.clock.Instant(), nullable=True),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name=op.f("fk_quarantine_tenant_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("tenant_id", "path_hash", name=op.f("pk_quarantine")),
    )
    op.add_column("shards", sa.Column("suspect", sa.LargeBinary(), nullable=True))
    op.add_column("shards", sa.Column("suspect_deaths", sa.Integer(), server_default=sa.text("0"), nullable=False))


def downgrade() -> None:
    op.drop_column("shards", "suspect_deaths")
    op.drop_column("shards", "suspect")
    op.drop_table("quarantine")
    op.drop_table("compatibility")
