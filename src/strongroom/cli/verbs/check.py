"""check."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from strongroom.cli.desk import Desk
from strongroom.cli.flags import Everywhere
from strongroom.cli.names import path_fields, show_name, show_text
from strongroom.cli.progress import listening
from strongroom.cli.records import ID_SHOWN
from strongroom.errors import (
    Damaged,
    StorageDenied,
    StorageUnreachable,
    StrongroomError,
    UsageError,
)
from strongroom.rules.durations import parse_duration
from strongroom.rules.proof import HURT, WHOLE
from strongroom.rules.sizes import parse_size, show_size

if TYPE_CHECKING:
    from strongroom.repository.check import Finding, Report

_FILES_SHOWN, FILES_NAMED = 10, 1000
_STRUCTURE, _EVERYTHING = 1, 3
_IDS_TOLD = 4096  # backups that the audit log is told to be whole: the newest
_DEFAULT = Everywhere()


def check(
    *, read_data: bool = False, budget: str | None = None, everywhere: Everywhere = _DEFAULT
) -> int:
    """Verify the repository, and name the backups and files that are damaged.

    Without a flag: every record opens, every reference leads somewhere, every pack is there.
    Exit status 9 when anything is damaged; when nothing is, but something could not be reached, 7,
    or 8 where the storage denied it.

    Parameters
    ----------
    read_data
        Read and open everything that is stored too.
    budget
        With --read-data: stop after so long (10m, 2h) or so much (5GiB); what was read longest
        ago comes first, so that many small checks go round.
    """
    from strongroom.operations.check import check as verify  # noqa: PLC0415 -- numpy behind it

    desk = Desk(everywhere)
    if budget is not None and not read_data:
        raise UsageError("--budget bounds --read-data.", do="Give both.")
    seconds, size = read_budget(budget) if budget is not None else (None, None)
    how = "check all data" if read_data else "check the structure"
    with desk.recorded("check", what=how) as run, desk.repository() as repository:
        name = f"verified-{repository.identity.id.hex()}.json"
        with listening(desk.output) as progress:
            report = verify(
                repository,
                level=_EVERYTHING if read_data else _STRUCTURE,
                progress=progress,
                size=size,
                seconds=seconds,
                state=os.path.join(desk.cache_dir, name),
            )
        run.fault = _verdict(report)
        run.size, run.problems = report.bytes_read, len(report.findings)
        run.detail |= {
            "level": report.level,
            "snapshots": report.snapshots,
            "packs_read": report.packs_read,
            "packs_left": report.packs_left,
            "coverage": coverage(report),
            WHOLE: report.whole[:_IDS_TOLD],
            HURT: report.damaged_snapshots,
        }
    shown = FILES_NAMED if desk.flags.verbose else _FILES_SHOWN
    desk.output.lines(_lines(report, read_data, shown))
    return desk.output.finish("check", _body(report), _verdict(report))


def coverage(report: Report) -> str:
    """How much a check looked at: the structure, or the data too, of them all or as far as it came."""
    if report.level < _EVERYTHING:
        return "structure"
    all_of_it = report.packs_left == 0 and report.stopped is None and not report.unreached
    return "whole" if all_of_it else "budget"


def read_budget(text: str) -> tuple[float | None, int | None]:
    """Seconds, or bytes; UsageError when it is neither. "10m" is ten minutes here."""
    for unit in ("m", "M"):
        if text.endswith(unit) and text[:-1].strip().isdecimal():
            return int(text[:-1]) * 60.0, None
    try:
        return float(parse_duration(text).approximate_seconds), None
    except ValueError:
        pass  # not a time; perhaps a size
    try:
        return None, parse_size(text)
    except ValueError:
        raise UsageError(
            f"{text!r} is neither a time nor an amount of bytes.",
            do="Write it like --budget 10m or --budget 5GiB.",
        ) from None


def _verdict(report: Report) -> StrongroomError | None:
    """Damage wins; what could not be reached is no damage, and no clean verdict either."""
    if not report.findings:
        return _unreached(report)
    hurt = report.damaged_snapshots
    count = len(report.findings)
    ids = ", ".join(each[:ID_SHOWN] for each in hurt[:5]) + (", …" if len(hurt) > 5 else "")
    means = "No backup is known to be hurt by it."
    if hurt:
        rest = "all others do" if not _missed(report) else "not all others could be checked"
        verb = "do" if report.stopped is None else "may"
        means = f"These backups {verb} not restore whole: {ids}; {rest}."
    return Damaged(
        f"{count} thing{'s' * (count != 1)} in the repository "
        f"{'are' if count != 1 else 'is'} not as written.",
        means=means,
        do="Restore what you need from other backups or a copy of the repository. Move damaged packs "
        "away, then run `strongroom backup` again: it stores anew what is missing."
        if hurt
        else "`strongroom check --read-data` looks deeper; keep the list above.",
    )


def _missed(report: Report) -> list[StrongroomError]:
    """Why something could not be checked."""
    stopped = [report.stopped] if report.stopped is not None else []
    return [*stopped, *(missed.fault for missed in report.unreached)]


def _unreached(report: Report) -> StrongroomError | None:
    faults = _missed(report)
    if not faults:
        return None
    denied = all(isinstance(fault, StorageDenied) for fault in faults)
    count = len(report.unreached)
    what = f"{count} thing{'s' * (count != 1)} could not be checked: {faults[0].what}"
    if report.stopped is not None:
        what = f"The check did not come to its end: {faults[0].what}"
    kind = StorageDenied if denied else StorageUnreachable
    return kind(
        what,
        means="What was looked at is as written; whether the rest is, nobody knows yet.",
        do=faults[0].do if denied else "Run the same command again when the storage answers.",
    )


def _lines(report: Report, read_data: bool, shown: int) -> list[str]:
    lines = []
    for finding in report.findings:
        lines.append(f"damaged: {show_name(finding.object)}: {show_text(finding.reason)}")
        for snapshot in finding.snapshots:
            files = finding.files.get(snapshot, [])
            lines.append(f"  backup {snapshot[:ID_SHOWN]}" + (":" if files else ""))
            lines += [f"    {show_name(path)}" for path in files[:shown]]
            if len(files) > shown:
                lines.append(f"    and {len(files) - shown} more (-v names them)")
    lines += [
        f"not checked: {show_name(missed.object)}: {show_text(missed.fault.what)}"
        for missed in report.unreached
    ]
    lines += [f"note: {show_text(note)}" for note in report.notes]
    read = f", {report.packs_read} packs read ({show_size(report.bytes_read)})" if read_data else ""
    left = f", {report.packs_left} left for the next time" if report.packs_left else ""
    verdict = f"{len(report.findings)} damaged" if report.findings else "no damage found"
    if read_data:
        read += f", {len(report.whole)} backups proved whole"
    if report.unreached:
        verdict += f", {len(report.unreached)} could not be checked"
    if report.stopped is not None:
        verdict += ", stopped before the end"
    lines.append(
        f"{report.snapshots} backups, {report.objects} objects looked at{read}{left}: {verdict}"
    )
    return lines


def _body(report: Report) -> dict[str, Any]:
    return {
        "level": report.level,
        "objects": report.objects,
        "snapshots": report.snapshots,
        "packs_read": report.packs_read,
        "packs_left": report.packs_left,
        "bytes_read": report.bytes_read,
        "coverage": coverage(report),
        "whole": report.whole,
        "damaged_snapshots": report.damaged_snapshots,
        "findings": list(map(_finding_body, report.findings)),
        "unreached": [
            {"object": missed.object, "reason": missed.fault.what, "code": missed.fault.code}
            for missed in report.unreached
        ],
        "stopped": None if report.stopped is None else report.stopped.what,
        "notes": report.notes,
    }


def _finding_body(finding: Finding) -> dict[str, Any]:
    return {
        "level": finding.level,
        "object": finding.object,
        "reason": finding.reason,
        "snapshots": finding.snapshots,
        "files_affected": finding.files_affected,
        "files": {
            snapshot: [path_fields(path) for path in paths]
            for snapshot, paths in finding.files.items()
        },
    }
