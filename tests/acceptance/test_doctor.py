"""doctor: one line a precondition, each failure with its remedy, exit 4 when something fails."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from acceptance.conftest import Desk
from acceptance.test_cloud import make
from acceptance.test_postgres import password_of
from observe.servers import Web
from servers import KmsServer
from strongroom.errors import StrongroomError
from strongroom.postgres.embedded import EmbeddedServer


def checks(desk: Desk, status: int, **options: Any) -> dict[str, dict[str, str]]:
    words = options.pop("words", [])
    document = desk.run("doctor", *words, "--json", status=status, **options).document
    assert document["type"] == "doctor" and document["exit"] == status
    assert document["failed"] == sum(c["verdict"] == "failed" for c in document["checks"])
    return {check["item"]: check for check in document["checks"]}


def kit_code(desk: Desk) -> str:
    """The recovery code that is printed on the kit."""
    lines = (desk.root / "kit.txt").read_text().partition("RECOVERY CODE")[2].split()
    return "-".join(word for word in lines[:2])


def test_all_is_well(filled: Desk) -> None:
    done = filled.run("doctor")
    assert "failed" not in done.text and "ok       repository keys: opens as a reader" in done.text
    found = checks(filled, 0)
    assert {"configuration", "secret repository.passphrase", "repository", "repository room",
            "repository storage", "storage capabilities", "key holders", "key ages", "audit log",
            "cache folder", "state folder", "source vault"} <= set(found)  # fmt: skip
    assert found["storage capabilities"]["verdict"] == found["audit log"]["verdict"] == "ok"
    assert (
        found["key holders"]["verdict"] == "ok" and "a recovery kit" in found["key holders"]["what"]
    )
    assert found["recovery kit"]["verdict"] == "warning", "nobody has tried it"
    assert found["schedule"]["verdict"] == found["notifications"]["verdict"] == "warning"
    assert not [path for path in filled.repository.rglob("clock*") if path.is_file()]


def test_each_fault_is_found_and_none_hides_another(filled: Desk) -> None:
    text = filled.config.read_text().replace(str(filled.vault), "/nowhere")
    filled.config.write_text(
        text + '[source.db]\ntype = "postgres"\ndsn = "postgresql://x@127.0.0.1:1/db"\n'
        'password = "env:NOT_SET"\n'
    )
    blocked = filled.root / "file"
    blocked.write_text("")
    found = checks(filled, 4, env={"STRONGROOM_CACHE_DIR": str(blocked / "cache")})
    failed = {item for item, check in found.items() if check["verdict"] == "failed"}
    assert failed == {"secret source.db.password", "cache folder", "source vault", "source db"}
    assert all(found[item]["do"] for item in failed)
    assert found["repository keys"]["verdict"] == "ok"


def test_wrong_passphrase(filled: Desk) -> None:
    found = checks(filled, 4, env={"STRONGROOM_PASSPHRASE": "wrong"})
    assert (
        found["repository keys"]["verdict"] == "failed" and found["source vault"]["verdict"] == "ok"
    )


def test_no_repository_and_a_faulty_configuration(desk: Desk) -> None:
    assert checks(desk, 4)["repository"]["verdict"] == "failed"
    desk.config.write_text("nonsense = 1\n[source.x]\n")
    found = checks(desk, 4)
    assert list(found) == ["configuration"] and "nonsense" in found["configuration"]["what"]


def test_a_key_file_that_others_can_read(filled: Desk) -> None:
    filled.run("key", "add", "host", "--new-key-file", "host.key")
    (filled.root / "host.key").chmod(0o644)
    found = checks(filled, 4, env={"STRONGROOM_KEY_FILE": str(filled.root / "host.key")})
    assert "chmod 600" in found["key file"]["do"]


def test_remotes(desk: Desk) -> None:
    plain = make(desk, "plain:")
    found = checks(plain, 0)
    assert found["rclone"]["verdict"] == found["source vault"]["verdict"] == "ok"
    assert "local" in found["source vault remote"]["what"]
    with (plain.root / "rclone.conf").open("a") as file:
        file.write(
            "[gdrive]\ntype = drive\nservice_account_file = sa.json\nclient_secret = hunter2\n"
        )
    with plain.config.open("a") as file:
        file.write(
            '[source.drive]\ntype = "files"\npath = "rclone:gdrive:/stakazo/memory_vault/"\n'
        )
    done = plain.run("doctor", status=4)
    assert "no storage of its own" in done.text and "Shared Drive" in done.text
    assert "hunter2" not in done.text + done.stderr
    plain.config.write_text('rclone_bin = "missing"\n' + plain.config.read_text().split("\n", 1)[1])
    assert checks(plain, 4)["rclone"]["verdict"] == "failed"


def test_the_state_of_a_kms_key(filled: Desk, moto_kms: KmsServer) -> None:
    key = moto_kms.new_key()
    env = {**moto_kms.environ, "KMS_KEY_ID": key}
    assert "wraps and opens" in checks(filled, 0, env=env)["KMS key"]["what"]
    moto_kms.client().disable_key(KeyId=key.rpartition("/")[2])
    found = checks(filled, 4, env=env)["KMS key"]
    assert "Disabled" in found["what"] and "enable-key" in found["do"]
    down = {**env, "AWS_ENDPOINT_URL_KMS": "http://127.0.0.1:1"}
    assert "does not answer" in checks(filled, 4, env=down)["KMS key"]["what"]


def test_rights_in_a_database(filled: Desk, tmp_path: Path) -> None:
    try:
        server = EmbeddedServer(durable=False)
    except StrongroomError as missing:
        pytest.skip(f"no PostgreSQL server can be had: {missing.what}")
    with server, server.connect() as connection:
        connection.execute("CREATE ROLE poor LOGIN")
        connection.execute("CREATE TABLE hidden (a int)")
        dsn = f"host={server.socket_directory} port={server.port} user={{}} dbname=postgres sslmode=disable"
        with filled.config.open("a") as file:
            for name, user in (("rich", server.user), ("poor", "poor")):
                file.write(f'[source.{name}]\ntype = "postgres"\ndsn = "{dsn.format(user)}"\n')
                file.write('password = "env:DATABASE_PASSWORD"\n')
        password = password_of(server)
        connection.execute(f"ALTER ROLE poor PASSWORD '{password}'")
        found = checks(filled, 4, env={"DATABASE_PASSWORD": password})
    assert found["source rich"]["verdict"] == found["source poor"]["verdict"] == "ok", found
    assert found["source rich rights"]["verdict"] == "warning"
    assert "superuser" in found["source rich rights"]["what"]
    poor = found["source poor rights"]
    assert poor["verdict"] == "failed" and "public.hidden" in poor["what"]
    assert "source grants poor --sql" in poor["do"]
    assert "pg_dump" in found["source rich tools"]["what"]
    assert found["source rich fsync"]["verdict"] == "failed"


def test_a_kit_that_was_tried_and_channels_that_took_a_test(filled: Desk) -> None:
    """What `doctor` knows of the past comes from the audit log."""
    code = kit_code(filled)
    assert filled.run("key", "kit", status=2).code == "usage"
    assert filled.run("key", "kit", "--test", status=8).code == "key-refused"
    wrong = code[:-4] + ("0000" if code[-4:] != "0000" else "1111")
    for given, status in ((wrong, 8), (code, 0)):
        done = filled.run(
            "key", "kit", "--test", env={"STRONGROOM_RECOVERY_CODE": given}, status=status
        )
        assert given not in done.text + done.stderr
    web = Web()
    with filled.config.open("a") as file:
        file.write('[notify.slack]\ntype = "slack"\nurl = "env:SLACK"\n')
    env = {"SLACK": f"{web.url}/secret"}
    found = checks(filled, 0, env=env)
    assert found["recovery kit"]["verdict"] == "ok", found["recovery kit"]
    assert "never taken a test: slack" in found["notifications"]["what"]
    filled.run("notify", "test", env=env)
    found = checks(filled, 0, env=env)
    assert (
        found["notifications"]["verdict"] == "ok" and "dead man" in found["notifications"]["what"]
    )
    # Nobody runs what is scheduled: it was due long ago.
    filled.config.write_text(
        filled.config.read_text().replace(
            "[source.vault]", '[source.vault]\nschedule = "* * * * *"'
        )
    )
    found = checks(filled, 0, env=env)
    assert "1 job" in found["schedule"]["what"]


def test_what_hangs_is_unknown_and_hinders_nothing(filled: Desk) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, and says nothing
        port = silent.getsockname()[1]
        with filled.config.open("a") as file:
            file.write(
                f'[source.db]\ntype = "postgres"\ndsn = "postgresql://x@127.0.0.1:{port}/db'
                '?connect_timeout=60"\n'
            )
        found = checks(filled, 3, words=["--timeout", "6"])
    assert found["source db"]["verdict"] == "unknown" and "--timeout" in found["source db"]["do"]
    assert found["repository keys"]["verdict"] == found["source vault"]["verdict"] == "ok"
    only = checks(filled, 0, words=["vault"])
    assert "source vault" in only and "source db" not in only
    filled.run("doctor", "nobody", status=5)


class RoleOf:
    """A server with a role that may do nothing yet."""

    def __init__(self, server: EmbeddedServer) -> None:
        self.server, self.password = server, password_of(server)
        self.run(f"CREATE ROLE backup LOGIN PASSWORD '{self.password}'")

    def run(self, script: str) -> None:
        """Run SQL; psql's own words and comments left out."""
        lines = [one for one in script.splitlines() if not one.startswith(("--", "\\", "wanted"))]
        with self.server.connect() as connection:
            connection.execute("\n".join(lines).encode())

    def table(self, name: str, method: str) -> str:
        dsn = f"host={self.server.socket_directory} port={self.server.port} user=backup"
        return (
            f'[source.{name}]\ntype = "postgres"\nmethod = "{method}"\n'
            f'dsn = "{dsn} dbname=postgres sslmode=disable"\npassword = "env:DATABASE_PASSWORD"\n'
        )


@pytest.fixture
def database_role() -> Iterator[RoleOf]:
    try:
        server = EmbeddedServer()  # a durable one: else that is a finding
    except StrongroomError as missing:
        pytest.skip(f"no PostgreSQL server can be had: {missing.what}")
    with server:
        yield RoleOf(server)


def test_source_grants(filled: Desk) -> None:
    """Printed before the server is there; checked when it is; by psql's own words."""
    with filled.config.open("a") as file:
        for name, more in (
            ("far", 'dsn = "postgresql://backup@db.example:5432/shop"\nmethod = "physical"\n'),
            ("near", 'dsn = "host=/nowhere user=backup dbname=shop"\nmethod = "physical"\n'),
            ("dump", 'dsn = "postgresql://backup@127.0.0.1:1/shop"\ndatabases = ["a", "b"]\n'),
        ):
            file.write(f'[source.{name}]\ntype = "postgres"\n{more}')

    def grants(*words: str, status: int = 0) -> dict[str, Any]:
        return filled.run("source", "grants", *words, "--json", status=status).document

    far = grants("far")
    assert (
        far["purposes"] == ["stream"]
        and far["check"] is None
        and "db.example" in far["server_error"]
    )
    assert far["pg_hba"][-1] == 'hostssl  replication  "backup"  ADDRESS/32  scram-sha-256'
    assert grants("far", "--receive", "--role", "other")["purposes"] == ["stream", "receive"]
    near = grants("near")
    assert near["purposes"] == ["local"] and "pg_backup_start" in near["script"]
    assert "pg_start_backup" in near["script"], "the server chooses: its version is not known"
    assert near["pg_hba"] == ['local  "shop"  "backup"  scram-sha-256']
    dump = grants("dump", "--sql")
    assert {one["database"] for one in dump["statements"]} == {"shop", "a", "b"}
    assert 'host  "a"  "backup"  127.0.0.1/32  scram-sha-256' in dump["pg_hba"]
    assert filled.run("source", "grants", "far", "--check", status=7).code == "database-unreachable"
    filled.run("source", "grants", "vault", status=2)
    filled.run("source", "grants", "far", "--check", "--sql", status=2)
    shown = filled.run("source", "grants", "dump")
    assert "GRANT pg_read_all_data" in shown.text and "was not asked" in shown.stderr


def test_source_grants_checks_the_role_of_the_dsn(filled: Desk, database_role: RoleOf) -> None:
    filled.config.write_text(filled.config.read_text() + database_role.table("dump", "logical"))
    env = {"DATABASE_PASSWORD": database_role.password}
    words = ("source", "grants", "dump")
    done = filled.run(*words, env=env, status=4)
    assert "missing  the rights of pg_read_all_data" in done.text and "excess" not in done.text
    database_role.run(filled.run(*words, "--sql", env=env).text)
    assert "needs, and no more" in filled.run(*words, "--check", env=env).text
    done = filled.run("backup", "dump", env=env)
    assert "skipped" not in done.stderr
    database_role.run("ALTER ROLE backup CREATEDB")
    body = filled.run(*words, "--json", env=env, status=10).document
    assert [one["sql"] for one in body["check"]["excess"]] == ['ALTER ROLE "backup" NOCREATEDB;']
    assert body["check"]["missing"] == [] and body["exit"] == 10
    found = checks(filled, 0, words=["dump"], env=env)
    assert "CREATEDB" in found["source dump rights"]["what"]
