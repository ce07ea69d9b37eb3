"""Objects in a bucket: S3 and what speaks like it, Google Cloud Storage, Azure Blob, by obstore.

Rule: one object is one request. Uploads are never multipart: a single PUT is
atomic, carries the hash of its body in its signature so that the store checks
it, and leaves no invisible parts behind when it is cut off.

Who retries: obstore does for get, list and delete (it resumes bodies and
pages). Puts are retried here, because a create whose answer was lost may have
been carried out; then the second try is told "exists" about our own object,
and only the one who knows that there was a first try may look and compare.
"""

from __future__ import annotations

import ipaddress
import itertools
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

from strongroom.errors import AlreadyExists, ConfigError, ObjectMissing, StorageUnreachable
from strongroom.storage.base import Buffer, Entry, check_name, is_name
from strongroom.storage.location import Location
from strongroom.storage.object_errors import Answer, translate

_PAGE = 1000
_FAILURE_WORDS = ("SlowDown", "InternalError")
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")


_Names = list[str]


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a store is given, in seconds and tries.

    After `total` seconds no new try is begun, so that a verb ends, at worst, one `request` later.
    """

    retries: int = 10
    first: float = 0.1
    ceiling: float = 15.0
    total: float = 180.0
    connect: float = 5.0
    idle: float = 60.0
    request: float = 300.0


class ObjectStorage:
    """A storage in the bucket and below the prefix of `location`.

    What is not given is taken from the standard environment variables. Plain HTTP is refused
    unless the endpoint is this machine or `allow_http` is set. `sleep`, `clock` (monotonic
    seconds) and `jitter` (0 to 1) are what the pauses between tries are made of.
    """

    def __init__(
        self,
        location: Location,
        *,
        endpoint: str | None = None,
        region: str | None = None,
        access_key_id: str | None = None,
        secret_access_key: str | None = None,
        session_token: str | None = None,
        ca_file: str | None = None,
        allow_http: bool = False,
        patience: Patience = Patience(),
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._location = location
        self._patience = patience
        self._sleep, self._clock, self._jitter = sleep, clock, jitter
        given = {
            "endpoint": endpoint,
            "region": region,
            "access_key_id": access_key_id,
            "secret_access_key": secret_access_key,
            "session_token": session_token,
        }
        settings = {name: value for name, value in given.items() if value is not None}
        plain = allow_http or os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("1", "true", "yes")
        plain = _settle_endpoint(location.scheme, settings, plain)
        client = _client(patience, plain, ca_file or os.environ.get("AWS_CA_BUNDLE"))
        self._where = location.url + (
            f" ({settings['endpoint']})" if "endpoint" in settings else ""
        )
        idle = {**client, "read_timeout": timedelta(seconds=patience.idle)}
        often = _retry(patience, patience.retries)
        self._reader = self._deleter = _connect(location, settings, idle, often)
        if location.scheme == "s3":
            one_by_one: dict[str, Any] = {**settings, "disable_bulk_delete": True}
            self._deleter = _connect(location, one_by_one, idle, often)
        self._writer = _connect(location, settings, client, _retry(patience, 0))
        self._foreign = _foreign_errors()

    @property
    def url(self) -> str:
        """Return the address, such as `s3://bucket/prefix`."""
        return self._location.url

    def put(self, name: str, data: Buffer, *, if_absent: bool = False) -> None:
        """Store `data` in one request, trying again while the store is at fault.

        If the answer to a try was lost and a later one is told that the name is taken, the object
        there is compared with `data`: equal means that the lost try had succeeded. Callers for
        whom it matters *who* put it (locks, generations) put something only they could write.
        """
        check_name(name)
        view = memoryview(data).cast("B")
        mode = "create" if if_absent else "overwrite"
        deadline = self._clock() + self._patience.total
        doubtful = False
        for tried in itertools.count():
            try:
                self._writer.put(name, view, mode=mode, use_multipart=False)
                return
            except self._foreign as error:
                answer = Answer.read(error)
                if if_absent and answer.taken:
                    if doubtful and self._holds(name, view):
                        return
                    raise AlreadyExists(f"{name} exists already at {self._where}") from error
                if not answer.transient or not self._pause(tried, deadline):
                    raise translate(error, "store", name, self._where) from error
                doubtful = doubtful or not answer.stored_nothing

    def get(self, name: str, *, offset: int = 0, length: int | None = None) -> bytes:
        """Return the object or a range of it."""
        check_name(name)
        if offset < 0 or (length is not None and length < 0):
            raise ValueError("offset and length are not negative")
        options: dict[str, Any] = {}
        if length is not None:  # ranges are never empty in HTTP: ask for a byte and drop it
            options = {"range": (offset, offset + max(length, 1))}
        elif offset:
            options = {"range": {"offset": offset}}
        try:
            body = self._reader.get(name, options=options).bytes()
            return b"" if length == 0 else bytes(body)
        except self._foreign as error:
            if Answer.read(error).past_the_end:
                return b""
            raise translate(error, "read", name, self._where) from error

    def list(self, prefix: str) -> Iterator[Entry]:
        """Yield the objects, a page of 1000 per request.

        A prefix that ends within a part costs as much as listing that part's whole directory.
        """
        folder, slash, _ = prefix.rpartition("/")
        if slash and not is_name(folder):
            return
        empty = True
        try:
            for page in self._reader.list(folder or None, chunk_size=_PAGE):
                for found in page:
                    name = found["path"]
                    empty = False
                    if name.startswith(prefix) and is_name(name):
                        yield Entry(name, found["size"], found["last_modified"].timestamp())
        except self._foreign as error:
            raise translate(error, "list", prefix or "objects", self._where) from error
        if empty:
            self._doubt_emptiness(folder)

    def delete(self, names: Iterable[str]) -> None:
        """Delete in batches of up to 1000."""
        checked = (check_name(name) for name in names)
        while batch := list(itertools.islice(checked, _PAGE)):
            misread = [name for name in batch if self._is_misread(name)]
            clear = [name for name in batch if name not in misread] if misread else batch
            for store, part in ((self._reader, clear), (self._deleter, misread)):
                if part:
                    self._delete(store, part)

    def _delete(self, store: Any, names: _Names) -> None:
        try:
            store.delete(names)
        except FileNotFoundError as error:
            translated = translate(error, "delete", names[0], self._where)
            if not isinstance(translated, ObjectMissing):
                raise translated from error
            # Google and Azure delete one by one and stop at the first that is absent.
            for name in names if len(names) > 1 else ():
                self._delete(store, [name])
        except self._foreign as error:
            raise translate(error, "delete", names[0], self._where) from error

    def _is_misread(self, name: str) -> bool:
        """Tell whether the answer to a batch that deleted `name` would be taken for a failure.

        The client library looks for these words anywhere in the answer, and it echoes the names.
        """
        return any(word in name or word in self._location.prefix for word in _FAILURE_WORDS)

    def free_space(self) -> int | None:
        """Return None: buckets do not tell."""
        return None

    def total_space(self) -> int | None:
        """Return None: buckets do not tell."""
        return None

    def close(self) -> None:
        """Do nothing: idle connections are closed by the client library."""

    def _pause(self, tried: int, deadline: float) -> bool:
        """Wait before the next try, longer each time; False if there must not be one."""
        patience = self._patience
        if tried >= patience.retries:
            return False
        pause = min(patience.ceiling, patience.first * 2**tried) * (0.5 + self._jitter() / 2)
        if self._clock() + pause >= deadline:
            return False
        self._sleep(pause)
        return True

    def _holds(self, name: str, view: memoryview) -> bool:
        """Tell whether the stored object is exactly `view`, reading one byte more than its size."""
        return self.get(name, length=len(view) + 1) == view

    def _doubt_emptiness(self, folder: str) -> None:
        """Raise unless an object store answers here.

        The client reads any answer of status 200 as a listing, and a portal's or a proxy's page
        as an empty one. Asking for an absent object tells the store from such a page.
        """
        name = f"{folder}/absent" if folder else "absent"
        try:
            self.get(name, length=1)
        except ObjectMissing:
            return
        raise StorageUnreachable(
            f"cannot list {folder or 'objects'} at {self._where}: the answer is no listing",
            do="Check the endpoint: something else than the object store answers there.",
        )


def _settle_endpoint(scheme: str, settings: dict[str, str], allow_http: bool) -> bool:
    """Put the endpoint into `settings` and return whether it may be spoken to in plain HTTP."""
    if scheme != "s3":
        if settings:
            raise ConfigError(
                f"{', '.join(settings)}: {scheme}:// takes its settings from the environment "
                "(GOOGLE_APPLICATION_CREDENTIALS; AZURE_STORAGE_ACCOUNT_NAME and _KEY)"
            )
        return allow_http
    for variable in _ENDPOINTS:
        if "endpoint" not in settings and os.environ.get(variable):
            settings["endpoint"] = os.environ[variable]
    endpoint = settings.get("endpoint")
    if endpoint is None:
        return False
    try:
        parts = urlsplit(endpoint)
        host, plain = parts.hostname, parts.scheme == "http"
    except ValueError:
        parts, host, plain = None, None, False
    if parts is None or host is None or parts.scheme not in ("http", "https"):
        raise ConfigError(f"an endpoint is https://host[:port], not {endpoint.split('@')[-1]!r}")
    if parts.username is not None or parts.password is not None:
        raise ConfigError("credentials do not belong into an endpoint's address")
    if plain and not allow_http and not _is_this_machine(host):
        raise ConfigError(
            f"the endpoint {endpoint} would be spoken to without encryption",
            means="Nothing was sent. The backup itself is encrypted, but whoever listens could "
            "replay requests, hide or change answers and see all names.",
            do="Use https://, or set `allow_http = true` in [repository] for a network you trust.",
        )
    return plain


def _is_this_machine(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _client(patience: Patience, plain: bool, ca_file: str | None) -> dict[str, Any]:
    client: dict[str, Any] = {
        "allow_http": plain,
        "connect_timeout": timedelta(seconds=patience.connect),
        "timeout": timedelta(seconds=patience.request),
    }
    if ca_file and not plain:
        try:
            with open(ca_file, "rb") as file:
                client["root_certificate"] = file.read()
        except OSError as error:
            raise ConfigError(f"cannot read the certificates in {ca_file}: {error}") from error
    return client


def _retry(patience: Patience, retries: int) -> dict[str, Any]:
    return {
        "max_retries": retries,
        "retry_timeout": timedelta(seconds=patience.total),
        "backoff": {
            "init_backoff": timedelta(seconds=patience.first),
            "max_backoff": timedelta(seconds=patience.ceiling),
            "base": 2,
        },
    }


def _connect(
    location: Location, settings: Mapping[str, Any], client: dict[str, Any], retry: dict[str, Any]
) -> Any:
    """Return obstore's handle for one bucket; no connection is opened yet."""
    try:
        from obstore import store  # noqa: PLC0415  10 MB that only object stores need
    except ImportError as error:
        raise ConfigError(
            f"{location.url} needs the object store client, which is not installed",
            do="Install it: pip install 'strongroom[s3]'",
        ) from error
    kinds: dict[str, Any] = {"s3": store.S3Store, "gs": store.GCSStore, "az": store.AzureStore}
    try:
        return kinds[location.scheme](
            location.bucket,
            prefix=location.prefix or None,
            client_options=client,
            retry_config=retry,
            **settings,
        )
    except Exception as error:
        raise ConfigError(
            f"cannot use {location.url}: {str(error).splitlines()[0]}",
            do="Check the settings of [repository] and the environment variables of the store.",
        ) from error


def _foreign_errors() -> tuple[type[Exception], ...]:
    """Return what obstore raises: its own tree, and OSError for what Python has a word for."""
    from obstore.exceptions import BaseError  # noqa: PLC0415

    return (BaseError, OSError)
