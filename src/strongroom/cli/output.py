"""What a command says: results on stdout, everything else on stderr.

For people, lines of text. With --json, one document; for commands that may
take long, one JSON object a line, the last of type "result". Every document
carries the version of its shape; a field may be added, none changes its meaning.
JSON is written in ASCII, so that no locale can spoil it.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TextIO

from strongroom.cli.names import path_fields, show_name, show_text
from strongroom.errors import StrongroomError

JSON_VERSION = 1
DOCUMENT = "docs/reference/errors.md"
_PROBLEMS_SHOWN = 20


class Output:
    """The two streams of one command, and whether they carry JSON."""

    def __init__(
        self,
        *,
        json: bool = False,
        quiet: bool = False,
        verbosity: int = 0,
        stdout: TextIO | None = None,
        stderr: TextIO | None = None,
    ) -> None:
        self.json, self.quiet, self.verbosity = json, quiet, verbosity
        self.stdout, self.stderr = stdout or sys.stdout, stderr or sys.stderr
        self._lock = threading.Lock()
        self._problems = 0
        self._deserted = False
        self.fault: StrongroomError | None = None
        """What the command ended with, by `finish`."""

    def line(self, text: str = "") -> None:
        """Print a line of the result for people; nothing with --json."""
        if not self.json:
            print(text, file=self.stdout)

    def lines(self, texts: Iterable[str]) -> None:
        """Print lines of the result for people."""
        for text in texts:
            self.line(text)

    def note(self, text: str) -> None:
        """Tell a person something beside the result, unless --quiet."""
        if not self.quiet:
            with self._lock:
                print(text, file=self.stderr, flush=True)

    def document(self, kind: str, body: Mapping[str, Any]) -> None:
        """Print the one JSON document of a reading command; nothing without --json."""
        if self.json:
            self._json({"version": JSON_VERSION, "type": kind, **body}, indent=2)

    def event(self, kind: str, body: Mapping[str, Any]) -> None:
        """Print one JSON line of a long command; nothing without --json.

        A reader that went away does not stop the work: a backup is worth more than its report.
        """
        if not self.json or self._deserted:
            return
        with self._lock:
            try:
                self._json({"version": JSON_VERSION, "type": kind, **body}, indent=None)
            except BrokenPipeError:
                self._deserted = True

    def problem(self, path: bytes, reason: str) -> None:
        """Tell of a part that was skipped: all in JSON and with -v, else the first few."""
        self._problems += 1
        if self.json:
            self.event("problem", {**path_fields(path), "reason": reason})
        elif self.verbosity or self._problems <= _PROBLEMS_SHOWN:
            self._complain(f"skipped: {show_name(path)}: {show_text(reason)}")
        elif self._problems == _PROBLEMS_SHOWN + 1:
            self._complain("skipped: more (-v names every one)")

    def warning(self, text: str) -> None:
        """Tell of something amiss that does not make the result a bad one; also with --quiet."""
        self._complain(f"warning: {show_text(text)}")

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]], right: str = "") -> None:
        """Print columns for people; `right` has an "r" for each column that is set to the right."""
        if self.json:
            return
        sides = right.ljust(len(head))
        widths = [max(len(row[at]) for row in (head, *rows)) for at in range(len(head))]
        for row in (head, *rows):
            cells = [
                cell.rjust(width) if side == "r" else cell.ljust(width)
                for cell, width, side in zip(row, widths, sides, strict=True)
            ]
            self.line("  ".join(cells).rstrip())

    def error(self, fault: StrongroomError, *, long: bool = False, verb: str = "") -> None:
        """Tell of a failure: four lines on stderr, and its document with --json."""
        self.error_lines(fault)
        if long:
            result = {"verb": verb, "exit": fault.exit_status, "error": error_body(fault)}
            self.event("result", result)
        else:
            self.document("error", error_body(fault))

    def finish(self, verb: str, body: Mapping[str, Any], fault: StrongroomError | None) -> int:
        """End a long command: its result line with --json, four lines for a fault; the status."""
        self.fault = fault
        status = 0 if fault is None else fault.exit_status
        result = {"verb": verb, "exit": status, **body}
        self.event("result", result if fault is None else {**result, "error": error_body(fault)})
        if fault is not None:
            self.error_lines(fault)
        return status

    def stream(
        self, kind: str, head: Mapping[str, Any], key: str, items: Iterable[Mapping[str, Any]]
    ) -> int:
        """Print one JSON document whose list may be longer than memory; return the status.

        A fault on the way ends the list and stands behind it, so that the document stays whole.
        """
        opening = json.dumps({"version": JSON_VERSION, "type": kind, **head}, indent=2)
        self.stdout.write(f'{opening.removesuffix("}").rstrip()},\n  "{key}": [')
        status, tail, comma = 0, "", ""
        try:
            for item in items:
                self.stdout.write(f"{comma}\n    {json.dumps(item)}")
                comma = ","
        except StrongroomError as fault:
            status, tail = fault.exit_status, f',\n  "error": {json.dumps(error_body(fault))}'
            self.error_lines(fault)
        self.stdout.write(f"\n  ]{tail}\n}}\n")
        return status

    def error_lines(self, fault: StrongroomError) -> None:
        """Print the four lines of a fault on stderr, beside a result that was given."""
        for text in error_lines(fault):
            print(text, file=self.stderr)
        self.stderr.flush()

    def _complain(self, text: str) -> None:
        """Tell of a fault: also with --quiet, which silences good news only."""
        with self._lock:
            print(text, file=self.stderr, flush=True)

    def _json(self, body: Mapping[str, Any], indent: int | None) -> None:
        print(json.dumps(body, indent=indent, allow_nan=False), file=self.stdout, flush=True)


def error_lines(fault: StrongroomError) -> list[str]:
    """What happened, what it means for recoverability, what to do, code and document."""
    return [
        f"strongroom: {show_text(fault.what)}",
        f"  means: {show_text(fault.means)}",
        f"  to do: {show_text(fault.do)}",
        f"  {fault.code} · {DOCUMENT}#{fault.code}",
    ]


def error_body(fault: StrongroomError) -> dict[str, Any]:
    """The same four for JSON, with the exit status."""
    return {
        "code": fault.code,
        "what": fault.what,
        "means": fault.means,
        "do": fault.do,
        "document": f"{DOCUMENT}#{fault.code}",
        "exit": fault.exit_status,
    }
