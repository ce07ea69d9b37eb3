"""status [SOURCE]."""

from __future__ import annotations

import importlib
import threading
from typing import TYPE_CHECKING, Any

from strongroom.cli.desk import Desk
from strongroom.cli.flags import Everywhere
from strongroom.cli.names import show_text
from strongroom.cli.records import show_moment
from strongroom.errors import NotFound
from strongroom.rules.sizes import show_seconds

if TYPE_CHECKING:
    from strongroom.operations.standing import Survey
    from strongroom.rules.anomalies import Condition
    from strongroom.rules.durations import Duration
    from strongroom.rules.standing import Proof, Standing

PROMISE_MISSED = 10
_DEFAULT = Everywhere()


def status(source: str | None = None, /, *, everywhere: Everywhere = _DEFAULT) -> int:
    """Say for each source what is recoverable, when that was proved, and whether promises are kept.

    OK is what was proved by a drill or by reading everything, and keeps its promises; UNPROVED keeps
    them as far as anybody knows. Exit status 10 when a promise is missed.

    Parameters
    ----------
    source
        Only this source.
    """
    desk = Desk(everywhere)
    found, alerts = look(desk, source)
    if source is not None and not found.standings:
        raise NotFound(f"There is neither a source nor a backup called {source!r}.")
    missed = any(one.missed for one in found.standings)
    desk.output.document(
        "status",
        {
            "exit": PROMISE_MISSED if missed else 0,
            "time": found.now.isoformat(),
            "sources": [*map(standing_body, found.standings)],
            "alerts": [*map(_alert_body, alerts)],
            "damaged": len(found.damaged),
        },
    )
    width = max((len(show_text(one.name)) for one in found.standings), default=0)
    for one in found.standings:
        desk.output.line(f"{one.word.upper():9} {show_text(one.name):{width}}  {line(one)}")
        desk.output.lines(f"          - {show_text(reason)}" for reason in one.reasons)
    if alerts:
        desk.output.line("Open alerts:")
    for each in alerts:
        why = f" ({'; '.join(each.reasons)})" if each.reasons else ""
        desk.output.line(
            f"  {each.severity:8}  {show_text(each.key)}: {show_text(each.what + why)}"
        )
    if not found.standings:
        desk.output.note("There is no source and no backup yet.")
    for text in found.notes:
        desk.output.note(show_text(text))
    if found.damaged:
        desk.output.note(f"{len(found.damaged)} backup records do not open: `strongroom check`.")
    return PROMISE_MISSED if missed else 0


def look(desk: Desk, source: str | None) -> tuple[Survey, list[Condition]]:
    """Where the sources stand now, and what is wrong; nothing is recorded of it."""
    # A passphrase takes a tenth of a second that leaves the interpreter alone.
    module = "strongroom.operations.standing"
    meanwhile = threading.Thread(target=importlib.import_module, args=(module,), daemon=True)
    meanwhile.start()
    with desk.repository() as repository:
        meanwhile.join()
        from strongroom.operations.standing import survey  # noqa: PLC0415 -- numpy behind it
        from strongroom.rules.anomalies import conditions  # noqa: PLC0415

        recorder = desk.recorder
        recorder.opened(repository)
        assert recorder.journal is not None
        try:
            now = desk.now
            found = survey(
                repository,
                recorder.journal,
                desk.configuration,
                now=now,
                source=source,
                folder=recorder.folder,
            )
            alerts = conditions(found.state, now=now)
            return found, [each for each in alerts if source in (None, each.source)]
        finally:
            recorder.journal.close()


def line(one: Standing) -> str:
    """The verdict on a source: recoverable, proved, measured against promised."""
    return "; ".join((_recoverable(one), _proved(one.proved), _rpo(one), _rto(one)))


def _recoverable(one: Standing) -> str:
    if one.first is None or one.until is None:
        return "nothing is recoverable"
    backups = f"{one.backups} backup{'s' * (one.backups != 1)}"
    text = f"recoverable from {show_moment(one.first)} until {show_moment(one.until)} ({backups}"
    if one.gaps:
        count = len(one.gaps)
        text += f", {count} gap{'s' * (count != 1)} of {show_seconds(one.gap_seconds)}"
    return text + ")"


def _proved(proof: Proof | None) -> str:
    if proof is None:
        return "never proved"
    at = "" if proof.at is None else f" (restored to {show_moment(proof.at)})"
    how = "a drill" if proof.by == "drill" else "reading everything"
    return f"last proved {show_moment(proof.ended)} by {how}{at}"


def _rpo(one: Standing) -> str:
    now = "unknown" if one.rpo_seconds is None else show_seconds(one.rpo_seconds)
    return f"RPO {now}{_promised(one.rpo)}"


def _rto(one: Standing) -> str:
    took = one.took
    now = "not measured" if took is None else f"{show_seconds(took.seconds)} ({took.by})"
    return f"RTO {now}{_promised(one.rto)}"


def _promised(span: Duration | None) -> str:
    return ", nothing promised" if span is None else f" of {span} promised"


def standing_body(one: Standing) -> dict[str, Any]:
    """A standing as JSON values."""
    return {
        "source": one.name,
        "kind": one.kind or None,
        "verdict": one.word,
        "missed": one.missed,
        "reasons": [*one.reasons],
        "recoverable_from": None if one.first is None else one.first.isoformat(),
        "recoverable_until": None if one.until is None else one.until.isoformat(),
        "windows": [
            {"from": span.first.isoformat(), "until": span.last.isoformat()} for span in one.spans
        ],
        "gaps": [
            {"from": gap.first.isoformat(), "until": gap.last.isoformat(), "reason": gap.why}
            for gap in one.gaps
        ],
        "gap_seconds": round(one.gap_seconds, 3),
        "backups": one.backups,
        "unusable": [*one.unusable],
        "last_proved": _proof_body(one.proved),
        "last_failed_proof": _proof_body(one.failed),
        "promise": {"rpo_seconds": _seconds(one.rpo), "rto_seconds": _seconds(one.rto)},
        "measured": {
            "rpo_seconds": None if one.rpo_seconds is None else round(one.rpo_seconds, 3),
            "rto_seconds": None if one.took is None else round(one.took.seconds, 3),
            "rto_by": None if one.took is None else one.took.by,
        },
        "next_due": None if one.due is None else one.due.isoformat(),
        "overdue": one.overdue,
    }


def _alert_body(alert: Condition) -> dict[str, Any]:
    return {
        "key": alert.key,
        "severity": alert.severity,
        "what": alert.what,
        "reasons": [*alert.reasons],
        "do": alert.do,
    }


def _proof_body(proof: Proof | None) -> dict[str, Any] | None:
    if proof is None:
        return None
    return {
        "time": proof.ended.isoformat(),
        "by": proof.by,
        "verdict": proof.word,
        "restored_to": None if proof.at is None else proof.at.isoformat(),
        "what": proof.what,
    }


def _seconds(span: Duration | None) -> int | None:
    return None if span is None else span.approximate_seconds
