"""ls, get and diff: looking into a backup, and one file out of it."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from strongroom.cli.desk import Desk
from strongroom.cli.files import write_file
from strongroom.cli.flags import Everywhere
from strongroom.cli.names import path_fields
from strongroom.cli.places import Place, parse_place
from strongroom.cli.points import find
from strongroom.cli.records import (
    difference_body,
    difference_line,
    entry_body,
    entry_line,
    snapshot_body,
)
from strongroom.errors import AlreadyExists, StrongroomError, UsageError
from strongroom.rules.sizes import show_size

if TYPE_CHECKING:
    from strongroom.format.tree import Entry
    from strongroom.repository.reader import SnapshotReader
    from strongroom.repository.repository import Repository

_DEFAULT = Everywhere()


def ls(
    place: str,
    /,
    *,
    recursive: Annotated[bool, Parameter(alias="-R")] = False,
    everywhere: Everywhere = _DEFAULT,
) -> int:
    """List what a backup holds.

    Parameters
    ----------
    place
        SOURCE[@T][:PATH]; T is a time, an id, `latest` or `oldest`.
    recursive
        Everything below, not only the folder itself.
    """
    from strongroom.operations import browse  # noqa: PLC0415 -- numpy behind it

    desk, where = Desk(everywhere), parse_place(place)
    with desk.repository() as repository:
        reader = _open(desk, repository, where)
        entries = browse.ls(reader, where.path, recursive=recursive)
        if not desk.flags.json:
            desk.output.lines(map(entry_line, entries))
            return 0
        head = {"snapshot": snapshot_body(reader.record), **path_fields(where.path)}
        first = _pull(entries)  # what is not there is an error document, not an empty list
        return desk.output.stream("entries", head, "entries", map(entry_body, first))


def diff(
    source: str, before: str, after: str = "latest", /, *, everywhere: Everywhere = _DEFAULT
) -> int:
    """Show on which paths two backups differ.

    `+` added, `-` removed, `M` changed, `m` only owner, mode, times or attributes changed.

    Parameters
    ----------
    source
        The source.
    before
        The earlier backup: a time, an id, `latest` or `oldest`.
    after
        The later one.
    """
    from strongroom.operations import browse  # noqa: PLC0415

    desk = Desk(everywhere)
    with desk.repository() as repository:
        old = _open(desk, repository, Place(source, before, b""))
        new = _open(desk, repository, Place(source, after, b""))
        differences = browse.diff(old, new)
        if not desk.flags.json:
            desk.output.lines(map(difference_line, differences))
            return 0
        head = {"before": snapshot_body(old.record), "after": snapshot_body(new.record)}
        bodies = map(difference_body, differences)
        return desk.output.stream("differences", head, "differences", bodies)


def get(
    place: str,
    /,
    *,
    output: Annotated[str, Parameter(alias="-o", allow_leading_hyphen=True)],
    force: bool = False,
    everywhere: Everywhere = _DEFAULT,
) -> int:
    """Write one file of a backup.

    Parameters
    ----------
    place
        SOURCE[@T]:PATH; T is a time, an id, `latest` or `oldest`.
    output
        The file to write, or `-` for stdout.
    force
        Replace the file if it exists.
    """
    from strongroom.operations import browse  # noqa: PLC0415

    desk, where = Desk(everywhere), parse_place(place)
    if output == "-" and desk.flags.json:
        raise UsageError("--json and `-o -` both want stdout.", do="Give `-o FILE`, or no --json.")
    if output != "-" and not force and os.path.lexists(output):
        raise AlreadyExists(f"{output} exists.", do="Name another file, or give --force.")
    with (
        desk.recorded("read", source=where.source, what=f"read {place}") as run,
        desk.repository() as repository,
    ):
        reader = _open(desk, repository, where)
        run.of(reader.record)
        entry, pieces = browse.get(reader, where.path)
        run.files, run.size = 1, entry.size
        if output == "-":
            _to_stdout(pieces)
            return 0
        write_file(output, pieces, force=force)
        body = {"snapshot": snapshot_body(reader.record), "entry": entry_body(entry)}
        desk.output.document("file", {**body, "output": path_fields(os.fsencode(output))})
        desk.output.note(f"{show_size(entry.size)} written to {output}")
    return 0


def _open(desk: Desk, repository: Repository, where: Place) -> SnapshotReader:
    return repository.open_snapshot(find(desk, repository, where.source, where.point))


def _pull(entries: Iterator[Entry]) -> Iterator[Entry]:
    """The same entries, the first one taken already, so that its error comes now."""
    first = next(entries, None)
    return iter(()) if first is None else itertools.chain((first,), entries)


def _to_stdout(pieces: Iterable[memoryview]) -> None:
    sys.stdout.flush()
    try:
        for piece in pieces:
            sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise StrongroomError(
            "The reader of stdout went away before the file was whole.",
            means="The backup is untouched; what was delivered is the true beginning of the file.",
            do="Run it again, or write to a file with `-o FILE`.",
        ) from None
