"""What object stores refuse, lose and garble, and what a person is told about it.

Rule: real servers where they can be made to fail so, a loopback server with real HTTP where not.
"""

from __future__ import annotations

import datetime
import http.client
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from s3_answers import (
    Answers,
    Handler,
    answer,
    create,
    create_and_reset,
    read,
    refuse,
    reset,
    serving,
)

from servers import S3Server
from strongroom.errors import (
    AlreadyExists,
    ConfigError,
    NotFound,
    ObjectMissing,
    StorageDenied,
    StorageFull,
    StorageUnreachable,
    StrongroomError,
)
from strongroom.storage.location import Location, open_storage, parse
from strongroom.storage.object_store import ObjectStorage, Patience

QUICK = Patience(retries=3, first=0.01, ceiling=0.02, total=5.0, connect=2.0, idle=2.0, request=2.0)
LOCATION = Location("s3", bucket="bucket", prefix="repo")
KEYS = {"access_key_id": "AKIA-TEST", "secret_access_key": "the-secret", "region": "eu-west-1"}


@pytest.fixture
def store() -> Iterator[Answers]:
    with serving() as answers:
        yield answers


def opened(answers: Answers, **changed: object) -> ObjectStorage:
    return ObjectStorage(LOCATION, endpoint=answers.endpoint, patience=QUICK, **{**KEYS, **changed})


VERBS: dict[str, Callable[[ObjectStorage], object]] = {
    "put": lambda storage: storage.put("packs/a", b"data"),
    "create": lambda storage: storage.put("packs/a", b"data", if_absent=True),
    "get": lambda storage: storage.get("packs/a"),
    "range": lambda storage: storage.get("packs/a", offset=1, length=2),
    "list": lambda storage: list(storage.list("packs/")),
    "delete": lambda storage: storage.delete(["packs/a", "packs/b"]),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    ("refusal", "expected", "told", "advice"),
    [
        (
            refuse(403, "AccessDenied", "Access Denied"),
            StorageDenied,
            "Access Denied",
            "bucket policy",
        ),
        (refuse(403, "InvalidAccessKeyId"), StorageDenied, "credentials are wrong", "access key"),
        (refuse(403, "SignatureDoesNotMatch"), StorageDenied, "credentials are wrong", "secret"),
        (refuse(400, "ExpiredToken"), StorageDenied, "have expired", "AWS_SESSION_TOKEN"),
        (refuse(403, "ExpiredToken"), StorageDenied, "have expired", "it resumes"),
        (refuse(403, "RequestTimeTooSkewed"), StorageDenied, "clock", "set-ntp"),
        (answer(401, b"who?"), StorageDenied, "401", "credentials"),
        (refuse(404, "NoSuchBucket"), NotFound, "bucket does not exist", "never creates buckets"),
        (
            refuse(400, "AuthorizationHeaderMalformed", "bad", "<Region>ap-south-1</Region>"),
            StorageUnreachable,
            "lives in region ap-south-1",
            'region = "ap-south-1"',
        ),
        (refuse(301, "PermanentRedirect"), StorageUnreachable, "another region", "AWS_REGION"),
        (refuse(507, "XMinioStorageFull", "full"), StorageFull, "no room", "Free space"),
        (refuse(403, "QuotaExceeded", "over"), StorageFull, "no room", "quota"),
        (refuse(503, "SlowDown", "rate"), StorageUnreachable, "kept refusing", "it resumes"),
        (refuse(500, "InternalError", "oops"), StorageUnreachable, "oops", "it resumes"),
        (answer(404, b"<html>"), StorageUnreachable, "not an object store's", "endpoint"),
        (reset, StorageUnreachable, "connection", "network"),
    ],
)
def test_refusals_are_told_apart(
    store: Answers,
    verb: str,
    refusal: Callable[[Handler], None],
    expected: type[StrongroomError],
    told: str,
    advice: str,
) -> None:
    store.script = [refusal]
    began = time.monotonic()
    with pytest.raises(StrongroomError) as raised:
        VERBS[verb](opened(store))
    error = raised.value
    assert type(error) is expected, error.what
    assert told in error.what
    assert advice in error.do
    assert "s3://bucket/repo" in error.what
    assert store.endpoint in error.what
    assert "the-secret" not in f"{error.what}{error.means}{error.do}{error!r}"
    assert time.monotonic() - began < QUICK.total + QUICK.request


def test_a_missing_bucket_is_no_missing_object(store: Answers) -> None:
    """Whoever takes ObjectMissing for "not there yet" must not take an absent bucket for it."""
    store.script = [refuse(404, "NoSuchBucket")]
    with pytest.raises(NotFound) as raised:
        opened(store).get("strongroom.json")
    assert not isinstance(raised.value, ObjectMissing)


def test_only_the_store_itself_may_say_absent(store: Answers) -> None:
    store.script = [refuse(404, "NoSuchKey")]
    with pytest.raises(ObjectMissing):
        opened(store).get("a")


@pytest.mark.parametrize("page", [b"<html>please log in</html>", b"", b"<ListBucketResult/>"])
def test_a_page_that_is_no_listing_is_no_empty_listing(store: Answers, page: bytes) -> None:
    """A portal answers everything with 200; "no snapshots" would be a lie that prune believes."""
    store.script = [answer(200, page)]
    with pytest.raises(StorageUnreachable):
        list(opened(store).list("snapshots/"))


def test_an_empty_listing_of_a_store_is_believed(store: Answers) -> None:
    store.script = [answer(200, b"<ListBucketResult/>"), refuse(404, "NoSuchKey")]
    assert list(opened(store).list("snapshots/")) == []
    assert [verb for verb, _ in store.asked] == ["GET", "GET"]


# -- tries ---------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("fault", [refuse(503, "SlowDown"), refuse(500, "InternalError"), reset])
def test_tries_are_bounded(store: Answers, verb: str, fault: Callable[[Handler], None]) -> None:
    store.script = [fault]
    with pytest.raises(StorageUnreachable):
        VERBS[verb](opened(store))
    assert len(store.asked) == 1 + QUICK.retries


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("refusal", [refuse(403, "AccessDenied"), refuse(404, "NoSuchBucket")])
def test_a_clear_refusal_is_not_asked_again(
    store: Answers, verb: str, refusal: Callable[[Handler], None]
) -> None:
    store.script = [refusal]
    with pytest.raises(StrongroomError):
        VERBS[verb](opened(store))
    assert len(store.asked) == 1


@pytest.mark.parametrize(
    "fault",
    [
        refuse(503, "SlowDown"),
        refuse(429, "TooManyRequests"),
        refuse(500, "InternalError"),
        refuse(400, "RequestTimeout"),
        refuse(409, "ConditionalRequestConflict"),
        reset,
    ],
)
@pytest.mark.parametrize("if_absent", [True, False])
def test_a_put_that_works_at_last(
    store: Answers, fault: Callable[[Handler], None], if_absent: bool
) -> None:
    store.script = [fault, fault, create]
    opened(store).put("a", b"data", if_absent=if_absent)
    assert store.stored == {"/bucket/repo/a": b"data"}
    assert len(store.asked) == 3


def test_pauses_grow_and_end_in_time(store: Answers) -> None:
    """Pauses double up to the ceiling, are shortened by at most half, and never pass the total."""
    store.script = [refuse(503, "SlowDown")]
    pauses: list[float] = []
    now = [0.0]

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        now[0] += seconds

    patience = Patience(retries=50, first=1.0, ceiling=10.0, total=60.0, request=5.0)
    storage = ObjectStorage(
        LOCATION,
        endpoint=store.endpoint,
        patience=patience,
        sleep=sleep,
        clock=lambda: now[0],
        jitter=lambda: 0.5,
        **KEYS,
    )
    with pytest.raises(StorageUnreachable):
        storage.put("a", b"x", if_absent=True)
    assert pauses == [0.75, 1.5, 3.0, 6.0, 7.5, 7.5, 7.5, 7.5, 7.5, 7.5]
    assert sum(pauses) < 60.0


def test_a_silent_server_is_given_up(store: Answers) -> None:
    store.script = [lambda _: time.sleep(1.2)]
    hasty = Patience(retries=1, first=0.01, total=1.0, request=0.3, idle=0.3)
    storage = ObjectStorage(LOCATION, endpoint=store.endpoint, patience=hasty, **KEYS)
    for call in (lambda: storage.put("a", b"x", if_absent=True), lambda: storage.get("a")):
        began = time.monotonic()
        with pytest.raises(StorageUnreachable, match="no answer in time"):
            call()
        assert time.monotonic() - began < 1.0


def test_a_body_that_breaks_off_is_read_to_its_end(store: Answers) -> None:
    data = bytes(range(256)) * 400
    store.stored["/bucket/repo/a"] = data

    def half(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.send_header("ETag", '"1"')
        handler.send_header("Last-Modified", "Mon, 23 Nov 2026 16:22:00 GMT")
        handler.end_headers()
        handler.wfile.write(data[: len(data) // 2])
        handler.close_connection = True

    store.script = [half, read]
    assert opened(store).get("a") == data
    assert len(store.asked) == 2


def test_a_server_that_ignores_ranges_is_refused(store: Answers) -> None:
    store.script = [answer(200, b"0123456789")]
    with pytest.raises(StorageUnreachable):
        opened(store).get("a", offset=2, length=3)


def test_one_failed_name_of_a_batch_is_an_error(store: Answers) -> None:
    body = (
        b"<DeleteResult><Error><Key>repo/b</Key><Code>AccessDenied</Code><Message>locked"
        b"</Message></Error></DeleteResult>"
    )
    store.script = [answer(200, body)]
    with pytest.raises(StorageDenied, match="AccessDenied"):
        opened(store).delete(["a", "b"])


# -- lost answers ----------------------------------------------------------------------


def test_our_own_object_found_after_a_lost_answer_is_success(store: Answers) -> None:
    store.script = [create_and_reset, create, read]
    opened(store).put("a", b"ours", if_absent=True)
    assert [verb for verb, _ in store.asked] == ["PUT", "PUT", "GET"]
    assert store.stored == {"/bucket/repo/a": b"ours"}


@pytest.mark.parametrize("theirs", [b"", b"our", b"ours+", b"ourz"])
def test_another_object_found_after_a_lost_answer_is_theirs(store: Answers, theirs: bytes) -> None:
    store.stored["/bucket/repo/a"] = theirs
    store.script = [reset, create, read]
    with pytest.raises(AlreadyExists):
        opened(store).put("a", b"ours", if_absent=True)
    assert store.stored == {"/bucket/repo/a": theirs}


@pytest.mark.parametrize(
    "harmless", [refuse(503, "SlowDown"), refuse(409, "ConditionalRequestConflict")]
)
def test_no_lost_answer_no_benefit_of_doubt(
    store: Answers, harmless: Callable[[Handler], None]
) -> None:
    """An equal object is somebody else's if none of our tries can have been carried out: two who
    create the same name with the same bytes must not both believe that they won."""
    store.stored["/bucket/repo/a"] = b"same"
    for script in ([create], [harmless, create]):
        store.script, store.asked = script, []
        with pytest.raises(AlreadyExists):
            opened(store).put("a", b"same", if_absent=True)


def test_empty_object_after_a_lost_answer(store: Answers) -> None:
    store.script = [create_and_reset, create, read]
    opened(store).put("a", b"", if_absent=True)


# -- real servers --------------------------------------------------------------------------


def test_wrong_secret(seaweed_s3: S3Server) -> None:
    storage = seaweed_s3.storage("wrong", secret_access_key="not-the-secret")
    for call in VERBS.values():
        with pytest.raises(StorageDenied, match="credentials are wrong") as raised:
            call(storage)
        assert raised.value.exit_status == 8


def test_unknown_key(seaweed_s3: S3Server) -> None:
    with pytest.raises(StorageDenied, match="InvalidAccessKeyId"):
        seaweed_s3.storage("wrong", access_key_id="NOBODY").get("a")


def test_reader_may_read_only(seaweed_s3: S3Server) -> None:
    assert seaweed_s3.reader is not None
    key, secret = seaweed_s3.reader
    seaweed_s3.storage("rights").put("a", b"x")
    reader = seaweed_s3.storage("rights", access_key_id=key, secret_access_key=secret)
    assert reader.get("a") == b"x"
    assert [entry.name for entry in reader.list("")] == ["a"]
    for call in (
        lambda: reader.put("b", b"x"),
        lambda: reader.put("b", b"x", if_absent=True),
        lambda: reader.delete(["a"]),
    ):
        with pytest.raises(StorageDenied, match="AccessDenied"):
            call()
    assert reader.get("a") == b"x"


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("server", ["moto_s3", "seaweed_s3"])
def test_missing_bucket(request: pytest.FixtureRequest, server: str, verb: str) -> None:
    running: S3Server = request.getfixturevalue(server)
    with pytest.raises(NotFound, match="bucket does not exist") as raised:
        VERBS[verb](running.storage("p", bucket="no-such-bucket"))
    assert raised.value.exit_status == 5


def test_nobody_listens() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{held.getsockname()[1]}"
        storage = ObjectStorage(LOCATION, endpoint=endpoint, patience=QUICK, **KEYS)
        for call in VERBS.values():
            with pytest.raises(StorageUnreachable, match="Connection refused"):
                call(storage)


def test_no_such_host() -> None:
    storage = ObjectStorage(LOCATION, endpoint="https://store.invalid", patience=QUICK, **KEYS)
    with pytest.raises(StorageUnreachable, match=r"store\.invalid.*lookup"):
        storage.get("a")


# -- endpoints, TLS, credentials ------------------------------------------------------------


@pytest.mark.parametrize(
    "endpoint", ["http://store.example.org", "http://10.0.0.1:9000", "http://127.0.0.1.example.org"]
)
def test_plain_http_to_elsewhere_is_refused(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="without encryption"):
        open_storage(parse("s3://bucket/p"), endpoint=endpoint)
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(ConfigError, match="without encryption"):
        open_storage(parse("s3://bucket/p"))
    open_storage(parse("s3://bucket/p"), allow_http=True)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.9.9.9", "[::1]"])
def test_plain_http_to_this_machine_is_fine(host: str) -> None:
    open_storage(parse("s3://bucket/p"), endpoint=f"http://{host}:9000")


@pytest.mark.parametrize("endpoint", ["store.example.org", "ftp://x", "https://", "https://[x"])
def test_endpoints_that_are_none(endpoint: str) -> None:
    with pytest.raises(ConfigError, match="an endpoint is"):
        open_storage(parse("s3://bucket/p"), endpoint=endpoint)


def test_credentials_in_an_endpoint_are_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigError) as refused:
        open_storage(parse("s3://bucket/p"), endpoint="https://KEY:hunter2@host")
    assert "hunter2" not in refused.value.what


def test_settings_from_the_environment(store: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", store.endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "FROM-ENV")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "temporary")
    monkeypatch.setenv("AWS_REGION", "eu-north-1")
    signed: list[http.client.HTTPMessage] = []

    def note(handler: Handler) -> None:
        signed.append(handler.headers)
        create(handler)

    store.script = [note]
    open_storage(parse("s3://bucket/repo")).put("a", b"x", if_absent=True)
    assert "Credential=FROM-ENV/" in signed[0]["authorization"]
    assert "/eu-north-1/s3/" in signed[0]["authorization"]
    assert signed[0]["x-amz-security-token"] == "temporary"
    assert signed[0]["if-none-match"] == "*"
    assert signed[0]["x-amz-content-sha256"] not in (None, "UNSIGNED-PAYLOAD")


def test_no_credentials_anywhere(store: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's metadata service, here one of our own, has none."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", store.endpoint)
    store.script = [answer(404)]
    storage = ObjectStorage(LOCATION, endpoint=store.endpoint, patience=QUICK)
    for call in VERBS.values():
        with pytest.raises(StorageDenied, match="no credentials") as raised:
            call(storage)
        assert "AWS_ACCESS_KEY_ID" in raised.value.do


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that nobody signed but itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "loopback")])
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(names, critical=False)
        .sign(key, hashes.SHA256())
    )
    place = tmp_path_factory.mktemp("tls")
    (place / "cert.pem").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    (place / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return place / "cert.pem", place / "key.pem"


def test_untrusted_and_trusted_certificates(
    certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(*certificate)
    with serving(tls) as answers:
        answers.script = [create]
        for call in (VERBS["get"], VERBS["create"], VERBS["list"], VERBS["delete"]):
            with pytest.raises(StorageUnreachable, match="not trusted") as raised:
                call(opened(answers))
            assert "AWS_CA_BUNDLE" in raised.value.do
        assert answers.asked == []
        opened(answers, ca_file=str(certificate[0])).put("a", b"x")
        monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate[0]))
        opened(answers).put("b", b"x")
        assert len(answers.stored) == 2


def test_unreadable_ca_file() -> None:
    with pytest.raises(ConfigError, match=r"/no/such\.pem"):
        ObjectStorage(LOCATION, endpoint="https://x.invalid", ca_file="/no/such.pem", **KEYS)


# -- Azure, as far as it can be had without its server ------------------------------------------


def test_azure_speaks_the_same(store: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Conditional create, its refusal, absence and a missing container over Azure's protocol."""
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "Zm9v")
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", store.endpoint)
    storage = ObjectStorage(parse("az://container/repo"), allow_http=True, patience=QUICK)
    store.script = [create]
    storage.put("a", b"x", if_absent=True)
    store.script = [refuse(409, "BlobAlreadyExists")]
    with pytest.raises(AlreadyExists):
        storage.put("a", b"x", if_absent=True)
    store.script = [refuse(404, "BlobNotFound")]
    with pytest.raises(ObjectMissing):
        storage.get("a")
    store.script = [refuse(404, "ContainerNotFound")]
    for verb in ("put", "get", "list"):
        with pytest.raises(NotFound, match="bucket does not exist"):
            VERBS[verb](storage)


def test_other_stores_take_no_s3_settings() -> None:
    with pytest.raises(ConfigError, match=r"access_key_id.*environment"):
        open_storage(parse("gs://bucket/p"), access_key_id="x")
