"""Triggered by programs: scans of named paths, webhooks, what the API keeps; tallies of ended scans, which begin with
the scans that are known.
"""

import sqlalchemy as sa
from alembic import op

import db.clock

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

SERIAL = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

COUNTED = (
    "scans", "took_ms", "waited_ms", "directories", "files", "bytes", "directories_unchanged", "added", "modified", "deleted",
    "moved", "hashed_files", "hashed_bytes", "verified_files", "silent_changes", "skipped_total", "errors_total", "shards", "attempts",
)  # fmt: skip
ALIKE = COUNTED[6:]
BOUNDS_MS = (100, 500, 1000, 5000, 15000, 60000, 300000, 900000, 3600000, 14400000)

# Whoever has the role of the API sees what the setting says (see db/row_security.py); everybody else sees all.
SEES = (
    "CASE WHEN current_user <> 'strandline_api' OR current_setting('strandline.ids', true) = '*' THEN true ELSE {} END"
)
_IDS = "string_to_array(current_setting('strandline.ids', true), ',')::bigint[]"
_TENANTS = (
    "scans", "shards", "directories", "directory_ranges", "files", "changes", "quarantine", "removals", "webhooks",
    "deliveries", "idempotency",
)  # fmt: skip
VISIBLE = (
    {"tenants": f"id = ANY ({_IDS})"}
    | dict.fromkeys(_TENANTS, f"tenant_id = ANY ({_IDS})")
    | dict.fromkeys(("scan_errors", "vanished", "losses"), "scan_id IN (SELECT id FROM scans)")
    | {"audit": "tenant IN (SELECT name FROM tenants)"}
)


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
        sa.Column("n", SERIAL, autoincrement=True, nullable=False),
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
    for table, whose in VISIBLE.items():
        _on_postgresql(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        _on_postgresql(f"CREATE POLICY of_the_caller ON {table} USING ({SEES.format(whose)})")
    op.execute("UPDATE compatibility SET least = '0004'")


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


def _on_postgresql(statement: str) -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute(statement)


def downgrade() -> None:
    op.execute("UPDATE compatibility SET least = '0003'")
    for table in VISIBLE:
        _on_postgresql(f"DROP POLICY of_the_caller ON {table}")
        _on_postgresql(f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY")
    op.drop_table("tallies")
    op.drop_index("ix_scans_suspect", "scans")
    op.drop_table("audit")
    op.drop_table("idempotency")
    op.drop_table("deliveries")
    op.drop_table("webhooks")
    op.drop_column("scans", "paths")
