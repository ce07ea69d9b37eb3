"""status [SOURCE]."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from strongroom.cli.desk import Desk
from strongroom.cli.flags import Everywhere
from strongroom.cli.names import show_text
from strongroom.cli.records import show_moment
from strongroom.config.model import Promise
from strongroom.errors import NotFound
from strongroom.rules.promises import Verdict, judge
from strongroom.rules.sizes import show_seconds

if TYPE_CHECKING:
    from datetime import datetime

    from strongroom.repository.catalogue import Snapshot
    from strongroom.rules.durations import Duration

PROMISE_MISSED = 10
_DEFAULT = Everywhere()


def status(source: str | None = None, /, *, everywhere: Everywhere = _DEFAULT) -> int:
    """Say for each source what is recoverable and whether the promises are kept.

    Exit status 10 when a promise is missed.

    Parameters
    ----------
    source
        Only this source.
    """
    from strongroom.operations import browse  # noqa: PLC0415 -- numpy behind it

    desk = Desk(everywhere)
    configured = desk.configuration.source
    with desk.repository() as repository:
        listing = browse.list_snapshots(repository, source)
    backups: dict[str, list[Snapshot]] = {name: [] for name in configured if source in (None, name)}
    for snapshot in listing.snapshots:
        backups.setdefault(snapshot.source, []).append(snapshot)
    if source is not None and not backups:
        raise NotFound(f"There is neither a source nor a backup called {source!r}.")
    now = desk.now
    rows, missed = [], False
    for name, snapshots in backups.items():
        promise = configured[name].promise if name in configured else Promise()
        newest = snapshots[-1].time if snapshots else None
        verdict = judge(newest, rpo=promise.rpo, rto=promise.rto, now=now)
        missed = missed or verdict.missed
        rows.append(_body(name, snapshots, promise, verdict, now))
        desk.output.line(_line(name, snapshots, verdict, now))
    desk.output.document("status", {"sources": rows, "damaged": len(listing.damaged)})
    if not rows:
        desk.output.note("There is no source and no backup yet.")
    if listing.damaged:
        desk.output.note(f"{len(listing.damaged)} backup records do not open: `strongroom check`.")
    return PROMISE_MISSED if missed else 0


def _line(name: str, snapshots: list[Snapshot], verdict: Verdict, now: datetime) -> str:
    words = f"{verdict.word.upper():5} {show_text(name)}"
    reasons = "; ".join(verdict.reasons)
    if not snapshots:
        return f"{words}: {reasons}"
    first, last = show_moment(snapshots[0].time), show_moment(snapshots[-1].time)
    age = show_seconds(max(0.0, (now - snapshots[-1].time).total_seconds()))
    count = f"{len(snapshots)} backup{'s' * (len(snapshots) != 1)}"
    return (
        f"{words}: recoverable from {first} until {last} ({count}, newest {age} old), "
        f"never proved by a drill; {reasons}"
    )


def _body(
    name: str, snapshots: list[Snapshot], promise: Promise, verdict: Verdict, now: datetime
) -> dict[str, Any]:
    newest = snapshots[-1].time if snapshots else None
    return {
        "source": name,
        "verdict": verdict.word,
        "missed": verdict.missed,
        "reasons": list(verdict.reasons),
        "recoverable_from": snapshots[0].time.isoformat() if snapshots else None,
        "recoverable_until": newest.isoformat() if newest else None,
        "backups": len(snapshots),
        "last_proved": None,
        "promise": {
            "rpo_seconds": _seconds(promise.rpo),
            "rto_seconds": _seconds(promise.rto),
            "keep": None if promise.keep is None else str(promise.keep),
        },
        "measured": {
            "age_seconds": None if newest is None else round((now - newest).total_seconds(), 3),
            "rto_seconds": None,
        },
    }


def _seconds(span: Duration | None) -> int | None:
    return None if span is None else span.approximate_seconds
