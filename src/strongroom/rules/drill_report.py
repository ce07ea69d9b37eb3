"""A drill's report as people read it, and the page of a quarter. PURE: JSON values in, text out.

The same report gives the same text for ever: a page that was printed can be held against the signed
report again. Whatever comes out of a database or a vault is escaped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, tzinfo
from html import escape
from typing import Any

from strongroom.rules.drill import Drilled, Step
from strongroom.rules.sizes import show_seconds, show_size

VERSION = 1
_MARKS = {"green": "✔", "amber": "●", "red": "✘", "skipped": "–"}
_WORDS = {
    "green": "GREEN: everything that was asked of it held",
    "amber": "GREEN, with notes: everything that could be looked at held",
    "missed": "PROMISE MISSED: it was restored and is right, and took longer than promised",
    "incomplete": "INCOMPLETE: not everything that was asked for was done",
    "red": "RED: it does not restore as it should",
}
_COLOURS = {
    "green": "#1a7f37",
    "amber": "#9a6700",
    "missed": "#bc4c00",
    "incomplete": "#6e7781",
    "red": "#cf222e",
    "skipped": "#6e7781",
}
_TABLES_SHOWN = 50


def _facts(report: Mapping[str, Any], digest: str) -> list[tuple[str, str]]:
    """What stands above the steps."""
    target = report.get("target_seconds")
    restored = report.get("restore_ms")
    facts = report.get("facts", {})
    rows = [
        ("Source", f"{report['source']} ({report['kind']})"),
        ("Backup", f"{report['snapshot'][:12]}, {_size(report)}"),
        ("Moment restored", f"{_time(report['at'])}; {report['chosen']}"),
        ("Restore time", "not restored" if restored is None else show_seconds(restored / 1000)),
        ("Promised", "nothing" if target is None else show_seconds(target)),
        ("Drill", f"{_time(report['started'])}, {show_seconds(report['total_ms'] / 1000)} in all"),
        ("Server", f"PostgreSQL {facts['server']}" if facts.get("server") else ""),
        ("Where", f"{report['host']}, by {report['user']} ({report['trigger']})"),
        ("Program", f"strongroom {report['program']}"),
        ("Run", report["run"]),
        ("SHA-256 of the signed report", digest),
    ]
    return [(name, value) for name, value in rows if value]


def _size(report: Mapping[str, Any]) -> str:
    return show_size(int(report.get("size", 0)))


def _time(text: str) -> str:
    return datetime.fromisoformat(text).astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _steps(report: Mapping[str, Any]) -> list[Step]:
    return [Step.from_json(step) for step in report["steps"]]


def _tables(report: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Name, rows, what they were held against."""
    found = []
    for one in report.get("facts", {}).get("tables", [])[:_TABLES_SHOWN]:
        against = [
            f"{text} {one[key]:,}"
            for key, text in (("recorded", "recorded"), ("by_index", "by an index"))
            if one.get(key) is not None
        ]
        name = f"{one['database']}: {one['schema']}.{one['name']}"
        found.append((name, f"{one['rows']:,}", ", ".join(against)))
    return found


# -- Markdown ------------------------------------------------------------------------------------


def markdown(report: Mapping[str, Any], digest: str) -> str:
    """The report as Markdown."""
    lines = [
        f"# Restore drill of {_md(report['source'])}, {report['started'][:10]}",
        "",
        f"**{_WORDS[report['verdict']]}.**",
        "",
        "| | |",
        "| --- | --- |",
        *(f"| {_md(name)} | {_md(value)} |" for name, value in _facts(report, digest)),
        "",
        "## Steps",
        "",
        "| | step | took | what |",
        "| --- | --- | ---: | --- |",
    ]
    for step in _steps(report):
        took = "" if step.verdict == "skipped" else show_seconds(step.ms / 1000)
        mark = f"{_MARKS[step.verdict]} {_said(step)}"
        lines.append(f"| {mark} | {_md(step.name)} | {took} | {_md(step.what)} |")
    tables = _tables(report)
    if tables:
        lines += ["", "## Rows", "", "| table | rows | held against |", "| --- | ---: | --- |"]
        lines += [f"| {_md(name)} | {rows} | {_md(against)} |" for name, rows, against in tables]
    lines += ["", _closing(report), ""]
    return "\n".join(lines)


def _said(step: Step) -> str:
    if step.verdict == "skipped":
        return "not done" if step.demanded else "not asked"
    return step.verdict


def _closing(report: Mapping[str, Any]) -> str:
    return (
        "The signed report rests in the repository; "
        f"`strongroom drill report {report['run']} --format json` writes it, and "
        "`strongroom drill report --verify FILE` holds it or this page against signature and log."
    )


def _md(text: str) -> str:
    """Text in a table of Markdown, as it is."""
    plain = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    return re.sub(r"([\\`*_{}\[\]<>|#~])", r"\\\1", plain)


# -- HTML ----------------------------------------------------------------------------------------

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: .5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; } td, th { text-align: left; vertical-align: top;
  padding: .3rem .6rem; border-bottom: 1px solid #8884; overflow-wrap: anywhere; }
.n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.v { display: inline-block; border-radius: .3rem; color: #fff; padding: .1rem .5rem; white-space: nowrap;
  font-weight: 600; } .big { font-size: 1.05rem; padding: .4rem .8rem; white-space: normal; }
footer { margin-top: 2rem; font-size: .85rem; opacity: .8; } code { font-size: .9em; }
"""


def html(report: Mapping[str, Any], digest: str) -> str:
    """The report as one page that loads nothing."""
    title = escape(f"Restore drill of {report['source']}, {report['started'][:10]}")
    verdict = report["verdict"]
    facts = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>\n"
        for name, value in _facts(report, digest)
    )
    rows = []
    for step in _steps(report):
        took = "" if step.verdict == "skipped" else show_seconds(step.ms / 1000)
        rows.append(
            f"<tr><td>{_badge(step.verdict, _said(step))}</td><td>{escape(step.name)}</td>"
            f'<td class="n">{took}</td><td>{escape(step.what)}</td></tr>\n'
        )
    tables = "".join(
        f'<tr><td>{escape(name)}</td><td class="n">{count}</td><td>{escape(against)}</td></tr>\n'
        for name, count, against in _tables(report)
    )
    counted = (
        '<h2>Rows</h2>\n<table>\n<tr><th>table</th><th class="n">rows</th>'
        f"<th>held against</th></tr>\n{tables}</table>\n"
        if tables
        else ""
    )
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
        f'<p><span class="v big" style="background:{_COLOURS[verdict]}">{_WORDS[verdict]}</span></p>\n'
        f"<table>\n{facts}</table>\n<h2>Steps</h2>\n<table>\n"
        '<tr><th></th><th>step</th><th class="n">took</th><th>what</th></tr>\n'
        f"{''.join(rows)}</table>\n{counted}"
        f"<footer>{_code(escape(_closing(report), quote=False))}</footer>\n</body>\n</html>\n"
    )


def _badge(verdict: str, word: str) -> str:
    return f'<span class="v" style="background:{_COLOURS[verdict]}">{escape(word)}</span>'


def _code(text: str) -> str:
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", text)


# -- the quarter ---------------------------------------------------------------------------------

_QUARTER = re.compile(r"(\d{4})-?[Qq]([1-4])", re.ASCII)


def parse_quarter(text: str) -> tuple[int, int]:
    """Year and quarter of "2026Q4"; ValueError with a sentence."""
    found = _QUARTER.fullmatch(text)
    if found is None:
        raise ValueError(f'"{text}" is no quarter; write it like 2026Q4')
    return int(found[1]), int(found[2])


def quarter_of(moment: datetime, zone: tzinfo) -> tuple[int, int]:
    """The quarter of a moment, by the calendar of a zone."""
    local = moment.astimezone(zone)
    return local.year, (local.month - 1) // 3 + 1


def quarter_section(
    quarter: tuple[int, int], drills: Sequence[Drilled], sources: Mapping[str, str], zone: tzinfo
) -> str:
    """The section of a quarter: the checklist, the times, what was found. `drills` are those of the
    quarter in the order of the log; `sources` are those configured, with their kind (a database's is
    logical or physical, a vault's files). A box is ticked when every source that it speaks of has a green
    drill in which that held."""
    year, number = quarter
    databases = [name for name, kind in sources.items() if kind != "files"]
    vaults = [name for name, kind in sources.items() if kind == "files"]
    green = [drill for drill in drills if drill.green]
    boxes = [
        _box("Restore PostgreSQL backup to staging", databases, green, ("restore", "recover")),
        _box("Verify database integrity (record counts, schema)", databases, green, ("rows",)),
        _box("Restore Memory Vault backup to staging", vaults, green, ("restore",)),
        _box("Verify file counts and checksums", vaults, green, ("files",)),
        _box(
            "Run application smoke tests", databases or vaults, green, ("smoke", "sql"), any_=True
        ),
        _box("Measure restore time (document actual vs target)", list(sources), green, ()),
        _tick(bool(drills), "Document any issues or improvements", ""),
        _tick(bool(green), "Update this README with findings", ""),
    ]
    lines = [f"### Q{number} {year} Test Results", "", *boxes, ""]
    if not drills:
        return "\n".join([*lines, "*To be completed*", ""])
    lines += [
        "| drill | source | moment restored | restore time | target | verdict |",
        "| --- | --- | --- | ---: | ---: | --- |",
    ]
    for drill in drills:
        local = drill.started.astimezone(zone).strftime("%Y-%m-%d %H:%M")
        at = "" if drill.at is None else drill.at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")
        took = "" if drill.restore_ms is None else show_seconds(drill.restore_ms / 1000)
        target = "" if drill.target_seconds is None else show_seconds(drill.target_seconds)
        verdict = f"{_MARKS.get(drill.verdict, _MARKS['red'])} {drill.verdict}"
        cells = (f"{local} `{drill.run[:8]}`", _md(drill.source), at, took, target, verdict)
        lines.append(f"| {' | '.join(cells)} |")
    issues = [
        f"- {drill.started.astimezone(zone):%Y-%m-%d} {_md(drill.source)}: {text}"
        for drill in drills
        for text in _issues(drill)
    ]
    return "\n".join([*lines, "", "Issues found:", *(issues or ["- none"]), ""])


def _issues(drill: Drilled) -> list[str]:
    found = [
        f"{step.verdict} {_md(step.name)}: {_md(step.what)}"
        for step in drill.steps
        if step.verdict in ("amber", "red") or (step.verdict == "skipped" and step.demanded)
    ]
    return found or ([] if drill.green else [f"{drill.outcome}: {_md(drill.what)}"])


def _box(
    text: str,
    names: Sequence[str],
    green: Sequence[Drilled],
    steps: Sequence[str],
    *,
    any_: bool = False,
) -> str:
    """A box for several sources: each needs a green drill in which the steps held (those of them that
    its kind has; with `any_` one of them is enough)."""
    lacking = []
    for name in names:
        done = [
            {step.name for step in drill.steps if step.verdict in ("green", "amber")} & set(steps)
            for drill in green
            if drill.source == name
        ]
        enough = any(held or not steps for held in done)
        if not any_ and len(steps) > 1:  # a dump is restored, a cluster recovers besides
            enough = any("restore" in held for held in done)
        if not enough:
            lacking.append(name)
    if not names:
        return _tick(False, text, "nothing of this kind is configured")
    why = f"not yet: {', '.join(_md(name) for name in lacking)}" if lacking else ""
    return _tick(not lacking, text, why)


def _tick(done: bool, text: str, why: str) -> str:
    return f"- [{'x' if done else ' '}] {text}" + (f" ({why})" if why else "")


def quarter_page(before: str, quarter: tuple[int, int], section: str) -> str:
    """A page with the section of a quarter in it: in place of the one between our marks, else of the
    one under its heading, else at the end. Everything else stays as it is."""
    year, number = quarter
    begin, end = (f"<!-- strongroom drills {year}Q{number} {word} -->" for word in ("begin", "end"))
    block = f"{begin}\n{section.rstrip()}\n{end}"
    if begin in before and end in before[before.index(begin) :]:
        head, rest = before.split(begin, 1)
        return head + block + rest.split(end, 1)[1]
    heading = re.compile(rf"^### Q{number} {year} Test Results[ \t]*$", re.MULTILINE)
    found = heading.search(before)
    if found is None:
        gap = "" if not before else "\n" if before.endswith("\n") else "\n\n"
        return f"{before}{gap}{block}\n"
    following = re.compile(r"^(#{1,3} |---[ \t]*$|<!-- strongroom drills )", re.MULTILINE)
    after = following.search(before, found.end())
    rest = "" if after is None else "\n" + before[after.start() :]
    return f"{before[: found.start()]}{block}\n{rest}"


__all__ = [
    "VERSION",
    "html",
    "markdown",
    "parse_quarter",
    "quarter_of",
    "quarter_page",
    "quarter_section",
]
