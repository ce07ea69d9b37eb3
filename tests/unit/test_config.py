"""Configuration: the example of the design as it stands, every kind of wrong, secrets, origins."""

from __future__ import annotations

import json
import os
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from strongroom.config.lines import Lines
from strongroom.config.loading import ConfigFaults, Override, load
from strongroom.config.model import FilesTable, PostgresTable, json_schema
from strongroom.config.secrets import Secret, has_password, parse_secret, resolve
from strongroom.errors import ConfigError
from strongroom.rules.durations import Duration

DESIGN = """\
[repository]
url = "/var/lib/strongroom"            # or s3://bucket/prefix, gs://…, az://…, sftp://…
passphrase = "env:STRONGROOM_PASSPHRASE"

[source.stakazo-db]
type = "postgres"
dsn = "postgresql://backup@db/stakazo_prod"
method = "logical"                     # or "physical"
promise = { rpo = "24h", rto = "4h", keep = "30d" }

[source.memory-vault]
type = "files"
path = "/srv/stakazo/memory_vault"     # or rclone:gdrive:stakazo/memory_vault
include = ["ml_features/", "audits/", "campaign_history/", "clips_metadata/", "orchestrator_runs/"]
promise = { rpo = "31d", rto = "24h", keep = "12 months" }
"""

Write = Callable[[str], str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_file(text: str) -> str:
        path = tmp_path / "strongroom.toml"
        path.write_text(text)
        return str(path)

    return write_file


def faults_of(path: str) -> list[tuple[str, str]]:
    with pytest.raises(ConfigFaults) as caught:
        load(config=path, environ={})
    return [(place.rpartition("/")[2], text) for place, text in caught.value.faults]


def test_the_example_of_the_design(write: Write) -> None:
    loaded = load(config=write(DESIGN), environ={})
    assert loaded.configuration.repository.url == "/var/lib/strongroom"
    assert loaded.configuration.repository.passphrase == Secret("env", "STRONGROOM_PASSPHRASE")
    database, vault = loaded.configuration.source.values()
    assert isinstance(database, PostgresTable)
    assert database.dsn == "postgresql://backup@db/stakazo_prod"
    assert database.promise.rto == Duration(seconds=4 * 3600)
    assert isinstance(vault, FilesTable)
    assert vault.include[0] == "ml_features/"
    assert vault.promise.keep == Duration(months=12)


FAULTS = [
    (
        '[source.d]\ntype = "postgres"\ndsn = "host=a"\nslot = "Bad Name"',
        "4: source.d.slot",
        "must be 1 to 63 of a-z",
    ),
    ('[repositry]\nurl = "/r"', "1: repositry", 'no key here; did you mean "repository"?'),
    ('[repository]\nur = "/r"', "2: repository.ur", 'did you mean "url"?'),
    ('[repository]\nzzz = "/r"', "2: repository.zzz", "no key here"),
    ('repository = "/r"', "1: repository", "must be a table"),
    ("[repository]\nurl = 3", "2: repository.url", "must be text in quotes"),
    ('[repository]\nurl = ""', "2: repository.url", "is empty"),
    ('[repository]\nurl = "s3://key:secret@b/p"', "2: repository.url", "has a secret in it"),
    ('[repository]\npassphrase = "hunter2"', "2: repository.passphrase", "literal secret"),
    ('[repository]\npassphrase = "env:1X"', "2: repository.passphrase", "environment variable"),
    ('[repository]\npassphrase = "cmd:a \'b"', "2: repository.passphrase", "quote"),
    ('[repository]\npassphrase = "cmd:"', "2: repository.passphrase", "needs a program"),
    ('[repository]\npassphrase = "file:"', "2: repository.passphrase", "needs a path"),
    ('[repository]\npassphrase = "systemd:../x"', "2: repository.passphrase", "without a slash"),
    ("[repository]\npassphrase = 1", "2: repository.passphrase", "text in quotes"),
    (
        '[repository.s3]\nsecret_access_key = "AKIA"',
        "2: repository.s3.secret_access_key",
        "literal secret",
    ),
    ('timezone = "Mars/Olympus"', "1: timezone", "no time zone"),
    ("jobs = 0", "1: jobs", "between 1 and 256"),
    ('jobs = "2"', "1: jobs", "whole number"),
    ("jobs = true", "1: jobs", "whole number"),
    ("source = 3", "1: source", "[source.NAME]"),
    ("[source]\na = 3", "2: source.a", "must be a table"),
    ('[source.a]\npath = "/x"', "1: source.a.type", 'is missing: "postgres" or "files"'),
    ('[source.a]\ntype = "postgre"', "2: source.a.type", 'did you mean "postgres"?'),
    ("[source.a]\ntype = 3", "2: source.a.type", '"postgres" or "files"'),
    ('[source.a]\ntype = "files"', "1: source.a.path", "is missing"),
    ('[source.a]\ntype = "files"\npath = ""', "3: source.a.path", "is empty"),
    ('[source.a]\ntype = "files"\npath = "rclone:g"', "3: source.a.path", "rclone:remote:path"),
    (
        '[source.a]\ntype = "files"\npath = "/x"\ninclude = "a/"',
        "4: source.a.include",
        "list of texts",
    ),
    (
        '[source.a]\ntype = "files"\npath = "/x"\ninclude = ["a", 3]',
        "4: source.a.include",
        "list of texts",
    ),
    ('[source."a b"]\ntype = "files"\npath = "/x"', '1: source."a b"', "name"),
    ('[source."..x"]\ntype = "files"\npath = "/x"', '1: source."..x"', "name"),
    ('[source.a]\ntype = "postgres"', "1: source.a.dsn", "is missing"),
    ('[source.a]\ntype = "postgres"\ndsn = " "', "3: source.a.dsn", "is empty"),
    (
        '[source.a]\ntype = "postgres"\ndsn = "postgresql://u:pw@h/d"',
        "3: source.a.dsn",
        "has a password in it",
    ),
    (
        '[source.a]\ntype = "postgres"\ndsn = "host=h password=pw"',
        "3: source.a.dsn",
        "has a password in it",
    ),
    (
        '[source.a]\ntype = "postgres"\ndsn = "x"\nmethod = "logicl"',
        "4: source.a.method",
        'did you mean "logical"?',
    ),
    (
        '[source.a]\ntype = "files"\npath = "/x"\npromise = { rp = "1h" }',
        "4: source.a.promise.rp",
        'did you mean "rpo"?',
    ),
    (
        '[source.a]\ntype = "files"\npath = "/x"\npromise = { keep = "12m" }',
        "4: source.a.promise.keep",
        "12 months",
    ),
    (
        '[source.a]\ntype = "files"\npath = "/x"\n[source.a.promise]\nrpo = 24',
        "5: source.a.promise.rpo",
        "text in quotes",
    ),
]


@pytest.mark.parametrize(("text", "place", "says"), FAULTS, ids=[row[1] for row in FAULTS])
def test_every_kind_of_wrong(write: Write, text: str, place: str, says: str) -> None:
    faults = faults_of(write(text))
    assert [fault[0] for fault in faults] == [f"strongroom.toml:{place}"]
    assert says in faults[0][1]


@pytest.mark.parametrize("secret", ["hunter2", "s3kr1t-äöü"])
@pytest.mark.parametrize(
    "text",
    [
        '[repository]\npassphrase = "{}"',
        '[source.a]\ntype = "postgres"\ndsn = "postgresql://u:{}@h/d"',
        '[repository]\nurl = "s3://k:{}@b"',
    ],
)
def test_a_refused_secret_is_not_repeated(write: Write, text: str, secret: str) -> None:
    path = write(text.format(secret))
    with pytest.raises(ConfigFaults) as caught:
        load(config=path, environ={})
    shown = f"{caught.value} {caught.value.do} {caught.value.means} {caught.value.faults}"
    assert secret not in shown


def test_all_faults_come_at_once(write: Write) -> None:
    faults = faults_of(
        write(
            'jobs = 0\n[repository]\nur = "/r"\npassphrase = "x"\n'
            '[source.a]\ntype = "postgres"\ndsn = "password=x"\nmetod = "logical"\n'
        )
    )
    assert [place.partition(": ")[2] for place, _ in faults] == [
        "jobs",
        "repository.ur",
        "repository.passphrase",
        "source.a.metod",
        "source.a.dsn",
    ]


def test_what_is_not_toml_names_the_line(write: Write) -> None:
    assert "line 2" in faults_of(write("[repository]\nurl = x\n"))[0][1]


def test_missing_named_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--config, is not there"):
        load(config=str(tmp_path / "no.toml"), environ={})
    with pytest.raises(ConfigError, match=r"STRONGROOM_CONFIG, is not there"):
        load(environ={"STRONGROOM_CONFIG": str(tmp_path / "no.toml")})


def test_not_text_and_not_a_file(tmp_path: Path) -> None:
    path = tmp_path / "strongroom.toml"
    path.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load(config=str(path), environ={})
    with pytest.raises(ConfigError, match="cannot be read"):
        load(config=str(tmp_path), environ={})


def test_search_path_and_precedence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, here = tmp_path / "home", tmp_path / "here"
    (home / ".config/strongroom").mkdir(parents=True)
    here.mkdir()
    monkeypatch.chdir(here)
    environ = {"HOME": str(home)}

    def url() -> str | None:
        return load(environ=environ).configuration.repository.url

    assert url() is None
    for path, value in (
        (home / ".config/strongroom/strongroom.toml", "s3://of-home"),
        (here / "strongroom.toml", "s3://of-here"),
        (tmp_path / "named.toml", "s3://of-variable"),
    ):
        path.write_text(f'[repository]\nurl = "{value}"\n')
        if path.name == "named.toml":
            environ["STRONGROOM_CONFIG"] = str(path)
        assert url() == value
    environ["STRONGROOM_REPOSITORY"] = "s3://of-environment"
    assert url() == "s3://of-environment"
    flag = Override(("repository", "url"), "s3://of-flag", "--repository")
    loaded = load(environ=environ, overrides=(flag,))
    assert loaded.configuration.repository.url == "s3://of-flag"
    assert loaded.origin(("repository", "url")) == "--repository"


def test_found_configuration_of_somebody_else_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "strongroom.toml"
    path.write_text('[repository]\npassphrase = "cmd:touch /tmp/owned"\n')
    path.chmod(0o666)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="written by everybody") as caught:
        load(environ={"HOME": "/nowhere"})
    assert "--config strongroom.toml" in caught.value.do
    assert load(config="strongroom.toml", environ={}).configuration.repository.passphrase


def test_who_brings_a_key_brings_all_keys(write: Write) -> None:
    path = write('[repository]\nurl = "s3://b"\nkey_file = "/k"\npassphrase = "env:OF_FILE"\n')
    repository = load(
        config=path, environ={"STRONGROOM_RECOVERY_CODE": "x"}
    ).configuration.repository
    assert repository.recovery_code == Secret("env", "STRONGROOM_RECOVERY_CODE")
    assert repository.key_file is None
    assert repository.passphrase is None


def test_a_literal_secret_is_refused_also_where_another_one_counts(write: Write) -> None:
    path = write('[repository]\npassphrase = "hunter2"\n')
    with pytest.raises(ConfigFaults, match="literal secret"):
        load(config=path, environ={"STRONGROOM_PASSPHRASE": "x"})


def test_paths_of_a_file_are_relative_to_its_folder(write: Write, tmp_path: Path) -> None:
    path = write(
        '[repository]\nurl = "./repo"\nkey_file = "key"\n'
        '[source.a]\ntype = "files"\npath = "vault"\n'
    )
    configuration = load(config=path, environ={}).configuration
    source = configuration.source["a"]
    assert isinstance(source, FilesTable)
    assert os.path.normpath(configuration.repository.url or "") == str(tmp_path / "repo")
    assert configuration.repository.key_file == str(tmp_path / "key")
    assert source.path == str(tmp_path / "vault")


def test_origin_of_every_value(write: Write) -> None:
    loaded = load(config=write(DESIGN), environ={"STRONGROOM_PASSPHRASE": "x"})
    origins = {".".join(key): loaded.origin(key).rpartition("/")[2] for key in loaded.values}
    assert origins["repository.url"] == "strongroom.toml:2"
    assert origins["repository.passphrase"] == "$STRONGROOM_PASSPHRASE"
    assert origins["source.memory-vault.promise.keep"] == "strongroom.toml:15"
    assert len(origins) == 14


@pytest.mark.parametrize(
    ("text", "key", "line"),
    [
        ('# c\n\n[a]\n# c\nb = """\nx\n"""\nc = [\n1,\n2]\n', ("a", "b"), 5),
        ('[a]\nb = """\nc = 1\n"""\nc = [\n1,\n2]\n', ("a", "c"), 5),
        ("a.b.c = 1\n", ("a", "b"), 1),
        ('a = 1\n["x.y"."z"]\nb = 2\n', ("x.y", "z", "b"), 3),
        ("[a]\nb = {c = 1}\n[d]\nb = {c = 1}", ("d", "b", "c"), 4),
        ("[a]\nb = 1\n", ("a", "x"), None),
        ("[a.b]\nc = 1\n", ("a",), 1),
    ],
)
def test_lines(text: str, key: tuple[str, ...], line: int | None) -> None:
    tomllib.loads(text)
    assert Lines(text).of(key) == line


@pytest.mark.parametrize(
    ("address", "carries"),
    [
        ("postgresql://backup@db/stakazo_prod", False),
        ("postgresql://backup@h1:5432,h2:5433/db", False),
        ("postgresql://[::1]:5432/db", False),
        ("postgresql://u:p@h1,h2/db", True),
        ("postgresql:///db?host=/run&password=x", True),
        ("postgresql://u@h/db?sslpassword=x", True),
        ("host=db user=u dbname=d", False),
        ("host=db passfile=/x dbname=d", False),
        ("host=db PASSWORD = 'x y'", True),
        ("password=x", True),
        ("dbname", False),
        ("s3://bucket/prefix", False),
        ("s3://key:secret@bucket", True),
        ("/var/lib/strongroom", False),
    ],
)
def test_finds_passwords_in_addresses(address: str, carries: bool) -> None:
    assert has_password(address) is carries


def test_secret_from_environment() -> None:
    assert resolve(parse_secret("env:A_B"), {"A_B": "x\n"}) == b"x"
    assert resolve(parse_secret("env:A"), {"A": os.fsdecode(b"\xff ")}) == b"\xff "
    with pytest.raises(ConfigError, match="not set"):
        resolve(parse_secret("env:A"), {})
    with pytest.raises(ConfigError, match="is empty"):
        resolve(parse_secret("env:A"), {"A": "\n"})


def test_secret_from_file(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_bytes(b" pass phrase \r\n")
    for mode, fine in ((0o600, True), (0o400, True), (0o640, True), (0o604, False), (0o660, False)):
        path.chmod(mode)
        if fine:
            assert resolve(parse_secret(f"file:{path}"), {}) == b" pass phrase "
        else:
            with pytest.raises(ConfigError, match="others can read or change") as caught:
                resolve(parse_secret(f"file:{path}"), {})
            assert f"chmod 600 {path}" in caught.value.do
            assert "pass phrase" not in str(caught.value)


@pytest.mark.parametrize(
    ("where", "says"), [("", "not a file|Is a directory"), ("/no", "Not a directory|No such file")]
)
def test_secret_from_no_file(tmp_path: Path, where: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        resolve(Secret("file", f"{tmp_path}{where}"), {})


def test_secret_that_is_too_long(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.touch(0o600)
    path.write_bytes(b"x" * (64 * 1024 + 1))
    with pytest.raises(ConfigError, match="longer than"):
        resolve(Secret("file", str(path)), {})


def test_secret_from_command_without_a_shell() -> None:
    program = f"cmd:{sys.executable} -c \"print('a b; $HOME')\""
    assert resolve(parse_secret(program), {}) == b"a b; $HOME"
    for command, says in (
        (f'{sys.executable} -c "raise SystemExit(3)" s3cret', "status 3"),
        ("/no/such/program s3cret", "No such file"),
        ("/", "Permission denied"),
        (f'{sys.executable} -c ""', "is empty"),
    ):
        with pytest.raises(ConfigError, match=says):
            resolve(Secret("cmd", command), {})


def test_secret_of_systemd(tmp_path: Path) -> None:
    (tmp_path / "pass").touch(0o400)
    (tmp_path / "pass").write_bytes(b"x")
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    assert resolve(parse_secret("systemd:pass"), environ) == b"x"
    with pytest.raises(ConfigError, match="CREDENTIALS_DIRECTORY is not set"):
        resolve(parse_secret("systemd:pass"), {})


def test_schema_knows_every_key_and_no_null() -> None:
    schema = json_schema()
    assert schema["$defs"]["Configuration"]["additionalProperties"] is False
    assert schema["$defs"]["Secret"]["pattern"].startswith("^(env|file|cmd|systemd):")
    assert "null" not in json.dumps(schema)
    assert set(schema["$defs"]) >= {"Promise", "S3", "FilesTable", "PostgresTable"}


def test_schedules_are_checked_and_belong_to_a_source(write: Write) -> None:
    text = DESIGN.replace("method = ", 'schedule = "0 2 * * *"\nmethod = ')
    loaded = load(config=write(text), environ={})
    assert loaded.configuration.source["stakazo-db"].schedule == "0 2 * * *"
    assert loaded.configuration.source["memory-vault"].schedule is None
    assert faults_of(write(text.replace("0 2 *", "0 25 *"))) == [
        (
            "strongroom.toml:8: source.stakazo-db.schedule",
            "has something in its hour that is not 0 to 23",
        )
    ]
