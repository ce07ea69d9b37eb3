"""drill run, list and report: restores are made before they are needed, and what came of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

import strongroom
from strongroom import wiring
from strongroom.cli.desk import Desk
from strongroom.cli.files import write_file
from strongroom.cli.flags import Everywhere
from strongroom.cli.names import show_text
from strongroom.cli.output import error_body
from strongroom.cli.progress import listening
from strongroom.cli.records import ID_SHOWN
from strongroom.errors import (
    ConfigError,
    Damaged,
    Incomplete,
    Interrupted,
    NotFound,
    StrongroomError,
    UsageError,
)
from strongroom.rules.drill import EXIT, Drilled, Step, Verdict, detail_of
from strongroom.rules.sizes import show_seconds, show_size

if TYPE_CHECKING:
    from strongroom.observe.journal import Journal
    from strongroom.operations.drilling import Course, Wanted
    from strongroom.operations.recording import Draft
    from strongroom.repository.reports import Reports
    from strongroom.repository.repository import Repository

Format = Literal["json", "md", "html"]
_DEFAULT = Everywhere()
_WORDS = {"random", "latest", "oldest"}
_MARKS = {"green": "ok", "amber": "note", "red": "FAIL", "skipped": "-"}
_WORST: tuple[Verdict, ...] = ("red", "incomplete", "missed", "amber", "green")
_REPORT_LIMIT = 16 << 20


def run(
    source: str | None = None,
    /,
    *,
    all: bool = False,
    at: str = "random",
    sql: list[str] | None = None,
    scratch: str | None = None,
    dry_run: bool = False,
    everywhere: Everywhere = _DEFAULT,
) -> int:
    """Restore into something throw-away, look whether it is right and fast enough, and report.

    A database is restored into a PostgreSQL of its own that nobody else reaches, a vault into a folder;
    both are gone afterwards. Exit status 9 when something is wrong, 3 when something that was asked
    for could not be looked at, 10 when it took longer than promised.

    Parameters
    ----------
    source
        The source; it need not be configured here.
    all
        Every configured source: the full test.
    at
        Which moment: `random` out of all that can be restored, `latest`, `oldest`, or a time.
    sql
        A query, or a file of SQL, that must answer; may be given several times.
    scratch
        Where it is restored to, instead of $TMPDIR; gone at the end.
    dry_run
        Choose the moment, check the room, and say what would be done.
    """
    desk = Desk(everywhere)
    if (source is None) == (not all):
        raise UsageError("Name one source, or give --all.", do="strongroom drill run SOURCE")
    names = list(desk.configuration.source) if source is None else [source]
    if not names:
        raise UsageError("No source is configured.", do="Add [source.NAME] to strongroom.toml.")
    if scratch is not None and not os.path.isdir(scratch):
        raise UsageError(f"--scratch: {scratch} is no directory.", do="Make it first.")
    if sql and source is None:
        raise UsageError("--sql is for one source.", do="Name it, or write `sql` of its drill.")
    from strongroom.operations.browse import find_snapshot  # noqa: PLC0415 -- numpy behind it

    queries = dict(map(_query, sql or ()))
    drills: list[dict[str, Any]] = []
    faults: list[tuple[Verdict, StrongroomError | None]] = []
    what = f"drill {source or 'every source'}"
    with (
        desk.recorded("drill", source=source or "", what=what) as opening,
        desk.repository() as repository,
    ):
        opening.dismiss()  # from here on each source is recorded by itself
        if source is not None and source not in desk.configuration.source:
            find_snapshot(repository, source)  # a name that is none is no drill that failed
        for name in names:
            wanted = _wanted(desk, name, at, queries, scratch)
            try:
                body, fault = _one(desk, repository, name, wanted, dry_run=dry_run)
            except Interrupted as stop:
                stop.means = "This drill proves nothing; what it made is gone, nothing was changed."
                stop.do = "Run the same command again; it begins anew."
                raise
            except StrongroomError as failure:
                if len(names) == 1:
                    raise
                body, fault = {"source": name, "error": error_body(failure)}, failure
                desk.output.error_lines(failure)
                faults.append(("incomplete", failure))
            else:
                if EXIT[body.get("verdict", "green")]:
                    faults.append((body["verdict"], fault))
            drills.append(body)
    return _finish(desk, drills, faults, dry_run=dry_run)


def _query(text: str) -> tuple[str, str]:
    """Name and text of what --sql gives: a file, or the query itself."""
    if any(c.isspace() for c in text) and not os.path.exists(text):
        return text, text
    try:
        with open(text, encoding="utf-8") as file:
            return os.path.basename(text), file.read()
    except (OSError, ValueError) as fault:
        why = getattr(fault, "strerror", None) or str(fault)
        raise UsageError(
            f"--sql {text}: {why}.", do='Give a file of SQL, or a query: --sql "SELECT …".'
        ) from None


def _wanted(
    desk: Desk, name: str, at: str, queries: Mapping[str, str], scratch: str | None
) -> Wanted:
    from strongroom.operations.drilling import Wanted  # noqa: PLC0415

    place = wiring.drill_scratch(desk.configuration.source.get(name), scratch)
    if at in _WORDS:
        return Wanted(at, None, place, queries)  # type: ignore[arg-type]
    return Wanted("given", desk.moment(at), place, queries)


def _one(
    desk: Desk, repository: Repository, name: str, wanted: Wanted, *, dry_run: bool
) -> tuple[dict[str, Any], StrongroomError | None]:
    """One drill: choose, look at the room, carry out, report, record."""
    from strongroom.operations.drill_room import (  # noqa: PLC0415
        drill_room,
        require_room,
        sweep_left,
    )
    from strongroom.operations.drilling import carry_out, report_of  # noqa: PLC0415
    from strongroom.repository.reports import Reports  # noqa: PLC0415

    table = desk.configuration.source.get(name)
    rto = None if table is None else table.promise.rto
    with desk.recorded("drill", source=name, what=f"drill {name}, {wanted.choice}") as record:
        if dry_run:
            record.dismiss()
        else:
            for left in sweep_left(wanted.scratch):
                desk.output.warning(f"a drill that was killed left {left}; it is gone now")
        with listening(desk.output) as progress:
            course = wiring.drill_course(
                name,
                table,
                wanted,
                repository=repository,
                environ=desk.environ,
                tell=desk.output.note if desk.output.verbosity else lambda line: None,
                jobs=desk.jobs,
                progress=progress,
            )
            record.of(course.snapshot)
            free = require_room(wanted.scratch, course.size)
            if dry_run:
                return _plan(desk, course, wanted, free), None
            desk.output.note(
                f"{show_text(name)}: backup {course.snapshot.id[:ID_SHOWN]}, {course.chosen}"
            )
            began = desk.now
            with drill_room(wanted.scratch) as room:
                done = carry_out(
                    course,
                    room,
                    rto=rto,
                    steady=wiring.steady,
                    progress=progress,
                    tell=lambda step: desk.output.event("step", {"source": name, **step.as_json()}),
                )
        body = desk.recorder.cleaned(
            report_of(course, done, rto=rto, about=_about(desk, record, began.isoformat()))
        )
        reports = Reports(repository)
        document = reports.put(body["run"], body)
        record.detail |= detail_of(
            [Step.from_json(step) for step in body["steps"]],
            at=course.at,
            kind=course.kind,
            restore_ms=done.restore_ms,
            total_ms=done.total_ms,
            target_seconds=body["target_seconds"],
            report=reports.digest(document),
        )
        fault = _judge(record, name, done.verdict, done.steps, body["run"])
    for step in done.steps:
        _tell(desk, step)
    _summary(desk, body)
    return {**body, "report": reports.digest(document)}, fault


def _about(desk: Desk, record: Draft, began: str) -> dict[str, Any]:
    """Whose drill it is."""
    ticket = record.ticket
    if ticket is None:
        raise ConfigError("No repository is named.")
    return {
        "repository": desk.storage.url,
        "run": ticket.run.run,
        "trigger": ticket.run.trigger,
        "host": ticket.run.host,
        "user": ticket.run.user,
        "program": strongroom.__version__,
        "started": began,
        "ended": desk.now.isoformat(),
    }


def _judge(
    record: Draft, name: str, verdict: Verdict, steps: Sequence[Step], run: str
) -> StrongroomError | None:
    """What a verdict means for the leaf and for the command."""
    wrong = [
        f"{step.name}: {step.what}"
        for step in steps
        if step.verdict == "red" or (step.verdict == "skipped" and step.demanded)
    ]
    do = f"`strongroom drill report {run}` tells everything; mend it, and drill again."
    if verdict == "missed":
        record.exit, record.missed = EXIT["missed"], True
    elif verdict == "incomplete":
        record.fault = Incomplete(
            f"The drill of {name} is not complete: {wrong[0] if wrong else 'nothing was done'}.",
            means="What could be looked at is in the report; the rest is not proved.",
            do=do,
        )
    elif verdict == "red":
        record.fault = Damaged(
            f"The drill of {name} failed: {wrong[0]}.",
            means="A restore from this backup would not be as it should; production was not touched.",
            do=do,
        )
    return record.fault


def _tell(desk: Desk, step: Step) -> None:
    if step.verdict == "skipped" and not step.demanded:
        return
    took = f"{show_seconds(step.ms / 1000):>10}" if step.verdict != "skipped" else " " * 10
    desk.output.line(f"  {_MARKS[step.verdict]:4} {step.name:11}{took}  {show_text(step.what)}")


def _summary(desk: Desk, body: Mapping[str, Any]) -> None:
    took = body["restore_ms"]
    restored = "not restored" if took is None else f"restored in {show_seconds(took / 1000)}"
    target = body["target_seconds"]
    promise = "" if target is None else f", promised {show_seconds(target)}"
    desk.output.line(
        f"{show_text(body['source'])}: {body['verdict'].upper()}, {restored}{promise};"
        f" `strongroom drill report {body['run']}`"
    )


def _plan(desk: Desk, course: Course, wanted: Wanted, free: int) -> dict[str, Any]:
    """What would be done."""
    stages = course.stages()
    desk.output.line(
        f"Would drill {show_text(course.snapshot.source)}: backup {course.snapshot.id[:ID_SHOWN]}, "
        f"{course.chosen}"
    )
    desk.output.line(
        f"  in {wanted.scratch}: up to {show_size(course.size)}, {show_size(free)} free"
    )
    desk.output.lines(
        f"  {stage.name:11} {'' if stage.act is not None else stage.why}".rstrip()
        for stage in stages
    )
    return {
        "source": course.snapshot.source,
        "kind": course.kind,
        "snapshot": course.snapshot.id,
        "at": course.at.isoformat(),
        "chosen": course.chosen,
        "scratch": wanted.scratch,
        "size": course.size,
        "free": free,
        "steps": [
            {"name": stage.name, "asked": stage.act is not None, "why": stage.why}
            for stage in stages
        ],
    }


def _finish(
    desk: Desk,
    drills: list[dict[str, Any]],
    faults: list[tuple[Verdict, StrongroomError | None]],
    *,
    dry_run: bool,
) -> int:
    body = {"dry_run": dry_run, "drills": drills}
    faults.sort(key=lambda one: _WORST.index(one[0]))
    verdict, fault = faults[0] if faults else ("green", None)
    if fault is None and EXIT[verdict]:  # a promise missed is told as a result, not as an error
        desk.output.event("result", {"verb": "drill run", "exit": EXIT[verdict], **body})
        return EXIT[verdict]
    return desk.output.finish("drill run", body, fault)


# -- what there was ------------------------------------------------------------------------------


def list_drills(source: str | None = None, /, *, everywhere: Everywhere = _DEFAULT) -> int:
    """Show the drills that the audit log knows of, oldest first.

    Parameters
    ----------
    source
        Only this source's.
    """
    desk = Desk(everywhere)
    with _journal(desk) as (journal, _):
        drills = [Drilled.from_run(one) for one in journal.runs(source, "drill")]
    desk.output.document("drills", {"drills": [_drill_body(one) for one in drills]})
    if not drills:
        desk.output.line("no drill yet: `strongroom drill run SOURCE`")
        return 0
    rows = [
        (
            one.run[:8],
            one.started.astimezone(UTC).strftime("%Y-%m-%d %H:%M"),
            show_text(one.source),
            one.snapshot[:ID_SHOWN],
            "" if one.at is None else one.at.strftime("%Y-%m-%d %H:%M:%S"),
            "" if one.restore_ms is None else show_seconds(one.restore_ms / 1000),
            one.verdict if one.steps else one.outcome,
        )
        for one in drills
    ]
    head = ("drill", "when (UTC)", "source", "backup", "moment (UTC)", "restore", "verdict")
    desk.output.table(head, rows, "lllllr")
    return 0


def _drill_body(one: Drilled) -> dict[str, Any]:
    return {
        "run": one.run,
        "source": one.source,
        "started": one.started.isoformat(),
        "ended": one.ended.isoformat(),
        "trigger": one.trigger,
        "snapshot": one.snapshot,
        "kind": one.kind,
        "at": None if one.at is None else one.at.isoformat(),
        "outcome": one.outcome,
        "verdict": one.verdict,
        "restore_ms": one.restore_ms,
        "total_ms": one.total_ms,
        "target_seconds": one.target_seconds,
        "notes": list(one.notes),
        "report": one.report,
    }


def report(
    drill: str | None = None,
    /,
    *,
    quarter: str | None = None,
    output: Annotated[str | None, Parameter(alias="-o", allow_leading_hyphen=True)] = None,
    format: Annotated[Format | None, Parameter(alias="-f")] = None,
    verify: str | None = None,
    force: bool = False,
    everywhere: Everywhere = _DEFAULT,
) -> int:
    """Write the report of a drill, keep the page of a quarter filled, or verify what was written.

    Parameters
    ----------
    drill
        Which drill: the beginning of its id from `strongroom drill list`. Otherwise the newest.
    quarter
        2026Q4: the checklist and the results of all drills of that quarter. With --output into that
        file, whatever else is in it stays; written again, only its own part changes.
    output
        Where to: a file that ends in .json, .md or .html, or a folder for all three. Otherwise stdout.
    format
        json (signed), md or html, where no file says it.
    verify
        A report as it was written, in any of the three: is it what a writer of this repository signed,
        and what the audit log names? Exit status 9 when not.
    force
        Replace files that are there.
    """
    desk = Desk(everywhere)
    given = {"a drill": drill, "--quarter": quarter, "--verify": verify}
    named = [name for name, value in given.items() if value is not None]
    if len(named) > 1:
        raise UsageError(f"{' and '.join(named)}: each says what to do.", do="Give one of them.")
    if quarter is not None:
        return _quarter(desk, quarter, output)
    if verify is not None:
        return _verify(desk, verify)
    with _journal(desk) as (journal, repository):
        from strongroom.repository.reports import Reports  # noqa: PLC0415

        chosen = _find(journal, drill)
        written = _Written.of(Reports(repository), chosen)
    if output is None:
        if desk.output.json and format is None:
            desk.output.document("drill", {**written.body, "report": written.digest})
        else:
            sys.stdout.write(written.text(format or "md"))
        return 0
    for path, form in _places(output, format, chosen):
        write_file(path, [written.text(form).encode()], force=force)
        desk.output.line(show_text(path))
    desk.output.document("report", {"run": chosen.run, "output": output})
    return 0


@dataclass(frozen=True, slots=True)
class _Written:
    """A report in its three forms."""

    document: bytes
    body: Mapping[str, Any]
    digest: str

    @staticmethod
    def of(reports: Reports, drill: Drilled) -> _Written:
        """The report that a leaf names; Damaged when it is another one."""
        document = reports.get(drill.run)
        if reports.digest(document) != drill.report:
            raise Damaged(
                f"The report of drill {drill.run} is not the one that the audit log names.",
                means="It proves nothing; backups and the audit log are untouched.",
                do="`strongroom audit verify` looks at the log; drill again.",
            )
        return _Written(document, reports.open(document), drill.report)

    def text(self, form: Format) -> str:
        """One form."""
        from strongroom.rules import drill_report  # noqa: PLC0415

        if form == "json":
            return self.document.decode() + "\n"
        make = drill_report.markdown if form == "md" else drill_report.html
        return make(self.body, self.digest)


def _places(output: str, form: Format | None, drill: Drilled) -> list[tuple[str, Format]]:
    endings: dict[str, Format] = {".json": "json", ".md": "md", ".html": "html"}
    ending = os.path.splitext(output)[1]
    if os.path.isdir(output) or output.endswith("/"):
        os.makedirs(output, exist_ok=True)
        stem = f"drill-{drill.source}-{drill.started:%Y%m%dT%H%M%SZ}-{drill.run[:8]}"
        forms = [form] if form else list(endings.values())
        return [(os.path.join(output, f"{stem}.{one}"), one) for one in forms]
    chosen = form or endings.get(ending)
    if chosen is None:
        raise UsageError(
            f"{output} says no format.", do="Let its name end in .json, .md or .html, or give one."
        )
    return [(output, chosen)]


def _find(journal: Journal, wanted: str | None) -> Drilled:
    drills = [one for one in map(Drilled.from_run, journal.runs(type="drill")) if one.report]
    found = drills[-1:] if wanted is None else [d for d in drills if d.run.startswith(wanted)]
    if len({one.run for one in found}) > 1:
        raise UsageError(f"{wanted} is the beginning of several drills.", do="Give more of it.")
    if not found:
        what = "There is no drill yet" if wanted is None else f"There is no drill {wanted}"
        raise NotFound(
            f"{what} that has a report.", do="`strongroom drill list` shows what there was."
        )
    return found[0]


def _quarter(desk: Desk, text: str, output: str | None) -> int:
    from strongroom.rules.drill_report import (  # noqa: PLC0415
        parse_quarter,
        quarter_of,
        quarter_page,
        quarter_section,
    )

    try:
        quarter = parse_quarter(text)
    except ValueError as fault:
        raise UsageError(f"--quarter: {fault}.") from None
    with _journal(desk) as (journal, _):
        drills = [
            one
            for one in map(Drilled.from_run, journal.runs(type="drill"))
            if quarter_of(one.started, desk.zone) == quarter
        ]
    kinds = {
        name: "files" if not hasattr(table, "method") else table.method
        for name, table in desk.configuration.source.items()
    }
    section = quarter_section(quarter, drills, kinds, desk.zone)
    body = {
        "quarter": f"{quarter[0]}Q{quarter[1]}",
        "drills": [_drill_body(one) for one in drills],
        "text": section,
        "output": output,
    }
    if output is not None:
        before = ""
        if os.path.exists(output):
            with open(output, encoding="utf-8") as file:
                before = file.read()
        after = quarter_page(before, quarter, section)
        if after != before:
            mode = os.stat(output).st_mode & 0o7777 if before else None
            write_file(output, [after.encode()], force=True)
            if mode is not None:
                os.chmod(output, mode)
        desk.output.line(f"{show_text(output)}: Q{quarter[1]} {quarter[0]}, {len(drills)} drills")
    else:
        desk.output.line(section.rstrip())
    desk.output.document("quarter", body)
    return 0


def _verify(desk: Desk, path: str) -> int:
    """Hold a file against signature and log."""
    from strongroom.repository.reports import Reports  # noqa: PLC0415
    from strongroom.rules import drill_report  # noqa: PLC0415

    try:
        with open(path, "rb") as file:
            raw = file.read(_REPORT_LIMIT)
    except OSError as fault:
        raise NotFound(f"{path} cannot be read: {fault.strerror}.") from None
    with _journal(desk) as (journal, repository):
        reports = Reports(repository)
        drills = [Drilled.from_run(one) for one in journal.runs(type="drill")]
        if raw.lstrip().startswith(b"{"):
            document = raw.rstrip(b"\n")
            body = reports.open(document)
            digest = reports.digest(document)
            named = [one for one in drills if one.run == body.get("run")]
        else:
            named = [one for one in drills if one.report and one.report.encode() in raw]
            digest = named[0].report if named else ""
            body = dict(_Written.of(reports, named[0]).body) if named else {}
            pages = [
                make(body, digest).encode() for make in (drill_report.markdown, drill_report.html)
            ]
            if named and raw not in pages:
                raise _not_proved(path, "its text is not that of the report it names")
    if not named:
        raise _not_proved(path, "the audit log knows no drill with this report")
    if named[0].report != digest:
        raise _not_proved(path, "the audit log names another report for this drill")
    told = {"run": body["run"], "source": body["source"], "verdict": body["verdict"]}
    told |= {"writer": body["writer"], "report": digest, "path": path}
    desk.output.document("verified", told)
    desk.output.line(
        f"{show_text(path)}: as {show_text(body['writer'])} signed it, and as the audit log has it:"
        f" {show_text(body['source'])}, {body['verdict'].upper()}"
    )
    return 0


def _not_proved(path: str, why: str) -> Damaged:
    return Damaged(
        f"{path} proves nothing: {why}.",
        means="Backups and the audit log are untouched.",
        do="`strongroom drill report` writes what the repository has.",
    )


@contextmanager
def _journal(desk: Desk) -> Iterator[tuple[Journal, Repository]]:
    """What the audit log knows; with what cannot be read of it as a warning."""
    with desk.repository() as repository:
        desk.recorder.opened(repository)
        journal = desk.recorder.journal
        assert journal is not None
        yield journal, repository
        for text in journal.warnings:
            desk.output.warning(text)
        journal.warnings.clear()


__all__ = ["list_drills", "report", "run"]
