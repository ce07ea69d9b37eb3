"""Films as large objects, what the dashboard reads, and the indexes it needs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make table, function, views and indexes."""
    op.create_table(
        "campaign_films",
        sa.Column("campaign_id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("film", sa.dialects.postgresql.OID, nullable=False, unique=True),
        sa.ForeignKeyConstraint(["campaign_id"], ["campaigns.id"], name="fk_campaign_films"),
    )
    op.create_index("ix_clips_campaign_created", "clips", ["campaign_id", "created"])
    op.create_index(
        "ix_clips_metadata",
        "clips",
        ["metadata"],
        postgresql_using="gin",
        postgresql_ops={"metadata": "jsonb_path_ops"},
    )
    op.execute("COMMENT ON TABLE clips IS 'What was cut out of the campaigns'' films'")
    op.execute(
        "CREATE FUNCTION campaign_age(c campaigns) RETURNS interval LANGUAGE sql STABLE"
        " RETURN timestamptz '2026-12-01 00:00+00' - c.created"
    )
    op.execute(
        "CREATE VIEW active_campaigns AS SELECT id, name, budget, campaign_age(campaigns) AS age"
        " FROM campaigns WHERE status = 'active'"
    )
    op.execute(
        "CREATE MATERIALIZED VIEW clip_counts AS SELECT campaign_id, count(*) AS clips,"
        " max(created) AS newest FROM clips GROUP BY campaign_id"
    )
    op.execute("CREATE UNIQUE INDEX ix_clip_counts_campaign ON clip_counts (campaign_id)")


def downgrade() -> None:
    """Take them away again, the films' bytes too: nothing else would."""
    op.execute("DROP MATERIALIZED VIEW clip_counts")
    op.execute("DROP VIEW active_campaigns")
    op.execute("DROP FUNCTION campaign_age(campaigns)")
    op.execute("COMMENT ON TABLE clips IS NULL")
    op.drop_index("ix_clips_metadata", "clips")
    op.drop_index("ix_clips_campaign_created", "clips")
    op.execute("SELECT lo_unlink(film) FROM campaign_films")
    op.drop_table("campaign_films")
