"""Addresses of repositories: what is understood, and that all else is refused with its reason."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strongroom.errors import ConfigError
from strongroom.storage.local import LocalStorage
from strongroom.storage.location import Location, open_storage, parse


@pytest.mark.parametrize(
    ("url", "location"),
    [
        ("/var/lib/strongroom", Location("file", path=b"/var/lib/strongroom")),
        ("relative/dir", Location("file", path=b"relative/dir")),
        ("./a:b", Location("file", path=b"./a:b")),
        ("/a:b", Location("file", path=b"/a:b")),
        ("/a b?c#d%20", Location("file", path=b"/a b?c#d%20")),
        ("/\udcff", Location("file", path=b"/\xff")),
        ("file:///a%20b%ff", Location("file", path=b"/a b\xff")),
        ("FILE://localhost/a", Location("file", path=b"/a")),
        ("s3://bucket", Location("s3", bucket="bucket")),
        ("s3://bucket/", Location("s3", bucket="bucket")),
        ("S3://my.bucket-1/a/b/", Location("s3", bucket="my.bucket-1", prefix="a/b")),
        ("gs://bucket/p", Location("gs", bucket="bucket", prefix="p")),
        ("az://container/p", Location("az", bucket="container", prefix="p")),
    ],
)
def test_understood(url: str, location: Location) -> None:
    assert parse(url) == location
    assert parse(location.url) == location


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "known are"),
        ("/a\0b", "known are"),
        ("ftp://host/x", "'ftp'.*s3://bucket/prefix"),
        ("sftp://host/x", "unknown kind"),
        ("rclone:remote:path", "unknown kind"),
        ("host:path", "unknown kind"),
        ("s3:bucket", "s3://bucket/prefix"),
        ("s3:///prefix", "not a bucket"),
        ("s3://b", "not a bucket"),
        ("s3://buc ket/p", "not a bucket"),
        ("s3://bucket:9000/p", "not a bucket"),
        ("s3://bucket//p", "prefix"),
        ("s3://bucket/p?endpoint=x", "prefix"),
        ("s3://bucket/../p", "prefix"),
        ("file://host/x", "absolute"),
        ("file:x", "absolute"),
        ("file:///x?y", "%xx"),
        ("file:///x%00y", "%xx"),
        ("~/backups", "'~'"),
        ("~bob/backups", "'~bob'"),
    ],
)
def test_refused(url: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        parse(url)


@pytest.mark.parametrize("scheme", ["s3", "gs", "az", "file"])
def test_credentials_are_refused_and_not_repeated(scheme: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse(f"{scheme}://AKIAKEY:hunter2@bucket/prefix")
    told = refused.value.what + refused.value.do + refused.value.means
    assert "hunter2" not in told
    assert "AKIAKEY" not in told


@given(st.text(max_size=30))
def test_never_anything_but_a_location_or_a_refusal(text: str) -> None:
    for url in (text, "s3://" + text, "file://" + text):
        try:
            location = parse(url)
        except ConfigError:
            continue
        assert parse(location.url) == location or ":" in location.url or "~" in location.url


def test_open_local(tmp_path: object) -> None:
    storage = open_storage(parse(f"{tmp_path}"))
    assert isinstance(storage, LocalStorage)
    assert storage.url == str(tmp_path)
    with pytest.raises(ConfigError, match="endpoint, allow_http: a local directory"):
        open_storage(parse("/x"), endpoint="https://x", allow_http=True)


def test_a_missing_client_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(ConfigError) as missing:
        open_storage(parse("s3://bucket/p"))
    assert "strongroom[s3]" in missing.value.do
