"""Run the migrations against the database that the environment names."""

from __future__ import annotations

import re
from logging.config import fileConfig
from typing import Any

from alembic import context

from app.models import Base
from app.settings import database_url, make_engine

if context.config.config_file_name is not None:
    fileConfig(context.config.config_file_name, disable_existing_loggers=False)

# Partitions come and go with the months; the models know their parent only.
_PARTITION = re.compile(r"orchestrator_runs_\d{4}_\d{2}")


def _belongs(thing: Any, name: str | None, kind: str, reflected: bool, other: Any) -> bool:
    del thing, reflected, other
    return not (kind == "table" and _PARTITION.fullmatch(name or ""))


def _run() -> None:
    if context.is_offline_mode():
        context.configure(url=database_url(), target_metadata=Base.metadata, literal_binds=True)
        with context.begin_transaction():
            context.run_migrations()
        return
    with make_engine().connect() as connection:
        context.configure(
            connection=connection, target_metadata=Base.metadata, include_object=_belongs
        )
        with context.begin_transaction():
            context.run_migrations()


_run()
