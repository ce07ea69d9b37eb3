"""libpq's own functions, for the loop of the kernel that receives without the GIL.

psycopg holds the GIL in libpq while a message is received and copied; at 60,000 messages for 2 GB
the threads that hash and seal would wait for it. The functions are those of the very library that
psycopg has loaded, so that its connections are theirs too. Where it cannot be told which one that
is, nothing is found, and psycopg receives.
"""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from psycopg.pq.abc import PGconn

_LOADED = re.compile(r" (/\S*/libpq[-.][^/]*)$", re.MULTILINE)
_NAMES = "PQgetCopyData", "PQconsumeInput", "PQfreemem"


def receiving(connection: PGconn) -> tuple[int, int, int, int] | None:
    """Addresses of what receives, as `kernel.copy_data` takes them, and of the connection."""
    pointer, found = getattr(connection, "pgconn_ptr", None), _functions()
    return None if found is None or pointer is None else (*found, pointer)


@cache
def _functions() -> tuple[int, int, int] | None:
    import ctypes  # noqa: PLC0415

    try:
        with open("/proc/self/maps") as file:
            loaded = set(_LOADED.findall(file.read()))
        if len(loaded) != 1:
            return None
        library = ctypes.CDLL(loaded.pop())
        get, consume, free = (
            ctypes.cast(getattr(library, name), ctypes.c_void_p).value for name in _NAMES
        )
    except (OSError, AttributeError):
        return None
    return (get, consume, free) if get and consume and free else None


__all__ = ["receiving"]
