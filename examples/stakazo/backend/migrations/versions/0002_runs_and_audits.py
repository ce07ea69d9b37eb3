"""What the orchestrator did, a partition a month, and who did what."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_YEAR = 2026


def upgrade() -> None:
    """Make the partitioned table with a year of months, and the audits."""
    op.create_table(
        "orchestrator_runs",
        sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("started", sa.DateTime(timezone=True), primary_key=True),
        sa.Column("outcome", sa.Text, nullable=False),
        sa.Column("log", postgresql.JSONB),
        postgresql_partition_by="RANGE (started)",
    )
    for month in range(1, 13):
        year, after = (_YEAR + 1, 1) if month == 12 else (_YEAR, month + 1)
        op.execute(
            f"CREATE TABLE orchestrator_runs_{_YEAR}_{month:02} PARTITION OF orchestrator_runs"
            f" FOR VALUES FROM ('{_YEAR}-{month:02}-01 00:00+00')"
            f" TO ('{year}-{after:02}-01 00:00+00')"
        )
    op.create_table(
        "audits",
        sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=True),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("detail", postgresql.JSONB),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
    )


def downgrade() -> None:
    """Take them away again; the partitions go with their parent."""
    op.drop_table("audits")
    op.drop_table("orchestrator_runs")
