"""audit verify, pin and export: what happened, and the proof that nobody changed it afterwards."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from strongroom.cli.desk import Desk
from strongroom.cli.files import write_file
from strongroom.cli.flags import Everywhere
from strongroom.cli.names import show_text
from strongroom.errors import (
    AlreadyExists,
    ConfigError,
    Damaged,
    StorageUnreachable,
    StrongroomError,
    UsageError,
)

if TYPE_CHECKING:
    from strongroom.observe.journal import Journal
    from strongroom.repository.audit import AuditLog, Leaf, Report
    from strongroom.repository.repository import Repository

_PIN_LIMIT = 64 * 1024
_COLUMNS = (
    "number", "type", "source", "outcome", "exit", "code", "started", "ended", "what", "host",
    "user", "writer", "trigger", "snapshot", "size", "new_size", "stored", "files", "problems",
    "run", "detail",
)  # fmt: skip
_DEFAULT = Everywhere()


def verify(
    *,
    pin: Annotated[list[str] | None, Parameter(alias="-p")] = None,
    quick: bool = False,
    everywhere: Everywhere = _DEFAULT,
) -> int:
    """Prove that the audit log is whole: nothing changed, left out, cut off or moved.

    Exit status 9 when something is. That all of it is an older state is found by a pin only, or
    where this machine has seen more of it.

    Parameters
    ----------
    pin
        A checkpoint that `strongroom audit pin` wrote and that was kept elsewhere; may be given
        several times.
    quick
        Read what is bundled from its bundle only, not each run's own object too.
    """
    desk = Desk(everywhere)
    texts = [(path, _read_pin(path)) for path in pin or ()]
    with desk.repository() as repository:
        log, journal = _open(desk, repository)
        report, faults = _verified(
            log, journal, [(path, log.read_pin(t)) for path, t in texts], quick
        )
    body = _body(report, faults)
    fault = _verdict(report, faults)
    desk.output.document("audit", {**body, "exit": 0 if fault is None else fault.exit_status})
    for name, reason in faults:
        desk.output.line(f"tampered: {show_text(name)}: {show_text(reason)}")
    for name, error in report.unread.items():
        desk.output.line(f"not read: {show_text(name)}: {show_text(error.what)}")
    desk.output.lines(f"note: {show_text(note)}" for note in report.notes)
    desk.output.lines(_lines(report, faults))
    if fault is None:
        return 0
    desk.output.error_lines(fault)
    return fault.exit_status


def pin(
    *,
    output: Annotated[str, Parameter(alias="-o", allow_leading_hyphen=True)],
    force: bool = False,
    everywhere: Everywhere = _DEFAULT,
) -> int:
    """Verify the audit log, and write a signed checkpoint of it, to be kept elsewhere.

    With it, `strongroom audit verify --pin FILE` finds whatever was changed before that moment, even
    if all of the repository was replaced by an older state of itself.

    Parameters
    ----------
    output
        The file to write, or `-` for stdout. It holds no secret.
    force
        Replace the file if it exists.
    """
    from strongroom.repository.audit import Head  # noqa: PLC0415 -- numpy behind it

    desk = Desk(everywhere)
    if output != "-" and not force and os.path.lexists(output):
        raise AlreadyExists(f"{output} exists.", do="Name another file, or give --force.")
    with desk.repository() as repository:
        log, journal = _open(desk, repository)
        report, faults = _verified(log, journal, [], quick=False)
        fault = _verdict(report, faults)
        if fault is not None:
            raise fault
        made = log.checkpoint(Head(report.size, report.frontier))
    if output == "-":
        sys.stdout.write(made.note)
    else:
        write_file(output, [made.note.encode()], force=force)
        desk.output.document("pin", {"size": made.size, "root": made.root.hex(), "output": output})
        desk.output.line(f"{show_text(output)}: {made.size} runs, root {made.root.hex()[:16]}…")
        desk.output.note("Keep it where nobody who may change the repository can change it too.")
    return 0


def export(
    *,
    output: Annotated[str, Parameter(alias="-o", allow_leading_hyphen=True)] = "-",
    since: str | None = None,
    format: Literal["jsonl", "csv"] = "jsonl",
    pin: Annotated[str | None, Parameter(alias="-p")] = None,
    force: bool = False,
    everywhere: Everywhere = _DEFAULT,
) -> int:
    """Write the audit log for an auditor, who needs no key to check it.

    jsonl: a line with the checkpoint and its signature, then one for each run, signed, with the proof
    that the checkpoint covers it. docs/how-to/prove-what-happened.md shows how to check that with
    other programs. csv: a table to look at; it proves nothing.

    Parameters
    ----------
    output
        The file to write; otherwise stdout.
    since
        Only runs that ended at this time or later.
    format
        jsonl or csv.
    pin
        A checkpoint that the auditor has already: the proof that the log goes on from it is written
        too.
    force
        Replace the file if it exists.
    """
    desk = Desk(everywhere)
    if desk.flags.json and output == "-":
        raise UsageError(
            "--json and the export both want stdout.", do="Give `-o FILE`, or no --json."
        )
    if output != "-" and not force and os.path.lexists(output):
        raise AlreadyExists(f"{output} exists.", do="Name another file, or give --force.")
    moment = None if since is None else desk.moment(since)
    text = None if pin is None else _read_pin(pin)
    with desk.repository() as repository:
        log, journal = _open(desk, repository)
        before = None if text is None else log.read_pin(text)
        report, faults = _verified(log, journal, [(str(pin), before)] if before else [], quick=True)
        leaves = list(log.entries(missed=lambda number, fault: None))
        wanted = [leaf for leaf in leaves if moment is None or leaf.run.ended >= moment]
        if format == "csv":
            lines = _csv(wanted)
        else:
            lines = _jsonl(
                log, leaves, wanted, None if before is None else before.size, bool(faults)
            )
        if output == "-":
            for line in lines:
                sys.stdout.write(line)
        else:
            write_file(output, (line.encode() for line in lines), force=force)
    if output != "-":
        desk.output.document("export", {"runs": len(wanted), "of": report.size, "output": output})
        desk.output.line(f"{show_text(output)}: {len(wanted)} of {report.size} runs")
    fault = _verdict(report, faults)
    if fault is None:
        return 0
    fault.means = "What could be read was written. " + fault.means
    desk.output.error_lines(fault)
    return fault.exit_status


def _open(desk: Desk, repository: Repository) -> tuple[AuditLog, Journal]:
    from strongroom.observe.journal import Journal  # noqa: PLC0415 -- numpy behind it
    from strongroom.repository.audit import AuditLog  # noqa: PLC0415

    log = AuditLog(repository)
    return log, Journal(desk.recorder.folder, log)


def _verified(
    log: AuditLog, journal: Journal, pins: Sequence[tuple[str, Any]], quick: bool
) -> tuple[Report, list[tuple[str, str]]]:
    """A verification, and every fault as (what, why), those of this machine's memory too."""
    from strongroom.repository.audit import Head  # noqa: PLC0415 -- numpy behind it

    report = log.verify([pin for _, pin in pins], every=not quick)
    faults = [(fault.object, fault.reason) for fault in report.faults]
    faults += [("as this machine has seen it", reason) for reason in journal.verify(report)]
    if not faults and report.whole:
        journal.seen(Head(report.size, report.frontier))
    return report, faults


def _verdict(report: Report, faults: Sequence[Any]) -> StrongroomError | None:
    if faults:
        count = len(faults)
        return Damaged(
            f"The audit log is not as it was written: {count} thing{'s' * (count != 1)} in it "
            f"contradict{'s' * (count == 1)} the rest.",
            means="Backups are not hurt by it. What the log tells is proved only up to there.",
            do="Keep a copy of the repository as it is, and find out who can write to its storage.",
        )
    if report.unread:
        error = next(iter(report.unread.values()))
        return StorageUnreachable(
            f"{len(report.unread)} objects of the audit log could not be read: {error.what}",
            means="Nothing that was read is wrong; about the rest nobody knows yet.",
            do="Run the same command again when the storage answers.",
        )
    return None


def _body(report: Report, faults: Sequence[tuple[str, str]]) -> dict[str, Any]:
    root = report.roots.get(report.size)
    return {
        "whole": not faults and not report.unread,
        "size": report.size,
        "root": None if root is None else root.hex(),
        "checkpoints": report.checkpoints,
        "pins": report.pins,
        "findings": [{"object": name, "reason": reason} for name, reason in faults],
        "unread": [
            {"object": name, "reason": error.what, "code": error.code}
            for name, error in report.unread.items()
        ],
        "notes": report.notes,
    }


def _lines(report: Report, faults: Sequence[Any]) -> list[str]:
    root = report.roots.get(report.size)
    shown = "" if root is None else f", root {root.hex()[:16]}…"
    if faults or report.unread:
        return [f"{report.size} runs{shown}: {len(faults)} findings"]
    lines = [f"{report.size} runs{shown}: whole, signed, and in order"]
    if report.pins:
        lines.append(f"goes on from {report.pins} pin{'s' * (report.pins != 1)}")
    else:
        lines.append("without a pin, an older state of all of it would look the same")
    return lines


def _read_pin(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return file.read(_PIN_LIMIT + 1).decode("utf-8")
    except OSError as fault:
        raise ConfigError(f"The pin {path} cannot be read: {fault.strerror}.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is no pin: it is not text.") from None


def _jsonl(
    log: AuditLog,
    leaves: Sequence[Leaf],
    wanted: Iterable[Leaf],
    before: int | None,
    broken: bool,
) -> Iterator[str]:
    from strongroom.format.merkle import Tree  # noqa: PLC0415

    tree, note, size = None, None, len(leaves)
    if leaves and not broken and leaves[-1].number == size - 1:
        tree, note = Tree(leaf.hash for leaf in leaves), log.signed(leaves[-1].after).note
    head: dict[str, Any] = {"version": 1, "type": "checkpoint", "size": size, "note": note}
    if tree is not None and before:
        head["consistency"] = {
            "from": before,
            "proof": [part.hex() for part in tree.consistency(before, size)],
        }
    yield json.dumps(head, sort_keys=True) + "\n"
    for leaf in wanted:
        body: dict[str, Any] = {
            "version": 1,
            "type": "leaf",
            "number": leaf.number,
            "leaf": leaf.document.decode(),
            "hash": leaf.hash.hex(),
            "run": leaf.run.as_json(),
        }
        if tree is not None:
            body["proof"] = [part.hex() for part in tree.inclusion(leaf.number, size)]
        yield json.dumps(body, sort_keys=True) + "\n"


def _csv(leaves: Iterable[Leaf]) -> Iterator[str]:
    yield _row(_COLUMNS)
    for leaf in leaves:
        body = {**leaf.run.as_json(), "number": leaf.number}
        body["detail"] = json.dumps(body["detail"], sort_keys=True)
        yield _row([body[name] for name in _COLUMNS])


def _row(values: Iterable[Any]) -> str:
    text = io.StringIO()
    csv.writer(text).writerow([_harmless(value) for value in values])
    return text.getvalue()


def _harmless(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@") else value
