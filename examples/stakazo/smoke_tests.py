#!/usr/bin/env python3
"""Is the platform in one piece? Database, vault, and that the index and the files agree.

Prints a line a check; ends with 0 when all passed, 1 when one failed. It only reads.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

HERE = os.path.dirname(os.path.abspath(__file__))
BACKEND = os.path.join(HERE, "backend")
sys.path.insert(0, BACKEND)

from alembic.config import Config  # noqa: E402
from alembic.script import ScriptDirectory  # noqa: E402
from sqlalchemy import Connection, func, inspect, select  # noqa: E402
from sqlalchemy.exc import SQLAlchemyError  # noqa: E402
from sqlalchemy.orm import Session  # noqa: E402

from app.memory_vault.rebuild_index import rows  # noqa: E402
from app.memory_vault.storage import FOLDERS, VaultError, storage  # noqa: E402
from app.models import Base, Campaign, Clip  # noqa: E402
from app.settings import make_engine  # noqa: E402

VECTOR = 48
_SHOWN = 5


class Failed(Exception):
    """A check found something; the message says what."""


def expect(good: object, text: str) -> None:
    """Fail with `text` unless `good`."""
    if not good:
        raise Failed(text)


def one(connection: Connection, query: str) -> Any:
    """The single value of a query."""
    return connection.exec_driver_sql(query).scalar_one()


def migrations(connection: Connection) -> str:
    """The database is at the newest migration."""
    config = Config(os.path.join(BACKEND, "alembic.ini"))
    head = ScriptDirectory.from_config(config).get_current_head()
    found = one(connection, "SELECT version_num FROM alembic_version")
    expect(found == head, f"the database is at {found}, the newest is {head}: alembic upgrade head")
    missing = set(Base.metadata.tables) - set(inspect(connection).get_table_names())
    expect(not missing, f"tables are missing: {', '.join(sorted(missing))}")
    return f"at {found}"


def tables(connection: Connection) -> str:
    """Every table has rows, and what they refer to."""
    counts = {
        table: one(connection, f"SELECT count(*) FROM {table}")
        for table in ("campaigns", "clips", "orchestrator_runs", "audits", "vault_files")
    }
    empty = [table for table, count in counts.items() if not count]
    expect(not empty, f"empty: {', '.join(empty)}")
    alone = one(
        connection,
        "SELECT count(*) FROM clips c WHERE NOT EXISTS"
        " (SELECT FROM campaigns k WHERE k.id = c.campaign_id)",
    )
    expect(not alone, f"{alone} clips belong to no campaign")
    return ", ".join(f"{count} {table}" for table, count in counts.items())


def vectors(connection: Connection) -> str:
    """Every clip has a whole vector."""
    bad = one(connection, f"SELECT count(*) FROM clips WHERE cardinality(features) <> {VECTOR}")
    expect(not bad, f"{bad} clips have vectors of another length than {VECTOR}")
    return f"{VECTOR} features a clip"


def numbers(connection: Connection) -> str:
    """The next number of each sequence is free: what a restore that forgot them would get wrong."""
    for sequence, table in (
        ("clip_numbers", "clips"),
        ("campaigns_id_seq", "campaigns"),
        ("audits_id_seq", "audits"),
    ):
        last = one(connection, f"SELECT last_value FROM {sequence}")
        most = one(connection, f"SELECT coalesce(max(id), 0) FROM {table}")
        expect(last >= most, f"{sequence} is at {last}, {table} already has {most}")
    return "sequences are ahead of their tables"


def views(connection: Connection) -> str:
    """Views answer, and the counted clips are the clips."""
    active = one(connection, "SELECT count(*) FROM active_campaigns WHERE age IS NOT NULL")
    counted, clips = (
        one(connection, "SELECT coalesce(sum(clips), 0) FROM clip_counts"),
        one(connection, "SELECT count(*) FROM clips"),
    )
    expect(counted == clips, f"clip_counts counts {counted} clips of {clips}")
    return f"{active} active campaigns"


def films(connection: Connection) -> str:
    """Every film that a campaign names can be read."""
    found = connection.exec_driver_sql(
        "SELECT campaign_id, film, EXISTS (SELECT FROM pg_largeobject_metadata m WHERE m.oid = film)"
        " FROM campaign_films ORDER BY 1"
    ).all()
    gone = [campaign for campaign, _, there in found if not there]
    expect(not gone, f"the films of campaigns {gone[:_SHOWN]} are gone")
    for _, film, _ in found:
        head = bytes(one(connection, f"SELECT lo_get({film}, 0, 13)"))
        expect(head == b"STAKAZO FILM ", f"film {film} does not begin like one")
    return f"{len(found)} films"


def models(connection: Connection) -> str:
    """The application's own models read and join."""
    with Session(connection) as session:
        clip = session.scalars(select(Clip).order_by(Clip.id.desc()).limit(1)).one()
        campaign = session.scalars(select(Campaign).where(Campaign.id == clip.campaign_id)).one()
        expect(clip.campaign is campaign, "a clip does not find its campaign")
        expect("codec" in clip.details, f"clip {clip.id} has no codec")
        total = session.scalar(select(func.count()).select_from(Clip))
    return f"newest of {total} clips is {clip.id}"


def vault(connection: Connection) -> str:
    """The five folders are there, and their documents are documents."""
    del connection
    gone = [name for name in FOLDERS if not os.path.isdir(os.path.join(storage.root, name))]
    expect(not gone, f"folders are missing in {storage.root}: {', '.join(gone)}")
    for folder in FOLDERS:
        for name in storage.list_files(folder)[:_SHOWN]:
            if name.endswith(".json"):
                try:
                    document = json.loads(storage.read(name))
                except ValueError:
                    raise Failed(f"{name!r} is no JSON") from None
                expect(document["kind"] == folder, f"{name!r} says it is of {document['kind']}")
    return ", ".join(f"{count.files} {folder}" for folder, count in storage.counts().items())


def index(connection: Connection) -> str:
    """The index says of every file what the file says, and of no other."""
    query = "SELECT path, folder, size, sha256, modified, campaign_id FROM vault_files"
    said = {bytes(row[0]): tuple(row[1:]) for row in connection.exec_driver_sql(query)}
    there = {row[0]: row[1:] for row in rows(storage)}
    wrong = [
        *(f"not in the index: {path!r}" for path in sorted(there.keys() - said.keys())),
        *(f"no such file: {path!r}" for path in sorted(said.keys() - there.keys())),
        *(
            f"different: {path!r}"
            for path in sorted(there.keys() & said.keys())
            if said[path] != there[path]
        ),
    ]
    expect(not wrong, f"{len(wrong)} differences: {'; '.join(wrong[:_SHOWN])}")
    return f"{len(there)} files, every checksum"


CHECKS: tuple[Callable[[Connection], str], ...] = (
    migrations,
    tables,
    vectors,
    numbers,
    views,
    films,
    models,
    vault,
    index,
)


def results() -> Iterator[tuple[str, bool, str]]:
    """Run every check: its name, whether it passed, what it found."""
    engine = make_engine()
    try:
        for check in CHECKS:
            try:
                with engine.connect() as connection:
                    connection.exec_driver_sql("SET TRANSACTION READ ONLY")
                    yield check.__name__, True, check(connection)
            except (Failed, VaultError, KeyError, TypeError) as fault:
                yield check.__name__, False, str(fault) or repr(fault)
            except SQLAlchemyError as fault:
                origin = getattr(fault, "orig", None) or fault
                yield check.__name__, False, " ".join(str(origin).split())
    finally:
        engine.dispose()


def main() -> int:
    """Print and count."""
    failed = 0
    for name, good, text in results():
        failed += not good
        print(f"{'ok  ' if good else 'FAIL'} {name}: {text}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
