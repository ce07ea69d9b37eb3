"""The tables as the application sees them. The migrations make them; a test compares both."""

from __future__ import annotations

import enum
from datetime import datetime
from decimal import Decimal
from typing import Any, ClassVar

from sqlalchemy import (
    ARRAY,
    REAL,
    BigInteger,
    CheckConstraint,
    DateTime,
    Enum,
    ForeignKey,
    Identity,
    Index,
    LargeBinary,
    Numeric,
    Sequence,
    Text,
)
from sqlalchemy.dialects.postgresql import JSONB, OID
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship


class Base(DeclarativeBase):
    """Root of the models."""

    type_annotation_map: ClassVar[dict[Any, Any]] = {
        datetime: DateTime(timezone=True),
        dict[str, Any]: JSONB,
        str: Text,
    }


class CampaignStatus(enum.Enum):
    """How far a campaign is."""

    draft = "draft"
    active = "active"
    paused = "paused"
    done = "done"


class Campaign(Base):
    """A campaign of a customer."""

    __tablename__ = "campaigns"
    __table_args__ = (CheckConstraint("budget >= 0", name="ck_campaigns_budget"),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    name: Mapped[str]
    status: Mapped[CampaignStatus] = mapped_column(
        Enum(CampaignStatus, name="campaign_status"), server_default="draft"
    )
    budget: Mapped[Decimal | None] = mapped_column(Numeric(12, 2))
    settings: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default="{}")
    created: Mapped[datetime]
    clips: Mapped[list[Clip]] = relationship(back_populates="campaign")


_NUMBERS = Sequence("clip_numbers", start=1000, increment=7, metadata=Base.metadata)


class Clip(Base):
    """A clip with its feature vector and what is known about it."""

    __tablename__ = "clips"
    __table_args__ = (
        Index("ix_clips_campaign_created", "campaign_id", "created"),
        Index(
            "ix_clips_metadata",
            "metadata",
            postgresql_using="gin",
            postgresql_ops={"metadata": "jsonb_path_ops"},
        ),
        {"comment": "What was cut out of the campaigns' films"},
    )

    id: Mapped[int] = mapped_column(
        BigInteger, server_default=_NUMBERS.next_value(), primary_key=True
    )
    campaign_id: Mapped[int] = mapped_column(ForeignKey("campaigns.id", name="fk_clips_campaign"))
    title: Mapped[str]
    features: Mapped[list[float]] = mapped_column(ARRAY(REAL))
    details: Mapped[dict[str, Any]] = mapped_column("metadata", JSONB)
    checksum: Mapped[bytes | None] = mapped_column(LargeBinary)
    created: Mapped[datetime]
    campaign: Mapped[Campaign] = relationship(back_populates="clips")


class CampaignFilm(Base):
    """The film of a campaign, a large object."""

    __tablename__ = "campaign_films"

    campaign_id: Mapped[int] = mapped_column(
        ForeignKey("campaigns.id", name="fk_campaign_films"), primary_key=True
    )
    film: Mapped[int] = mapped_column(OID, unique=True)


class OrchestratorRun(Base):
    """One run of the orchestrator."""

    __tablename__ = "orchestrator_runs"
    __table_args__ = ({"postgresql_partition_by": "RANGE (started)"},)

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    started: Mapped[datetime] = mapped_column(primary_key=True)
    outcome: Mapped[str]
    log: Mapped[dict[str, Any] | None] = mapped_column(JSONB)


class Audit(Base):
    """Who did what, and when."""

    __tablename__ = "audits"

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    actor: Mapped[str]
    action: Mapped[str]
    detail: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    at: Mapped[datetime]


class VaultFile(Base):
    """A file of the Memory Vault as it was when the index was rebuilt."""

    __tablename__ = "vault_files"
    __table_args__ = (
        CheckConstraint("size >= 0", name="ck_vault_files_size"),
        CheckConstraint("length(sha256) = 32", name="ck_vault_files_sha256"),
        Index("ix_vault_files_folder", "folder"),
        Index("ix_vault_files_campaign", "campaign_id"),
    )

    path: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    folder: Mapped[str]
    size: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[bytes] = mapped_column(LargeBinary)
    modified: Mapped[datetime]
    campaign_id: Mapped[int | None] = mapped_column(BigInteger)
