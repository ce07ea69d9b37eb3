"""Where a repository is: from the words of a person to a value, and from the value to a storage.

Rule: `parse` is pure and refuses what it does not understand; nothing is
guessed and no secret may stand in an address, because addresses are logged.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from strongroom.errors import ConfigError
from strongroom.storage.base import Storage, is_name

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]")
_KNOWN = "a path, file:///path, s3://bucket/prefix, gs://bucket/prefix, az://container/prefix"


@dataclass(frozen=True, slots=True)
class Location:
    """A parsed address: `path` where `scheme` is "file", else `bucket` and `prefix`."""

    scheme: str
    path: bytes = b""
    bucket: str = ""
    prefix: str = ""

    @property
    def url(self) -> str:
        """Return the address in its plain form."""
        if self.scheme == "file":
            return os.fsdecode(self.path)
        return f"{self.scheme}://{self.bucket}" + (f"/{self.prefix}" if self.prefix else "")


def parse(url: str) -> Location:
    """Return the location that `url` names; ConfigError, with the known forms, if it is none.

    A path that contains a colon before its first slash is written `./a:b`.
    """
    if not url or "\0" in url:
        raise ConfigError(f"not the address of a repository: {url!r}; known are {_KNOWN}")
    found = _SCHEME.match(url)
    if found is None:
        return _parse_path(url)
    scheme = found[1].lower()
    if scheme == "file":
        return _parse_file(url)
    if scheme in ("s3", "gs", "az"):
        return _parse_bucket(scheme, url)
    raise ConfigError(
        f"unknown kind of repository {scheme!r}; known are {_KNOWN}",
        do="Correct `url` in [repository]; a path with a colon in it is written ./like:this",
    )


def _parse_path(path: str) -> Location:
    if path.startswith("~"):
        raise ConfigError(
            f"the path of a repository does not expand {path.split('/', maxsplit=1)[0]!r}",
            do="Write the whole path in [repository], so that it means the same for every user.",
        )
    return Location("file", path=os.fsencode(path))


def _parse_file(url: str) -> Location:
    # By hand: urlsplit drops newlines and tabs, and a path may hold both.
    rest = url[len("file:") :]
    host, slash, path = rest.removeprefix("//").partition("/")
    if not rest.startswith("//") or not slash or host.lower() not in ("", "localhost"):
        raise ConfigError(f"a file address is file:///absolute/path, not {_safe(url)!r}")
    raw = unquote_to_bytes("/" + path)
    if "?" in path or "#" in path or b"\0" in raw:
        raise ConfigError(f"write ?, # and other signs of the path as %xx: {_safe(url)!r}")
    return Location("file", path=raw)


def _parse_bucket(scheme: str, url: str) -> Location:
    if not url[len(scheme) :].startswith("://"):
        raise ConfigError(f"an address of this kind is {scheme}://bucket/prefix: {_safe(url)!r}")
    rest = url[len(scheme) + 3 :]
    if "@" in rest:
        raise ConfigError(
            f"credentials do not belong into an address: {_safe(url)!r}",
            do="Take them out of `url`, change them if the file was shared, and give them as "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or by reference in [repository].",
        )
    bucket, _, prefix = rest.partition("/")
    prefix = prefix.removesuffix("/")
    if not _BUCKET.fullmatch(bucket):
        raise ConfigError(f"not a bucket's name: {bucket!r} in {url!r}")
    if prefix and not is_name(prefix):
        raise ConfigError(
            f"a prefix is made of letters, digits, '.', '_', '-' and single '/': {prefix!r}"
        )
    return Location(scheme, bucket=bucket, prefix=prefix)


def _safe(url: str) -> str:
    """Return `url` without what stands between scheme and "@", for messages."""
    head, found, tail = url.rpartition("@")
    return f"{head.split(':', maxsplit=1)[0]}://…@{tail}" if found else url


def open_storage(
    location: Location,
    *,
    endpoint: str | None = None,
    region: str | None = None,
    access_key_id: str | None = None,
    secret_access_key: str | None = None,
    session_token: str | None = None,
    ca_file: str | None = None,
    allow_http: bool = False,
) -> Storage:
    """Return the adapter for `location`; nothing is contacted or created yet.

    What is not given comes from the standard environment variables of the store.
    """
    given = {
        "endpoint": endpoint,
        "region": region,
        "access_key_id": access_key_id,
        "secret_access_key": secret_access_key,
        "session_token": session_token,
        "ca_file": ca_file,
        "allow_http": allow_http or None,
    }
    present = {name: value for name, value in given.items() if value is not None}
    if location.scheme == "file":
        if present:
            raise ConfigError(f"{', '.join(present)}: a local directory has no such setting")
        from strongroom.storage.local import LocalStorage  # noqa: PLC0415

        return LocalStorage(location.path)
    from strongroom.storage.object_store import ObjectStorage  # noqa: PLC0415

    return ObjectStorage(
        location,
        endpoint=endpoint,
        region=region,
        access_key_id=access_key_id,
        secret_access_key=secret_access_key,
        session_token=session_token,
        ca_file=ca_file,
        allow_http=allow_http,
    )
