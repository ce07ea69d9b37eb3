"""source test and grants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from strongroom import wiring
from strongroom.cli.desk import Desk
from strongroom.cli.flags import Everywhere
from strongroom.cli.names import show_text
from strongroom.config.model import PostgresTable
from strongroom.errors import Refused, UsageError
from strongroom.rules.sizes import show_size

if TYPE_CHECKING:
    from strongroom.postgres.rights import Rights
    from strongroom.postgres.server import Conninfo

PROMISE_MISSED = 10
_SIZES = frozenset({"size", "free"})
_DEFAULT = Everywhere()


def test(source: str, /, *, everywhere: Everywhere = _DEFAULT) -> int:
    """Try whether a source can be reached and read, and say what would be backed up.

    Parameters
    ----------
    source
        The source, as it is called in strongroom.toml.
    """
    desk = Desk(everywhere)
    table = desk.source_table(source)
    report = wiring.probe_source(
        source, table, environ=desk.environ, configuration=desk.configuration
    )
    kind = type(table).__struct_config__.tag
    desk.output.document("source", {"source": source, "kind": kind, "report": report})
    desk.output.line(f"{source}: can be backed up")
    desk.output.lines(describe(report))
    return 0


def grants(
    source: str,
    /,
    *,
    role: str | None = None,
    sql: bool = False,
    check: bool = False,
    receive: bool = False,
    everywhere: Everywhere = _DEFAULT,
) -> int:
    """Print the SQL for the least that a source's role needs, and check that it has no more.

    The SQL may be run again, and takes nothing away; what the role has beyond it is listed with the
    statement that takes it away. Exit status 4 when something is missing, 10 when it has more.
    Nothing is changed.

    Parameters
    ----------
    source
        The source, as it is called in strongroom.toml.
    role
        This role instead of the dsn's.
    sql
        Only print the SQL, for psql. Status 0 also where the server cannot be asked.
    check
        Only check; exit status 7 when the server cannot be asked.
    receive
        Its log is received too (`strongroom wal receive`), although no slot tells of that yet.
    """
    from strongroom.postgres.grants import hba_lines, script, statements  # noqa: PLC0415
    from strongroom.postgres.rights import look  # noqa: PLC0415

    desk = Desk(everywhere)
    table = desk.source_table(source)
    if not isinstance(table, PostgresTable):
        raise UsageError(f"The source {source} is no database: nothing is granted for it.")
    if sql and check:
        raise UsageError(
            "--sql and --check exclude each other.", do="Give one, or neither for both."
        )
    conninfo, _ = wiring.wal_place(source, table, desk.environ)
    found = wiring.rights_wanted(source, table, desk.environ, role=role, receives=receive)
    wanted, premises, away = found.needs, found.premises, found.away
    rights = None
    if premises is not None and not sql:
        whose = premises.user if role is None else role
        rights = look(conninfo, replace(wanted, role=whose), now=desk.now)
    if away is not None and check:
        raise away
    hosts = _hosts(conninfo) if premises is None else [premises.address or ""]
    text = script(wanted, source, hosts=hosts)
    if not check:
        desk.output.lines(text.rstrip("\n").splitlines())
        if away is not None:
            desk.output.note(f"The server was not asked: {away.what} The SQL asks it itself.")
    status = 0
    if rights is not None:
        status = _tell_rights(desk, source, rights)
    desk.output.document(
        "grants",
        {
            "exit": status,
            "source": source,
            "role": wanted.role,
            "purposes": list(wanted.purposes),
            "statements": [
                {"database": one.database, "sql": one.sql, "why": one.why}
                for one in statements(wanted)
            ],
            "pg_hba": hba_lines(wanted, hosts),
            "script": text,
            "check": None if rights is None else _rights_body(rights),
            "server_error": None if away is None else away.what,
        },
    )
    return status


def _hosts(conninfo: Conninfo) -> list[str]:
    """Where it will connect from, as far as the dsn tells: a socket, the loopback, or nobody knows."""
    from strongroom.postgres.server import is_near  # noqa: PLC0415

    if not is_near(conninfo):
        return []
    host = conninfo.parameters.get("host", "")
    return [""] if not host or host.startswith(("/", "@")) else ["127.0.0.1"]


def _tell_rights(desk: Desk, source: str, rights: Rights) -> int:
    role, tell = show_text(rights.role), desk.output.line
    tell("")
    for one in rights.found:
        tell(f"{one.kind:8} {show_text(one.what)}")
        tell(f"         in {show_text(one.database)}: {show_text(one.sql)}")
    for database, reason in rights.unread.items():
        tell(f"unknown  {show_text(database)} could not be looked into: {show_text(reason)}")
    for text in rights.warnings:
        desk.output.warning(f"{role}: {text}")
    if rights.superuser:
        desk.output.note(f"Make a role of its own: strongroom source grants {show_text(source)}")
    if rights.missing:
        tell(f"{role}: missing: {len(rights.missing)}, too many: {len(rights.excess)}")
        desk.output.error_lines(
            Refused(
                f"The role {role} lacks rights that {source} needs: {rights.missing[0].what}"
                + (f", and {len(rights.missing) - 1} more." if len(rights.missing) > 1 else "."),
                means="A backup of it would fail or be incomplete; nothing changed.",
                do=f"Run what `strongroom source grants {source} --sql` prints, as a superuser.",
            )
        )
        return Refused.exit_status
    if rights.excess:
        tell(f"{role}: has what {source} needs; too many: {len(rights.excess)}")
        return PROMISE_MISSED
    tell(f"{role}: has what {source} needs, and no more")
    return 0


def _rights_body(rights: Rights) -> dict[str, Any]:
    return {
        "role": rights.role,
        "superuser": rights.superuser,
        "missing": [one.as_json() for one in rights.missing],
        "excess": [one.as_json() for one in rights.excess],
        "unread": rights.unread,
        "warnings": rights.warnings,
    }


def describe(report: Mapping[str, Any], indent: str = "  ") -> list[str]:
    """JSON values as indented lines for people."""
    lines = []
    for key, value in report.items():
        label = f"{indent}{show_text(str(key)).replace('_', ' ')}:"
        if isinstance(value, Mapping):
            lines += [label, *describe(value, indent + "  ")]
        elif isinstance(value, (list, tuple)):
            shown = ", ".join(show_text(str(item)) for item in value)
            lines.append(f"{label} {shown or 'none'}")
        else:
            lines.append(f"{label} {_show_value(str(key), value)}")
    return lines


def _show_value(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and key in _SIZES:
        return show_size(value)
    return "unknown" if value is None else show_text(str(value))
