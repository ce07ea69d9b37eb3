"""The reference pages, made from the code: `python -m strongroom.cli.reference [FOLDER]`.

cli.md from the verbs and their docstrings, config.md from the tables of the
configuration, errors.md from the error tree, metrics.md from what is told. A test fails when a page is not
what this would write now.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from typing import Any

from msgspec import Struct
from msgspec.structs import fields

from strongroom.cli.app import NOUNS, VERBS, build
from strongroom.cli.codes import load_pages
from strongroom.config.loading import SECRET_VARIABLES, VARIABLES
from strongroom.config.model import (
    S3,
    AppriseTable,
    ArtefactsTable,
    Command,
    Configuration,
    DrillQuery,
    FilesDrill,
    FilesRunbook,
    FilesTable,
    JobTable,
    LogTable,
    MetricsTable,
    PagerDutyTable,
    PingTable,
    PostgresDrill,
    PostgresRunbook,
    PostgresTable,
    Promise,
    RepositoryTable,
    Retention,
    ScheduleTable,
    SlackTable,
    SmtpTable,
    json_schema,
)
from strongroom.config.places import search_path
from strongroom.observe.metrics import METRICS, PREFIX

MADE = "<!-- Made by `python -m strongroom.cli.reference`; change the code, not this page. -->"
_EVERYWHERE = re.compile(r"\*\*Everywhere\*\*:\n\n(?:\* .*\n|  .*\n)+\n?")
_EXITS = [
    (0, "done"),
    (1, "failed, unclassified"),
    (2, "usage or configuration, nothing started"),
    (3, "finished incomplete: something was skipped"),
    (4, "refused by a preflight, nothing changed"),
    (5, "not found, or time not recoverable"),
    (6, "busy"),
    (7, "unreachable: database, storage, key service"),
    (8, "credentials or key wrong"),
    (9, "verification failed"),
    (10, "correct, but a promise was missed"),
    (130, "interrupted by Ctrl-C, resumable"),
    (143, "interrupted by SIGTERM, resumable"),
]
_TABLES: list[tuple[str, type[Struct]]] = [
    ("(top of the file)", Configuration),
    ("[repository]", RepositoryTable),
    ("[repository.s3]", S3),
    ("[artefacts]", ArtefactsTable),
    ("[schedule]", ScheduleTable),
    ("[schedule.job.NAME]", JobTable),
    ('[source.NAME], type = "postgres"', PostgresTable),
    ('[source.NAME], type = "files"', FilesTable),
    ("promise", Promise),
    ("[source.NAME.retention]", Retention),
    ('[source.NAME.runbook], type = "postgres"', PostgresRunbook),
    ('[source.NAME.runbook], type = "files"', FilesRunbook),
    ('[source.NAME.drill], type = "postgres"', PostgresDrill),
    ('[source.NAME.drill], type = "files"', FilesDrill),
    ("[[source.NAME.drill.sql]]", DrillQuery),
    ("migrate, rebuild_index, [[source.NAME.drill.smoke]]", Command),
    ('[notify.NAME], type = "smtp"', SmtpTable),
    ('[notify.NAME], type = "slack"', SlackTable),
    ('[notify.NAME], type = "pagerduty"', PagerDutyTable),
    ('[notify.NAME], type = "apprise"', AppriseTable),
    ('[notify.NAME], type = "ping"', PingTable),
    ("[metrics]", MetricsTable),
    ("[log]", LogTable),
]


def pages() -> dict[str, str]:
    """Every page by its file name."""
    return {
        "cli.md": cli_page(),
        "config.md": config_page(),
        "errors.md": errors_page(),
        "metrics.md": metrics_page(),
    }


def cli_page() -> str:
    """Every verb, its arguments and flags, the exit codes."""
    text = str(build().generate_docs(output_format="markdown", heading_level=1))
    everywhere = _EVERYWHERE.search(text)
    if everywhere is None:
        raise AssertionError("cyclopts writes its reference in another shape")
    shared = everywhere[0].replace("**Everywhere**:\n", "## Everywhere\n")
    body = _EVERYWHERE.sub("", text).rstrip()
    exits = "\n".join(f"| {status} | {meaning} |" for status, meaning in _EXITS)
    return "\n".join(
        [
            MADE,
            "",
            body,
            "",
            shared.strip(),
            "",
            "These may stand in front of the verb or behind it.",
            "",
            "## Places, ids and times",
            "",
            "`SOURCE[@T]:PATH` names a path in a backup; without `@T` in the newest. T is the",
            "beginning of an id that only one backup has, `latest`, `oldest`, or a time:",
            "ISO 8601 with its offset, `HH:MM[:SS]` of today in the configured zone (echoed in",
            'UTC), or `"20 minutes ago"`. A time chooses the newest backup not after it. A time',
            "that can be read in two ways, or has not come yet, is refused with its readings.",
            "",
            "## Output",
            "",
            "Results go to stdout, everything else to stderr. With `--json` a reading verb",
            "prints one document, also when it is empty or failed (`type` is then `error`);",
            "`backup`, `restore`, `check`, `drill run` and `demo` print one object a line, the last of type",
            "`result`. Every object carries `version`. A path that is not UTF-8 is given with",
            "escapes in `path` and byte for byte in `path_b64`.",
            "",
            "## Exit codes",
            "",
            "| code | meaning |",
            "| --- | --- |",
            exits,
            "",
        ]
    )


def config_page() -> str:
    """Every key of strongroom.toml, the environment, the order in which they count."""
    lines = [MADE, "", "# strongroom.toml", "", "The first of these files counts:", ""]
    lines += ["1. `--config FILE`", "2. `$STRONGROOM_CONFIG`"]
    places = search_path({"HOME": "~"})
    lines += [f"{number}. `{place}`" for number, place in enumerate(places, 3)]
    lines += [
        "",
        "Flags win over the environment, the environment over the file. Who brings a key",
        "(passphrase, key file or recovery code) brings all keys: those of lower layers are not",
        "tried. Paths in the file are relative to its folder. An unknown key is an error.",
        "`strongroom config check` names every fault, `config show` where each value is from,",
        "`config schema` prints the JSON Schema.",
        "",
        "## Secrets",
        "",
        "A secret stands in the file by reference only; a literal one is refused.",
        "",
        "| reference | means |",
        "| --- | --- |",
        "| `env:NAME` | an environment variable |",
        "| `file:PATH` | a file that only its owner (and group) may read |",
        "| `cmd:PROGRAM ARGUMENT …` | what a program prints; run without a shell |",
        "| `systemd:NAME` | a credential of the service, `$CREDENTIALS_DIRECTORY/NAME` |",
        "",
        "One line end at the end of a secret is dropped.",
        "",
    ]
    schema = json_schema()["$defs"]
    for title, table in _TABLES:
        lines += list(_table_lines(title, table, schema[table.__name__]))
    lines += ["## Environment", "", "| variable | stands for |", "| --- | --- |"]
    lines += [f"| `{name}` | `{'.'.join(key)}` |" for name, key in sorted(VARIABLES.items())]
    lines += [
        f"| `{name}` | `{'.'.join(key)}`: the secret itself |"
        for name, key in sorted(SECRET_VARIABLES.items())
    ]
    lines += ["| `STRONGROOM_CONFIG` | the file |", "| `STRONGROOM_DEBUG` | show tracebacks |"]
    return "\n".join([*lines, ""])


def errors_page() -> str:
    """Every error code, what it means and what to do."""
    lines = [
        MADE,
        "",
        "# Errors",
        "",
        "An error is four lines: what happened, what it means for recoverability, what to do,",
        "and its code with a link to this page. `strongroom explain CODE` prints the same.",
        "",
        "| code | exit status |",
        "| --- | --- |",
    ]
    found = load_pages()
    lines += [f"| [{page.code}](#{page.code}) | {page.exit} |" for page in found]
    for page in found:
        lines += ["", f"## {page.code}", "", f"*Exit status {page.exit}.* {page.summary}", ""]
        lines += [f"**Means:** {page.means}", "", f"**To do:** {page.do}", "", page.text.strip()]
    return "\n".join([*lines, ""])


def metrics_page() -> str:
    """Every metric."""
    lines = [
        MADE,
        "",
        "# Metrics",
        "",
        "Computed when a job ends (and by `serve` whenever it wakes), never when somebody asks: a",
        "value is as old as `strongroom_computed_timestamp_seconds` says. What grows with time is",
        "therefore also given as the moment that it grows from, and rules subtract that from",
        "`time()`. What is not known has no sample. Sizes are in bytes, times in seconds, moments",
        "in seconds since 1970. `docs/how-to/watch-with-prometheus.md` says how they are had.",
        "",
        "| metric | kind | labels | what it says |",
        "| --- | --- | --- | --- |",
    ]
    for one in METRICS:
        labels = ", ".join(f"`{label}`" for label in one.labels)
        lines.append(f"| `{PREFIX}{one.name}` | {one.kind} | {labels} | {one.help} |")
    return "\n".join([*lines, ""])


def _table_lines(title: str, table: type[Struct], schema: dict[str, Any]) -> Iterator[str]:
    yield f"## {title}"
    yield ""
    yield schema["description"]
    yield ""
    yield "| key | what it says | value | default |"
    yield "| --- | --- | --- | --- |"
    for field in fields(table):
        part = schema["properties"][field.name]
        default = "required" if field.required else _default(part)
        what = part.get("description", "")
        yield f"| `{field.name}` | {what} | {_kind(part)} | {default} |"
    yield ""


def _kind(part: dict[str, Any]) -> str:
    reference = str(part.get("$ref", "")).rpartition("/")[2]
    if reference == "Secret":
        return "a reference to a secret"
    if reference == "Duration":
        return "a span of time: `24h`, `30d`, `12 months`"
    if reference or part.get("additionalProperties"):
        return "a table"
    if "anyOf" in part:
        return "text, a whole number, or true or false"
    if "enum" in part:
        return " or ".join(f'`"{word}"`' for word in part["enum"])
    if part["type"] == "integer":
        return f"a whole number, {part['minimum']} to {part['maximum']}"
    if part["type"] == "array" and part["items"].get("type") == "array":
        return 'a list of commands: `[["systemctl", "stop", "NAME"], …]`'
    if part["type"] == "array" and "$ref" in part["items"]:
        return "a list of tables"
    return {"string": "text", "boolean": "true or false", "array": "a list of texts"}[part["type"]]


def _default(part: dict[str, Any]) -> str:
    value = part.get("default")
    if value is None or value in ([], ()):
        return ""
    return f"`{str(value).lower()}`" if isinstance(value, bool) else f'`"{value}"`'


def verbs() -> list[str]:
    """Every verb as it is typed."""
    return [" ".join(words) for words in VERBS] + list(NOUNS)


def main(folder: str) -> None:
    """Write the pages into a folder."""
    os.makedirs(folder, exist_ok=True)
    for name, text in pages().items():
        with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
            file.write(text)


if __name__ == "__main__":
    if any(word.startswith("-") for word in sys.argv[1:]):
        sys.exit("usage: python -m strongroom.cli.reference [FOLDER]")
    main(sys.argv[1] if len(sys.argv) > 1 else "docs/reference")
