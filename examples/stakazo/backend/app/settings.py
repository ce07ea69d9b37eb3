"""Where the database is: DATABASE_URL, or DB_HOST, DB_PORT, DB_USER and DB_NAME.

What none of them says is left to libpq, which reads PGPASSWORD, PGHOST and ~/.pgpass as for psql;
so the password needs to stand in no URL.
"""

from __future__ import annotations

import os

from sqlalchemy import URL, Engine, create_engine, make_url

_DRIVER = "postgresql+psycopg"


def database_url() -> URL:
    """The address from the environment."""
    text = os.environ.get("DATABASE_URL")
    if text:
        return make_url(text.replace("postgres://", "postgresql://", 1)).set(drivername=_DRIVER)
    port = os.environ.get("DB_PORT")
    return URL.create(
        _DRIVER,
        username=os.environ.get("DB_USER") or None,
        host=os.environ.get("DB_HOST") or None,
        port=int(port) if port else None,
        database=os.environ.get("DB_NAME") or os.environ.get("PGDATABASE") or "stakazo",
    )


def make_engine() -> Engine:
    """An engine on it; `dispose` it when done."""
    return create_engine(database_url())
