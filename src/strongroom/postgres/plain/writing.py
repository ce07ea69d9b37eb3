"""The plain SQL of a logical snapshot, and one custom-format archive of it, both as a stream.

Rule of this file: pg_restore writes the SQL, we put its parts in order: definitions, the rows of
every stream, then what hangs on rows. Only the definitions are held, in memory; nothing touches a
disk. Each part comes with a `\\restrict` of its own; the script gets one pair for all of it, as
pg_dump writes: stock psql then runs no backslash command that a name or comment might carry.
"""

from __future__ import annotations

import itertools
import os
import re
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from strongroom.errors import Damaged, NotFound, Refused, StrongroomError
from strongroom.format.tree import Entry
from strongroom.postgres.clients import Client, Clients
from strongroom.postgres.logical import archive, loading, names
from strongroom.postgres.logical.tool import Family, Tool, tool_error
from strongroom.postgres.plain import joining
from strongroom.postgres.server import Conninfo
from strongroom.progress import Progress, Silent
from strongroom.repository.ports import SnapshotReader

Piece = bytes | bytearray | memoryview
Out = Callable[[Piece], object]  # what it is given may be used again on return
_STEP = 1 << 20
# Where pg_restore's head and foot must have ended; they are a few hundred bytes.
_HEAD, _FOOT = 8192, 4096
_RESTRICT = re.compile(rb"^\\restrict ([A-Za-z0-9]+)\n\n?", re.MULTILINE)
_UNRESTRICT = re.compile(rb"\\unrestrict ([A-Za-z0-9]+)\n\n?\Z")
_COMPLETE = b"--\n-- PostgreSQL database dump complete\n--\n\n"
_BEGIN = b"--\n-- PostgreSQL database dump\n--\n\n"
_LAST_SETTING = b"SET row_security = off;\n"


@dataclass(frozen=True, slots=True)
class _Parts:
    """One database of a snapshot: its definitions, its data, and what it says of itself."""

    database: str
    schema: Entry
    data: tuple[Entry, ...]
    facts: Mapping[str, Any]
    server: int
    dumped_by: int


def write_plain(
    reader: SnapshotReader,
    out: Out,
    *,
    clients: Clients | None = None,
    database: str | None = None,
    progress: Progress | None = None,
) -> int:
    """Give the plain SQL of a logical snapshot to `out` piece by piece; return its size in bytes.

    `database` names one of the snapshot's databases; None means the only one. What stock psql puts
    into an empty database is what pg_restore would have. Raises NotFound when there is no such
    database, Refused when no fit pg_restore is installed, Damaged for a snapshot that is not whole.
    """
    parts = _parts(reader, database)
    client = _client(parts, clients)
    progress = progress or Silent()
    family = Family()
    key = secrets.token_hex(32)
    written = 0

    def write(piece: Piece) -> None:
        nonlocal written
        written += len(piece)
        out(piece)

    progress.plan(size=sum(e.size for e in (parts.schema, *parts.data)), files=1 + len(parts.data))
    try:
        with loading.spooled(reader, parts.schema) as definitions:
            argv = _argv(client, "pre-data")
            tail = _definitions(argv, definitions, family, write, key=key, parts=parts)
            progress.advance(size=parts.schema.size, files=1)
            for entry in parts.data:
                _data(reader, entry, _argv(client, "data"), family, write, progress)
            argv = _argv(client, "post-data")
            _definitions(argv, definitions, family, write)
        write(tail)
    finally:
        family.end()
    return written


def write_custom(
    reader: SnapshotReader,
    out: Out,
    *,
    database: str | None = None,
    progress: Progress | None = None,
) -> int:
    """Give one custom-format archive of a logical snapshot to `out`; return its size in bytes.

    Stock pg_restore of the version that took the backup, or newer, restores it. Not compressed.
    """
    parts = _parts(reader, database)
    progress = progress or Silent()
    progress.plan(size=sum(e.size for e in (parts.schema, *parts.data)), files=1 + len(parts.data))
    schema = b"".join(bytes(piece) for piece in reader.stream(parts.schema))
    written = 0
    try:
        heads = [loading.head_of(reader.stream(entry)) for entry in parts.data]
        joined = joining.Joined(schema, heads)
        out(joined.head)
        written = len(joined.head)
        progress.advance(size=parts.schema.size, files=1)
        for number, entry in enumerate(parts.data):
            for piece in joined.data(number, _told(reader, entry, progress)):
                out(bytes(piece))
                written += len(piece)
            progress.advance(files=1)
    except ValueError as fault:
        raise Damaged(
            f"A stream of {parts.database!r} is no archive as pg_dump writes: {fault}."
        ) from None
    return written


def _parts(reader: SnapshotReader, database: str | None) -> _Parts:
    facts = reader.facts
    if facts.get("method") != "logical":
        raise Refused("Only a logical backup can be written as SQL.")
    known = facts["databases"]
    if database is None:
        if len(known) != 1:
            raise NotFound(
                f"The backup holds {len(known)} databases ({', '.join(map(repr, known))}): "
                "one has to be named."
            )
        (database,) = known
    if database not in known:
        raise NotFound(f"The backup holds no database {database!r}.")
    entries = {e.path: e for e in reader.entries(names.database_path(database))}
    schema = entries.pop(names.schema_path(database), None)
    if schema is None or len(entries) + 1 != int(known[database]["streams"]):
        raise Damaged(f"The snapshot does not hold every stream of database {database!r}.")
    # Large objects and sequences are in "main"; tables by path, so that the order is always the same.
    data = tuple(entries[path] for path in sorted(entries))
    server = int(facts["server"]["version_number"]) // 10000
    dumped_by = int(str(facts["pg_dump"]).split(".")[0])
    return _Parts(database, schema, data, known[database], server, dumped_by)


def _client(parts: _Parts, clients: Clients | None) -> Client:
    clients = clients or Clients.found()
    return clients.choose("restore", server=parts.server, archive=parts.dumped_by)


def _argv(client: Client, section: str) -> list[str | bytes]:
    return [client.program, "--format=custom", f"--section={section}", "--file=-"]


def _definitions(
    argv: list[str | bytes],
    definitions: int,
    family: Family,
    write: Out,
    *,
    key: str = "",
    parts: _Parts | None = None,
) -> bytes:
    """Write one section of the definitions; return the foot of the whole script.

    With `key` its head is that of the script; without, head and foot are left out.
    """
    argv = [*argv, f"/proc/self/fd/{definitions}"]
    with Tool(argv, _NOWHERE, family, pass_fds=(definitions,)) as tool:
        _pass(tool, write, lambda head: _begun(head, key, parts) if parts else b"")
        _check(tool)
    return _COMPLETE + b"\\unrestrict %s\n\n" % key.encode()


def _data(
    reader: SnapshotReader,
    entry: Entry,
    argv: list[str | bytes],
    family: Family,
    write: Out,
    progress: Progress,
) -> None:
    """Write the rows of one stream: fed by one thread, taken by this one."""
    fault: list[BaseException] = []
    with Tool(argv, _NOWHERE, family, feed=True) as tool:

        def feed() -> None:
            try:
                pieces = reader.stream(entry)
                begun, contents = loading.head_of(pieces)
                whole = _whole(begun, contents.size, pieces)
                for size in tool.feed(whole):
                    progress.advance(size=min(size, entry.size))
                for _ in pieces:  # nobody reads the end of an archive; the engine verifies it
                    pass
            except BaseException as error:
                fault.append(error)
            finally:
                tool.close_input()

        feeder = threading.Thread(target=feed, name="feed", daemon=True)
        feeder.start()
        try:
            _pass(tool, write, lambda _: b"")
        except BaseException:
            tool.kill()
            raise
        finally:
            feeder.join()
        if fault:
            raise fault[0]
        _check(tool)
    progress.advance(files=1)


def _whole(
    begun: bytes, size: int, rest: Iterator[memoryview | bytes]
) -> Iterator[memoryview | bytes]:
    """The same archive, its rows in large blocks."""
    yield begun[:size]
    first: list[memoryview | bytes] = [begun[size:]]
    yield from archive.joined(itertools.chain(first, rest))


def _pass(tool: Tool, write: Out, head_for: Callable[[bytes], bytes]) -> None:
    """Pass a part of the script on, without its own head and foot."""
    # The foot must be known as such, so that as much as it may be always stays behind.
    window = bytearray(_STEP + _FOOT)
    view = memoryview(window)
    held = 0
    begun = False
    while taken := tool.readinto(view[held:]):
        held += taken
        if not begun:
            if held < _HEAD:
                continue
            rest, begun = _without_head(window[:held], head_for, write), True
            held = len(rest)
            view[:held] = rest
        if held > _FOOT:
            done = held - _FOOT
            write(view[:done])
            view[:_FOOT] = window[done:held]
            held = _FOOT
    if not begun:
        if not held:
            return  # it failed, and its exit status says so
        write(_without_foot(_without_head(window[:held], head_for, write)))
    else:
        write(_without_foot(window[:held]))


def _without_head(text: bytearray, head_for: Callable[[bytes], bytes], write: Out) -> bytearray:
    """Cut the head off: comments, the `\\restrict`, the settings, which are the same in each part."""
    end = text.find(_LAST_SETTING, 0, _HEAD)
    if not text.startswith(_BEGIN) or end < 0:
        raise StrongroomError("pg_restore wrote a script that does not begin as one.")
    end += len(_LAST_SETTING)
    head = bytes(text[:end])
    if text[end : end + 1] == b"\n":
        end += 1
    write(head_for(head))
    return text[end:]


def _without_foot(text: bytearray) -> bytes:
    script = _UNRESTRICT.sub(b"", bytes(text))
    if not script.endswith(_COMPLETE):
        raise StrongroomError("pg_restore wrote a script that does not end as one.")
    return script[: -len(_COMPLETE)]


def _begun(head: bytes, key: str, parts: _Parts) -> bytes:
    """The head of the whole script, from that of its first part."""
    head = _RESTRICT.sub(b"", head, count=1)
    if parts.server < 17:
        # Unknown to the servers that this database is from, and an error under ON_ERROR_STOP.
        head = head.replace(b"SET transaction_timeout = 0;\n", b"")
    return _BEGIN + b"\\restrict %s\n\n" % key.encode() + head.removeprefix(_BEGIN) + b"\n"


def _check(tool: Tool) -> None:
    status, said = tool.wait()
    if status:
        raise tool_error("pg_restore", status, said, _NOWHERE)


def _told(reader: SnapshotReader, entry: Entry, progress: Progress) -> Iterator[memoryview | bytes]:
    for piece in reader.stream(entry):
        progress.advance(size=len(piece))
        yield piece


# pg_restore writes a script and connects to nothing; errors want a name for where it happened.
_NOWHERE = Conninfo({"dbname": "a script", "host": os.devnull})
