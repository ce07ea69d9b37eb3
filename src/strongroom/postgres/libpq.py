"""libpq's own functions, for the loop of the kernel that receives without the GIL.

psycopg holds the GIL in libpq while a message is received and copied; at 60,000 messages for 2 GB
the threads that hash and seal would wait for it. The functions are those of the very library that
psycopg has loaded, so that its connections are theirs too. Where it cannot be told which one that
is, nothing is found, and psycopg receives.
"""

from __future__ import annotations

import glob
import importlib.util
import os
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from psycopg.pq.abc import PGconn

_NAMES = "PQgetCopyData", "PQconsumeInput", "PQfreemem"


def receiving(connection: PGconn) -> tuple[int, int, int, int] | None:
    """Addresses of what receives, as `kernel.copy_data` takes them, and of the connection."""
    pointer, found = getattr(connection, "pgconn_ptr", None), _functions()
    return None if found is None or pointer is None else (*found, pointer)


@cache
def _functions() -> tuple[int, int, int] | None:
    import ctypes  # noqa: PLC0415

    from psycopg import pq  # noqa: PLC0415

    for path in _candidates(pq.__impl__):
        try:
            library = ctypes.CDLL(path, mode=os.RTLD_NOLOAD | os.RTLD_NOW)
            if library.PQlibVersion() != pq.version():
                continue
            get, consume, free = (
                ctypes.cast(getattr(library, name), ctypes.c_void_p).value for name in _NAMES
            )
        except (OSError, AttributeError):  # it is not loaded, or another one
            continue
        if get and consume and free:
            return get, consume, free
    return None


def _candidates(implementation: str) -> list[str]:
    """Which library psycopg has loaded: its wheel's own, or the system's."""
    if implementation != "binary":
        return ["libpq.so.5"]
    spec = importlib.util.find_spec("psycopg_binary")
    places = (spec.submodule_search_locations or ()) if spec else ()
    return [path for place in places for path in glob.glob(f"{glob.escape(place)}.libs/libpq-*")]


__all__ = ["receiving"]
