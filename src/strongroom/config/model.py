"""What a configuration may say: one frozen structure a table, and nothing beside it.

The field names are the keys of strongroom.toml. Text is parsed once, here, into
what the program works with: a promise into `Duration`, a secret into a
reference. JSON Schema and the reference page are generated from this file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypeAlias
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec
from msgspec import Meta, Struct

from strongroom.config.secrets import KINDS, Secret, has_password, parse_secret
from strongroom.rules.durations import Duration, parse_duration

SOURCE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
SCHEMA_ID = "https://strongroom.dev/schema/strongroom-1.json"

Jobs: TypeAlias = Annotated[int, Meta(ge=1, le=256)]


class Promise(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a source is promised: how much may be lost, how long a restore may take, how long
    backups are kept. Spans of time such as "24h", "30d" or "12 months"."""

    rpo: Duration | None = None
    rto: Duration | None = None
    keep: Duration | None = None


class S3(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How to reach an S3-compatible store. Without keys the usual chain is used: environment,
    shared credentials file, instance role."""

    endpoint: str | None = None
    region: str | None = None
    access_key_id: Secret | None = None
    secret_access_key: Secret | None = None
    session_token: Secret | None = None
    ca_file: str | None = None
    allow_http: bool = False


class RepositoryTable(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where the backups rest and which secrets open them."""

    url: str | None = None
    passphrase: Secret | None = None
    key_file: str | None = None
    recovery_code: Secret | None = None
    s3: S3 | None = None


class PostgresTable(
    Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="type", tag="postgres"
):
    """A PostgreSQL database. `dsn` is a libpq URL or "key=value" string without a password;
    `password` refers to one (else ~/.pgpass and $PGPASSWORD are used, as by psql). `databases`
    names several of the server, ["*"] all; `bin_dir` holds pg_dump. Left out when false: `globals`
    roles and tablespaces, `role_passwords` the hashes of passwords, `unlogged` what unlogged tables
    hold."""

    dsn: str
    password: Secret | None = None
    method: Literal["logical"] = "logical"
    jobs: Jobs | None = None
    databases: tuple[str, ...] = ()
    bin_dir: str | None = None
    globals: bool = True
    role_passwords: bool = True
    unlogged: bool = True
    promise: Promise = Promise()


class FilesTable(
    Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="type", tag="files"
):
    """A tree of files. Patterns are relative to `path`; one that ends in "/" means the folder
    and all below it."""

    path: str
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    one_file_system: bool = False
    promise: Promise = Promise()


SourceTable: TypeAlias = PostgresTable | FilesTable


class Configuration(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole of strongroom.toml."""

    timezone: str | None = None
    cache_dir: str | None = None
    jobs: Jobs | None = None
    repository: RepositoryTable = RepositoryTable()
    source: Mapping[str, SourceTable] = {}


def check_url(url: str) -> None:
    """ValueError for an address that is empty or has a secret in it."""
    if not url.strip():
        raise ValueError("is empty")
    if has_password(url):
        raise ValueError("has a secret in it; an S3 key stands in [repository.s3], by reference")


def check_dsn(dsn: str) -> None:
    """ValueError for a connection string that is empty or has a password in it."""
    if not dsn.strip():
        raise ValueError("is empty")
    if has_password(dsn):
        raise ValueError('has a password in it; write `password = "env:NAME"` beside it instead')


def check_folder(path: str) -> None:
    """ValueError for what is no folder of this machine."""
    if not path.strip() or "\0" in path:
        raise ValueError("is empty")
    if path.startswith("rclone:"):
        raise ValueError("must be a folder of this machine; rclone: sources are not read yet")


def check_zone(name: str) -> None:
    """ValueError for a time zone that this machine does not know."""
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError('is no time zone known here; write it like "Europe/Madrid"') from None


# What a value must satisfy besides being of its kind.
CHECKS: Mapping[tuple[type[Struct], str], Callable[[str], None]] = {
    (RepositoryTable, "url"): check_url,
    (PostgresTable, "dsn"): check_dsn,
    (FilesTable, "path"): check_folder,
    (Configuration, "timezone"): check_zone,
}

# Text values that are parsed here; everything else is a plain TOML value.
READERS: Mapping[type, Callable[[str], Any]] = {Duration: parse_duration, Secret: parse_secret}
_TEXT_SCHEMAS: Mapping[str, Mapping[str, Any]] = {
    "Secret": {
        "type": "string",
        "description": "Where a secret is: a literal secret is refused.",
        "pattern": f"^({'|'.join(KINDS)}):.+",
    },
    "Duration": {
        "type": "string",
        "description": "A span of time.",
        "examples": ["24h", "30d", "12 months"],
    },
}


def json_schema() -> dict[str, Any]:
    """JSON Schema of strongroom.toml, for editors and linters."""
    (schema,), parts = msgspec.json.schema_components(
        [Configuration], ref_template="#/$defs/{name}"
    )
    parts.update({name: dict(text) for name, text in _TEXT_SCHEMAS.items()})
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": SCHEMA_ID,
        "title": "strongroom.toml",
        **schema,
        "$defs": {name: _without_null(part) for name, part in sorted(parts.items())},
    }


def _without_null(node: Any) -> Any:
    """The schema without its null alternatives and defaults: TOML has no null."""
    if isinstance(node, list):
        return [_without_null(item) for item in node]
    if not isinstance(node, dict):
        return node
    kept: dict[str, Any] = {
        key: " ".join(value.split()) if key == "description" else _without_null(value)
        for key, value in node.items()
        if not (key == "default" and (value is None or isinstance(value, dict)))
    }
    choices = [choice for choice in kept.get("anyOf", ()) if choice != {"type": "null"}]
    if len(choices) == 1:
        del kept["anyOf"]
        kept.update(choices[0])
    return kept
