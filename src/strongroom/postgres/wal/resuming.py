"""Where the log goes on, from what is here and what a server says of its history. PURE."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass

from strongroom.format.wal import Fork


@dataclass(frozen=True, slots=True)
class History:
    """A server's way: the timelines it comes from, oldest first, and its own."""

    timeline: int
    forks: Sequence[Fork] = ()

    def left(self, timeline: int) -> int | None:
        """Where a timeline was left for the next one; None for the server's own and strangers."""
        return next((fork.lsn for fork in self.forks if fork.timeline == timeline), None)

    def holds(self, timeline: int) -> bool:
        """Is a timeline on the way?"""
        return timeline == self.timeline or self.left(timeline) is not None

    def after(self, timeline: int) -> int:
        """The timeline that follows one on the way."""
        way = [*(fork.timeline for fork in self.forks), self.timeline]
        return way[way.index(timeline) + 1]

    def at(self, position: int) -> int:
        """The timeline that the log at a position is of."""
        return next((one.timeline for one in self.forks if position < one.lsn), self.timeline)

    def stretches(self, start: int, end: int) -> list[tuple[int, int, int]]:
        """[start, end) by timelines: (timeline, from, to)."""
        found, at = [], start
        for timeline, left in [
            *((one.timeline, one.lsn) for one in self.forks),
            (self.timeline, end),
        ]:
            to = min(left, end)
            if at < to:
                found.append((timeline, at, to))
                at = to
        return found


@dataclass(frozen=True, slots=True)
class Place:
    """A position on a timeline, up to which the log is here."""

    timeline: int
    position: int


def go_on(here: Place, history: History, size: int) -> Place:
    """Where to ask a server to begin: the start of the segment in which the log goes on.

    `here` must be on the server's way. What is here beyond a fork is another history's: the newer
    timeline is taken from the beginning of the segment that it was begun in (trap 36).
    """
    timeline, position = here.timeline, here.position
    while (left := history.left(timeline)) is not None and position >= left:
        timeline, position = history.after(timeline), left
    return Place(timeline, position // size * size)


def newest(ends: Mapping[int, int], history: History) -> Place | None:
    """Of what is here by timeline (where it ends), what a server can go on from."""
    found = [timeline for timeline in ends if history.holds(timeline)]
    return Place(max(found), ends[max(found)]) if found else None


def first_missing(
    held: Set[tuple[int, int]],
    gaps: Iterable[tuple[int, int]],
    history: History,
    size: int,
    restart: int,
) -> int:
    """Where to begin, from what the repository holds and where a slot does. `held` are segments as
    (timeline, number), `gaps` what is known to be nowhere.

    Not behind the last segment that is there: what a backup stored is ahead of a hole. From the end
    of what comes before the slot's beginning, where log is missing in between (trap 37); else from
    the first segment that is missing from there on.
    """

    def there(number: int) -> bool:
        return (history.at((number + 1) * size - 1), number) in held

    number = restart // size
    if not there(number - 1):
        older = max((one for _, one in held if one < number and there(one)), default=None)
        if older is not None:
            hole = (older + 1) * size
            if not any(start <= hole and number * size <= end for start, end in gaps):
                return hole
    while there(number):
        number += 1
    return number * size


def overtaken(
    histories: Mapping[int, Sequence[Fork] | None], server: History, position: int
) -> tuple[int, int] | None:
    """A newer timeline that went another way before a server's position (trap 39), and where it
    did; None where the server is on its way there. A timeline without its history tells nothing.
    """
    for timeline in sorted(histories, reverse=True):
        if timeline <= server.timeline:
            continue
        way = {fork.timeline: fork.lsn for fork in histories[timeline] or ()}
        if not way:
            continue
        left = way.get(server.timeline)
        if left is None:  # they parted before the server's own timeline was begun
            common = [
                min(fork.lsn, way[fork.timeline]) for fork in server.forks if fork.timeline in way
            ]
            left = min(common, default=0)
        if left < position:
            return timeline, left
    return None


__all__ = ["History", "Place", "first_missing", "go_on", "newest", "overtaken"]
