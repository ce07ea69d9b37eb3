"""What a data directory holds: what is left out, and what a path is. PURE.

Paths are raw, relative to the data directory, as PostgreSQL writes them: a tablespace's files are at
pg_tblspc/<oid>/PG_15_202209061/<database>/<file>. Source: PostgreSQL basebackup.c (excludeDirContents,
excludeFiles, sendDir), storage/file/reinit.c, common/relpath.c.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

# Their contents are made anew at every start, or belong to this server alone: a copied slot would
# retain WAL for ever. The directories themselves must exist. Any of them may be a link here; in the
# backup it is a directory.
EMPTIED = frozenset(
    (
        b"pg_dynshmem",
        b"pg_notify",
        b"pg_replslot",
        b"pg_serial",
        b"pg_snapshots",
        b"pg_stat_tmp",
        b"pg_subtrans",
        b"pg_wal",
    )
)
WAL_DIRECTORIES = (b"pg_wal/archive_status",)
WAL_DIRECTORIES_17 = (*WAL_DIRECTORIES, b"pg_wal/summaries")

_PASSED_OVER = frozenset(
    (
        b"postgresql.auto.conf.tmp",
        b"current_logfiles.tmp",
        b"backup_label",  # of another backup: ours comes from pg_backup_stop
        b"tablespace_map",
        b"backup_manifest",  # of the backup that this cluster was restored from
        b"postmaster.pid",
        b"postmaster.opts",
    )
)
_PASSED_OVER_PREFIXES = (b"pgsql_tmp", b"pg_internal.init")

CONTROL_FILE = b"global/pg_control"
TABLESPACE_LINKS = b"pg_tblspc"


class Fork(StrEnum):
    """The parts of a relation, each in files of its own."""

    MAIN = "main"
    FSM = "fsm"
    VM = "vm"
    INIT = "init"


_RELATION = re.compile(
    rb"(?:t(?P<backend>[0-9]+)_)?(?P<number>[0-9]{1,10})(?:_(?P<fork>fsm|vm|init))?"
    rb"(?:\.(?P<segment>[1-9][0-9]{0,8}))?"
)
_DATABASE = re.compile(
    rb"(?:base|pg_tblspc/[0-9]+/PG_[^/]+)/[0-9]+",
)


@dataclass(frozen=True, slots=True)
class Relation:
    """A file of a relation: which one, which part, which gigabyte of it (0 is the first)."""

    number: int
    fork: Fork = Fork.MAIN
    segment: int = 0
    temporary: bool = False


def relation(name: bytes) -> Relation | None:
    """What a file in a directory of relations is by its name; None when it is no relation's."""
    match = _RELATION.fullmatch(name)
    if match is None:
        return None
    fork = match["fork"]
    number = int(match["number"])
    if number > 0xFFFFFFFF:
        return None
    return Relation(
        number,
        Fork(fork.decode("ascii")) if fork else Fork.MAIN,
        int(match["segment"] or 0),
        match["backend"] is not None,
    )


def is_database(directory: bytes) -> bool:
    """Does a directory hold the relations of one database?"""
    return _DATABASE.fullmatch(directory) is not None


def holds_relations(directory: bytes) -> bool:
    """Does a directory hold relations: one database's, or the shared ones?"""
    return directory == b"global" or is_database(directory)


def relation_at(path: bytes) -> Relation | None:
    """What the file at a path is, if it is a relation's."""
    directory, _, name = path.rpartition(b"/")
    return relation(name) if holds_relations(directory) else None


def tablespace_path(oid: str) -> bytes:
    """Where a tablespace appears below the data directory."""
    return TABLESPACE_LINKS + b"/" + oid.encode("ascii")


def version_directory(major: int, catalog_version: int) -> bytes:
    """The one directory of a tablespace that is this cluster's; others are other versions'."""
    return b"PG_%d_%d" % (major, catalog_version)


def passed_over(name: bytes) -> bool:
    """Is a file (or directory) left out wherever it is?"""
    return name in _PASSED_OVER or name.startswith(_PASSED_OVER_PREFIXES)


class Reason(StrEnum):
    """Why a file is left out."""

    PASSED_OVER = "passed over"
    TEMPORARY = "temporary relation"
    UNLOGGED = "unlogged relation"


def left_out(directory: bytes, names: Iterable[bytes]) -> dict[bytes, Reason]:
    """Which of the names in a directory are left out, and why.

    Of an unlogged relation everything but its `_init` fork, which recovery makes it anew from; a
    relation is unlogged when it has one.
    """
    found = {name: Reason.PASSED_OVER for name in names if passed_over(name)}
    if not is_database(directory):
        return found
    relations = {name: one for name in names if (one := relation(name)) is not None}
    unlogged = {one.number for one in relations.values() if one.fork is Fork.INIT}
    for name, one in relations.items():
        if one.temporary:
            found[name] = Reason.TEMPORARY
        elif one.fork is not Fork.INIT and one.number in unlogged:
            found[name] = Reason.UNLOGGED
    return found


__all__ = [
    "CONTROL_FILE",
    "EMPTIED",
    "TABLESPACE_LINKS",
    "WAL_DIRECTORIES",
    "WAL_DIRECTORIES_17",
    "Fork",
    "Reason",
    "Relation",
    "holds_relations",
    "is_database",
    "left_out",
    "passed_over",
    "relation",
    "relation_at",
    "tablespace_path",
    "version_directory",
]
