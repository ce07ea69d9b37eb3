"""What the KMS holder promises besides the contract: errors, bounds, pinning, artefacts' keys."""

from __future__ import annotations

import base64
import http.server
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from servers import KmsServer, kms_holder, kms_key
from strongroom.errors import ConfigError, KeyRefused, StrongroomError, Unreachable
from strongroom.keys.aws_kms import AwsKmsHolder
from strongroom.keys.base import Stanza
from strongroom.repository.keyring import slot_context

CONTEXT = slot_context(bytes(16), 3, "reader", "a host", "2026-11-25T00:00:00Z")
STANZA = Stanza(
    "aws-kms",
    {
        "key": "arn:aws:kms:us-east-1:1:key/a",
        "salt": base64.b64encode(bytes(32)).decode(),
        "wrapped": base64.b64encode(bytes(96)).decode(),
    },
    bytes(60),
)


class Kms:
    """A KMS that gives one answer, and counts how often it was asked."""

    def __init__(self) -> None:
        self.answer: tuple[int, dict[str, Any]] = (200, {})
        self.asked: list[dict[str, Any]] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                size = int(self.headers["Content-Length"])
                outer.asked.append(json.loads(self.rfile.read(size)))
                status, body = outer.answer
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/x-amz-json-1.1")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def holder(self, key: str = "alias/x", **bounds: Any) -> AwsKmsHolder:
        bounds = {"attempts": 1, "connect_seconds": 1.0, "read_seconds": 1.0} | bounds
        return KmsServer(self.endpoint).holder(key, **bounds)


@pytest.fixture
def kms() -> Iterator[Kms]:
    pytest.importorskip("boto3", reason="boto3 is not installed")
    kms = Kms()
    yield kms
    kms.server.shutdown()
    kms.server.server_close()


@pytest.mark.parametrize(
    ("status", "code", "error", "says"),
    [
        (400, "DisabledException", KeyRefused, "disabled"),
        (400, "KMSInvalidStateException", KeyRefused, "deletion"),
        (400, "NotFoundException", KeyRefused, "no key"),
        (400, "AccessDeniedException", KeyRefused, "allows"),
        (403, "SomethingNew", KeyRefused, "allows"),
        (400, "InvalidCiphertextException", KeyRefused, "does not open"),
        (400, "IncorrectKeyException", KeyRefused, "does not open"),
        (400, "UnrecognizedClientException", KeyRefused, "credentials"),
        (400, "ExpiredTokenException", KeyRefused, "credentials"),
        (400, "ThrottlingException", Unreachable, "ThrottlingException"),
        (500, "KMSInternalException", Unreachable, "fault of its own"),
        (503, "", Unreachable, "fault of its own"),
    ],
)
def test_what_kms_answers_becomes_an_error_of_ours(
    kms: Kms, status: int, code: str, error: type[StrongroomError], says: str
) -> None:
    kms.answer = (status, {"__type": code, "message": "a secret of somebody's"})
    for act in (
        lambda holder: holder.wrap(b"m", context=CONTEXT),
        lambda holder: holder.unwrap(STANZA, context=CONTEXT),
        lambda holder: holder.generate_data_key({}),
    ):
        with pytest.raises(error, match=says) as told:
            act(kms.holder())
        assert type(told.value) is error
        assert "alias/x" in told.value.what or says == "does not open"
        assert "secret" not in told.value.what + told.value.do


def test_a_fault_of_kms_is_tried_again_so_often_and_no_more(kms: Kms) -> None:
    kms.answer = (500, {"__type": "KMSInternalException"})
    with pytest.raises(Unreachable):
        kms.holder(attempts=3).generate_data_key({})
    assert len(kms.asked) == 3


def test_nobody_listens() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(Unreachable, match="does not answer") as told:
            KmsServer(endpoint).holder("alias/x", attempts=1).generate_data_key({})
    assert told.value.exit_status == 7
    assert "recovery code" in told.value.do


def test_somebody_listens_and_never_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        holder = KmsServer(endpoint).holder("alias/x", attempts=1, read_seconds=0.3)
        with pytest.raises(Unreachable, match="does not answer"):
            holder.unwrap(STANZA, context=CONTEXT)


def test_without_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    holder = AwsKmsHolder("alias/x", endpoint="http://127.0.0.1:1", region="us-east-1")
    with pytest.raises(KeyRefused, match="no credentials"):
        holder.generate_data_key({})


def test_without_a_region(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    holder = AwsKmsHolder("alias/x", access_key_id="a", secret_access_key="b")
    with pytest.raises(ConfigError, match="region") as told:
        holder.generate_data_key({})
    assert "AWS_DEFAULT_REGION" in told.value.do  # boto3 knows no AWS_REGION


def test_an_arn_brings_its_region() -> None:
    holder = AwsKmsHolder("arn:aws:kms:eu-central-1:1:key/a")
    assert holder._region == "eu-central-1"


def test_kms_is_told_what_the_slot_binds_and_never_the_material(kms: Kms) -> None:
    key = base64.b64encode(b"k" * 32).decode()
    kms.answer = (200, {"Plaintext": key, "CiphertextBlob": key, "KeyId": "arn:x"})
    kms.holder().wrap(b"the material", context=CONTEXT)
    (asked,) = kms.asked
    context = asked["EncryptionContext"]
    assert asked["KeyId"] == "alias/x" and asked["KeySpec"] == "AES_256"
    assert {name: context[name] for name in ("repository", "epoch", "role", "label")} == {
        "repository": "00" * 16,
        "epoch": "3",
        "role": "reader",
        "label": "a host",
    }
    assert "bWF0ZXJpYWw" not in json.dumps(asked) and "the material" not in json.dumps(asked)


def test_a_kms_that_opens_with_another_key_is_not_believed(kms: Kms) -> None:
    kms.answer = (200, {"Plaintext": base64.b64encode(bytes(32)).decode(), "KeyId": "arn:other"})
    with pytest.raises(KeyRefused, match="another key"):
        kms.holder().unwrap(STANZA, context=CONTEXT)
    assert kms.asked[0]["KeyId"] == "alias/x"


def test_what_a_hostile_slot_asks_for_is_refused_before_kms_is(kms: Kms) -> None:
    for changed in ({"wrapped": "A" * 20_000}, {"key": "é"}, {"salt": "AAAA"}, {"wrapped": ""}):
        with pytest.raises(KeyRefused):
            kms.holder().unwrap(
                replace(STANZA, parameters={**STANZA.parameters, **changed}), context=CONTEXT
            )
    assert not kms.asked


def test_an_alias_opens_what_its_key_wrapped_and_not_after_it_moved(moto_kms: KmsServer) -> None:
    client = moto_kms.client()
    first, second = moto_kms.new_key(), moto_kms.new_key()
    client.create_alias(AliasName="alias/moving", TargetKeyId=first)
    stanza = moto_kms.holder("alias/moving").wrap(b"material", context=CONTEXT)
    assert stanza.parameters["key"] == first
    for name in ("alias/moving", first, first.rpartition("/")[2]):
        assert moto_kms.holder(name).unwrap(stanza, context=CONTEXT) == b"material"
    client.update_alias(AliasName="alias/moving", TargetKeyId=second)
    with pytest.raises(KeyRefused, match="does not open"):
        moto_kms.holder("alias/moving").unwrap(stanza, context=CONTEXT)


# --- keys of artefacts ------------------------------------------------------------------------


def test_a_data_key_comes_back_with_its_context_only() -> None:
    made = kms_holder(1).generate_data_key({"source": "vault"})
    assert len(made.secret) == 32 and made.secret not in made.wrapped and made.by == kms_key(1)
    assert kms_holder(1).unwrap_data_key(made.wrapped, {"source": "vault"}) == made.secret
    for context in ({}, {"source": "other"}, {"source": "vault", "more": "x"}):
        with pytest.raises(KeyRefused, match="artefact"):
            kms_holder(1).unwrap_data_key(made.wrapped, context)
    with pytest.raises(KeyRefused):
        kms_holder(2).unwrap_data_key(made.wrapped, {"source": "vault"})


def test_no_two_data_keys_are_alike() -> None:
    one, other = (kms_holder(1).generate_data_key({}) for _ in range(2))
    assert one.secret != other.secret


def test_a_data_key_s_blob_with_any_changed_or_missing_byte_is_refused() -> None:
    blob = kms_holder(1).generate_data_key({}).wrapped
    for at in range(len(blob)):
        changed = bytearray(blob)
        changed[at] ^= 1
        with pytest.raises(KeyRefused):
            kms_holder(1).unwrap_data_key(bytes(changed), {})
        if at % 16 == 0:
            with pytest.raises(KeyRefused):
                kms_holder(1).unwrap_data_key(blob[:at], {})
