"""Are the pages that were just read what the server once wrote? Never a reason to lose a backup.

A page is read while the server may write it, so that a checksum which does not fit is looked at
again, until the page fits or stays as it is. What stays wrong is judged by its LSN: a page changed
after the backup began is written anew by recovery; one from before, or from later than the server's
log has come by the end, is bad. (PostgreSQL's own tools pass over every page with a later LSN, and so
over any page whose LSN is what was damaged.)

Source: PostgreSQL basebackup.c (verify_page_checksum), bufpage.c (PageIsVerified).
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from strongroom import kernel
from strongroom.postgres.physical.facts import BadPage

LOOKS = 5
PAUSE = 0.01

_LSN = struct.Struct("<II")

Reread = Callable[[int], bytes]


@dataclass(frozen=True, slots=True)
class OddPage:
    """A page that stayed wrong: its block in its file, both checksums, and the LSN it bears."""

    block: int
    found: int
    expected: int
    lsn: int


def page_lsn(page: bytes | memoryview) -> int:
    """The position up to which the log was, when the page was changed last."""
    high, low = _LSN.unpack_from(page)
    return int(high) << 32 | int(low)


def look(
    run: memoryview, size: int, *, block: int, first: int, reread: Reread, pause: float = PAUSE
) -> list[OddPage]:
    """Look at the whole pages of `run`, which is mended in place where another look is better.

    `block` is the number of its first page in its file, `first` in its relation. `reread(n)` reads
    page n of the run once more; less than a page if the file has become shorter.
    """
    whole = len(run) // size * size
    odd = []
    for number, found, expected in kernel.page_checksums(run[:whole], size, first):
        page = run[number * size : (number + 1) * size]
        again = _again(page, size, number, first, reread, pause)
        if again is not None:
            odd.append(OddPage(block + number, *(again or (found, expected)), page_lsn(page)))
    return odd


def _again(
    page: memoryview, size: int, number: int, first: int, reread: Reread, pause: float
) -> tuple[int, int] | tuple[()] | None:
    """Read a page until it fits (None), or stays as it is (its checksums, () for as before)."""
    wrong: tuple[int, int] | tuple[()] = ()
    for attempt in range(LOOKS):
        if attempt:
            time.sleep(pause)
        now = reread(number)
        if len(now) < size:
            return None  # cut off in the meantime: recovery cuts it off too
        if now == page:
            return wrong
        page[:] = now
        rows = kernel.page_checksums(now, size, first + number & 0xFFFFFFFF)
        if not rows:
            return None
        wrong = rows[0][1:]
    return None  # written all the time: recovery writes it too


def judge(
    odd: Iterable[tuple[bytes, OddPage]], *, start: int, stop: int
) -> Iterator[tuple[bytes, OddPage]]:
    """Which of the odd pages are bad, now that it is known how far the log has come."""
    for path, page in odd:
        if page.lsn < start or page.lsn > stop:
            yield path, page


def bad_page(path: bytes, page: OddPage) -> BadPage:
    """As the facts of a snapshot have it."""
    return BadPage(path, page.block, page.found, page.expected)


__all__ = ["OddPage", "bad_page", "judge", "look", "page_lsn"]
