"""Drills of vaults: restored whole into a folder of nobody's, compared byte for byte, opened."""

from __future__ import annotations

import gzip
import json
import os
import sqlite3
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from contextlib import closing
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from strongroom.config.model import FilesDrill
from strongroom.files.exchange import compare_with_backup
from strongroom.files.sink import FileSink
from strongroom.operations.drill_database import choose_snapshot
from strongroom.operations.drilling import (
    Run,
    Said,
    Stage,
    Wanted,
    commands_stage,
    fresh,
    run_commands,
    some,
)
from strongroom.operations.restore import restore
from strongroom.progress import Progress
from strongroom.repository.repository import Repository
from strongroom.rules.drill import Kind, draw_one
from strongroom.rules.sizes import show_size

_PIECE = 1 << 20
_WHOLE = 64 << 20  # bytes: what is larger is not parsed whole


class VaultCourse:
    """The drill of a tree of files."""

    kind: Kind = "files"

    def __init__(
        self,
        repository: Repository,
        source: str,
        table: FilesDrill,
        wanted: Wanted,
        *,
        run: Run,
        progress: Progress,
    ) -> None:
        self.repository, self.table = repository, table
        self.facts: dict[str, Any] = {}
        self._run, self._progress, self._random = run, progress, repository.seams.random
        self.snapshot, self.chosen = choose_snapshot(repository, source, wanted, self._random)
        self.at = self.snapshot.time
        self.size = self.snapshot.size + 4096 * self.snapshot.files
        self._reader = repository.open_snapshot(self.snapshot)
        self._path = b""

    def begin(self, room: str) -> None:
        """Everything will be below this directory."""
        self._path = os.fsencode(os.path.join(room, "vault"))
        os.mkdir(self._path, 0o700)

    def close(self) -> None:
        """Nothing runs; the directory goes with the drill."""

    def stages(self) -> list[Stage]:
        """What is to be done."""
        table = self.table
        rebuild = [] if table.rebuild_index is None else [table.rebuild_index]
        return [
            Stage("restore", self._restore, essential=True, awaited=True),
            Stage("files", self._compare),
            Stage("sample", self._sample) if table.sample else Stage("sample", None, "turned off"),
            Stage("freshness", self._freshness)
            if table.fresh_within is not None
            else Stage("freshness", None, "no limit is configured"),
            commands_stage("index", rebuild, lambda: self._commands(rebuild), awaited=True),
            commands_stage("smoke", table.smoke, lambda: self._commands(table.smoke)),
        ]

    def _restore(self) -> str | Said:
        sink = FileSink(self._path, owner=None if os.geteuid() == 0 else False)
        outcome = restore(self.repository, self.snapshot, sink, progress=self._progress)
        damaged = int(outcome.facts.get("damaged") or 0)
        said = (
            f"{outcome.files:,} files, {show_size(outcome.size)} of backup {self.snapshot.id[:12]}"
        )
        named = [
            f"{problem.path.decode(errors='replace')}: {problem.reason}"
            for problem in outcome.problems
        ]
        if damaged:
            return Said("red", f"{damaged} files cannot be had whole: {some(named)}")
        return Said("amber", f"{said}; {some(named)}") if named else said

    def _compare(self) -> str | Said:
        count, strange = compare_with_backup(self._path, self._reader, progress=self._progress)
        recorded = self._reader.facts.get("files")
        self.facts["files"] = {"restored": count, "recorded": recorded, "strange": strange}
        if strange:
            return Said("red", f"{strange} files are there that the backup does not hold")
        if isinstance(recorded, int) and recorded != count:
            return Said("red", f"{count:,} files, and {recorded:,} were recorded")
        return f"{count:,} files, each read and compared with the checksums of its chunks"

    def _sample(self) -> str | Said:
        """Open files as what their names say; drawn one by one, without putting back."""
        known = [path for path in _files(self._path) if opener_of(path) is not None]
        drawn: list[bytes] = []
        while known and len(drawn) < self.table.sample:
            one = draw_one(known, int.from_bytes(self._random(16)))
            known.remove(one)
            drawn.append(one)
        bad = []
        for path in drawn:
            why = open_file(path)
            if why:
                bad.append(f"{os.fsdecode(os.path.relpath(path, self._path))}: {why}")
        self.facts["sample"] = {"opened": len(drawn), "bad": bad[:100]}
        if not drawn:
            return "no file has a name that says how it is opened"
        if not bad:
            return f"{len(drawn)} files opened as what their names say"
        said = f"{len(bad)} of {len(drawn)} are not what their names say, as backed up: {some(bad)}"
        return Said("red" if 2 * len(bad) >= len(drawn) else "amber", said)

    def _freshness(self) -> str | Said:
        newest = max((os.lstat(path).st_mtime for path in _files(self._path)), default=None)
        moment = None if newest is None else datetime.fromtimestamp(newest, UTC)
        return fresh(moment, self.at, self.table.fresh_within)

    def _commands(self, commands: Any) -> str | Said:
        path = os.fsdecode(self._path)
        return run_commands(
            self._run, commands, "path", path, {"STRONGROOM_PATH": path},
            network=self.table.network,
        )  # fmt: skip


def _files(root: bytes) -> list[bytes]:
    return sorted(
        path
        for folder, _, names in os.walk(root)
        for path in (os.path.join(folder, name) for name in names)
        if os.path.isfile(path) and not os.path.islink(path)
    )


# -- what a file's name says ---------------------------------------------------------------------


def open_file(path: bytes) -> str:
    """Read a file as what its name says; why that cannot be, "" when it can."""
    opener = opener_of(path)
    if opener is None:
        return ""
    try:
        opener(path)
    except (
        ValueError, OSError, EOFError, zlib.error, tarfile.TarError, zipfile.BadZipFile,
        sqlite3.Error, RecursionError, NotImplementedError,
    ) as fault:  # fmt: skip
        return " ".join(str(fault).split())[:120] or type(fault).__name__
    return ""


def opener_of(path: bytes) -> Callable[[bytes], object] | None:
    """What opens a file of this name."""
    name = path.lower()
    return next((opener for ending, opener in _OPENERS.items() if name.endswith(ending)), None)


def _json(path: bytes) -> None:
    if os.path.getsize(path) <= _WHOLE:
        with open(path, "rb") as file:
            json.load(file)


def _json_lines(path: bytes) -> None:
    with open(path, "rb") as file:
        for line in file:
            if line.strip():
                json.loads(line)


def _text(path: bytes) -> None:
    with open(path, encoding="utf-8") as file:
        while file.read(_PIECE):
            pass


def _gzip(path: bytes) -> None:
    with gzip.open(path) as file:
        while file.read(_PIECE):
            pass


def _tar(path: bytes) -> None:
    with tarfile.open(os.fsdecode(path)) as archive:
        for _ in archive:
            pass


def _zip(path: bytes) -> None:
    with zipfile.ZipFile(os.fsdecode(path)) as archive:
        bad = archive.testzip()
    if bad is not None:
        raise ValueError(f"{bad} in it is damaged")


def _sqlite(path: bytes) -> None:
    uri = f"file:{quote(os.fsdecode(path))}?mode=ro&immutable=1"
    with closing(sqlite3.connect(uri, uri=True)) as base:
        (said,) = base.execute("PRAGMA quick_check(1)").fetchone()
    if said != "ok":
        raise ValueError(str(said))


def _begins(*marks: bytes, ends: bytes = b"") -> Callable[[bytes], None]:
    def look(path: bytes) -> None:
        with open(path, "rb") as file:
            head = file.read(16)
            tail = b""
            if ends:
                file.seek(-len(ends), os.SEEK_END)
                tail = file.read()
        if not head.startswith(marks) or tail != ends:
            raise ValueError("it does not begin or end as such a file does")

    return look


_OPENERS: Mapping[bytes, Callable[[bytes], object]] = {
    b".tar.gz": _tar,
    b".tgz": _tar,
    b".tar.xz": _tar,
    b".tar.bz2": _tar,
    b".tar": _tar,
    b".gz": _gzip,
    b".json": _json,
    b".geojson": _json,
    b".jsonl": _json_lines,
    b".ndjson": _json_lines,
    b".csv": _text,
    b".md": _text,
    b".yaml": _text,
    b".yml": _text,
    b".toml": _text,
    b".zip": _zip,
    b".npz": _zip,
    b".docx": _zip,
    b".xlsx": _zip,
    b".sqlite": _sqlite,
    b".sqlite3": _sqlite,
    b".npy": _begins(b"\x93NUMPY"),
    b".parquet": _begins(b"PAR1", ends=b"PAR1"),
    b".pdf": _begins(b"%PDF-"),
    b".png": _begins(b"\x89PNG\r\n\x1a\n"),
    b".jpg": _begins(b"\xff\xd8\xff"),
    b".jpeg": _begins(b"\xff\xd8\xff"),
}


__all__ = ["VaultCourse", "open_file", "opener_of"]
