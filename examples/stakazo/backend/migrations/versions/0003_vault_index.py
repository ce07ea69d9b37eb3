"""The index of the Memory Vault: a row a file, made again from the files at any time."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table; `app.memory_vault.rebuild_index` fills it."""
    op.create_table(
        "vault_files",
        # Names in the vault are bytes; not every one of them is UTF-8.
        sa.Column("path", sa.LargeBinary, primary_key=True),
        sa.Column("folder", sa.Text, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("sha256", sa.LargeBinary, nullable=False),
        sa.Column("modified", sa.DateTime(timezone=True), nullable=False),
        # No foreign key: the index says what the files say, also of a campaign that is gone.
        sa.Column("campaign_id", sa.BigInteger),
        sa.CheckConstraint("size >= 0", name="ck_vault_files_size"),
        sa.CheckConstraint("length(sha256) = 32", name="ck_vault_files_sha256"),
    )
    op.create_index("ix_vault_files_folder", "vault_files", ["folder"])
    op.create_index("ix_vault_files_campaign", "vault_files", ["campaign_id"])


def downgrade() -> None:
    """Take it away again; nothing is lost but the time to rebuild it."""
    op.drop_table("vault_files")
