"""Campaigns, and the clips cut for them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_STATUS = postgresql.ENUM(
    "draft", "active", "paused", "done", name="campaign_status", create_type=False
)
_NUMBERS = sa.Sequence("clip_numbers", start=1000, increment=7)


def upgrade() -> None:
    """Make both tables, the kinds of status and the numbers of clips."""
    _STATUS.create(op.get_bind())
    op.execute(sa.schema.CreateSequence(_NUMBERS))
    op.create_table(
        "campaigns",
        sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("status", _STATUS, nullable=False, server_default="draft"),
        sa.Column("budget", sa.Numeric(12, 2)),
        sa.Column("settings", postgresql.JSONB, nullable=False, server_default="{}"),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("budget >= 0", name="ck_campaigns_budget"),
    )
    op.create_table(
        "clips",
        sa.Column("id", sa.BigInteger, server_default=_NUMBERS.next_value(), primary_key=True),
        sa.Column("campaign_id", sa.BigInteger, nullable=False),
        sa.Column("title", sa.Text, nullable=False),
        sa.Column("features", sa.ARRAY(sa.REAL), nullable=False),
        sa.Column("metadata", postgresql.JSONB, nullable=False),
        sa.Column("checksum", sa.LargeBinary),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["campaign_id"], ["campaigns.id"], name="fk_clips_campaign"),
    )


def downgrade() -> None:
    """Take them away again."""
    op.drop_table("clips")
    op.drop_table("campaigns")
    op.execute(sa.schema.DropSequence(_NUMBERS))
    _STATUS.drop(op.get_bind())
