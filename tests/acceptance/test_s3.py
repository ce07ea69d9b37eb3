"""The same words with the repository in S3, spoken over HTTP."""

from __future__ import annotations

import re
import shlex

import pytest

from acceptance.conftest import Desk, fill, tree_of
from servers import S3Server

CONFIG = """\
[repository]
url = "s3://{bucket}/{prefix}"
passphrase = "env:STRONGROOM_PASSPHRASE"

[repository.s3]
endpoint = "{endpoint}"
region = "{region}"
access_key_id = "env:KEY_ID"
secret_access_key = "env:KEY_SECRET"

[source.vault]
type = "files"
path = "{vault}"
"""


@pytest.fixture
def remote(desk: Desk, moto_s3: S3Server) -> Desk:
    desk.config.write_text(
        CONFIG.format(
            bucket=moto_s3.bucket,
            prefix=desk.root.name,
            endpoint=moto_s3.endpoint,
            region=moto_s3.region,
            vault=desk.vault,
        )
    )
    desk.environ |= {"KEY_ID": moto_s3.access_key_id, "KEY_SECRET": moto_s3.secret_access_key}
    fill(desk.vault)
    return desk


def test_a_vault_in_s3_and_back(remote: Desk) -> None:
    kit = remote.run("init").text
    assert remote.environ["KEY_SECRET"] not in kit.replace("strongroom", "")
    remote.run("backup", "vault")
    (remote.vault / "audits/00.json").write_text("changed")
    second = remote.run("backup", "vault", "--json").result["backups"][0]["snapshot"]
    assert second["stored"] < 20_000
    remote.run("restore", "vault", "--to", "out")
    assert tree_of(remote.root / "out") == tree_of(remote.vault)
    assert "no damage" in remote.run("check", "--read-data").text
    assert remote.run("get", "vault@oldest:audits/00.json", "-o", "-").stdout == b'{"number": 0}'
    checks = remote.run("doctor", "--timeout", "120", "--json").document["checks"]
    found = {check["item"]: check for check in checks}
    assert found["storage TLS"]["verdict"] == found["storage capabilities"]["verdict"] == "ok"
    assert "keeps no versions" in found["storage versions"]["what"]


def test_restore_from_s3_with_flags_and_environment_only(remote: Desk, moto_s3: S3Server) -> None:
    remote.run("init")
    remote.run("backup", "vault")
    remote.config.unlink()
    environ = {
        "AWS_ENDPOINT_URL": moto_s3.endpoint,
        "AWS_ACCESS_KEY_ID": moto_s3.access_key_id,
        "AWS_SECRET_ACCESS_KEY": moto_s3.secret_access_key,
        "AWS_REGION": moto_s3.region,
    }
    url = f"s3://{moto_s3.bucket}/{remote.root.name}"
    remote.run("--repository", url, "restore", "vault", "--to", "out", env=environ)
    assert tree_of(remote.root / "out") == tree_of(remote.vault)


def test_a_bucket_that_is_not_there(remote: Desk, moto_s3: S3Server) -> None:
    wrong = {"STRONGROOM_REPOSITORY": "s3://no-such-bucket-here/x"}
    done = remote.run("list", env=wrong, status=None)
    assert done.status in (5, 7)
    assert "no-such-bucket-here" in done.error_lines[0]


def test_a_store_that_does_not_answer(remote: Desk) -> None:
    text = remote.config.read_text()
    start = text.index('endpoint = "') + len('endpoint = "')
    end = text.index('"', start)
    remote.config.write_text(text[:start] + "http://127.0.0.1:9" + text[end:])
    done = remote.run("list", status=7)
    assert done.code == "storage-unreachable"


def test_a_secret_that_is_not_set(remote: Desk) -> None:
    del remote.environ["KEY_SECRET"]
    done = remote.run("list", status=2)
    assert "env:KEY_SECRET" in done.error_lines[0]


def test_the_kit_alone_leads_to_a_store_that_is_not_amazons(remote: Desk) -> None:
    """Its lines are typed as they stand on the page; only the keys are filled in."""
    kit = remote.run("init").text
    remote.run("backup", "vault")
    remote.config.unlink()
    remote.environ.pop("STRONGROOM_PASSPHRASE")
    lines = [line.strip() for line in kit.splitlines() if line.startswith("  ")]
    exports = [line.removeprefix("export ") for line in lines if line.startswith("export ")]
    given = dict(pair.split("=", 1) for pair in exports)
    assert {name for name, value in given.items() if value == "..."} == {
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
    }
    given["AWS_ACCESS_KEY_ID"] = remote.environ.pop("KEY_ID")
    given["AWS_SECRET_ACCESS_KEY"] = remote.environ.pop("KEY_SECRET")
    (restore,) = [line for line in lines if line.startswith("strongroom") and " restore " in line]
    remote.run(*shlex.split(restore)[1:], env=given)
    assert tree_of(remote.root / "restored-vault") == tree_of(remote.vault)


def test_what_an_unreachable_store_means_for_other_verbs(remote: Desk) -> None:
    text = re.sub(r"(endpoint = ).*", r'\1"http://127.0.0.1:1"', remote.config.read_text())
    remote.config.write_text(text)
    assert "snapshot was written" not in remote.run("list", status=7).error_lines[1]
    done = remote.run("restore", "vault", "--to", "out", status=7)
    assert "the backup is untouched" in done.error_lines[1]
