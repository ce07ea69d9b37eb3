"""doctor [SOURCE]."""

from __future__ import annotations

import os
import socket
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, cast

from cyclopts import Parameter
from cyclopts.validators import Number
from msgspec import Struct
from msgspec.structs import asdict

from strongroom import wiring
from strongroom.cli.desk import Desk
from strongroom.cli.flags import Everywhere
from strongroom.cli.names import show_text
from strongroom.config.loading import ConfigFaults
from strongroom.config.model import FilesTable, PingTable, PostgresTable, SourceTable
from strongroom.config.secrets import Secret, read_private, resolve
from strongroom.errors import ConfigError, Incomplete, Refused, StrongroomError
from strongroom.files.rclone.tool import is_remote
from strongroom.rules import preconditions as rules
from strongroom.rules.preconditions import VERDICTS, Finding
from strongroom.rules.sizes import show_size

if TYPE_CHECKING:
    from strongroom.keys.base import KeyHolder
    from strongroom.operations.doctor import Check, Opened
    from strongroom.repository.keyring import Keyring
    from strongroom.repository.repository import Repository
    from strongroom.rules.schedule import Verdict

_DEFAULT = Everywhere()
_SECONDS = 20.0


def doctor(
    source: str | None = None,
    /,
    *,
    timeout: Annotated[float, Parameter(validator=Number(gt=0))] = _SECONDS,
    everywhere: Everywhere = _DEFAULT,
) -> int:
    """Look at every precondition; name each one's cause and remedy.

    Configuration, secrets, repository and storage, keys and kit, audit log, schedule, notifications,
    this machine, and for each source connection, TLS, clock, rights, tools, settings, replication slot,
    archiver (and why WAL was not archived) and disk. One line an item: ok, warning, failed or
    unknown. All are looked at side by side. Exit status 4 when something fails, 3 when something
    did not answer in time. Nothing is changed: tiny objects are put into the repository's storage
    and deleted again.

    Parameters
    ----------
    source
        Of the sources only this one.
    timeout
        Seconds after which what has not answered is unknown.
    """
    from strongroom.operations.doctor import Examination  # noqa: PLC0415

    desk = Desk(everywhere)
    findings: list[Finding] = []
    hung: list[str] = []

    def tell(found: Iterable[Finding]) -> None:
        for finding in found:
            findings.append(finding)
            text = f"{show_text(finding.item)}: {show_text(finding.what)}"
            desk.output.line(f"{finding.verdict:8} {text}")
            if finding.verdict != "ok" and finding.do:
                desk.output.line(f"         to do: {show_text(finding.do)}")

    tell([_guarded("configuration", lambda: _configuration(desk))])
    if findings[0].verdict != "failed":
        if source is not None:
            desk.source_table(source)
        examination = Examination(_checks(desk, source), seconds=timeout, steady=wiring.steady)
        tell(examination.findings())
        hung = examination.hung
    status = _end(desk, findings, hung)
    if hung:
        # What hangs would keep the process: nothing of it is worth waiting for.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def _end(desk: Desk, findings: list[Finding], hung: list[str]) -> int:
    counts = {word: sum(one.verdict == word for one in findings) for word in VERDICTS}
    fault: StrongroomError | None = None
    if counts["failed"]:
        fault = Refused(
            f"{counts['failed']} of {len(findings)} preconditions fail.",
            means="What fails may keep a backup or a restore from being made; nothing changed.",
            do="Mend what is marked failed above, then run `strongroom doctor` again.",
        )
    elif hung:
        fault = Incomplete(
            f"{len(hung)} checks did not answer in time: {', '.join(hung)}.",
            means="What else was looked at is as told; nothing changed.",
            do="Run `strongroom doctor --timeout 60`.",
        )
    status = 0 if fault is None else fault.exit_status
    desk.output.document(
        "doctor",
        {
            "exit": status,
            "checks": [finding.as_json() for finding in findings],
            "failed": counts["failed"],
            "warned": counts["warning"],
            "unknown": counts["unknown"],
        },
    )
    if fault is not None:
        desk.output.error_lines(fault)
    return status


def _guarded(item: str, probe: Any) -> Finding:
    """One check here and now; an error is its finding."""
    try:
        found: Finding = probe()
    except StrongroomError as fault:
        return Finding(item, "failed", fault.what, fault.do)
    except (OSError, ValueError) as fault:
        return Finding(item, "failed", f"{type(fault).__name__}: {fault}", "Run it again with -vv.")
    return found


def _checks(desk: Desk, source: str | None) -> list[Check]:
    from strongroom.operations.doctor import (  # noqa: PLC0415
        Check,
        Opened,
        look_at_folder,
        look_at_mounting,
    )

    opened, asked = Opened(), _asked(desk)
    configuration = desk.configuration
    checks: list[Check] = [
        Check(f"secret {place}", lambda place=place, secret=secret: [_secret(desk, place, secret)])  # type: ignore[misc]
        for place, secret in _secrets(desk)
    ]
    key_file = configuration.repository.key_file
    if key_file is not None:
        checks.append(Check("key file", lambda: [_key_file(key_file)]))
    if configuration.repository.kms_key is not None:
        checks.append(Check("KMS key", lambda: [_kms(desk)]))
    checks += [
        Check("repository", lambda: _repository(desk, asked, opened)),
        Check("storage", lambda: _storage(desk, opened)),
        Check("storage TLS", lambda: _endpoint(desk)),
        Check("storage versions", lambda: _versions(desk)),
        Check("audit log", lambda: _history(desk, opened)),
        Check("cache folder", lambda: [look_at_folder("cache folder", desk.cache_dir)]),
        Check("state folder", lambda: [look_at_folder("state folder", desk.state_dir)]),
    ]
    chosen = {name: table for name, table in configuration.source.items() if source in (None, name)}
    if any(isinstance(one, FilesTable) and is_remote(one.path) for one in chosen.values()):
        checks.append(Check("rclone", lambda: [_rclone(desk)]))
    if any(isinstance(one, PostgresTable) and one.method == "physical" for one in chosen.values()):
        checks.append(Check("open", look_at_mounting))
    checks += [_source(desk, name, table, opened) for name, table in chosen.items()]
    if not configuration.source:
        none = Finding("sources", "warning", "none is configured", "Add [source.NAME].")
        checks.append(Check("sources", lambda: [none]))
    return checks


# -- configuration and secrets -----------------------------------------------------------------


def _configuration(desk: Desk) -> Finding:
    try:
        loaded = desk.loaded
    except ConfigFaults as fault:
        told = "; ".join(f"{place}: {text}" for place, text in fault.faults)
        raise ConfigError(told, do=fault.do) from None
    item = "configuration"
    if loaded.path is None:
        return Finding(
            item,
            "warning",
            "no file was found: flags and environment only",
            "Write strongroom.toml.",
        )
    mode = os.stat(loaded.path).st_mode
    if stat.S_ISREG(mode) and mode & 0o022:
        return Finding(
            item,
            "warning",
            f"{loaded.path} can be written by others (mode {mode & 0o777:04o}); `cmd:` in it is run",
            f"Run `chmod go-w {loaded.path}`.",
        )
    return rules.ok(item, f"{loaded.path} has no fault")


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


def _secret(desk: Desk, place: str, secret: Secret) -> Finding:
    resolve(secret, desk.environ)
    return rules.ok(f"secret {place}", f"{secret} can be had")


def _key_file(path: str) -> Finding:
    wiring.key_file_holder(path)
    read_private(path, "The key file")
    return rules.ok("key file", f"{path} is one, and private")


def _kms(desk: Desk) -> Finding:
    item = "KMS key"
    holder = wiring.kms_holder(desk.configuration)
    facts = holder.describe()
    arn, state = facts["arn"], facts["state"]
    if state not in ("Enabled", ""):
        return Finding(
            item,
            "failed",
            f"{arn} is {state}",
            "Enable it (`aws kms enable-key`), cancel its deletion, or name another in `kms_key`.",
        )
    if facts["usage"] not in ("ENCRYPT_DECRYPT", "") or facts["spec"] not in (
        "SYMMETRIC_DEFAULT",
        "",
    ):
        return Finding(
            item,
            "failed",
            f"{arn} is no symmetric key for encryption",
            "Name another in `kms_key`.",
        )
    context = {"purpose": "doctor"}
    made = holder.generate_data_key(context)
    if holder.unwrap_data_key(made.wrapped, context) != made.secret:
        return Finding(item, "failed", f"{arn} does not give back what it wrapped", "Ask AWS.")
    return rules.ok(item, f"{arn} is enabled, wraps and opens")


# -- the repository ----------------------------------------------------------------------------


def _asked(desk: Desk) -> list[KeyHolder]:
    """What a person types where no key is named, before the checks: a terminal is one's alone."""
    table = desk.configuration.repository
    named = (table.passphrase, table.key_file, table.recovery_code, table.kms_key)
    return desk.holders() if desk.may_ask() and not any(named) else []


def _repository(desk: Desk, asked: list[KeyHolder], opened: Opened) -> Iterator[Finding]:
    """Whether it answers and opens; it stays open for the other checks."""
    from strongroom.operations import keys  # noqa: PLC0415
    from strongroom.operations.doctor import look_at_keys  # noqa: PLC0415

    repository: Repository | None = None
    try:
        wiring.require_repository(desk.storage)
        yield rules.ok("repository", f"{desk.storage.url} answers")
        try:
            holders = asked or desk.holders()
            repository = wiring.open_repository(desk.storage, holders, jobs=desk.jobs)
        except StrongroomError as fault:
            yield Finding("repository keys", "failed", fault.what, fault.do)
        else:
            role = cast("Keyring", repository.keys).role
            yield rules.ok("repository keys", f"opens as a {role}")
    finally:
        opened.give(repository)
    age = desk.configuration.repository.key_age
    limit = None if age is None else timedelta(seconds=age.approximate_seconds)
    yield from look_at_keys(keys.list_keys(desk.storage), limit=limit, now=desk.now)


def _storage(desk: Desk, opened: Opened) -> Iterator[Finding]:
    from strongroom.operations.doctor import look_at_room, look_at_storage  # noqa: PLC0415

    storage = wiring.open_storage(desk.configuration, desk.environ)
    try:
        try:
            wiring.require_repository(storage)
        except StrongroomError:
            return  # which is told under "repository"
        yield from look_at_room(storage)
        yield from look_at_storage(storage, opened, wiring.seams())
    finally:
        storage.close()


def _endpoint(desk: Desk) -> Iterator[Finding]:
    place, version, why = wiring.storage_endpoint(desk.configuration, desk.environ)
    if place is not None:
        yield rules.endpoint(place.url, near=place.near, version=version, why=why)


def _versions(desk: Desk) -> Iterator[Finding]:
    kind, kept, locked, why = wiring.storage_versions(desk.configuration, desk.environ)
    if kind != "file":
        yield rules.versions(kept, locked, kind=kind, why=why)


def _history(desk: Desk, opened: Opened) -> Iterator[Finding]:
    """What the audit log and the leases tell: the log itself, kit, schedule, notifications."""
    from strongroom.observe.journal import Journal  # noqa: PLC0415 -- numpy behind it
    from strongroom.operations import doctor as operations  # noqa: PLC0415
    from strongroom.operations import keys  # noqa: PLC0415
    from strongroom.repository.audit import AuditLog  # noqa: PLC0415

    repository = opened.get()
    if repository is None:
        return
    now = desk.now
    log = AuditLog(repository)
    journal = Journal(desk.recorder.folder, log)
    journal.refresh()
    yield from operations.look_at_log(log, journal)
    yield from operations.look_at_kit(keys.list_keys(repository.storage), journal, now=now)
    yield from _schedule(desk, repository, journal, now)
    names = [
        name
        for name, table in desk.configuration.notify.items()
        if not isinstance(table, PingTable)
    ]
    pings = [name for name in desk.configuration.notify if name not in names]
    yield from operations.look_at_channels(names, pings, journal, now=now)
    journal.close()


def _schedule(desk: Desk, repository: Repository, journal: Any, now: datetime) -> Iterator[Finding]:
    from strongroom.operations.doctor import look_at_schedule  # noqa: PLC0415
    from strongroom.operations.scheduling import jobs_of, judge  # noqa: PLC0415
    from strongroom.repository.leases import Leases  # noqa: PLC0415

    configuration = desk.configuration
    limit = timedelta(seconds=configuration.schedule.lease.approximate_seconds)
    leases = Leases(repository.catalogue, repository.seams, host=socket.gethostname(), limit=limit)
    jobs = jobs_of(configuration)
    verdicts: list[Verdict] = judge(repository, jobs, leases, journal=journal, now=now)
    last: dict[str, tuple[datetime | None, str]] = {}
    for job in jobs:
        told = leases.of(job.name)
        if told:
            last[job.name] = (told[-1].ended or told[-1].due, told[-1].host)
    without = {
        name: None if rpo is None else timedelta(seconds=rpo.approximate_seconds)
        for name, rpo in (
            (name, table.promise.rpo)
            for name, table in configuration.source.items()
            if table.schedule is None
        )
    }
    yield from look_at_schedule(verdicts, last, without, journal, now=now)


# -- sources -----------------------------------------------------------------------------------


def _source(desk: Desk, name: str, table: SourceTable, opened: Opened) -> Check:
    from strongroom.operations.doctor import Check  # noqa: PLC0415

    if isinstance(table, PostgresTable):
        database = table
        return Check(f"source {name}", lambda: _database(desk, name, database, opened))
    files = table
    if is_remote(files.path):
        return Check(f"source {name}", lambda: _remote(desk, name, files))
    return Check(f"source {name}", lambda: [_counted(desk, name, files)])


def _database(desk: Desk, name: str, table: PostgresTable, opened: Opened) -> Iterator[Finding]:
    from strongroom.operations.doctor import look_at_folder  # noqa: PLC0415
    from strongroom.operations.doctor_database import Database, look_at_database  # noqa: PLC0415

    conninfo, slot = wiring.wal_place(name, table, desk.environ)
    sources = wiring.wal_sources(desk.configuration)
    yield from look_at_database(
        Database(
            name,
            table,
            conninfo,
            slot,
            [one for one, physical in sources.items() if physical],
            needs=lambda: wiring.rights_wanted(name, table, desk.environ),
            probe=lambda: wiring.probe_source(name, table, environ=desk.environ),
            now=wiring.now,
            opened=opened,
        )
    )
    spool = os.path.join(desk.state_dir, "wal", name)
    if os.path.isdir(spool):
        yield look_at_folder(f"source {name} spool", spool)


def _remote(desk: Desk, name: str, table: FilesTable) -> Iterator[Finding]:
    yield wiring.judge_remote(desk.configuration, desk.environ, table.path, name)
    yield _counted(desk, name, table)


def _rclone(desk: Desk) -> Finding:
    program = wiring.rclone(desk.configuration, desk.environ)
    return rules.ok("rclone", f"{program.program} {program.version()}")


def _counted(desk: Desk, name: str, table: FilesTable) -> Finding:
    """What can be read of files, and what cannot."""
    item = f"source {name}"
    report = wiring.probe_source(
        name, table, environ=desk.environ, configuration=desk.configuration
    )
    text = f"{report['files']:,} files, {show_size(report['size'])}"
    problems = report["problems"]
    if problems:
        count = max(len(problems), int(report.get("unreadable", 0)))
        return Finding(
            item,
            "warning",
            f"{text}; {count} part{'s' * (count != 1)} cannot be taken, first: {problems[0]}",
            "Give the backup's user the right to read them, or exclude them.",
        )
    if report["include_without_match"]:
        missing = ", ".join(report["include_without_match"])
        return Finding(
            item, "warning", f"{text}; nothing answers to {missing}", "Correct `include`."
        )
    return rules.ok(item, f"{text}, all readable")
