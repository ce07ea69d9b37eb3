"""The only file that knows every adapter: plain constructor calls, and no decision.

A configuration goes in, a storage, holders, sources and sinks come out. Heavy
adapters are imported where they are made, so that a verb pays for what it uses.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from strongroom.config.loading import SECRET_VARIABLES
from strongroom.config.model import (
    S3,
    Configuration,
    FilesDrill,
    FilesTable,
    PagerDutyTable,
    PingTable,
    PostgresDrill,
    PostgresTable,
    SlackTable,
    SmtpTable,
    SourceTable,
)
from strongroom.config.secrets import Secret, read_private, resolve
from strongroom.errors import ConfigError, StrongroomError, UsageError
from strongroom.files.rclone.tool import check_remote, is_remote

if TYPE_CHECKING:
    from strongroom.artefacts.manifest import Trust
    from strongroom.artefacts.opening import Keys
    from strongroom.files.rclone.sink import RcloneSink
    from strongroom.files.rclone.source import RcloneSource
    from strongroom.files.rclone.tool import Rclone
    from strongroom.keys.aws_kms import AwsKmsHolder
    from strongroom.keys.base import KeyHolder
    from strongroom.observe.channels.base import Channel
    from strongroom.observe.channels.web import Ping
    from strongroom.observe.telling import Announced
    from strongroom.operations.drilling import Course
    from strongroom.operations.drilling import Wanted as Drill
    from strongroom.operations.runbook_cloud import CloudRunbook
    from strongroom.operations.runbook_database import DatabaseRunbook
    from strongroom.operations.runbook_vault import VaultRunbook
    from strongroom.postgres.clients import Clients
    from strongroom.postgres.logical.source import LogicalSource
    from strongroom.postgres.physical.local import LocalSource
    from strongroom.postgres.physical.stream import StreamSource
    from strongroom.postgres.recovery.settings import Recovery
    from strongroom.postgres.rights import Asked
    from strongroom.postgres.server import Conninfo
    from strongroom.postgres.wal.archiver import Archiver
    from strongroom.postgres.wal.daemon import Daemon
    from strongroom.postgres.wal.receive import Receiver, Wanted
    from strongroom.postgres.wal.slots import Slot
    from strongroom.postgres.wal.spool import Spool
    from strongroom.progress import Progress
    from strongroom.repository.catalogue import Snapshot
    from strongroom.repository.identity import Identity
    from strongroom.repository.keyring import Keyring
    from strongroom.repository.ports import Sink, SnapshotReader, Source
    from strongroom.repository.repository import Repository
    from strongroom.repository.seams import Seams
    from strongroom.rules.preconditions import Finding
    from strongroom.rules.recovery import Made
    from strongroom.storage.base import Storage
    from strongroom.storage.looking import Place


def now() -> datetime:
    """The wall clock, UTC."""
    return datetime.now(UTC)


def steady() -> float:
    """A clock that only goes forward, in seconds."""
    return time.monotonic()


def random_bytes(size: int) -> bytes:
    """Bytes nobody can guess."""
    return os.urandom(size)


def open_storage(configuration: Configuration, environ: Mapping[str, str]) -> Storage:
    """The storage that the configuration names; ConfigError when it names none."""
    from strongroom.storage import location  # noqa: PLC0415

    table = configuration.repository
    if table.url is None:
        raise ConfigError(
            "No repository is named.",
            do="Give `--repository URL`, set STRONGROOM_REPOSITORY, or write `url` under "
            "[repository] in strongroom.toml.",
        )
    place = location.parse(table.url)
    if table.s3 is None or place.scheme != "s3":
        return location.open_storage(place)
    return location.open_storage(
        place,
        endpoint=table.s3.endpoint,
        region=table.s3.region,
        access_key_id=_text(table.s3.access_key_id, environ),
        secret_access_key=_text(table.s3.secret_access_key, environ),
        session_token=_text(table.s3.session_token, environ),
        ca_file=table.s3.ca_file,
        allow_http=table.s3.allow_http,
    )


def holders(configuration: Configuration, environ: Mapping[str, str]) -> list[KeyHolder]:
    """Every way in that the configuration names; none when it names none."""
    table = configuration.repository
    found: list[KeyHolder] = []
    if table.key_file is not None:
        found.append(key_file_holder(table.key_file))
    if table.recovery_code is not None:
        found.append(recovery_code_holder(resolve(table.recovery_code, environ)))
    if table.passphrase is not None:  # late: it costs half a second and 64 MiB to try
        found.append(passphrase_holder(resolve(table.passphrase, environ)))
    if table.kms_key is not None:  # last: it is asked only if nothing else opens
        found.append(kms_holder(configuration))
    return found


def kms_holder(configuration: Configuration, key: str | None = None) -> AwsKmsHolder:
    """The holder of a KMS key: `key`, else the one that is configured."""
    from strongroom.keys.aws_kms import AwsKmsHolder  # noqa: PLC0415

    table = configuration.repository
    chosen = key or table.kms_key
    if chosen is None:
        raise ConfigError(
            "No KMS key is named.",
            do="Write `kms_key` under [repository] in strongroom.toml, or set KMS_KEY_ID.",
        )
    return AwsKmsHolder(chosen, endpoint=table.kms_endpoint, region=table.kms_region)


def passphrase_holder(passphrase: bytes) -> KeyHolder:
    """The holder of a passphrase."""
    from strongroom.keys.passphrase import PassphraseHolder  # noqa: PLC0415

    return PassphraseHolder(passphrase)


def key_file_holder(path: str) -> KeyHolder:
    """The holder of a key file that exists."""
    from strongroom.keys.keyfile import KeyFileHolder, parse_keyfile  # noqa: PLC0415

    return KeyFileHolder(parse_keyfile(read_private(path, "The key file")))


def channels(
    configuration: Configuration, environ: Mapping[str, str], *, names: Sequence[str] = ()
) -> tuple[list[Announced], list[Ping]]:
    """Who is told, and who is asked for when all is well: those that are named, else all."""
    from strongroom.observe.channels import other, smtp, web  # noqa: PLC0415
    from strongroom.observe.telling import Announced  # noqa: PLC0415

    found: list[Announced] = []
    pings: list[Ping] = []
    for name, table in configuration.notify.items():
        if names and name not in names:
            continue
        channel: Channel
        if isinstance(table, PingTable):
            pings.append(web.Ping(name, url=_secret(table.url, environ)))
            continue
        if isinstance(table, SmtpTable):
            ports = {"starttls": 587, "tls": 465, "none": 25}
            channel = smtp.SmtpChannel(
                name,
                host=table.host,
                port=table.port or ports[table.tls],
                tls=table.tls,
                sender=table.sender,
                to=table.to,
                user=table.user,
                password=_text(table.password, environ),
                ca_file=table.ca_file,
            )
        elif isinstance(table, SlackTable):
            channel = web.SlackChannel(name, url=_secret(table.url, environ))
        elif isinstance(table, PagerDutyTable):
            channel = web.PagerDutyChannel(
                name,
                routing_key=_secret(table.routing_key, environ),
                url=table.url or web.PAGERDUTY,
            )
        else:
            channel = other.AppriseChannel(name, url=_secret(table.url, environ))
        found.append(Announced(channel, table.level, table.escalation))
    return found, pings


def working_channels(
    configuration: Configuration, environ: Mapping[str, str]
) -> tuple[list[Announced], list[Ping], list[StrongroomError]]:
    """As `channels`, without those that cannot be made here, and why: no other is silent for them."""
    found: list[Announced] = []
    pings: list[Ping] = []
    faults: list[StrongroomError] = []
    for name in configuration.notify:
        try:
            announced, pinged = channels(configuration, environ, names=[name])
        except StrongroomError as fault:
            faults.append(fault)
        else:
            found += announced
            pings += pinged
    return found, pings, faults


def _secret(secret: Secret, environ: Mapping[str, str]) -> str:
    return os.fsdecode(resolve(secret, environ))


def recovery_code_holder(code: bytes) -> KeyHolder:
    """The holder of the recovery code of a kit."""
    from strongroom.keys.recovery_code import (  # noqa: PLC0415
        RecoveryCodeHolder,
        parse_recovery_code,
    )

    return RecoveryCodeHolder(parse_recovery_code(code.decode("ascii", "replace")))


def _text(secret: Secret | None, environ: Mapping[str, str]) -> str | None:
    return None if secret is None else os.fsdecode(resolve(secret, environ))


def seams() -> Seams:
    """The real world, as the engine sees it."""
    from strongroom.repository.seams import Seams  # noqa: PLC0415

    return Seams(now=now, steady=steady, random=random_bytes)


def open_repository(
    storage: Storage,
    holders: Sequence[KeyHolder],
    *,
    jobs: int | None = None,
    reopen_every: int = 1,
) -> Repository:
    """The open repository; NotFound when there is none, KeyRefused when nothing opens it."""
    from strongroom import kernel  # noqa: PLC0415
    from strongroom.operations import opening  # noqa: PLC0415
    from strongroom.repository.seams import Settings  # noqa: PLC0415

    kernel.tune_allocator()
    # A run makes millions of short-lived objects and no cycles worth looking for.
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)
    workers = max(2, jobs or os.cpu_count() or 2)
    # Bigger packs where each object is a request, smaller ones where it is a file.
    pack = 16 if storage.url.startswith("/") or "://" not in storage.url else 48
    settings = Settings(sealers=workers, pack_size=pack << 20, reopen_every=reopen_every)
    return opening.open_repository(storage, holders, seams=seams(), settings=settings)


def new_repository(storage: Storage, identity: Identity, keys: Keyring) -> Repository:
    """The repository that was just created, with the keys that it was created with."""
    from strongroom.repository.repository import Repository  # noqa: PLC0415

    return Repository(storage, identity, keys, seams=seams())


def make_source(
    name: str,
    table: SourceTable,
    *,
    repository: Repository | None,
    cache_dir: str,
    environ: Mapping[str, str],
    jobs: int | None,
    configuration: Configuration | None = None,
    accept_system: bool = False,
) -> Source:
    """The source that a table describes; without a repository it keeps no change cache.

    `accept_system`: of a cluster that has become another system, its WAL is that one's from now on.
    """
    if isinstance(table, FilesTable) and is_remote(table.path):
        program = rclone(configuration or Configuration(), environ, jobs=jobs)
        return _remote_source(name, table, repository, cache_dir, program)
    if isinstance(table, FilesTable):
        return _file_source(name, table, repository, cache_dir)
    if table.method == "physical":
        return _cluster_source(
            name, table, repository, cache_dir, environ, jobs, accept_system=accept_system
        )
    return _database_source(name, table, environ, jobs)


def _file_source(
    name: str, table: FilesTable, repository: Repository | None, cache_dir: str
) -> Source:
    from strongroom.files.source import FileSource  # noqa: PLC0415

    folder = None
    if repository is not None:
        folder = os.path.join(cache_dir, repository.identity.id.hex())
        _make_private(folder)
    return FileSource(
        name,
        os.fsencode(table.path),
        include=[os.fsencode(pattern) for pattern in table.include],
        exclude=[os.fsencode(pattern) for pattern in table.exclude],
        cache_dir=None if folder is None else os.fsencode(folder),
        repository="" if repository is None else repository.identity.id.hex(),
        one_file_system=table.one_file_system,
    )


def _remote_source(
    name: str,
    table: FilesTable,
    repository: Repository | None,
    cache_dir: str | None,
    program: Rclone,
) -> RcloneSource:
    from strongroom.files.rclone.source import RcloneSource  # noqa: PLC0415

    folder = None
    if repository is not None and cache_dir is not None:
        folder = os.path.join(cache_dir, repository.identity.id.hex())
        _make_private(folder)
    return RcloneSource(
        name,
        check_remote(table.path),
        program,
        include=[os.fsencode(pattern) for pattern in table.include],
        exclude=[os.fsencode(pattern) for pattern in table.exclude],
        cache_dir=None if folder is None else os.fsencode(folder),
        repository="" if repository is None else repository.identity.id.hex(),
    )


def rclone(
    configuration: Configuration, environ: Mapping[str, str], *, jobs: int | None = None
) -> Rclone:
    """The rclone that the configuration names, or that is found; ConfigError when there is none."""
    from strongroom.files.rclone.tool import Rclone, find_program  # noqa: PLC0415

    return Rclone(
        find_program(configuration.rclone_bin, environ),
        environ,
        config=configuration.rclone_config,
        config_pass=_text(configuration.rclone_config_pass, environ),
        jobs=jobs,
    )


def _database_source(
    name: str, table: PostgresTable, environ: Mapping[str, str], jobs: int | None
) -> LogicalSource:
    from strongroom.postgres.clients import Clients  # noqa: PLC0415
    from strongroom.postgres.logical.source import LogicalSource  # noqa: PLC0415

    return LogicalSource(
        name,
        table.dsn,
        password=_text(table.password, environ),
        databases=table.databases,
        jobs=jobs or table.jobs,
        clients=None if table.bin_dir is None else Clients.found(table.bin_dir),
        global_objects=table.globals,
        role_passwords=table.role_passwords,
        unlogged=table.unlogged,
    )


def _cluster_source(
    name: str,
    table: PostgresTable,
    repository: Repository | None,
    cache_dir: str | None,
    environ: Mapping[str, str],
    jobs: int | None,
    *,
    accept_system: bool = False,
) -> LocalSource | StreamSource:
    from strongroom.postgres.physical.local import LocalSource, is_local  # noqa: PLC0415
    from strongroom.postgres.wal.copies import CopiedWal  # noqa: PLC0415
    from strongroom.repository.wal import WalStore  # noqa: PLC0415

    password = _text(table.password, environ)
    archive = None
    if repository is not None:
        archive = CopiedWal(WalStore(repository), name, accept_system=accept_system)
    here = table.via == "local" or (
        table.via is None
        and is_local(table.dsn, password=password, data_directory=table.data_directory)
    )
    if not here:
        from strongroom.postgres.physical.stream import StreamSource  # noqa: PLC0415

        return StreamSource(
            name,
            table.dsn,
            password=password,
            external=table.external,
            jobs=jobs or table.jobs,
            archive=archive,
        )
    folder = None
    if repository is not None and cache_dir is not None:
        folder = os.path.join(cache_dir, repository.identity.id.hex())
        _make_private(folder)
    return LocalSource(
        name,
        table.dsn,
        password=password,
        data_directory=table.data_directory,
        external=table.external,
        jobs=jobs or table.jobs,
        cache_dir=None if folder is None else os.fsencode(folder),
        repository="" if repository is None else repository.identity.id.hex(),
        archive=archive,
    )


def _make_private(folder: str) -> None:
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
    except OSError as fault:
        raise ConfigError(
            f"The cache folder {folder} cannot be made: {fault.strerror}.",
            do="Name another with --cache-dir or `cache_dir`; losing a cache costs time only.",
        ) from None


def require_repository(storage: Storage) -> None:
    """NotFound when there is no repository in the storage."""
    from strongroom.repository import identity  # noqa: PLC0415

    identity.load(storage)


def new_key_file() -> str:
    """The text of a new key file."""
    from strongroom.keys.keyfile import generate_keyfile  # noqa: PLC0415

    return generate_keyfile(random_bytes)


def new_recovery_code() -> tuple[str, KeyHolder]:
    """A new recovery code and its holder."""
    from strongroom.keys.recovery_code import generate_recovery_code  # noqa: PLC0415

    code = generate_recovery_code(random_bytes)
    return code, recovery_code_holder(code.encode())


def kit_sources(configuration: Configuration) -> dict[str, str]:
    """For each source where the kit's example restores it to, on a machine that knows nothing."""
    return {
        name: f"./restored-{name}"
        if isinstance(table, FilesTable)
        else f"postgresql://USER@SERVER/restored_{name}"
        for name, table in configuration.source.items()
    }


def kit_access(configuration: Configuration, environ: Mapping[str, str]) -> dict[str, str]:
    """What of the environment an S3 store needs besides its address; "" for secrets."""
    table = configuration.repository
    if table.url is None or not table.url.startswith("s3://"):
        return {}
    s3 = table.s3 or S3()
    endpoints = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
    known = {
        "AWS_ENDPOINT_URL": s3.endpoint or next(filter(None, map(environ.get, endpoints)), None),
        "AWS_REGION": s3.region or environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION"),
        "AWS_ALLOW_HTTP": "true" if s3.allow_http else environ.get("AWS_ALLOW_HTTP"),
    }
    access = {name: value for name, value in known.items() if value}
    return {**access, "AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}


def kit_text(
    repository: Repository,
    code: str,
    created: datetime,
    *,
    configuration: Configuration,
    environ: Mapping[str, str],
) -> str:
    """The recovery kit of an existing repository for a new code."""
    from strongroom import __version__  # noqa: PLC0415
    from strongroom.keys.kit import recovery_kit  # noqa: PLC0415

    return recovery_kit(
        repository_id=repository.identity.id.hex(),
        url=repository.storage.url,
        created=created.isoformat(timespec="seconds"),
        recovery_code=code,
        version=__version__,
        sources=kit_sources(configuration),
        access=kit_access(configuration, environ),
    )


def probe_source(
    name: str,
    table: SourceTable,
    *,
    environ: Mapping[str, str],
    configuration: Configuration | None = None,
) -> dict[str, Any]:
    """What a source says of itself, as JSON values; its error when it cannot be had."""
    if isinstance(table, FilesTable) and is_remote(table.path):
        program = rclone(configuration or Configuration(), environ)
        return _remote_source(name, table, None, None, program).probe()
    if isinstance(table, FilesTable):
        from strongroom.operations.probe_files import probe_files  # noqa: PLC0415

        return probe_files(
            os.fsencode(table.path),
            include=[os.fsencode(pattern) for pattern in table.include],
            exclude=[os.fsencode(pattern) for pattern in table.exclude],
            one_file_system=table.one_file_system,
        )
    if table.method == "physical":
        return _cluster_source(name, table, None, None, environ, None).probe()
    return _database_source(name, table, environ, None).probe()


def judge_remote(
    configuration: Configuration, environ: Mapping[str, str], path: str, source: str
) -> Finding:
    """How the remote of a source is set up, for `doctor`; no secret is in the answer."""
    from strongroom.files.rclone.accounts import lacks_storage, name_of, options_of  # noqa: PLC0415
    from strongroom.rules.preconditions import Finding, ok  # noqa: PLC0415

    item = f"source {source} remote"
    remote = check_remote(path)
    remotes = rclone(configuration, environ).remotes()
    options = options_of(remote, remotes, environ)
    kind = options.get("type") or "on the fly"
    if lacks_storage(options):
        return Finding(
            item,
            "failed",
            f"{name_of(remote)} is Google Drive as a service account, which has no storage of its "
            "own: nothing can be restored to it",
            "Use a Shared Drive (`team_drive`) or domain-wide delegation (`impersonate`).",
        )
    key_file = options.get("service_account_file")
    if key_file and not os.access(os.path.expanduser(key_file), os.R_OK):
        return Finding(
            item,
            "failed",
            f"the key file of {name_of(remote)} cannot be read: {key_file}",
            "Correct `service_account_file` of the remote, or its rights.",
        )
    return ok(item, f"{name_of(remote) or remote} is of type {kind}")


def storage_endpoint(
    configuration: Configuration, environ: Mapping[str, str]
) -> tuple[Place | None, str | None, str]:
    """Where the store is asked, and the TLS that was negotiated there; or why that is not known."""
    from strongroom.storage.location import parse  # noqa: PLC0415
    from strongroom.storage.looking import negotiated, place_of  # noqa: PLC0415

    table = configuration.repository
    if table.url is None:
        return None, None, ""
    s3 = table.s3 or S3()
    place = place_of(parse(table.url), environ, endpoint=s3.endpoint, region=s3.region)
    if place is None or not place.url.startswith("https:"):
        return place, None, ""
    try:
        return place, negotiated(place, s3.ca_file, environ), ""
    except StrongroomError as fault:
        return place, None, fault.what


def storage_versions(
    configuration: Configuration, environ: Mapping[str, str]
) -> tuple[str, str | None, str | None, str]:
    """The kind of the store, whether it keeps versions, how it locks objects; or why that is not known."""
    from strongroom.storage.location import parse  # noqa: PLC0415
    from strongroom.storage.looking import place_of, versioning  # noqa: PLC0415

    table = configuration.repository
    if table.url is None:
        return "file", None, None, ""
    location, s3 = parse(table.url), table.s3 or S3()
    if location.scheme != "s3":
        return location.scheme, None, None, f"{location.scheme}:// is not asked"
    place = place_of(location, environ, endpoint=s3.endpoint, region=s3.region)
    assert place is not None
    settings = {
        "region_name": s3.region,
        "aws_access_key_id": _text(s3.access_key_id, environ),
        "aws_secret_access_key": _text(s3.secret_access_key, environ),
        "aws_session_token": _text(s3.session_token, environ),
    }
    try:
        kept, locked = versioning(location, place, ca_file=s3.ca_file, settings=settings)
    except StrongroomError as fault:
        return location.scheme, None, None, fault.what
    return location.scheme, kept, locked, ""


def rights_wanted(
    name: str,
    table: PostgresTable,
    environ: Mapping[str, str],
    *,
    role: str | None = None,
    receives: bool = False,
) -> Asked:
    """What the role of a source needs, by what its server says; or why that could not be asked.

    `receives`: its log is received too; else that is taken from a slot that is configured, or there.
    """
    from strongroom.postgres.grants import Needs, Purpose  # noqa: PLC0415
    from strongroom.postgres.rights import Asked, ask  # noqa: PLC0415
    from strongroom.postgres.server import is_near  # noqa: PLC0415

    conninfo, slot = wal_place(name, table, environ)
    logical = table.method == "logical"
    every = table.databases == ("*",)
    premises, away = None, None
    try:
        premises = ask(conninfo, () if every else table.databases, every=logical and every)
    except StrongroomError as fault:
        away = fault
    purpose: Purpose = "logical"
    if not logical:
        told = table.data_directory or (premises.data_directory if premises else None)
        near = is_near(conninfo) if premises is None else premises.near
        here = near and (told is None or os.path.isdir(told))
        purpose = table.via or ("local" if here else "stream")
    received = receives or table.slot is not None or (premises and slot in premises.slots)
    user = conninfo.parameters.get("user") or environ.get("PGUSER")
    if premises is not None:
        user = None if premises.superuser else premises.user
    needs = Needs(
        role or user or _ROLE,
        (purpose, "receive") if received else (purpose,),
        conninfo.database,
        (premises.databases if premises else table.databases) if logical else (),
        major=None if premises is None else premises.major,
        row_security=premises.row_security if premises and logical else (),
        archives=None if premises is None else premises.archives,
    )
    return Asked(needs, premises, away)


_ROLE = "strongroom"


@dataclass(frozen=True, slots=True)
class DatabaseTarget:
    """Where a database is restored to: a server (without a secret) and the name it will have."""

    dsn: str
    database: str
    password: Secret | None = None


def find_target(to: str, table: PostgresTable | None) -> DatabaseTarget:
    """Take `--to` apart: a libpq string names server and database, a bare name only the latter.

    A bare name stands on the server of the configured source, else where libpq's environment leads.
    """
    from strongroom.postgres.server import Conninfo  # noqa: PLC0415

    if "=" in to or "://" in to:
        there = Conninfo.parse(to)
        database = there.parameters.get("dbname")
        if not database:
            raise UsageError(
                "The target names no database.",
                do="Write it like `--to postgresql://user@host/new_name`.",
            )
        return DatabaseTarget(there.on("postgres").public(), database)
    here = Conninfo.parse("" if table is None else table.dsn)
    password = None if table is None else table.password
    return DatabaseTarget(here.on("postgres").public(), to, password)


def file_sink(
    target: bytes, *, paths: Sequence[bytes], force: bool, in_place: bool, owner: bool
) -> Sink:
    """The sink that fills a folder."""
    from strongroom.files.sink import FileSink  # noqa: PLC0415

    return FileSink(
        target, paths=paths, in_place=in_place, force=force, owner=None if owner else False
    )


def remote_sink(
    to: str,
    *,
    configuration: Configuration,
    environ: Mapping[str, str],
    cache_dir: str,
    paths: Sequence[bytes],
    force: bool,
    replace: bool,
) -> RcloneSink:
    """The sink that fills a folder in a cloud, `rclone:remote:path`."""
    from strongroom.files.rclone.sink import RcloneSink  # noqa: PLC0415

    try:
        remote = check_remote(to)
    except ValueError as fault:
        raise UsageError(f"The target {fault}.", do="Write it like rclone:remote:path.") from None
    return RcloneSink(
        remote,
        rclone(configuration, environ, jobs=configuration.jobs),
        paths=paths,
        force=force,
        replace=replace,
        staging=cache_dir,
    )


def database_sink(
    target: DatabaseTarget,
    *,
    environ: Mapping[str, str],
    database: str | None,
    schemas: Sequence[str],
    tables: Sequence[str],
    global_objects: bool,
    owner: bool,
    locale: str | None,
    replace: bool,
    jobs: int | None,
) -> Sink:
    """The sink that makes one database."""
    from strongroom.postgres.logical.sink import LogicalSink, Subset  # noqa: PLC0415

    return LogicalSink(
        target.dsn,
        target.database,
        password=_text(target.password, environ),
        database=database,
        replace=replace,
        subset=Subset.parse(schemas, tables),
        global_objects=global_objects,
        owner=owner,
        privileges=owner,
        locale=locale,
        jobs=jobs,
    )


def database_runbook(
    table: PostgresTable,
    snapshot: Snapshot,
    *,
    repository: Repository,
    environ: Mapping[str, str],
    tell: Callable[[str], None],
    database: str | None,
    global_objects: bool,
    owner: bool,
    locale: str | None,
    jobs: int | None,
) -> DatabaseRunbook:
    """The runbook of a database, under the name that it has in its source."""
    from strongroom.operations.runbook_database import DatabaseRunbook  # noqa: PLC0415
    from strongroom.postgres.exchange import Exchange  # noqa: PLC0415
    from strongroom.postgres.server import Conninfo  # noqa: PLC0415

    name = database or Conninfo.parse(table.dsn).database
    held = repository.open_snapshot(snapshot).facts.get("databases", {})
    recorded = name if name in held else database
    target = find_target(name, table)

    def sink(to: str, replace: bool) -> Sink:
        return database_sink(
            DatabaseTarget(target.dsn, to, target.password),
            environ=environ,
            database=recorded,
            schemas=(),
            tables=(),
            global_objects=global_objects,
            owner=owner,
            locale=locale,
            replace=replace,
            jobs=jobs,
        )

    def safety() -> Source:
        one = msgspec.structs.replace(table, databases=(name,))
        return _database_source(snapshot.source, one, environ, jobs)

    return DatabaseRunbook(
        repository,
        snapshot,
        name,
        recorded,
        Exchange(Conninfo.parse(target.dsn, password=_text(target.password, environ))),
        sink,
        safety,
        table.runbook,
        _runner(environ, tell),
        table.promise.rto,
        now,
    )


def vault_runbook(
    table: FilesTable,
    snapshot: Snapshot,
    *,
    repository: Repository,
    environ: Mapping[str, str],
    tell: Callable[[str], None],
    owner: bool,
) -> VaultRunbook:
    """The runbook of a vault, at the path that it has in its source."""
    from strongroom.operations.runbook_vault import VaultRunbook  # noqa: PLC0415

    def sink(folder: str) -> Sink:
        return file_sink(os.fsencode(folder), paths=(), force=False, in_place=False, owner=owner)

    run = _runner(environ, tell)
    return VaultRunbook(
        repository, snapshot, table.path, sink, table.runbook, run, table.promise.rto, now
    )


def cloud_runbook(
    table: FilesTable,
    snapshot: Snapshot,
    *,
    repository: Repository,
    configuration: Configuration,
    environ: Mapping[str, str],
    cache_dir: str,
    tell: Callable[[str], None],
    jobs: int | None,
) -> CloudRunbook:
    """The runbook of a vault in a cloud, at the remote that it has in its source."""
    from strongroom.operations.runbook_cloud import CloudRunbook  # noqa: PLC0415

    def sink() -> RcloneSink:
        return remote_sink(
            table.path,
            configuration=configuration,
            environ=environ,
            cache_dir=cache_dir,
            paths=(),
            force=True,
            replace=True,
        )

    def safety() -> Source:
        everything = msgspec.structs.replace(table, include=(), exclude=())
        program = rclone(configuration, environ, jobs=jobs)
        return _remote_source(snapshot.source, everything, repository, cache_dir, program)

    run = _runner(environ, tell)
    return CloudRunbook(
        repository,
        snapshot,
        table.path,
        sink,
        safety,
        table.runbook,
        run,
        table.promise.rto,
        now,
    )


def drill_course(
    source: str,
    table: SourceTable | None,
    wanted: Drill,
    *,
    repository: Repository,
    environ: Mapping[str, str],
    tell: Callable[[str], None],
    jobs: int | None,
    progress: Progress,
) -> Course:
    """The drill of a source, by what its newest backup is; it need not be configured here."""
    from strongroom.operations.browse import find_snapshot  # noqa: PLC0415
    from strongroom.operations.drill_database import ClusterCourse, DumpCourse  # noqa: PLC0415
    from strongroom.operations.drill_vault import VaultCourse  # noqa: PLC0415
    from strongroom.operations.points import is_cluster  # noqa: PLC0415

    run = _drill_runner(environ, tell)
    if find_snapshot(repository, source).kind != "postgres":
        if wanted.queries:
            raise UsageError(f"{source} is a vault: it answers no queries.", do="Leave out --sql.")
        files = table.drill if isinstance(table, FilesTable) else FilesDrill()
        return VaultCourse(repository, source, files, wanted, run=run, progress=progress)
    database = table if isinstance(table, PostgresTable) else None
    kind: type[ClusterCourse] | type[DumpCourse] = (
        ClusterCourse if is_cluster(repository, source) else DumpCourse
    )
    return kind(
        repository,
        source,
        PostgresDrill() if database is None else database.drill,
        wanted,
        database=database_of(database),
        checks=() if database is None else database.runbook.checks,
        run=run,
        jobs=jobs,
        progress=progress,
    )


def drill_scratch(table: SourceTable | None, scratch: str | None) -> str:
    """Where the drills of a source make what they make."""
    from strongroom.operations.drill_room import place_for  # noqa: PLC0415

    return place_for(scratch or (None if table is None else table.drill.scratch))


def _drill_runner(
    environ: Mapping[str, str], tell: Callable[[str], None]
) -> Callable[[Sequence[str], str | None, Mapping[str, str], bool], None]:
    """Runs commands of a drill: nothing in their environment leads to a server but the throw-away
    one, they do not outlive the drill, and reach no network unless they may."""
    from strongroom.operations.commands import run_command  # noqa: PLC0415
    from strongroom.postgres.embedded import GUARD  # noqa: PLC0415

    kept = {
        name: value
        for name, value in environ.items()
        if name not in SECRET_VARIABLES and name != "DATABASE_URL" and not name.startswith("PG")
    }

    def run(argv: Sequence[str], cwd: str | None, more: Mapping[str, str], network: bool) -> None:
        below = [sys.executable, "-I", "-S", GUARD, "command", "" if network else "apart"]
        run_command(argv, environ={**kept, **more}, cwd=cwd, tell=tell, below=below)

    return run


def _runner(
    environ: Mapping[str, str], tell: Callable[[str], None]
) -> Callable[[Sequence[str], str | None, Mapping[str, str]], None]:
    """Runs configured commands, without the secrets of the repository in their environment."""
    from strongroom.operations.commands import run_command  # noqa: PLC0415

    kept = {name: value for name, value in environ.items() if name not in SECRET_VARIABLES}

    def run(argv: Sequence[str], cwd: str | None, more: Mapping[str, str]) -> None:
        run_command(argv, environ={**kept, **more}, cwd=cwd, tell=tell)

    return run


# -- WAL ---------------------------------------------------------------------------------------


def wal_sources(configuration: Configuration) -> dict[str, bool]:
    """The configured databases; True for those that are backed up physically."""
    return {
        name: str(table.method) == "physical"
        for name, table in configuration.source.items()
        if isinstance(table, PostgresTable)
    }


def wal_daemon(
    repository: Repository,
    configuration: Configuration,
    *,
    path: str | None,
    environ: Mapping[str, str],
    ahead: int,
    explain: Callable[[StrongroomError], str],
    tell: Callable[[str], None],
) -> Daemon:
    """The daemon of one configuration, which was read from `path`."""
    from strongroom.postgres.wal.ahead import FetchAhead, PushAhead  # noqa: PLC0415
    from strongroom.postgres.wal.daemon import Daemon, OneConfiguration  # noqa: PLC0415
    from strongroom.postgres.wal.fetch import Fetcher  # noqa: PLC0415
    from strongroom.postgres.wal.push import Pusher  # noqa: PLC0415
    from strongroom.repository.wal import WalStore  # noqa: PLC0415

    store = WalStore(repository)
    workers = max(2, configuration.jobs or os.cpu_count() or 2)
    served = OneConfiguration(
        path, environ.get("STRONGROOM_REPOSITORY", ""), wal_sources(configuration)
    )
    push = PushAhead(Pusher(store, lasts=True).push, workers=workers, window=ahead)
    fetch = FetchAhead(store.pieces, workers=workers, window=ahead, limit=_WAL_KEPT)
    return Daemon(
        served,
        push=push.push,
        fetcher=Fetcher(store, get=fetch.get),
        explain=explain,
        tell=tell,
    )


def receiver(
    name: str,
    table: SourceTable,
    *,
    repository: Repository,
    spool: Spool,
    wanted: Callable[[str], Wanted],
    environ: Mapping[str, str],
    tell: Callable[..., None],
    progress: Progress,
    stop: Callable[[], bool],
) -> Receiver:
    """What receives the log of a source; `wanted` says how, by the name of its slot."""
    from strongroom.postgres.wal.receive import Receiver  # noqa: PLC0415
    from strongroom.repository.wal import WalStore  # noqa: PLC0415

    conninfo, slot = wal_place(name, table, environ)
    return Receiver(
        name,
        conninfo,
        WalStore(repository),
        spool,
        wanted(slot),
        tell=tell,
        progress=progress,
        stop=stop,
    )


def wal_place(name: str, table: SourceTable, environ: Mapping[str, str]) -> tuple[Conninfo, str]:
    """Where the log of a source comes from, and by which replication slot."""
    from strongroom.postgres.server import Conninfo  # noqa: PLC0415
    from strongroom.postgres.wal.slots import slot_name  # noqa: PLC0415

    if not isinstance(table, PostgresTable):
        raise UsageError("The source is no database: it has no WAL.")
    conninfo = Conninfo.parse(table.dsn, password=_text(table.password, environ))
    return conninfo, table.slot or slot_name(name)


def ask_slot(name: str, table: SourceTable, environ: Mapping[str, str]) -> Slot | None:
    """The replication slot of a source; None where there is none or nobody can be asked."""
    from strongroom.postgres.wal.slots import ask_slot as ask  # noqa: PLC0415

    conninfo, slot = wal_place(name, table, environ)
    try:
        return ask(conninfo, slot)
    except StrongroomError:
        return None


def ask_archiver(
    table: SourceTable, environ: Mapping[str, str]
) -> tuple[Archiver | None, StrongroomError | None]:
    """What the server of a source says of its archiving, or why it cannot be asked."""
    from strongroom.postgres.wal.archiver import ask_archiver as ask  # noqa: PLC0415

    if not isinstance(table, PostgresTable):
        raise UsageError("The source is no database: it has no WAL.")
    try:
        return ask(table.dsn, _text(table.password, environ)), None
    except StrongroomError as fault:
        return None, fault


_WAL_KEPT = 256 << 20  # bytes of segments that recovery will ask for next


# -- clusters ----------------------------------------------------------------------------------


def cluster_sink(
    target: bytes,
    *,
    recovery: Recovery,
    delta: bool,
    spaces: Mapping[bytes, bytes],
    made: Sequence[Made],
    owner: bool,
    jobs: int | None,
) -> Sink:
    """The sink that fills a data directory."""
    from strongroom.postgres.recovery.sink import PhysicalSink  # noqa: PLC0415

    return PhysicalSink(
        target,
        recovery=recovery,
        delta=delta,
        spaces=spaces,
        made=made,
        owner=None if owner else False,
        jobs=jobs,
    )


def fetch_command(
    config: str | None,
    environ: Mapping[str, str],
    *,
    repository: str | None = None,
    key_file: str | None = None,
    passphrase_file: str | None = None,
    recovery_code_file: str | None = None,
    standby: bool = False,
    partial: bool = False,
) -> str:
    """restore_command of a cluster restored here: this program, with this configuration.

    Only names of files and places are in it, no secret. $STRONGROOM_PROGRAM names the program
    where it is started through another one.
    """
    from strongroom.postgres.recovery.settings import command  # noqa: PLC0415

    program = environ.get("STRONGROOM_PROGRAM") or os.path.abspath(sys.argv[0])
    if os.path.basename(program) == "strongroom" and os.access(program, os.X_OK):
        client = program + "-wal"  # which runs the program where no daemon answers
        words = [client] if os.access(client, os.X_OK) else [program, "wal"]
    else:
        words = [sys.executable, "-m", "strongroom", "wal"]
    words += ["fetch", "%f", "%p"]
    if config is not None:
        words.append(f"--config={os.path.abspath(config)}")
    if environ.get("STRONGROOM_WAL_SOCKET"):
        words.append(f"--socket={environ['STRONGROOM_WAL_SOCKET']}")
    place = repository or environ.get("STRONGROOM_REPOSITORY")
    if place:
        words.append(f"--repository={place if '://' in place else os.path.abspath(place)}")
    for flag, path in (
        ("--key-file", key_file),
        ("--passphrase-file", passphrase_file),
        ("--recovery-code-file", recovery_code_file),
    ):
        if path is not None:
            words.append(f"{flag}={os.path.abspath(path)}")
    words += ["--standby"] * standby + ["--partial"] * partial
    return command(words)


def primary_conninfo(dsn: str) -> str:
    """What a standby is told of its primary; UsageError when a secret is in it, which would lie in
    postgresql.auto.conf for every backup to keep."""
    from psycopg.conninfo import make_conninfo  # noqa: PLC0415

    from strongroom.postgres.server import Conninfo  # noqa: PLC0415

    parsed = Conninfo.parse(dsn)
    if parsed.secrets:
        raise UsageError(
            f"--primary holds a {next(iter(parsed.secrets))}.",
            do="Leave it out, and put it into ~/.pgpass of the standby's account.",
        )
    return make_conninfo(**parsed.parameters)


def clients(table: SourceTable | None) -> Clients:
    """The client programs that a source uses."""
    from strongroom.postgres.clients import Clients  # noqa: PLC0415

    return Clients.found(table.bin_dir if isinstance(table, PostgresTable) else None)


def database_of(table: SourceTable | None) -> str | None:
    """The database that a source's dsn names."""
    if not isinstance(table, PostgresTable):
        return None
    from strongroom.postgres.server import Conninfo  # noqa: PLC0415

    return Conninfo.parse(table.dsn).parameters.get("dbname")


# -- artefacts ---------------------------------------------------------------------------------


def artefact_writer(
    content: str, table: SourceTable | None, database: str | None
) -> tuple[
    Callable[[SnapshotReader, Callable[[bytes | bytearray | memoryview], object]], object] | None,
    dict[str, str],
]:
    """What writes the content of a database's artefact (None for files), and versions to name."""
    from importlib.metadata import version  # noqa: PLC0415

    tools = {name: version(name) for name in ("isal", "zlib-ng")}
    if content == "tar":
        return None, tools
    from strongroom.postgres.clients import Clients  # noqa: PLC0415
    from strongroom.postgres.plain import writing  # noqa: PLC0415

    if content != "sql":
        return partial(writing.write_custom, database=database), tools
    bin_dir = table.bin_dir if isinstance(table, PostgresTable) else None
    clients = Clients.found(bin_dir)
    return partial(writing.write_plain, clients=clients, database=database), tools


def artefact_loader(
    content: str,
    target: DatabaseTarget,
    *,
    environ: Mapping[str, str],
    owner: bool,
    code: bool,
    vouched: bool,
) -> Callable[[Callable[[int], bytes], Progress], Mapping[str, Any]]:
    """What restores plain SQL or a custom archive as a new database, through libpq."""
    from strongroom.postgres.plain.executor import restore_plain  # noqa: PLC0415
    from strongroom.postgres.plain.scripting import script_of  # noqa: PLC0415

    password = _text(target.password, environ)

    def load(read: Callable[[int], bytes], progress: Progress) -> Mapping[str, Any]:
        with script_of(read) if content == "custom" else nullcontext(read) as script:
            done = restore_plain(
                script,
                target.dsn,
                target.database,
                password=password,
                owner=owner,
                privileges=owner,
                code=code,
                vouched=vouched,
                progress=progress,
            )
        return {
            "database": target.database,
            "statements": done.statements,
            "rows": done.rows,
            "tables": done.tables,
            "notes": list(done.notes),
        }

    return load


def artefact_trust(
    configuration: Configuration, storage: Storage | None, pinned: Sequence[str]
) -> Trust:
    """Whose signature counts: the files named, and every writer of the repository."""
    from strongroom.artefacts.manifest import Trust, read_pem  # noqa: PLC0415
    from strongroom.repository import identity  # noqa: PLC0415

    keys = [
        read_pem(_small(path), path) for path in (*configuration.artefacts.public_keys, *pinned)
    ]
    if storage is None:
        return Trust(keys)
    of = identity.load(storage)
    return Trust(keys, {of.id: of.admin_public})


def artefact_keys(
    configuration: Configuration,
    environ: Mapping[str, str],
    name: str,
    *,
    key_file: str | None,
    identity_file: str | None,
) -> Keys:
    """What opens an artefact: the files given, else those configured."""
    from strongroom.artefacts.opening import Keys  # noqa: PLC0415

    key = usual = None
    place = artefact_key_path(configuration, environ, name)
    if key_file is not None:
        key = read_private(key_file, "The artefact's key file")
    elif os.path.exists(place):
        usual = read_private(place, "The artefact's key file")
    identity = None
    if identity_file is not None:
        identity = read_private(identity_file, "The identity file")
    elif configuration.artefacts.identity is not None:
        identity = resolve(configuration.artefacts.identity, environ)
    unwrap = None
    if configuration.repository.kms_key is not None:
        unwrap = partial(_unwrap, configuration)
    return Keys(key, usual, identity, unwrap=unwrap)


def _unwrap(configuration: Configuration, wrapped: bytes, name: str, by: str | None) -> bytes:
    from strongroom.artefacts.sealing import new_key, wrap_context  # noqa: PLC0415

    return new_key(kms_holder(configuration, by).unwrap_data_key(wrapped, wrap_context(name)))


def artefact_key_path(configuration: Configuration, environ: Mapping[str, str], name: str) -> str:
    """Where the key file of an encrypted artefact is kept: never beside it."""
    folder = configuration.artefacts.key_dir
    if folder is None:
        base = environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
        folder = os.path.join(base, "strongroom", "artefact-keys")
    return os.path.join(folder, name + ".key")


def _small(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(64 * 1024)
    except OSError as fault:
        raise ConfigError(f"The public key {path} cannot be read: {fault.strerror}.") from None
