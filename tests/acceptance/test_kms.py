"""A key of AWS KMS opens a repository; the command talks to moto's KMS over HTTP."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from acceptance.conftest import Desk, fill, tree_of
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


# -- artefacts -----------------------------------------------------------------------------------


@dataclass
class Wrapped:
    """A desk whose artefact's key a KMS wrapped; the repository opens by a passphrase."""

    desk: Desk
    server: KmsServer
    key: str
    path: Path
    told: str

    def alone(self) -> Desk:
        """A machine that has the artefact, the writer's public key and AWS, and no repository."""
        alone = Desk(self.desk.root / "alone")
        alone.environ |= self.server.environ | {"KMS_KEY_ID": self.key}
        del alone.environ["STRONGROOM_PASSPHRASE"]
        return alone

    @property
    def words(self) -> list[str]:
        (public,) = self.path.parent.glob("*.pub.pem")
        return ["import", str(self.path), "--to", "back", "--public-key", str(public)]


@pytest.fixture
def wrapped(filled: Desk, moto_kms: KmsServer) -> Wrapped:
    key = moto_kms.new_key()
    filled.environ |= {**moto_kms.environ, "KMS_KEY_ID": key}
    done = filled.run("backup", "vault", "--artefact", "out")
    (path,) = (filled.root / "out").glob("*.enc")
    return Wrapped(filled, moto_kms, key, path, done.text)


def test_the_key_of_an_artefact_is_made_and_wrapped_by_kms(wrapped: Wrapped) -> None:
    """No key file anywhere; import unwraps through KMS, by the manifest or by what is beside."""
    assert not list(wrapped.desk.home.rglob("*.key"))
    alone = wrapped.alone()
    assert alone.run(*wrapped.words, "--json").result["signed"]
    assert tree_of(alone.root / "back") == tree_of(wrapped.desk.vault)
    beside = Path(f"{wrapped.path}.kms")
    kept = beside.read_bytes()
    beside.unlink()
    alone.run(*wrapped.words[:3], "by-manifest", *wrapped.words[4:])
    beside.write_bytes(kept)
    for side in (".manifest.sig", ".manifest"):
        Path(f"{wrapped.path}{side}").unlink()
        alone.run(*wrapped.words[:3], f"without{side}", "--unsigned")
    for name in ("by-manifest", "without.manifest.sig", "without.manifest"):
        assert tree_of(alone.root / name) == tree_of(wrapped.desk.vault)


def test_aws_opens_it_as_the_page_says(wrapped: Wrapped) -> None:
    """The lines that export prints, with nothing but aws, openssl and tar."""
    if shutil.which("aws") is None:
        pytest.skip("the AWS command line is not installed (pip install awscli)")
    lines = wrapped.told.splitlines()
    (aws,) = (line for line in lines if "aws kms decrypt" in line)
    (openssl,) = (line for line in lines if "openssl enc" in line)
    environ = wrapped.desk.environ | {"AWS_ENDPOINT_URL": wrapped.server.endpoint}
    for line in (aws, openssl):
        subprocess.run(
            ["sh", "-euc", line], cwd=wrapped.path.parent, env=environ, check=True, timeout=120
        )
    target = wrapped.desk.root / "restored"
    target.mkdir()
    plain = wrapped.path.with_suffix("")
    subprocess.run(["tar", "xzf", plain, "-C", target], check=True)
    assert tree_of(target) == tree_of(wrapped.desk.vault)
    words = shlex.split(aws.partition("; ")[2].partition(" > ")[0])
    other = [word.replace(wrapped.path.name + '"', 'other"') for word in words]
    assert other != words
    refused = subprocess.run(
        other, cwd=wrapped.path.parent, env=environ, check=False, capture_output=True, timeout=120
    )
    assert refused.returncode != 0


def test_the_repository_opens_it_without_kms_and_so_does_a_key_file(wrapped: Wrapped) -> None:
    desk = wrapped.desk
    down = {"AWS_ENDPOINT_URL_KMS": "http://127.0.0.1:1"}
    del desk.environ["KMS_KEY_ID"]
    desk.run("import", str(wrapped.path), "--to", "by-repository")
    done = desk.run(
        *("import", str(wrapped.path), "--to", "kms-down"), env={**down, "KMS_KEY_ID": wrapped.key}
    )
    assert "the repository opened it" in done.stderr
    key = desk.root / "keys/one.key"
    words = ["export", "vault", "-o", "more", "--artefact-key", str(key)]
    desk.run(*words, env={"KMS_KEY_ID": wrapped.key})
    (path,) = (desk.root / "more").glob("*.enc")
    assert Path(f"{path}.kms").exists() and key.stat().st_mode & 0o777 == 0o600
    alone = wrapped.alone()
    del alone.environ["KMS_KEY_ID"]
    more = ["--public-key", wrapped.words[-1]]
    done = alone.run("import", str(path), "--to", "none", *more, status=8)
    assert wrapped.key in done.stderr
    alone.run("import", str(path), "--to", "back", *more, "--artefact-key", str(key))


@pytest.mark.parametrize("what", ["down", "disabled", "pending deletion", "gone"])
def test_kms_that_does_not_help_writes_nothing(wrapped: Wrapped, what: str) -> None:
    client, more = wrapped.server.client(), dict[str, str]()
    bare = wrapped.key.rpartition("/")[2]  # moto takes nothing else here
    if what == "disabled":
        client.disable_key(KeyId=bare)
    elif what == "pending deletion":
        client.schedule_key_deletion(KeyId=bare, PendingWindowInDays=7)
    elif what == "down":
        more = {"AWS_ENDPOINT_URL_KMS": "http://127.0.0.1:1"}
    else:
        more = {"KMS_KEY_ID": "alias/nobody-has-this"}
    status = 7 if what == "down" else 8
    desk = wrapped.desk
    for words in (["export", "vault", "-o"], ["backup", "vault", "--artefact"]):
        done = desk.run(*words, "other", status=status, env=more)
        assert done.code == ("unreachable" if what == "down" else "key-refused")
        assert not list(desk.root.glob("other/*")) + list(desk.root.glob("other/.*"))
    assert "its artefact was not written" in done.stderr
    if what == "gone":
        return  # the signed manifest names the key
    alone = wrapped.alone()
    done = alone.run(*wrapped.words, status=status, env=more)
    assert "--artefact-key" in done.stderr and not (alone.root / "back").exists()
    if what != "down":
        assert "disabled or waits for its deletion" in done.stderr


def test_a_changed_wrapped_key_is_refused(wrapped: Wrapped) -> None:
    beside = Path(f"{wrapped.path}.kms")
    was = beside.read_bytes()
    alone = wrapped.alone()
    for at in (0, 40, len(was) - 1):
        changed = bytearray(was)
        changed[at] ^= 1
        beside.write_bytes(changed)
        alone.run(*wrapped.words, status=9)
        unsigned = ["import", str(wrapped.path), "--to", "back", "--unsigned"]
        assert alone.run(*unsigned, status=None).status in (8, 9)
    assert not (alone.root / "back").exists()


def test_what_replaces_it_leaves_no_wrapped_key_of_the_old_one(wrapped: Wrapped) -> None:
    desk = wrapped.desk
    desk.run("export", "vault", "-o", "out", status=4)
    del desk.environ["KMS_KEY_ID"]
    desk.run("export", "vault", "-o", "out", "--force")
    assert not Path(f"{wrapped.path}.kms").exists()
    desk.run("import", str(wrapped.path), "--to", "back")
    desk.run("export", "vault", "-o", "out", "--force", env={"KMS_KEY_ID": wrapped.key})
    # The key file of the one before is still there, and is not taken for this one's.
    assert list(desk.home.rglob("*.key"))
    wrapped.alone().run(*wrapped.words)
    desk.run("import", str(wrapped.path), "--to", "again", env={"KMS_KEY_ID": wrapped.key})


def test_a_region_that_is_missing(wrapped: Wrapped) -> None:
    del wrapped.desk.environ["AWS_DEFAULT_REGION"]
    done = wrapped.desk.run(
        *("export", "vault", "-o", "other"), status=2, env={"KMS_KEY_ID": "alias/x"}
    )
    assert "AWS_DEFAULT_REGION" in done.stderr
