"""Names of databases and tables as paths inside a snapshot, and as patterns for pg_dump.

PURE. Rule of this file: any name PostgreSQL allows (63 bytes of anything but NUL) goes in, and what
comes out is unambiguous for its reader, be it a tree of paths or pg_dump's pattern language.
"""

from __future__ import annotations

from strongroom.errors import Refused

GLOBALS = b"globals.sql"
_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
MAX_NAME = 63


def escape(name: str) -> bytes:
    """Percent-encode a name into one path part without dots or slashes."""
    return b"".join(
        bytes((byte,)) if byte in _PLAIN else b"%%%02X" % byte
        for byte in name.encode("utf-8", "surrogateescape")
    )


def database_path(database: str) -> bytes:
    """Where everything of one database stands."""
    return b"databases/" + escape(database)


def schema_path(database: str) -> bytes:
    """The stream of definitions: pre-data and post-data."""
    return database_path(database) + b"/schema.dump"


def main_path(database: str) -> bytes:
    """The stream of all data that has no stream of its own."""
    return database_path(database) + b"/main.dump"


def table_path(database: str, schema: str, table: str) -> bytes:
    """The stream of one large table."""
    return database_path(database) + b"/tables/" + escape(schema) + b"." + escape(table) + b".dump"


def group_path(database: str, number: int) -> bytes:
    """The stream of several middling tables."""
    return database_path(database) + b"/groups/%04d.dump" % number


def pattern(schema: str, table: str) -> str:
    """The pg_dump pattern that matches exactly this table.

    Inside double quotes pg_dump takes every character as itself, `*`, `?` and `.` included, and
    escapes what its regular expressions would read (processSQLNamePattern in string_utils.c).
    """
    return ".".join('"' + part.replace('"', '""') + '"' for part in (schema, table))


def check_database_name(name: str) -> str:
    """Return the name when a database may be created under it; Refused if not."""
    length = len(name.encode("utf-8", "surrogateescape"))
    if not 1 <= length <= MAX_NAME or "\0" in name:
        raise Refused(
            f"{name!r} cannot be a database: names have 1 to {MAX_NAME} bytes, not {length}."
        )
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in name):
        # PostgreSQL accepts these; pg_dumpall, pg_upgrade and every log reader do not.
        raise Refused(f"{name!r} cannot be a new database: it has control characters in it.")
    if name in ("template0", "template1"):
        raise Refused(f"{name} is PostgreSQL's own; restore under another name.")
    return name
