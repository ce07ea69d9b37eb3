"""A key of AWS KMS opens a repository; the command talks to moto's KMS over HTTP."""

from __future__ import annotations

import pytest

from acceptance.conftest import Desk, fill
from servers import KmsServer

CONFIG = """\
[repository]
url = "{repository}"
kms_key = "{key}"

[source.vault]
type = "files"
path = "{vault}"
"""


@pytest.fixture
def kms(desk: Desk, moto_kms: KmsServer) -> Desk:
    """A repository that a KMS key opens, and nothing else but the kit."""
    desk.environ |= moto_kms.environ
    del desk.environ["STRONGROOM_PASSPHRASE"]
    key = moto_kms.new_key()
    desk.config.write_text(CONFIG.format(repository=desk.repository, key=key, vault=desk.vault))
    desk.environ["THE_KEY"] = key
    fill(desk.vault)
    desk.run("init", "--kit", "kit.txt", "--quiet")
    return desk


def test_a_repository_that_only_kms_opens(kms: Desk) -> None:
    kms.run("backup", "vault")
    kms.run("restore", "vault", "--to", "out")
    slots = kms.run("key", "list", "--json").document["keys"]
    (slot,) = [slot for slot in slots if slot["kind"] == "aws-kms"]
    assert slot["label"] == "kms" and slot["key"] == kms.environ["THE_KEY"]
    assert kms.environ["THE_KEY"] in kms.run("key", "list").text


def test_a_kms_key_beside_a_passphrase_and_by_environment(
    filled: Desk, moto_kms: KmsServer
) -> None:
    moto_kms.client().create_alias(
        AliasName=f"alias/{filled.root.name[:60]}", TargetKeyId=moto_kms.new_key()
    )
    alias = f"alias/{filled.root.name[:60]}"
    filled.environ |= moto_kms.environ
    assert "aws-kms" in filled.run("key", "add", "cloud", "--kms-key", alias).text
    del filled.environ["STRONGROOM_PASSPHRASE"]
    filled.config.write_text(filled.config.read_text().replace("passphrase =", "#"))
    assert filled.run("backup", "vault", status=8).code == "key-refused"
    filled.run("backup", "vault", env={"KMS_KEY_ID": alias})
    other = moto_kms.new_key()
    done = filled.run("backup", "vault", status=8, env={"KMS_KEY_ID": other})
    assert "does not open" in done.stderr


def test_a_passphrase_opens_without_kms(filled: Desk, moto_kms: KmsServer) -> None:
    down = {**moto_kms.environ, "AWS_ENDPOINT_URL_KMS": "http://127.0.0.1:1"}
    filled.run("backup", "vault", env={**down, "KMS_KEY_ID": "alias/x"})


def test_kms_down_is_7_and_the_kit_still_opens(kms: Desk) -> None:
    down = {"AWS_ENDPOINT_URL_KMS": "http://127.0.0.1:1"}
    done = kms.run("backup", "vault", status=7, env=down)
    assert done.code == "unreachable" and "recovery code" in done.stderr
    code = "".join(
        line.split("STRONGROOM_RECOVERY_CODE=")[1]
        for line in (kms.root / "kit.txt").read_text().splitlines()
        if "STRONGROOM_RECOVERY_CODE=" in line
    )
    kms.run("backup", "vault", env={**down, "STRONGROOM_RECOVERY_CODE": code})


def test_credentials_and_key_that_are_wrong_are_8(kms: Desk) -> None:
    none = {
        "AWS_ACCESS_KEY_ID": "",
        "AWS_SECRET_ACCESS_KEY": "",
        "AWS_CONFIG_FILE": "/nowhere",
        "AWS_SHARED_CREDENTIALS_FILE": "/nowhere",
    }
    assert kms.run("backup", "vault", status=8, env=none).code == "key-refused"
    absent = {"KMS_KEY_ID": "alias/nobody-has-this"}
    assert kms.run("backup", "vault", status=8, env=absent).code == "key-refused"


def test_no_secret_of_aws_is_shown(kms: Desk) -> None:
    for words in (["backup", "vault", "-vv"], ["config", "show"], ["key", "list"], ["doctor"]):
        done = kms.run(*words)
        assert kms.environ["AWS_SECRET_ACCESS_KEY"] not in done.text + done.stderr
