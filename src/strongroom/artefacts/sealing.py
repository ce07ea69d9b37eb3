"""The two ways in which an artefact is sealed: `openssl enc` and age.

    openssl    "Salted__" ‖ salt 8 ‖ AES-256-CBC, PKCS#7; key ‖ iv = PBKDF2-HMAC-SHA256(first
               line of the key file, salt, 10,000)
    age        https://age-encryption.org/v1 to X25519 recipients, by pyrage

`openssl enc -pbkdf2` counts 10,000 rounds by default, and so do we: rounds make guessing a
password slow, and the key file holds 256 random bits, which nobody guesses at any speed. CBC has
no integrity of its own: the signed manifest has it, and is checked first. age has its own.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC

from strongroom.errors import ConfigError, Damaged, KeyRefused, StrongroomError, UsageError

ITERATIONS = 10_000
MAGIC = b"Salted__"
_BLOCK = 16
_READ = 256 * 1024

Out = Callable[[bytes | bytearray | memoryview], object]
Read = Callable[[int], bytes]


def new_key(secret: bytes) -> bytes:
    """The text of a key file: 32 random bytes in base64, one line, as `aws kms decrypt` prints."""
    if len(secret) != 32:
        raise ValueError("an artefact's key has 32 bytes")
    return base64.b64encode(secret) + b"\n"


def passphrase(key_file: bytes) -> bytes:
    """What openssl takes from a key file: its first line."""
    line = key_file.split(b"\n", 1)[0].removesuffix(b"\r")
    if not line:
        raise KeyRefused("The artefact's key file is empty.", means="Nothing was written.")
    return line


def wrap_context(name: str) -> dict[str, str]:
    """What a KMS binds to the key of the artefact `name`: its encryption context."""
    return {"artefact": name, "strongroom": "artefact 1"}


def key_id(passphrase: bytes) -> str:
    """What tells one key from another and nothing else: it is random, so its hash says nothing."""
    return hashlib.sha256(b"strongroom artefact key 1" + passphrase).hexdigest()[:32]


def _cipher(passphrase: bytes, salt: bytes) -> Cipher[CBC]:
    material = hashlib.pbkdf2_hmac("sha256", passphrase, salt, ITERATIONS, 48)
    return Cipher(AES(material[:32]), CBC(material[32:]))


class OpensslWriter:
    """What `openssl enc -aes-256-cbc -salt -pbkdf2` would write. `salt` is 8 random bytes."""

    def __init__(self, out: Out, passphrase: bytes, salt: bytes) -> None:
        self._out = out
        self._engine = _cipher(passphrase, salt).encryptor()
        self._size = 0
        out(MAGIC + salt)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypt and hand on."""
        self._size += len(data)
        self._out(self._engine.update(data))

    def finish(self) -> None:
        """Pad and end."""
        missing = _BLOCK - self._size % _BLOCK
        self._out(self._engine.update(bytes([missing]) * missing) + self._engine.finalize())

    def close(self) -> None:
        """Nothing is held."""


class OpensslReader:
    """Decrypt what `openssl enc` wrote. What comes is only as true as the file: verify it first."""

    def __init__(self, read: Read, passphrase: bytes) -> None:
        self._read = read
        head = _exactly(read, len(MAGIC) + 8)
        if not head.startswith(MAGIC) or len(head) != len(MAGIC) + 8:
            raise Damaged("The file does not begin as `openssl enc -salt` writes it.")
        self._engine = _cipher(passphrase, head[len(MAGIC) :]).decryptor()
        self._held = b""
        self._ended = False

    def read(self, size: int) -> bytes:
        """About `size` bytes, b"" at the end; KeyRefused when the padding is none."""
        while not self._ended:
            data = self._read(max(size, _BLOCK))
            if not data:
                self._ended = True
                return self._last()
            plain = self._held + self._engine.update(data)
            # The last block is padding, and which is the last is known when no more comes.
            self._held = plain[-_BLOCK:]
            if len(plain) > _BLOCK:
                return plain[:-_BLOCK]
        return b""

    def _last(self) -> bytes:
        try:
            plain = self._held + self._engine.finalize()
        except ValueError:
            raise Damaged("The encrypted file is cut: it ends within a block.") from None
        count = plain[-1] if plain else 0
        if not 1 <= count <= _BLOCK or plain[-count:] != bytes([count]) * count:
            raise KeyRefused(
                "The key does not open this file, or the file is damaged.",
                means="Nothing of it was delivered as true.",
                do="Give the key file that was made with this artefact.",
            )
        return plain[:-count]


def _exactly(read: Read, size: int) -> bytes:
    data = b""
    while len(data) < size and (more := read(size - len(data))):
        data += more
    return data


# -- age -----------------------------------------------------------------------------------------


def recipients(texts: Sequence[str]) -> list[object]:
    """Parse age1… recipients; UsageError."""
    pyrage = _pyrage()
    found = []
    for text in texts:
        try:
            found.append(pyrage.x25519.Recipient.from_str(text.strip()))
        except Exception:
            raise UsageError(
                f"{text!r} is no recipient of age.", do="Write it as `age-keygen` prints it: age1…"
            ) from None
    if not found:
        raise UsageError(
            "For whom is it to be sealed?",
            do="Give `--recipient age1…`, or `recipients` under [artefacts].",
        )
    return found


def identities(key_file: bytes) -> list[object]:
    """Parse the lines AGE-SECRET-KEY-1… of an identity file; KeyRefused when there is none."""
    pyrage = _pyrage()
    lines = [line.strip() for line in key_file.decode("ascii", "replace").splitlines()]
    try:
        found = [
            pyrage.x25519.Identity.from_str(line)
            for line in lines
            if line and not line.startswith("#")
        ]
    except Exception:
        found = []
    if not found:
        raise KeyRefused(
            "The identity file holds no identity of age.",
            means="Nothing was written.",
            do="Give the file that `age-keygen -o FILE` made.",
        )
    return found


def _pyrage() -> Any:
    try:
        import pyrage  # noqa: PLC0415 -- an extra
    except ImportError:
        raise ConfigError(
            "age needs pyrage, which is not installed.", do="pip install 'strongroom[age]'"
        ) from None
    return pyrage


class AgeWriter:
    """Seal to recipients. pyrage pulls: it stands on a thread of its own behind a pipe."""

    def __init__(self, out: Out, recipients: Sequence[object]) -> None:
        pyrage = _pyrage()
        there, here = os.pipe()
        self._pipe = os.fdopen(here, "wb", buffering=1024 * 1024)
        self._fault: BaseException | None = None

        def work() -> None:
            with os.fdopen(there, "rb", buffering=1024 * 1024) as source:
                try:
                    pyrage.encrypt_io(source, _Sink(out), list(recipients))
                except BaseException as fault:
                    self._fault = fault

        self._thread = threading.Thread(target=work, name="age", daemon=True)
        self._thread.start()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Hand on."""
        try:
            self._pipe.write(data)
        except BrokenPipeError:
            self._thread.join()
            raise self._translated() from None

    def finish(self) -> None:
        """End, and wait until the last of it is written."""
        with contextlib.suppress(BrokenPipeError):
            self._pipe.close()
        self._thread.join()
        if self._fault is not None:
            raise self._translated()

    def close(self) -> None:
        """Stop, whatever was reached."""
        with contextlib.suppress(OSError):
            self._pipe.close()
        self._thread.join()

    def _translated(self) -> BaseException:
        if isinstance(self._fault, StrongroomError | OSError):
            return self._fault
        return StrongroomError(f"age could not encrypt: {self._fault}.")


class AgeReader:
    """Open with identities; KeyRefused for a wrong one, Damaged for what fails authentication."""

    def __init__(self, read: Read, identities: Sequence[object]) -> None:
        pyrage = _pyrage()
        here, there = os.pipe()
        self._pipe = os.fdopen(here, "rb", buffering=0)
        self._fault: BaseException | None = None
        self._closed = False

        def work() -> None:
            with os.fdopen(there, "wb", buffering=1024 * 1024) as target:
                try:
                    pyrage.decrypt_io(_Origin(read), target, list(identities))
                    target.flush()
                except BaseException as fault:
                    self._fault = fault

        self._thread = threading.Thread(target=_quiet(work), name="age", daemon=True)
        self._thread.start()

    def read(self, size: int) -> bytes:
        """Up to `size` bytes, b"" at the end."""
        data = self._pipe.read(size)
        if data:
            return data
        self._thread.join()
        if self._fault is not None:
            raise self._translated()
        return b""

    def close(self) -> None:
        """Stop, whatever was reached."""
        self._pipe.close()
        self._thread.join()

    def _translated(self) -> BaseException:
        text = str(self._fault)
        if isinstance(self._fault, StrongroomError):
            return self._fault
        if "key" in text.lower() and "match" in text.lower():
            return KeyRefused(
                "No identity given opens this file.",
                means="Nothing was written.",
                do="Give the identity of one of its recipients with --identity.",
            )
        return Damaged(f"The age file is damaged: {text}.")


def _quiet(work: Callable[[], None]) -> Callable[[], None]:
    def run() -> None:
        with contextlib.suppress(BrokenPipeError):  # closing what nobody reads any more
            work()

    return run


class _Sink:
    """A file as pyrage wants one, over `out`."""

    def __init__(self, out: Out) -> None:
        self._out = out

    def write(self, data: bytes) -> int:
        """Take all of it."""
        self._out(bytes(data))
        return len(data)

    def flush(self) -> None:
        """Nothing is held."""


class _Origin:
    """A file as pyrage wants one, over `read`."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._held = b""

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes."""
        if not self._held:
            self._held = self._read(_READ)
        data, self._held = self._held[:size], self._held[size:]
        return data
