"""What PostgreSQL's own pg_waldump says of a log, as values: the other side of every comparison."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from strongroom.format.wal import SegmentName, parse_lsn
from strongroom.postgres.embedded import installations

PAGE = 8192
_LINE = re.compile(
    r"rmgr: (\S+) +len \(rec/tot\): *\d+/ *(\d+), tx: *(\d+), lsn: (\S+), prev (\S+), desc: (.*)"
)
_WHEN = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6} UTC")
_ENDS = ("COMMIT", "ABORT", "COMMIT_PREPARED", "ABORT_PREPARED")


@dataclass(frozen=True, slots=True)
class Line:
    """One record."""

    manager: str
    total: int
    xid: int  # of a prepared transaction's end: the prepared one's
    lsn: int
    what: str
    rest: str
    size: int  # of a segment

    @property
    def end(self) -> int:
        return self.spread()[1]

    @property
    def pieces(self) -> dict[int, int]:
        """How many of its bytes are in which segment."""
        return self.spread()[0]

    def spread(self) -> tuple[dict[int, int], int]:
        at, left, pieces = self.lsn, self.total, dict[int, int]()
        while left:
            if at % PAGE == 0:
                at += 24 if at % self.size else 40
            here = min(left, PAGE - at % PAGE)
            number = at // self.size
            pieces[number] = pieces.get(number, 0) + here
            left, at = left - here, at + here
        return pieces, (at + 7) // 8 * 8

    @property
    def is_end(self) -> bool:
        return self.manager == "Transaction" and self.what in _ENDS

    @property
    def aborted(self) -> bool:
        return self.what.startswith("ABORT")

    @property
    def time(self) -> datetime:
        found = _WHEN.search(self.rest)
        assert found, self.rest
        return datetime.strptime(found[0], "%Y-%m-%d %H:%M:%S.%f UTC").replace(tzinfo=UTC)

    @property
    def parts(self) -> tuple[int, tuple[int, ...]]:
        """The transaction and the subtransactions that this record says are its."""
        found = re.search(r"subxacts:((?: \d+)+)", self.rest)
        if self.manager != "Transaction" or not found:
            return 0, ()
        top = re.match(r"xtop (\d+)", self.rest)
        return int(top[1]) if top else self.xid, tuple(map(int, found[1].split()))


def program(major: int) -> str:
    """The pg_waldump of a major version."""
    (found, *_) = [one for one in installations("pg_waldump") if one.version[0] == major]
    return os.path.join(found.bindir, "pg_waldump")


def dump(major: int, directory: str, names: Sequence[SegmentName], *more: str) -> Iterator[Line]:
    """Every record from the first of the segments to the last, read with pg_waldump of `major`."""
    argv = [program(major), f"--path={directory}", *more, str(names[0]), str(names[-1])]
    done = subprocess.run(
        argv,
        capture_output=True,
        env={**os.environ, "TZ": "UTC", "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        check=False,  # it ends with an error where the log ends
    )
    for raw in done.stdout.decode("utf-8", "surrogateescape").splitlines():
        match = _LINE.match(raw)
        if match:
            manager, total, xid, lsn, _, rest = match.groups()
            what, _, rest = rest.partition(" ")
            prepared = re.match(r"(\d+): ", rest) if what.endswith("_PREPARED") else None
            number = int(prepared[1]) if prepared else int(xid)
            yield Line(manager, int(total), number, parse_lsn(lsn), what, rest, names[0].size)
