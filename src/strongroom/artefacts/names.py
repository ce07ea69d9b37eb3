"""What an artefact is called and what is in it. PURE.

postgres_backup_20261125_020000.sql.gz      a database: the moment of its backup, UTC
memory_vault_202611.tar.gz.enc              a tree of files: the month of its backup, UTC
NAME.sha256  NAME.manifest  NAME.manifest.sig    beside it
NAME.kms                                         beside a .enc whose key a KMS wrapped
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from strongroom.errors import UsageError

Content = Literal["sql", "custom", "tar"]
Seal = Literal["", "openssl", "age"]

SHA256, MANIFEST, SIGNATURE = ".sha256", ".manifest", ".manifest.sig"
KMS = ".kms"
SIDES = (SHA256, MANIFEST, SIGNATURE)
FORMATS = ("sql.gz", "custom", "tar.gz", "tar.gz.enc", "age")


@dataclass(frozen=True, slots=True)
class Shape:
    """What stands in a file: the content, whether gzip is around it, and what seals it."""

    content: Content
    gzip: bool
    seal: Seal

    @property
    def suffix(self) -> str:
        """The end of the file's name."""
        inner = {"sql": ".sql", "custom": ".dump", "tar": ".tar"}[self.content]
        sealed = {"": "", "openssl": ".enc", "age": ".age"}[self.seal]
        return inner + (".gz" if self.gzip else "") + sealed

    @property
    def format(self) -> str:
        """The same without its dot: how manifests call it."""
        return self.suffix[1:]


# A custom archive is written compressed by itself, table by table.
_SEALS: tuple[Seal, ...] = ("", "openssl", "age")
SHAPES = (
    *(Shape("sql", True, seal) for seal in _SEALS),
    *(Shape("custom", False, seal) for seal in _SEALS),
    *(Shape("tar", True, seal) for seal in _SEALS),
)


def shape_for(kind: str, wanted: str | None) -> Shape:
    """The shape that `--format` asks for, of a source of this kind; UsageError for another's."""
    database = kind == "postgres"
    if wanted is None:
        wanted = "sql.gz" if database else "tar.gz.enc"
    if wanted not in FORMATS:
        raise UsageError(
            f"{wanted!r} is no format of an artefact.", do=f"Choose one of {', '.join(FORMATS)}."
        )
    if wanted == "age":
        return Shape("sql", True, "age") if database else Shape("tar", True, "age")
    shape = {
        "sql.gz": Shape("sql", True, ""),
        "custom": Shape("custom", False, ""),
        "tar.gz": Shape("tar", True, ""),
        "tar.gz.enc": Shape("tar", True, "openssl"),
    }[wanted]
    if (shape.content == "tar") == database:
        fitting = "sql.gz, custom or age" if database else "tar.gz, tar.gz.enc or age"
        raise UsageError(f"{wanted} is not for a source of kind {kind}.", do=f"Choose {fitting}.")
    return shape


def shape_of(name: str) -> Shape:
    """The shape that a file's name tells; UsageError when it tells none."""
    for shape in sorted(SHAPES, key=lambda shape: -len(shape.suffix)):
        if name.endswith(shape.suffix) and len(name) > len(shape.suffix):
            return shape
    endings = ", ".join(shape.suffix for shape in SHAPES)
    raise UsageError(
        f"{name!r} does not say what it is by the end of its name.", do=f"Known are {endings}."
    )


def artefact_name(prefix: str, shape: Shape, moment: datetime) -> str:
    """The file's name for a backup of that moment."""
    pattern = "%Y%m" if shape.content == "tar" else "%Y%m%d_%H%M%S"
    return f"{prefix}_{moment.astimezone(UTC).strftime(pattern)}{shape.suffix}"


def default_prefix(source: str) -> str:
    """What stands in front of the time where nothing is configured."""
    return source.replace("-", "_").replace(".", "_")
