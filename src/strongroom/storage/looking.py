"""What can be known of a store from outside of its five verbs: TLS as negotiated, versions that it keeps."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from strongroom.errors import StorageUnreachable
from strongroom.storage.location import Location

_SECONDS = 5.0
_PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_REGIONS = ("AWS_REGION", "AWS_DEFAULT_REGION")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a store is asked: the address of its endpoint, and whether it is on this machine."""

    url: str
    near: bool


def place_of(
    location: Location,
    environ: Mapping[str, str],
    *,
    endpoint: str | None = None,
    region: str | None = None,
) -> Place | None:
    """The endpoint of a location; None for a folder, and where it is not known."""
    url = None
    if location.scheme == "s3":
        found = [environ[name] for name in _ENDPOINTS if environ.get(name)]
        regions = [environ[name] for name in _REGIONS if environ.get(name)]
        url = endpoint or (found[0] if found else None)
        url = (
            url or f"https://s3.{region or (regions[0] if regions else 'us-east-1')}.amazonaws.com"
        )
    elif location.scheme == "gs":
        url = "https://storage.googleapis.com"
    elif location.scheme == "az" and environ.get("AZURE_STORAGE_ACCOUNT_NAME"):
        url = f"https://{environ['AZURE_STORAGE_ACCOUNT_NAME']}.blob.core.windows.net"
    if url is None:
        return None
    host = urlsplit(url).hostname or ""
    return Place(url, host == "localhost" or host.startswith("127.") or host == "::1")


def negotiated(place: Place, ca_file: str | None, environ: Mapping[str, str]) -> str:
    """Shake hands with an endpoint and return the version of TLS; StorageUnreachable, with the reason.

    The client of the store is another one, and may take a lower version only where this one would.
    """
    proxies = [name for name in _PROXIES if environ.get(name)]
    if proxies and not place.near:
        raise StorageUnreachable(f"{proxies[0]} is set: what is behind the proxy cannot be asked.")
    parts = urlsplit(place.url)
    host = parts.hostname or ""
    context = ssl.create_default_context(cafile=ca_file or environ.get("AWS_CA_BUNDLE"))
    try:
        with (
            socket.create_connection((host, parts.port or 443), timeout=_SECONDS) as raw,
            context.wrap_socket(raw, server_hostname=host) as connection,
        ):
            return connection.version() or "no TLS"
    except OSError as fault:
        raise StorageUnreachable(f"{place.url} did not shake hands: {fault}.") from None


def versioning(
    location: Location, place: Place, *, ca_file: str | None, settings: Mapping[str, str | None]
) -> tuple[str, str]:
    """Whether a bucket of S3 keeps versions, and how objects are locked: the store's words, "" for off.

    `settings` are arguments of the client. StorageUnreachable when it cannot be asked.
    """
    try:
        import boto3  # noqa: PLC0415
        from botocore.config import Config  # noqa: PLC0415
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415
    except ImportError:
        raise StorageUnreachable(
            "boto3 is not installed (`pip install 'strongroom[kms]'`)."
        ) from None
    client = boto3.client(
        "s3",
        endpoint_url=None if place.url.endswith(".amazonaws.com") else place.url,
        verify=ca_file or os.environ.get("AWS_CA_BUNDLE") or None,
        config=Config(
            connect_timeout=_SECONDS, read_timeout=_SECONDS, retries={"total_max_attempts": 1}
        ),
        **{name: value for name, value in settings.items() if value is not None},
    )
    try:
        kept = client.get_bucket_versioning(Bucket=location.bucket).get("Status", "")
        try:
            lock = client.get_object_lock_configuration(Bucket=location.bucket)
            rule = (
                lock.get("ObjectLockConfiguration", {}).get("Rule", {}).get("DefaultRetention", {})
            )
            days = f"{rule['Days']} days" if rule.get("Days") else f"{rule.get('Years', 0)} years"
            locked = (
                f"{rule.get('Mode', '')} for {days}".lower() if rule else "on, without a default"
            )
        except ClientError:  # a store that has none answers with an error
            locked = ""
    except (BotoCoreError, ClientError) as fault:
        raise StorageUnreachable(f"the bucket does not tell: {fault}") from None
    return str(kept), locked


__all__ = ["Place", "negotiated", "place_of", "versioning"]
