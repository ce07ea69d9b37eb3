"""Ways in and out that the tests of plain SQL share."""

from __future__ import annotations

import io
import os
import re
import subprocess

from strongroom.postgres.compare import compare_databases
from strongroom.postgres.embedded import EmbeddedServer, installations
from strongroom.postgres.plain.executor import PlainRestore, Restored


def program(name: str, major: int) -> str | None:
    """The newest client program of a major version."""
    found = [i for i in installations(name) if i.version[0] == major]
    return os.path.join(found[-1].bindir, name) if found else None


def dump(server: EmbeddedServer, database: str, major: int, *more: str) -> bytes:
    """What pg_dump of a version prints."""
    argv = [program("pg_dump", major) or "pg_dump", *more, server.dsn_for(database)]
    return subprocess.run(argv, check=True, capture_output=True).stdout


def psql(server: EmbeddedServer, database: str, script: bytes) -> None:
    """Only ever given clean dumps, to compare with."""
    argv = [program("psql", 18) or "psql", "-X", "-q", "-v", "ON_ERROR_STOP=1"]
    argv.append(server.dsn_for(database))
    done = subprocess.run(argv, input=script, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


def put(server: EmbeddedServer, database: str, script: bytes, **options: object) -> Restored:
    """Restore by our own executor."""
    return PlainRestore(server.dsn_for(database), **options).run(io.BytesIO(script).read)  # type: ignore[arg-type]


def same(server: EmbeddedServer, one: str, other: str) -> bool:
    """Whether pg_dump tells two databases apart; rows may stand in another order in none."""
    texts = []
    for database in (one, other):
        text = dump(server, database, 18)
        texts.append(re.sub(rb"(?m)^\\(un)?restrict .*$", b"", text))
    return texts[0] == texts[1]


def unlike(server: EmbeddedServer, one: str, other: str) -> list[str]:
    """How two databases differ, but for settings of the database: those are in `pg_dump -C` only."""
    found = compare_databases(server.dsn_for(one), server.dsn_for(other))
    return [text for text in found if not text.startswith(("setting ", "database itself"))]
