"""pg_restore at work: definitions out of a file in memory, data out of the engine's streams.

Rule of this file: nothing touches a disk on its way, every pg_restore is fed and heard by us, and
what it complains of is judged (`verdict.py`), never overlooked.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait

from strongroom import kernel
from strongroom.errors import Damaged, NotFound, StrongroomError
from strongroom.format.tree import Entry
from strongroom.postgres.logical import archive, names
from strongroom.postgres.logical.order import Run
from strongroom.postgres.logical.tool import Tool, tool_error
from strongroom.postgres.logical.verdict import Complaint, complaints
from strongroom.postgres.server import quoted
from strongroom.repository.ports import SnapshotReader

# Index builds sort in memory up to this; PostgreSQL's default of 64 MB sorts on disk much earlier.
_MAINTENANCE_MEMORY = "256MB"


def contents_of(definitions: int) -> archive.Contents:
    """The table of contents of spooled definitions."""
    return archive.read_contents(os.pread(definitions, os.fstat(definitions).st_size, 0))


def select(run: Run, definitions: int) -> None:
    """Find out what belongs to the part that was asked for; NotFound when the backup lacks it."""
    if not run.order.subset:
        return
    contents = contents_of(definitions)
    chosen = run.order.subset
    known = {(e.namespace, e.tag) for e in contents.entries if e.is_relation}
    wanted = {key for key in known if key[0] in chosen.schemas} | set(chosen.tables)
    absent = sorted(set(chosen.tables) - known)
    absent += [(s, "*") for s in chosen.schemas if not any(key[0] == s for key in known)]
    if absent:
        listed = ", ".join(quoted(*key) for key in absent)
        raise NotFound(f"The backup of {run.database!r} has no {listed}.")
    run.selection = archive.select(contents, wanted)


def is_wanted(run: Run, entry: Entry) -> bool:
    """Say whether a data stream can hold rows of the selection, as far as its path tells."""
    if run.selection is None or b"/tables/" not in entry.path:
        return True
    paths = {names.table_path(run.database, *key) for key in run.selection.relations}
    return entry.path in paths


def _argv(run: Run, section: str) -> list[str | bytes]:
    settings = {"synchronous_commit": "off", "maintenance_work_mem": _MAINTENANCE_MEMORY}
    conninfo = run.target.conninfo.with_settings(**settings)
    argv: list[str | bytes] = [
        run.client.program,
        f"--dbname={conninfo.public()}",
        "--no-password",
        "--format=custom",
        f"--section={section}",
    ]
    if not run.order.owner:
        argv.append("--no-owner")
    if not run.order.privileges:
        argv.append("--no-privileges")
    if not run.tablespaces:
        argv.append("--no-tablespaces")
    return argv


def run_definitions(
    run: Run, definitions: int, section: str, *, jobs: int, ids: Sequence[int] | None = None
) -> None:
    """Restore one section of the definitions with `jobs` connections; `ids` of it, or all."""
    argv = [*_argv(run, section), f"--jobs={jobs}"]
    with contextlib.ExitStack() as stack:
        descriptors = [definitions]
        if ids is None and run.selection is not None:
            ids = run.selection.ids
        if ids is not None:
            listed = stack.enter_context(_list_file(ids))
            descriptors.append(listed)
            argv.append(f"--use-list=/proc/self/fd/{listed}")
        argv.append(f"/proc/self/fd/{definitions}")
        tool = stack.enter_context(
            Tool(argv, run.target.conninfo, run.family, pass_fds=descriptors)
        )
        status, said = tool.wait()
    _judge(run, section, status, said)


def _judge(run: Run, section: str, status: int, said: str) -> None:
    """Turn what pg_restore said into problems, or into the end of the restore."""
    found = _complaints(run, status, said)
    if any(not item.command for item in found):
        raise tool_error("pg_restore", status, said, run.target.conninfo)
    hard = [item for item in found if not item.about_rights]
    if hard and _is_the_end(run, section, hard):
        raise StrongroomError(
            f"Restoring the {section} failed with {len(hard)} errors, the first: {hard[0]}.",
            do="Mend the cause on the target server, then run the same command again.",
        )
    for item in found:
        run.problem(section, str(item))


def _complaints(run: Run, status: int, said: str) -> list[Complaint]:
    """What matters of what pg_restore said; raises when its status is not explained by it."""
    found = complaints(said)
    if status not in (0, 1) or (status == 1 and not found):
        raise tool_error("pg_restore", status, said, run.target.conninfo)
    return [item for item in found if not item.harmless]


def _is_the_end(run: Run, section: str, hard: Sequence[Complaint]) -> bool:
    """Rows can be delivered without an index or a view; into a new database they are.

    An existing database is never given up for one that lacks something; and a part may do
    without functions and views that need what was left out.
    """
    if section == "post-data":
        return run.order.replace
    return not run.order.subset or any("CREATE TABLE" in item.command for item in hard)


def load(run: Run, entry: Entry) -> list[tuple[str, str]]:
    """Feed one stream to one pg_restore; return the tables whose rows are in now.

    Those of the "main" stream are not named: they are many and small.
    """
    pieces: Iterator[memoryview | bytes] = run.snapshot.stream(entry)
    argv = _argv(run, "data")
    with contextlib.ExitStack() as stack:
        descriptors = []
        tables: list[tuple[str, str]] = []
        if run.selection is not None or entry.path != names.main_path(run.database):
            head, contents = head_of(pieces)
            pieces = _prepared(run, head, contents, pieces)
            tables = [(e.namespace, e.tag) for e in contents.entries if e.kind == "TABLE DATA"]
        if run.selection is not None:
            ids = archive.data_for(contents, run.selection.relations)
            tables = [key for key in tables if key in run.selection.relations]
            if not ids:
                run.progress.advance(size=entry.size, files=1)
                return []
            listed = stack.enter_context(_list_file(ids))
            descriptors.append(listed)
            argv.append(f"--use-list=/proc/self/fd/{listed}")
        tool = stack.enter_context(
            Tool(argv, run.target.conninfo, run.family, feed=True, pass_fds=descriptors)
        )
        fed = 0
        for size in tool.feed(pieces):
            fed += size
            run.progress.advance(size=size)
        tool.close_input()
        status, said = tool.wait()
    run.progress.advance(size=entry.size - fed, files=1)
    _judge_data(run, entry, status, said)
    return tables


def _judge_data(run: Run, entry: Entry, status: int, said: str) -> None:
    found = _complaints(run, status, said)
    if any(not item.about_rights for item in found):
        raise tool_error("pg_restore", status, said, run.target.conninfo)
    for item in found:
        run.problem(os.fsdecode(entry.path), str(item))


def wait_for(workers: Sequence[Future[None]], run: Run) -> None:
    """Return when all are done; the first fault ends the others and is raised."""
    try:
        done, _ = wait(workers, return_when=FIRST_EXCEPTION)
        for future in done:
            future.result()
    except BaseException:
        run.family.end()
        wait(workers)
        raise


@contextlib.contextmanager
def spooled(snapshot: SnapshotReader, entry: Entry) -> Iterator[int]:
    """Yield a descriptor of an anonymous file in memory that holds the whole stream.

    pg_restore needs a seekable archive to work in parallel; definitions are small, and so never
    touch a disk.
    """
    descriptor = os.memfd_create("strongroom-definitions")
    try:
        for piece in snapshot.stream(entry):
            view = memoryview(piece)
            while view:
                view = view[os.write(descriptor, view) :]
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _list_file(ids: Sequence[int]) -> Iterator[int]:
    """Yield a descriptor of a list for `pg_restore --use-list`."""
    descriptor = os.memfd_create("strongroom-list")
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.writelines(b"%d;\n" % number for number in ids)
        yield descriptor
    finally:
        os.close(descriptor)


def head_of(pieces: Iterator[memoryview | bytes]) -> tuple[bytes, archive.Contents]:
    """Read as much of a stream as its table of contents needs; return those bytes and it."""
    head = b""
    for piece in pieces:
        head += bytes(piece)
        try:
            return head, archive.read_contents(head)
        except archive.CutShortError:
            continue
    raise Damaged("A data stream of the backup ends before its table of contents.")


def _prepared(
    run: Run,
    head: bytes,
    contents: archive.Contents,
    rest: Iterator[memoryview | bytes],
) -> Iterator[memoryview | bytes]:
    """The same stream, so that its rows come in with the least work for everybody behind."""
    yield archive.freezing(head[: contents.size], contents, run.freezable)
    data = itertools.chain((head[contents.size :],), rest)
    yield from archive.joined(data) if contents.int_size == kernel.BLOCK_HEAD - 1 else data
