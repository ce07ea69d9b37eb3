"""The plain SQL of one custom-format archive that anybody may have made, as a stream.

Rule of this file: pg_restore writes the SQL and connects to nothing. What it writes goes through our
own executor and its policy like any other dump, never to psql. The archive is read to its end, also
behind what pg_restore needs of it, so that whoever hands it out can judge all of it.
"""

from __future__ import annotations

import itertools
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from strongroom.errors import Damaged, Refused, StrongroomError
from strongroom.postgres.clients import Clients
from strongroom.postgres.logical import archive
from strongroom.postgres.logical.tool import Family, Tool, tool_error
from strongroom.postgres.server import Conninfo

Read = Callable[[int], bytes]
_STEP = 1 << 20
# A table of contents is held in memory. Measured: about 600 bytes an object.
_MOST_CONTENTS = 256 << 20
_NOWHERE = Conninfo({"dbname": "a script", "host": os.devnull})


@contextmanager
def script_of(read: Read, clients: Clients | None = None) -> Iterator[Read]:
    """The SQL of the archive that `read(most)` gives, b"" at its end; what `read` raises, it raises.

    Damaged for what is no archive as pg_dump writes it; Refused when no fit pg_restore is here.
    """
    begun, contents = _head(read)
    found = re.match(r"\d+", contents.tool)
    if found is None:
        raise Damaged(f"The archive does not say which pg_dump wrote it: {contents.tool[:40]!r}.")
    chosen = (clients or Clients.found()).choose("restore", server=0, archive=int(found[0]))
    family = Family()
    fault: list[BaseException] = []
    with Tool([chosen.program, "--format=custom", "--file=-"], _NOWHERE, family, feed=True) as tool:

        def feed() -> None:
            try:
                rest = iter(lambda: read(_STEP), b"")
                # Rows in large blocks: pg_restore takes a step for each.
                behind = itertools.chain((begun[contents.size :],), rest)
                whole = itertools.chain((begun[: contents.size],), archive.joined(behind))
                for _ in tool.feed(whole):
                    pass
                for _ in rest:
                    pass
            except ValueError as error:
                fault.append(_no_archive(error))
            except BaseException as error:
                fault.append(error)
            finally:
                tool.close_input()

        feeder = threading.Thread(target=feed, name="feed", daemon=True)
        feeder.start()
        window = memoryview(bytearray(_STEP))

        def write(most: int) -> bytes:
            if taken := tool.readinto(window[:most]):
                return bytes(window[:taken])
            feeder.join()
            if fault:
                raise fault[0]
            status, said = tool.wait()
            if status:
                raise _translated(tool_error("pg_restore", status, said, _NOWHERE))
            return b""

        try:
            yield write
        finally:
            tool.kill()
            feeder.join()


def _head(read: Read) -> tuple[bytes, archive.Contents]:
    """As much as the table of contents needs, and it."""
    head, step = bytearray(), _STEP
    while len(head) < _MOST_CONTENTS:
        wanted = len(head) + step
        while len(head) < wanted and (piece := read(_STEP)):
            head += piece
        try:
            return bytes(head), archive.read_contents(bytes(head))
        except archive.CutShortError:
            if len(head) < wanted:
                raise Damaged("The archive ends before its table of contents.") from None
            step = len(head)
        except (ValueError, OverflowError) as fault:
            raise _no_archive(fault) from None
    raise Refused(f"The archive's table of contents is longer than {_MOST_CONTENTS >> 20} MiB.")


def _no_archive(fault: Exception) -> Damaged:
    return Damaged(f"It is no archive as pg_dump writes it: {fault}.")


def _translated(fault: StrongroomError) -> StrongroomError:
    if type(fault) is not StrongroomError:
        return fault
    if "not support compression" in fault.what:
        return Refused(
            f"The archive is compressed in a way that this pg_restore does not know: {fault.what}",
            do="Take another build of it: the newest postgresql-client of your distribution.",
        )
    return Damaged(fault.what, do="Take another copy of the archive.")


__all__ = ["script_of"]
