"""export and import: portable artefacts out of a backup, and back."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Group, Parameter

from strongroom import wiring
from strongroom.cli.desk import Desk
from strongroom.cli.flags import Everywhere
from strongroom.cli.names import path_fields, show_text
from strongroom.cli.points import chosen
from strongroom.cli.progress import listening
from strongroom.cli.records import ID_SHOWN, show_moment, snapshot_body
from strongroom.cli.verbs.backup import read_labels
from strongroom.cli.verbs.source import describe
from strongroom.config.model import SOURCE_NAME, PostgresTable
from strongroom.config.secrets import has_password
from strongroom.errors import Incomplete, Refused, UsageError
from strongroom.rules.sizes import parse_size, show_seconds, show_size

if TYPE_CHECKING:
    from strongroom.artefacts.making import OpensslKey
    from strongroom.artefacts.opening import Artefact
    from strongroom.operations.export import Exported
    from strongroom.operations.recording import Draft
    from strongroom.repository.catalogue import Snapshot
    from strongroom.repository.ports import Outcome, Problem
    from strongroom.repository.repository import Repository

_ARTEFACT = Group("Artefact", sort_key=20)
_DEFAULT = Everywhere()


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class ExportFlags:
    """How an artefact is written."""

    artefact_key: Annotated[str | None, Parameter(group=_ARTEFACT)] = None
    """Where to write the key file of an encrypted artefact, instead of `key_dir`."""
    recipient: Annotated[list[str] | None, Parameter(group=_ARTEFACT)] = None
    """An age1… recipient for --format age; may be given several times."""
    database: Annotated[str | None, Parameter(group=_ARTEFACT)] = None
    """Which database, where the backup holds several."""
    force: Annotated[bool, Parameter(group=_ARTEFACT)] = False
    """Replace an artefact of the same name, and its key."""


EXPORT_DEFAULTS = ExportFlags()


def export(
    source: str,
    /,
    *,
    output: Annotated[str, Parameter(alias="-o", allow_leading_hyphen=True)],
    format: str | None = None,
    backup: Annotated[str | None, Parameter(alias="-b")] = None,
    at: str | None = None,
    dry_run: bool = False,
    how: ExportFlags = EXPORT_DEFAULTS,
    everywhere: Everywhere = _DEFAULT,
) -> int:
    """Write a backup as a file that needs no Strongroom, with checksum and signed manifest.

    Parameters
    ----------
    source
        The source whose backup it is; it need not be configured here.
    output
        The folder to write into.
    format
        sql.gz, custom or age for a database; tar.gz, tar.gz.enc or age for files. Otherwise
        sql.gz and tar.gz.enc.
    backup
        Which backup: the beginning of its id, `latest` or `oldest`. Otherwise the newest.
    at
        The newest backup not after this time.
    dry_run
        Say what would be written; write nothing.
    """
    desk = Desk(everywhere)
    with desk.recorded("export", source=source) as run, desk.repository() as repository:
        run.nothing = dry_run
        snapshot = chosen(desk, repository, source, backup=backup, at=at)
        body = write_artefact(
            desk, repository, snapshot, output, format, how, dry_run=dry_run, run=run
        )
    problems = body.get("problems", ())
    fault = None
    if problems:
        fault = Incomplete(
            f"The artefact is complete but for {len(problems)} "
            f"thing{'s' * (len(problems) != 1)} that its format cannot hold.",
            do="Read the list above; the backup itself holds them.",
        )
    return desk.output.finish("export", body, fault)


def write_artefact(
    desk: Desk,
    repository: Repository,
    snapshot: Snapshot,
    folder: str,
    format: str | None,
    how: ExportFlags = EXPORT_DEFAULTS,
    *,
    dry_run: bool = False,
    run: Draft,
) -> dict[str, Any]:
    """Write the artefact of a snapshot, tell of it, and return it as JSON values."""
    from strongroom.artefacts.making import AgeKey  # noqa: PLC0415
    from strongroom.artefacts.names import (  # noqa: PLC0415
        artefact_name,
        default_prefix,
        shape_for,
    )
    from strongroom.artefacts.sealing import recipients  # noqa: PLC0415
    from strongroom.operations import export as exporting  # noqa: PLC0415

    table = desk.configuration.source.get(snapshot.source)
    shape = shape_for(snapshot.kind, format)
    prefix = table.artefact_name if table is not None else None
    name = artefact_name(prefix or default_prefix(snapshot.source), shape, snapshot.time)
    key: OpensslKey | AgeKey | None = None
    key_file = service = None
    if shape.seal == "openssl":
        usual = wiring.artefact_key_path(desk.configuration, desk.environ, name)
        if desk.configuration.repository.kms_key is not None:
            service = wiring.kms_holder(desk.configuration)
        # What a KMS wraps needs no key file, and is written to one only if that is asked for.
        key_file = how.artefact_key or (usual if service is None else None)
        beside = None if key_file is None else os.path.realpath(os.path.dirname(key_file) or ".")
        if beside == os.path.realpath(folder):
            raise Refused(
                "The key file would lie beside the artefact that it opens.",
                do="Name another place with --artefact-key, or another `key_dir`.",
            )
    elif shape.seal == "age":
        texts = how.recipient or list(desk.configuration.artefacts.recipients)
        key = AgeKey(texts, recipients(texts))
    body: dict[str, Any] = {"dry_run": dry_run, "snapshot": snapshot_body(snapshot)}
    run.of(snapshot)
    run.what = f"export {snapshot.source} as {name}"
    run.detail |= {"artefact": name, "sealed": shape.seal}
    plan = exporting.plan(folder, name, snapshot=snapshot, key_file=key_file, force=how.force)
    if dry_run:
        desk.output.line(f"Would write {plan['artefact']}")
        desk.output.lines(describe(plan))
        return {**body, "plan": plan}
    if shape.seal == "openssl":
        key = exporting.new_openssl_key(repository, name, key_file, service)
    write, tools = wiring.artefact_writer(shape.content, table, how.database)
    with listening(desk.output) as progress:
        done = exporting.export(
            repository,
            snapshot,
            folder,
            name,
            shape,
            key=key,
            write=write,
            tools=tools,
            force=how.force,
            threads=desk.jobs,
            progress=progress,
        )
    run.size, run.problems = done.made.manifest.file.size, len(done.problems)
    run.detail["sha256"] = done.made.manifest.file.sha256
    desk.output.lines(_told(snapshot, done, key_file))
    return {**body, **_exported_body(done, key_file)}


def _told(snapshot: Snapshot, done: Exported, key_file: str | None) -> list[str]:
    made, manifest = done.made, done.made.manifest
    where = os.path.dirname(made.path) or "."
    lines = [
        f"{show_text(made.path)}: backup {snapshot.id[:ID_SHOWN]} of "
        f"{show_text(snapshot.source)}, {show_moment(snapshot.time)}",
        f"  {show_size(manifest.plain.size)} as {show_size(manifest.file.size)} "
        f"in {show_seconds(done.seconds)}",
        f"  signed; public key {show_text(done.public_key)}",
        "to check it, in " + show_text(where) + ":",
        f"  sha256sum -c {manifest.name}.sha256",
        f"  openssl pkeyutl -verify -pubin -inkey {os.path.basename(done.public_key)} -rawin "
        f"-in {manifest.name}.manifest -sigfile {manifest.name}.manifest.sig",
    ]
    wrapped = manifest.key.get("kms")
    if manifest.name.endswith(".enc"):
        plain = manifest.name.removesuffix(".enc")
        lines.append("to open it (10,000 rounds, openssl's default):")
        if key_file is None and wrapped is not None:
            key_file = f"$HOME/{manifest.name}.key"  # not beside the artefact
            lines.append(f"  (umask 077; {_kms_line(manifest.name, wrapped)} > {key_file})")
        lines += [
            f"  openssl enc -aes-256-cbc -d -salt -pbkdf2 -in {manifest.name} -out {plain} "
            f"-pass file:{show_text(key_file or 'KEY_FILE')}",
        ]
    elif manifest.name.endswith(".age"):
        plain = manifest.name.removesuffix(".age")
        lines += ["to open it:", f"  age -d -i IDENTITY -o {plain} {manifest.name}"]
    return lines


def _kms_line(name: str, wrapped: Mapping[str, Any]) -> str:
    """The command of AWS that prints an artefact's key as its key file would hold it."""
    context = ",".join(f'"{key}":"{value}"' for key, value in sorted(wrapped["context"].items()))
    return (
        f"aws kms decrypt --key-id {wrapped['key']} --ciphertext-blob fileb://{name}.kms "
        f"--encryption-context '{{{context}}}' --query Plaintext --output text"
    )


def _exported_body(done: Exported, key_file: str | None) -> dict[str, Any]:
    manifest = done.made.manifest
    return {
        "artefact": path_fields(os.fsencode(done.made.path)),
        "files": [path_fields(os.fsencode(path)) for path in done.made.files],
        "format": manifest.format,
        "plain": {"size": manifest.plain.size, "sha256": manifest.plain.sha256},
        "file": {"size": manifest.file.size, "sha256": manifest.file.sha256},
        "key_file": None if key_file is None else path_fields(os.fsencode(key_file)),
        "public_key": path_fields(os.fsencode(done.public_key)),
        "seconds": round(done.seconds, 3),
        "problems": _problems(done.problems),
    }


def _problems(problems: Sequence[Problem]) -> list[dict[str, Any]]:
    return [{**path_fields(problem.path), "reason": problem.reason} for problem in problems[:1000]]


# -- import ------------------------------------------------------------------------------------


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class ImportFlags:
    """What is trusted, and what opens it."""

    artefact_key: Annotated[str | None, Parameter(group=_ARTEFACT)] = None
    """Key file of an encrypted artefact; the repository that made it needs none."""
    identity: Annotated[str | None, Parameter(group=_ARTEFACT)] = None
    """Identity file of age."""
    public_key: Annotated[list[str] | None, Parameter(group=_ARTEFACT)] = None
    """PEM file of a writer whose signature counts; may be given several times."""
    unsigned: Annotated[bool, Parameter(group=_ARTEFACT)] = False
    """Take a file that nobody vouches for; it is unpacked once into nothing first."""
    max_size: Annotated[str | None, Parameter(group=_ARTEFACT)] = None
    """How much it may unpack to, such as 200GiB; otherwise what the manifest says."""
    trust_code: Annotated[bool, Parameter(group=_ARTEFACT)] = False
    """Run what of a dump can act outside its database: functions in C and untrusted languages, and
    the like; and an --unsigned dump as a role that may run programs on the server."""
    devices: Annotated[bool, Parameter(group=_ARTEFACT)] = False
    """Make devices too, when a tree of files is extracted."""
    no_owner: Annotated[bool, Parameter(group=_ARTEFACT)] = False
    """Leave everything to the user who extracts, or to the role that restores."""


_IMPORT_DEFAULTS = ImportFlags()


def import_artefact(
    file: str,
    /,
    *,
    source: str | None = None,
    to: str | None = None,
    label: Annotated[list[str] | None, Parameter(alias="-l")] = None,
    dry_run: bool = False,
    how: ImportFlags = _IMPORT_DEFAULTS,
    everywhere: Everywhere = _DEFAULT,
) -> int:
    """Verify an artefact and take it into the repository, or restore straight from it.

    Signature, checksum and key are proved before anything is written.

    Parameters
    ----------
    file
        The artefact; .sha256, .manifest and .manifest.sig stand beside it.
    source
        Take it into the repository as a backup of this name: a tree as files, a dump as one file
        (`strongroom get` gives it back).
    to
        Restore it here: a new folder, or a new database.
    label
        A label k=v for the backup; may be given several times.
    dry_run
        Verify everything, say what would be done, change nothing.
    """
    desk = Desk(everywhere)
    if (source is None) == (to is None):
        raise UsageError(
            "Where to?", do="Give `--source NAME` (into the repository) or `--to DEST`, not both."
        )
    if source is not None and not SOURCE_NAME.fullmatch(source):
        raise UsageError(f"{source!r} is no name of a source.")
    if to is not None and has_password(to):
        raise UsageError(
            "A password on the command line is seen by everybody on this machine.",
            do="Take it out of --to; put it into $PGPASSWORD or ~/.pgpass, and change it.",
        )
    labels = read_labels(label or [])
    name = os.path.basename(file)
    what = f"import {name} " + (f"as a backup of {source}" if source is not None else f"into {to}")
    with desk.recorded("import", source=source or "", what=what) as run, ExitStack() as stack:
        # With --to it is opened only if nothing else has the artefact's key.
        @cache
        def repository() -> Repository | None:
            if desk.configuration.repository.url is None and source is None:
                return None
            return stack.enter_context(desk.repository())

        run.nothing = dry_run
        return _import(desk, repository, file, source, to, labels, how, run, dry_run=dry_run)


def _import(
    desk: Desk,
    open_repository: Callable[[], Repository | None],
    file: str,
    source: str | None,
    to: str | None,
    labels: dict[str, str],
    how: ImportFlags,
    run: Draft,
    *,
    dry_run: bool,
) -> int:
    from strongroom.operations import import_artefact as importing  # noqa: PLC0415

    configured = desk.configuration.repository.url is not None
    storage = desk.storage if configured and not (how.unsigned or how.public_key) else None
    trust = wiring.artefact_trust(desk.configuration, storage, how.public_key or ())
    keys = wiring.artefact_keys(
        desk.configuration,
        desk.environ,
        os.path.basename(file),
        key_file=how.artefact_key,
        identity_file=how.identity,
    )
    keys = replace(keys, otherwise=lambda said: importing.sealed_key(open_repository(), said))
    repository = None
    if source is not None:
        repository = open_repository()
        assert repository is not None
        database = isinstance(desk.configuration.source.get(source), PostgresTable)
        importing.refuse_mixture(repository, source, database=database)
    max_size = None if how.max_size is None else parse_size(how.max_size)
    with (
        listening(desk.output) as progress,
        importing.opened(
            file,
            trust=trust,
            keys=keys,
            unsigned=how.unsigned,
            max_size=max_size,
            progress=progress,
        ) as artefact,
    ):
        for note in artefact.notes:
            desk.output.warning(note)
        body = _body(artefact, dry_run)
        if dry_run:
            desk.output.line(f"{show_text(file)}: verified; would go to {source or to}")
            return desk.output.finish("import", body, None)
        if source is not None:
            assert repository is not None
            report = importing.into_repository(
                repository,
                artefact,
                source=source,
                inner=_inner(artefact),
                labels={"artefact": artefact.name, **labels},
                progress=progress,
            )
            body["snapshot"] = snapshot_body(report.snapshot)
            run.made(report.snapshot)
            line = (
                f"{show_text(source)}: backup {report.snapshot.id[:ID_SHOWN]} from "
                f"{show_text(artefact.name)}, {report.snapshot.files:,} files, "
                f"{show_size(report.snapshot.size)}"
            )
            problems: Sequence[Problem] = report.problems
        elif artefact.shape.content == "tar":
            assert to is not None
            outcome: Outcome = importing.into_folder(
                artefact,
                os.fsencode(to),
                owner=not how.no_owner and os.geteuid() == 0,
                devices=how.devices,
                progress=progress,
            )
            body |= {"files": outcome.files, "size": outcome.size}
            run.files, run.size = outcome.files, outcome.size
            line = f"{show_text(to)}: {outcome.files:,} files, {show_size(outcome.size)}"
            problems = outcome.problems
        else:
            assert to is not None
            load = wiring.artefact_loader(
                artefact.shape.content,
                wiring.find_target(to, None),
                environ=desk.environ,
                owner=not how.no_owner,
                code=how.trust_code,
                vouched=artefact.manifest is not None and not how.unsigned,
            )
            body["facts"] = dict(importing.into_database(artefact, load, progress=progress))
            line, problems = f"{show_text(to)}: restored from {show_text(artefact.name)}", ()
    desk.output.line(line)
    run.problems = len(problems)
    run.detail |= {"sha256": artefact.file.sha256, "signed": body["signed"]}
    body["problems"] = _problems(problems)
    fault = None
    if problems:
        fault = Incomplete(
            f"It is complete but for {len(problems)} thing{'s' * (len(problems) != 1)}.",
            do="Read the list above.",
        )
    return desk.output.finish("import", body, fault)


def _inner(artefact: Artefact) -> str:
    """What the dump is called in the backup that holds it."""
    from strongroom.artefacts.names import Shape  # noqa: PLC0415

    shape = artefact.shape
    plain = Shape(shape.content, False, "").suffix
    return artefact.name.removesuffix(shape.suffix) + plain


def _body(artefact: Artefact, dry_run: bool) -> dict[str, Any]:
    manifest = artefact.manifest
    return {
        "dry_run": dry_run,
        "artefact": path_fields(os.fsencode(artefact.path)),
        "sha256": artefact.file.sha256,
        "signed": manifest is not None and not any("vouches" in n for n in artefact.notes),
        "from": None
        if manifest is None
        else {"source": dict(manifest.source), "snapshot": dict(manifest.snapshot)},
        "notes": list(artefact.notes),
    }
