"""What is known of a store from outside: TLS as negotiated, versions that a bucket keeps; and a store whose
credentials may not delete."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from postgres.tls import write_certificate
from rooms import new_room, seams
from servers import S3Server
from strongroom.errors import StorageDenied, StorageUnreachable
from strongroom.operations.doctor import Opened, look_at_folder, look_at_room, look_at_storage
from strongroom.storage.location import Location, parse
from strongroom.storage.looking import Place, negotiated, place_of, versioning
from strongroom.storage.memory import MemoryStorage


@contextmanager
def handshakes(folder: Path, newest: ssl.TLSVersion) -> Iterator[Place]:
    """Something that shakes hands, by no newer TLS than this."""
    certificate, key = write_certificate(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.maximum_version = newest
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with (
                suppress(OSError),
                listener.accept()[0] as raw,
                context.wrap_socket(raw, server_side=True) as channel,
            ):
                channel.recv(1)

        threading.Thread(target=serve, daemon=True).start()
        yield Place(f"https://127.0.0.1:{listener.getsockname()[1]}", near=True)


@pytest.mark.parametrize(
    ("newest", "word"),
    [(ssl.TLSVersion.TLSv1_3, "TLSv1.3"), (ssl.TLSVersion.TLSv1_2, "TLSv1.2")],
)
def test_the_version_that_was_negotiated(tmp_path: Path, newest: ssl.TLSVersion, word: str) -> None:
    with handshakes(tmp_path, newest) as place:
        assert negotiated(place, str(tmp_path / "server.crt"), {}) == word


def test_who_cannot_be_asked(tmp_path: Path) -> None:
    with (
        handshakes(tmp_path, ssl.TLSVersion.TLSv1_3) as place,
        pytest.raises(StorageUnreachable, match="certificate"),
    ):
        negotiated(place, None, {})
    with pytest.raises(StorageUnreachable, match="proxy"):
        negotiated(Place("https://far", near=False), None, {"HTTPS_PROXY": "http://p"})


@pytest.mark.parametrize(
    ("url", "environ", "place"),
    [
        ("/srv/backups", {}, None),
        ("s3://bucket/p", {}, Place("https://s3.us-east-1.amazonaws.com", False)),
        ("s3://bucket/p", {"AWS_REGION": "eu-west-1"}, Place("https://s3.eu-west-1.amazonaws.com", False)),
        ("s3://bucket", {"AWS_ENDPOINT_URL": "http://localhost:9"}, Place("http://localhost:9", True)),
        ("gs://bucket/p", {}, Place("https://storage.googleapis.com", False)),
        ("az://bucket/p", {}, None),
    ],
)  # fmt: skip
def test_where_a_store_is_asked(url: str, environ: dict[str, str], place: Place | None) -> None:
    assert place_of(parse(url), environ) == place


def test_versions_that_a_bucket_keeps(moto_s3: S3Server) -> None:
    boto3 = pytest.importorskip("boto3", reason="boto3 is not installed")
    settings = {
        "region_name": moto_s3.region,
        "aws_access_key_id": "moto",
        "aws_secret_access_key": "moto",
    }
    client = boto3.client("s3", endpoint_url=moto_s3.endpoint, **settings)
    place = Place(moto_s3.endpoint, near=True)

    def ask(bucket: str) -> tuple[str, str]:
        return versioning(Location("s3", bucket=bucket), place, ca_file=None, settings=settings)

    client.create_bucket(Bucket="plain")
    assert ask("plain") == ("", "")
    client.create_bucket(Bucket="locked", ObjectLockEnabledForBucket=True)
    assert ask("locked") == ("Enabled", "on, without a default")
    rule = {"DefaultRetention": {"Mode": "GOVERNANCE", "Days": 30}}
    client.put_object_lock_configuration(
        Bucket="locked",
        ObjectLockConfiguration={"ObjectLockEnabled": "Enabled", "Rule": rule},
    )
    assert ask("locked") == ("Enabled", "governance for 30 days")
    with pytest.raises(StorageUnreachable, match="does not tell"):
        ask("nowhere")


class WithoutDelete(MemoryStorage):
    """A store whose credentials may not delete."""

    def delete(self, names: Iterable[str]) -> None:
        raise StorageDenied("no")


def test_a_writer_need_not_delete() -> None:
    opened, repository = Opened(), new_room(storage=WithoutDelete())
    opened.give(repository)
    found = list(look_at_storage(repository.storage, opened, seams("doctor")))
    assert [one.verdict for one in found] == ["ok", "ok"]
    assert "may not delete" in found[0].what and "as found at `init`" in found[1].what
    left = len(list(repository.storage.list("probe/")))
    assert left <= 2, "no more is left behind than must be"
    assert [one.verdict for one in look_at_room(repository.storage)] == ["ok"]


def test_folders_are_looked_at_and_not_made(tmp_path: Path) -> None:
    there = tmp_path / "a/b"
    found = look_at_folder("cache", str(there))
    assert found.verdict in ("ok", "failed") and not there.exists()
    assert "can be made" in found.what or "free" in found.what
    (tmp_path / "file").touch()
    assert look_at_folder("cache", str(tmp_path / "file/b")).verdict == "failed"
