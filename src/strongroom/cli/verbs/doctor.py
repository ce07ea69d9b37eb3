"""doctor."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

from msgspec import Struct
from msgspec.structs import asdict

from strongroom import wiring
from strongroom.cli.desk import Desk
from strongroom.cli.flags import Everywhere
from strongroom.cli.names import show_text
from strongroom.config.loading import ConfigFaults
from strongroom.config.model import FilesTable, PostgresTable
from strongroom.config.secrets import Secret, read_private, resolve
from strongroom.errors import ConfigError, Refused, StrongroomError
from strongroom.files.rclone.tool import is_remote
from strongroom.rules.sizes import show_size

if TYPE_CHECKING:
    from strongroom.operations.doctor import Finding, Verdict
    from strongroom.postgres.wal.slots import Slot
    from strongroom.repository.keyring import Keyring

_DEFAULT = Everywhere()


def doctor(*, everywhere: Everywhere = _DEFAULT) -> int:
    """Look at every precondition and name each one's cause and remedy.

    Configuration, secrets, repository, room, clock, caches, keys, and for each source its tools
    and rights. One line an item: ok, warn or FAIL. Exit status 4 when something fails. Writes one
    tiny object into the repository's storage and deletes it again.
    """
    desk = Desk(everywhere)
    findings: list[Finding] = []
    for finding in _findings(desk):
        findings.append(finding)
        desk.output.line(f"{finding.state:5} {show_text(finding.item)}: {show_text(finding.what)}")
        if finding.state != "ok" and finding.do:
            desk.output.line(f"      to do: {show_text(finding.do)}")
    counts = {state: sum(f.state == state for f in findings) for state in ("ok", "warn", "FAIL")}
    failed = counts["FAIL"]
    status = Refused.exit_status if failed else 0
    desk.output.document(
        "doctor",
        {
            "exit": status,
            "checks": [finding.as_json() for finding in findings],
            "failed": failed,
            "warned": counts["warn"],
        },
    )
    if failed:
        desk.output.error_lines(
            Refused(
                f"{failed} of {len(findings)} preconditions fail.",
                means="What fails may keep a backup or a restore from being made; nothing changed.",
                do="Mend what is marked FAIL above, then run `strongroom doctor` again.",
            )
        )
    return status


def _findings(desk: Desk) -> Iterator[Finding]:
    from strongroom.operations.doctor import check_folder, look  # noqa: PLC0415

    finding = look("configuration", lambda: _configuration(desk))
    yield finding
    if finding.state == "FAIL":
        return
    for place, secret in _secrets(desk):
        yield look(f"secret {place}", lambda secret=secret: _secret(desk, secret))  # type: ignore[misc]
    key_file = desk.configuration.repository.key_file
    if key_file is not None:
        yield look("key file", lambda: _key_file(key_file))
    if desk.configuration.repository.kms_key is not None:
        yield look("KMS key", lambda: _kms(desk))
    yield from _repository(desk)
    yield look("cache folder", lambda: check_folder(desk.cache_dir))
    if _remotes(desk):
        yield look("rclone", lambda: _rclone(desk))
    for name, table in desk.configuration.source.items():
        if isinstance(table, PostgresTable):
            yield from _database(desk, name, table)
        elif is_remote(table.path):
            yield from _remote(desk, name, table)
        else:
            yield look(f"source {name}", lambda name=name: _folder(desk, name))  # type: ignore[misc]
    if not desk.configuration.source:
        yield look("sources", lambda: ("warn", "none is configured", "Add [source.NAME]."))


def _configuration(desk: Desk) -> Verdict | str:
    try:
        loaded = desk.loaded
    except ConfigFaults as fault:
        told = "; ".join(f"{place}: {text}" for place, text in fault.faults)
        raise ConfigError(told, do=fault.do) from None
    if loaded.path is None:
        return "warn", "no file was found: flags and environment only", "Write strongroom.toml."
    mode = os.stat(loaded.path).st_mode
    if stat.S_ISREG(mode) and mode & 0o022:
        return (
            "warn",
            f"{loaded.path} can be written by others (mode {mode & 0o777:04o}); `cmd:` in it is run",
            f"Run `chmod go-w {loaded.path}`.",
        )
    return f"{loaded.path} has no fault"


def _secrets(desk: Desk) -> Iterator[tuple[str, Secret]]:
    """Every reference to a secret, with its key."""

    def inside(table: Any, at: str) -> Iterator[tuple[str, Secret]]:
        values: Mapping[str, Any] = asdict(table) if isinstance(table, Struct) else table
        for name, value in values.items():
            place = f"{at}.{name}" if at else str(name)
            if isinstance(value, Secret):
                yield place, value
            elif isinstance(value, (Struct, Mapping)):
                yield from inside(value, place)

    return inside(desk.configuration, "")


def _secret(desk: Desk, secret: Secret) -> str:
    resolve(secret, desk.environ)
    return f"{secret} can be had"


def _key_file(path: str) -> str:
    wiring.key_file_holder(path)
    read_private(path, "The key file")
    return f"{path} is one, and private"


def _kms(desk: Desk) -> Verdict | str:
    holder = wiring.kms_holder(desk.configuration)
    facts = holder.describe()
    arn, state = facts["arn"], facts["state"]
    if state not in ("Enabled", ""):
        return (
            "FAIL",
            f"{arn} is {state}",
            "Enable it (`aws kms enable-key`), cancel its deletion, or name another in `kms_key`.",
        )
    if facts["usage"] not in ("ENCRYPT_DECRYPT", "") or facts["spec"] not in (
        "SYMMETRIC_DEFAULT",
        "",
    ):
        return "FAIL", f"{arn} is no symmetric key for encryption", "Name another in `kms_key`."
    context = {"purpose": "doctor"}
    made = holder.generate_data_key(context)
    if holder.unwrap_data_key(made.wrapped, context) != made.secret:
        return "FAIL", f"{arn} does not give back what it wrapped", "Ask AWS."
    return f"{arn} is enabled, wraps and opens"


def _repository(desk: Desk) -> Iterator[Finding]:
    from strongroom.operations.doctor import check_clock, check_room, look  # noqa: PLC0415

    def reach() -> str:
        wiring.require_repository(desk.storage)
        return f"{desk.storage.url} answers"

    def opens() -> str:
        with desk.repository() as repository:
            role = cast("Keyring", repository.keys).role
        return f"opens as a {role}"

    finding = look("repository", reach)
    yield finding
    if finding.state == "FAIL":
        return
    yield look("repository keys", opens)
    del desk.storage  # it was closed when the repository was
    yield look("repository room", lambda: check_room(desk.storage))
    yield look("repository storage", lambda: check_clock(desk.storage, wiring.seams()))
    with suppress(StrongroomError):
        desk.storage.close()


def _folder(desk: Desk, name: str) -> Verdict | str:
    report = wiring.probe_source(name, desk.source_table(name), environ=desk.environ)
    return _counted(report)


def _counted(report: Mapping[str, Any]) -> Verdict | str:
    """What can be read of files, and what cannot."""
    text = f"{report['files']:,} files, {show_size(report['size'])}"
    problems = report["problems"]
    if problems:
        count = max(len(problems), int(report.get("unreadable", 0)))
        return (
            "warn",
            f"{text}; {count} part{'s' * (count != 1)} cannot be taken, first: {problems[0]}",
            "Give the backup's user the right to read them, or exclude them.",
        )
    if report["include_without_match"]:
        missing = ", ".join(report["include_without_match"])
        return "warn", f"{text}; nothing answers to {missing}", "Correct `include`."
    return f"{text}, all readable"


def _database(desk: Desk, name: str, table: PostgresTable) -> Iterator[Finding]:
    from strongroom.operations.doctor import look  # noqa: PLC0415

    if table.method == "physical":
        yield look(f"source {name}", lambda: _cluster(desk, name, table))
        slot = wiring.ask_slot(name, table, desk.environ)
        if slot is not None:
            yield look(f"source {name} slot", lambda: _slot(name, slot))
        return

    def tools() -> Verdict | str:
        return wiring.client_tools(table)

    yield look(f"source {name} tools", tools)

    def reach() -> Verdict | str:
        report = wiring.probe_source(name, table, environ=desk.environ)
        server, dump = report["server"], report["pg_dump"]
        text = (
            f"PostgreSQL {server.get('version', '?')} answers; "
            f"{', '.join(report['databases'])} by pg_dump {dump['version']}"
        )
        for database in report["databases"]:
            found = wiring.database_rights(table, database, environ=desk.environ)
            if found.unreadable:
                return (
                    "FAIL",
                    f"{text}; in {database} the role may not read {found.unreadable} tables or "
                    f"sequences: {', '.join(found.first)}",
                    "Grant it: `GRANT pg_read_all_data TO` the role of the backup.",
                )
            if table.globals and table.role_passwords and not found.superuser:
                return (
                    "warn",
                    f"{text}; the role is no superuser: password hashes of roles are not taken",
                    "Say that this is meant with `role_passwords = false`, or use a superuser.",
                )
        return text

    yield look(f"source {name}", reach)


def _slot(name: str, slot: Slot) -> Verdict | str:
    """What a replication slot leads to: one that nobody reads fills the server's disk."""
    limit = "none" if slot.limit is None else show_size(slot.limit)
    text = f"{slot.name} {'is read' if slot.active else 'is not read by anybody'}"
    text += f", holds back {show_size(slot.held)}; max_slot_wal_keep_size: {limit}"
    if slot.trouble is None:
        return text
    return (
        "FAIL" if slot.lost else "warn",
        f"{slot.name}: {slot.trouble}",
        f"Start `strongroom wal receive {name}` again, or remove the slot with --drop-slot; set"
        " max_slot_wal_keep_size so that a slot cannot fill the disk.",
    )


def _cluster(desk: Desk, name: str, table: PostgresTable) -> Verdict | str:
    report = wiring.probe_source(name, table, environ=desk.environ)
    text = f"PostgreSQL {report['server'].get('version', '?')}, {report['data_directory']}"
    if not report["checksums"]:
        return (
            "warn",
            f"{text}; it has no page checksums: damage on its disk is backed up unseen",
            "Turn them on with `pg_checksums --enable` when the server is down.",
        )
    return f"{text}, by its files"


def _remotes(desk: Desk) -> list[str]:
    return [
        table.path
        for table in desk.configuration.source.values()
        if isinstance(table, FilesTable) and is_remote(table.path)
    ]


def _rclone(desk: Desk) -> Verdict | str:
    program = wiring.rclone(desk.configuration, desk.environ)
    return f"{program.program} {program.version()}"


def _remote(desk: Desk, name: str, table: FilesTable) -> Iterator[Finding]:
    from strongroom.operations.doctor import look  # noqa: PLC0415

    yield look(
        f"source {name} remote",
        lambda: wiring.judge_remote(desk.configuration, desk.environ, table.path),
    )
    yield look(
        f"source {name}",
        lambda: _counted(
            wiring.probe_source(name, table, environ=desk.environ, configuration=desk.configuration)
        ),
    )
