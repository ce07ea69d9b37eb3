"""backup SOURCE | --all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from strongroom import wiring
from strongroom.cli.desk import Desk
from strongroom.cli.flags import Everywhere
from strongroom.cli.names import path_fields, show_text
from strongroom.cli.output import error_body
from strongroom.cli.progress import listening
from strongroom.cli.records import ID_SHOWN, show_moment, snapshot_body
from strongroom.errors import AlreadyExists, Incomplete, Interrupted, StrongroomError, UsageError
from strongroom.rules.sizes import show_seconds, show_size

if TYPE_CHECKING:
    from strongroom.operations.back_up import Report
    from strongroom.repository.repository import Repository

PROBLEMS_IN_RESULT = 1000
_DEFAULT = Everywhere()


def backup(
    source: str | None = None,
    /,
    *,
    all: bool = False,
    label: Annotated[list[str] | None, Parameter(alias="-l")] = None,
    artefact: str | None = None,
    artefact_format: str | None = None,
    replace_artefact: bool = False,
    accept_system: bool = False,
    everywhere: Everywhere = _DEFAULT,
) -> int:
    """Back up a source.

    An interrupted backup resumes: run it again, and what was uploaded is not uploaded twice.

    Parameters
    ----------
    source
        The source, as it is called in strongroom.toml.
    all
        Every source, one after the other; one that fails does not stop the others.
    label
        A label k=v to find the backup by; may be given several times.
    artefact
        Write a portable artefact of the backup into this folder too, as `export` would.
    artefact_format
        Its format, as in `export --format`.
    replace_artefact
        Replace an artefact of the same name: that of a tree of files is called by its month.
    accept_system
        Of a cluster: it was made anew or upgraded; from now on it is another system.
    """
    desk = Desk(everywhere)
    if accept_system and source is None:
        raise UsageError("--accept-system is for one source.", do="Name it.")
    if (source is None) == (not all):
        raise UsageError("Name one source, or give --all.", do="strongroom backup SOURCE")
    if source is not None:
        desk.source_table(source)
    names = list(desk.configuration.source) if source is None else [source]
    if not names:
        raise UsageError("No source is configured.", do="Add [source.NAME] to strongroom.toml.")
    labels = read_labels(label or [])
    if artefact is None and artefact_format is not None:
        raise UsageError("--artefact-format needs --artefact FOLDER.", do="Give both.")
    with desk.recorded("backup", source=source or "") as opening, desk.repository() as repository:
        opening.dismiss()  # from here on each source is recorded by itself
        if len(names) == 1:
            report = _one(desk, repository, names[0], labels, accept_system=accept_system)
            made = _artefacts(
                desk, repository, [report], artefact, artefact_format, force=replace_artefact
            )
            return _finish(desk, [report], [], made)
        reports, failed = [], []
        for name in names:
            try:
                reports.append(_one(desk, repository, name, labels))
            except Interrupted:
                raise
            except StrongroomError as fault:
                failed.append((name, fault))
                desk.output.note(f"{show_text(name)}: failed, going on with the others")
                desk.output.error_lines(fault)
        made = _artefacts(
            desk, repository, reports, artefact, artefact_format, force=replace_artefact
        )
    return _finish(desk, reports, failed, made)


def _artefacts(
    desk: Desk,
    repository: Repository,
    reports: list[Report],
    folder: str | None,
    format: str | None,
    *,
    force: bool,
) -> list[dict[str, Any]]:
    """Export what was just backed up: the source is read once."""
    if folder is None:
        return []
    from strongroom.cli.verbs.artefact import ExportFlags, write_artefact  # noqa: PLC0415

    how, made = ExportFlags(force=force), []
    try:
        for report in reports:
            with desk.recorded("export") as run:
                made.append(
                    write_artefact(desk, repository, report.snapshot, folder, format, how, run=run)
                )
        return made
    except StrongroomError as fault:
        fault.means = "The backup is complete and committed; its artefact was not written."
        if isinstance(fault, AlreadyExists):
            fault.do = "Give --replace-artefact, or `strongroom export` into another folder."
        raise


def read_labels(texts: list[str]) -> dict[str, str]:
    """Labels of k=v; UsageError for what is none."""
    labels = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key or not text.isprintable() or len(text) > 256:
            raise UsageError(f"{text!r} is no label.", do="Write it like --label reason=release.")
        labels[key] = value
    return labels


def _one(
    desk: Desk,
    repository: Repository,
    name: str,
    labels: dict[str, str],
    *,
    accept_system: bool = False,
) -> Report:
    from strongroom.operations.back_up import back_up  # noqa: PLC0415 -- numpy behind it

    with desk.recorded("backup", source=name) as run:
        source = wiring.make_source(
            name,
            desk.source_table(name),
            repository=repository,
            cache_dir=desk.cache_dir,
            environ=desk.environ,
            jobs=desk.jobs,
            configuration=desk.configuration,
        )
        with listening(desk.output) as progress:
            report = back_up(repository, source, progress=progress, labels=labels)
        run.made(report.snapshot)
        run.problems = len(report.problems)
        run.detail |= {"attempts": report.attempts, "warnings": len(report.warnings)}
        if report.facts.get("bad_pages"):
            run.detail["bad_pages"] = _bad_pages(report.facts)
    desk.output.lines(_summary(report))
    for warning in report.warnings:
        desk.output.warning(warning)
    return report


def _bad_pages(facts: Mapping[str, Any]) -> int:
    """How many there are; of very many only the first are named."""
    return max(len(facts["bad_pages"]), int(facts.get("notes", {}).get("bad_pages", 0)))


def _summary(report: Report) -> list[str]:
    snapshot = report.snapshot
    saved = (
        f", {snapshot.size / snapshot.stored:.1f} : 1"
        if 0 < snapshot.stored < snapshot.size
        else ""
    )
    again = f" (attempt {report.attempts})" if report.attempts > 1 else ""
    return [
        f"{show_text(snapshot.source)}: backup {snapshot.id[:ID_SHOWN]} "
        f"of {show_moment(snapshot.time)}{again}",
        f"  {snapshot.files:,} files, {show_size(snapshot.size)} in {show_seconds(report.seconds)} "
        f"({show_size(snapshot.size / max(report.seconds, 1e-9))}/s)",
        f"  new {show_size(snapshot.new_size)}, stored {show_size(snapshot.stored)}{saved}",
    ]


def _body(report: Report) -> dict[str, Any]:
    return {
        "snapshot": snapshot_body(report.snapshot),
        "seconds": round(report.seconds, 3),
        "attempts": report.attempts,
        "warnings": list(report.warnings),
        "problems": [
            {**path_fields(problem.path), "reason": problem.reason}
            for problem in report.problems[:PROBLEMS_IN_RESULT]
        ],
    }


def _finish(
    desk: Desk,
    reports: list[Report],
    failed: list[tuple[str, StrongroomError]],
    artefacts: list[dict[str, Any]],
) -> int:
    body = {
        "backups": list(map(_body, reports)),
        "failed": [{"source": name, **error_body(fault)} for name, fault in failed],
        "artefacts": artefacts,
    }
    if failed:  # its lines were printed when it happened
        status = failed[0][1].exit_status
        error = error_body(failed[0][1])
        desk.output.event("result", {"verb": "backup", "exit": status, **body, "error": error})
        return status
    skipped = sum(len(report.problems) for report in reports)
    skipped += sum(len(made["problems"]) for made in artefacts)
    fault = None
    if skipped:
        fault = Incomplete(
            f"The backup is complete but for {skipped} part{'s' * (skipped != 1)} of the source."
        )
    return desk.output.finish("backup", body, fault)
