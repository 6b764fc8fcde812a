"""Tallies of ended scans, which begin with the scans that are known."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0004"
branch_labels = None
depends_on = None

COUNTED = (
    "scans", "took_ms", "waited_ms", "directories", "files", "bytes", "directories_unchanged", "added", "modified", "deleted",
    "moved", "hashed_files", "hashed_bytes", "verified_files", "silent_changes", "skipped_total", "errors_total", "shards", "attempts",
)  # fmt: skip
ALIKE = COUNTED[6:]
BOUNDS_MS = (100, 500, 1000, 5000, 15000, 60000, 300000, 900000, 3600000, 14400000)


def upgrade() -> None:
    op.create_index(
        "ix_scans_suspect", "scans", ["tenant_id", "fence"],
        postgresql_where=sa.text("state = 'suspect'"), sqlite_where=sa.text("state = 'suspect'"),
    )  # fmt: skip
    op.create_table(
        "tallies",
        sa.Column("strategy", sa.String(16), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("tier", sa.String(32), nullable=False),
        sa.Column("took", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("waited", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("slot", sa.Integer(), autoincrement=False, nullable=False),
        *(sa.Column(name, sa.BigInteger(), server_default=sa.text("0"), nullable=False) for name in COUNTED),
        sa.PrimaryKeyConstraint("strategy", "state", "tier", "took", "waited", "slot", name=op.f("pk_tallies")),
    )
    _count_what_has_ended()


def _count_what_has_ended() -> None:
    sqlite = op.get_bind().dialect.name == "sqlite"
    difference = (
        "MAX(0, ({1} - {0}) / 1000)" if sqlite else "GREATEST(0, (EXTRACT(EPOCH FROM {1} - {0}) * 1000)::bigint)"
    )
    took = f"COALESCE({difference.format('s.started_at', 's.finished_at')}, 0)"
    waited = difference.format("s.requested_at", "COALESCE(s.started_at, s.finished_at)")
    bins = (
        "CASE "
        + " ".join(f"WHEN {{0}} <= {ms} THEN {n}" for n, ms in enumerate(BOUNDS_MS))
        + f" ELSE {len(BOUNDS_MS)} END"
    )
    walked = ", ".join(f"SUM(COALESCE(w.{name}, 0))" for name in ("directories", "files", "bytes"))
    op.execute(
        f"INSERT INTO tallies (strategy, state, tier, took, waited, slot, {', '.join(COUNTED)}) "
        f"SELECT COALESCE(s.strategy, ''), s.state, t.tier, {bins.format(took)}, {bins.format(waited)}, 0, COUNT(*), SUM({took}), SUM({waited}), "
        f"{walked}, {', '.join(f'SUM(s.{name})' for name in ALIKE)} "
        "FROM scans s JOIN tenants t ON t.id = s.tenant_id "
        "LEFT JOIN (SELECT scan_id, SUM(directories) directories, SUM(files) files, SUM(bytes) bytes FROM shards GROUP BY scan_id) w ON w.scan_id = s.id "
        "WHERE s.finished_at IS NOT NULL GROUP BY 1, 2, 3, 4, 5"
    )


def downgrade() -> None:
    op.drop_table("tallies")
    op.drop_index("ix_scans_suspect", "scans")
