"""A server that speaks TLS, with a certificate of its own for `localhost`, the loopback and `addresses`."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from strongroom.errors import NotFound
from strongroom.postgres.embedded import EmbeddedServer, find_server, service_account


def write_certificate(folder: Path, addresses: Sequence[str] = ()) -> tuple[Path, Path]:
    """A certificate that is its own authority, and its key, for the account that servers run as."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    places = [x509.IPAddress(ipaddress.ip_address(one)) for one in ("127.0.0.1", *addresses)]
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName("localhost"), *places]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate, secret = folder / "server.crt", folder / "server.key"
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    secret.chmod(0o600)
    account = service_account()
    os.chown(secret, account.uid, account.gid)
    return certificate, secret


def own_address() -> str | None:
    """An address of this machine that is not the loopback; None where there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        probe.connect(("192.0.2.1", 9))  # nothing is sent
        address: str = probe.getsockname()[0]
        return None if address.startswith("127.") else address
    return None


@contextlib.contextmanager
def tls_server(major: int = 15, **settings: str) -> Iterator[tuple[EmbeddedServer, Path]]:
    """A server with TLS at the loopback, and its certificate; a skip where the build has none."""
    try:
        installation = find_server(major)
    except NotFound:
        pytest.skip(f"no PostgreSQL {major} here: `apt-get install postgresql-{major}`")
    folder = Path(tempfile.mkdtemp(prefix="sr-tls-", dir="/tmp"))
    folder.chmod(0o755)
    try:
        address = own_address()
        certificate, secret = write_certificate(folder, [address] if address else [])
        chosen = {"ssl": "on", "ssl_cert_file": str(certificate), "ssl_key_file": str(secret)}
        with EmbeddedServer(
            installation, tcp=True, durable=False, settings={**chosen, **settings}
        ) as server:
            yield server, certificate
    finally:
        shutil.rmtree(folder, ignore_errors=True)
