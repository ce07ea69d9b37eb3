"""What a command says: results on stdout, everything else on stderr.

For people, lines of text. With --json, one document; for commands that may
take long, one JSON object a line, the last of type "result". Every document
carries the version of its shape; a field may be added, none changes its meaning.
JSON is written in ASCII, so that no locale can spoil it.

What goes to stderr is a log when nobody watches: with `log` "json" each line is one JSON object with
its time, level, event, the run and the source that it is about, and no secret that is known.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

from strongroom.cli.names import path_fields, show_name, show_text
from strongroom.errors import StrongroomError

JSON_VERSION = 1
DOCUMENT = "docs/reference/errors.md"
_PROBLEMS_SHOWN = 20
Log = Literal["text", "json"]
Level = Literal["info", "warning", "error"]


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
        log: Log = "text",
        clean: Callable[[str], str] = lambda text: text,
    ) -> None:
        self.json, self.quiet, self.verbosity = json, quiet, verbosity
        self.log, self.clean = log, clean
        self._about: dict[str, str] = {}
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
            self._tell("info", "note", text)

    @contextmanager
    def about(self, **facts: str) -> Iterator[None]:
        """What is logged within is about this: run, source, type."""
        before, self._about = self._about, {**self._about, **{k: v for k, v in facts.items() if v}}
        try:
            yield
        finally:
            self._about = before

    def record(self, event: str, text: str, facts: Mapping[str, Any]) -> None:
        """Log something that only a machine wants to know; nothing in a log of text."""
        if self.log == "json":
            self._tell("info", event, text, facts)

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
            self._tell(
                "warning",
                "skipped",
                f"{show_name(path)}: {show_text(reason)}",
                words="skipped: ",
            )
        elif self._problems == _PROBLEMS_SHOWN + 1:
            self._tell("warning", "skipped", "more (-v names every one)", words="skipped: ")

    def warning(self, text: str) -> None:
        """Tell of something amiss that does not make the result a bad one; also with --quiet."""
        self._tell("warning", "warning", show_text(text), words="warning: ")

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
        if self.log == "json":
            self._tell("error", "error", fault.what, {"error": error_body(fault)})
            return
        for text in error_lines(fault):
            print(text, file=self.stderr)
        self.stderr.flush()

    def _tell(
        self,
        level: Level,
        event: str,
        text: str,
        facts: Mapping[str, Any] | None = None,
        *,
        words: str = "",
    ) -> None:
        """A line on stderr; `words` stand before it for people."""
        if self.log == "json":
            now = datetime.now(UTC).isoformat(timespec="milliseconds")
            body = {"time": now, "level": level, "event": event, **self._about}
            body |= {"text": text, **(facts or {})}
            text, words = json.dumps(cleaned(body, self.clean), allow_nan=False), ""
        with self._lock:
            print(words + text, file=self.stderr, flush=True)

    def _json(self, body: Mapping[str, Any], indent: int | None) -> None:
        print(json.dumps(body, indent=indent, allow_nan=False), file=self.stdout, flush=True)


_latest: list[Output] = []


def latest(output: Output) -> None:
    """What this command says, it says through this one."""
    _latest[:] = [output]


def last_words(*, json: bool, log: str | None) -> Output:
    """Where a command is told of that failed, perhaps before it had its own output."""
    if _latest:
        found = _latest[0]
        return Output(json=json, log=found.log, clean=found.clean)
    return Output(json=json, log="json" if log == "json" else "text")


def cleaned(value: Any, clean: Callable[[str], str]) -> Any:
    """JSON values, every text of which went through `clean`."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, Mapping):
        return {key: cleaned(each, clean) for key, each in value.items()}
    return [cleaned(each, clean) for each in value] if isinstance(value, (list, tuple)) else value


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
