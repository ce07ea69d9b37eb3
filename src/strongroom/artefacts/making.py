"""Write an artefact in one pass: content → count → gzip → seal → count → file, and name it last.

Everything is written under a name of its own in the same folder and made durable; then the side
files get their names, and the artefact last. A crash leaves `.NAME.….part` and nothing else.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from strongroom.artefacts import manifest as manifests
from strongroom.artefacts.gzipping import GzipWriter
from strongroom.artefacts.manifest import Counted, Manifest
from strongroom.artefacts.names import KMS, MANIFEST, SHA256, SIDES, SIGNATURE, Shape
from strongroom.artefacts.sealing import (
    ITERATIONS,
    AgeWriter,
    OpensslWriter,
    key_id,
    new_key,
    passphrase,
)
from strongroom.errors import AlreadyExists, StorageFull, StrongroomError

Out = Callable[[bytes | bytearray | memoryview], object]


@dataclass(frozen=True, slots=True)
class Made:
    """An artefact that stands under its name."""

    path: str
    manifest: Manifest
    files: Sequence[str] = ()


class Counting:
    """Counts and hashes what goes by."""

    def __init__(self, out: Out) -> None:
        self._out, self._hash, self._size = out, hashlib.sha256(), 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Count and hand on."""
        self._hash.update(data)
        self._size += len(data)
        self._out(data)

    @property
    def counted(self) -> Counted:
        """What went by so far."""
        return Counted(self._size, self._hash.hexdigest())


@dataclass(frozen=True, slots=True)
class OpensslKey:
    """The key of one artefact: 32 random bytes, where its file goes, how else it can be had.

    `path` None writes no key file. `more` stands in the manifest beside the key's id: the key
    sealed for the repository's readers, wrapped by a key service. `wrapped` stands beside the
    artefact as it is.
    """

    secret: bytes = field(repr=False)
    path: str | None
    salt: bytes
    more: Mapping[str, Any] = field(default_factory=dict)
    wrapped: bytes | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """What a manifest says of it."""
        return {
            "cipher": "aes-256-cbc",
            "id": key_id(passphrase(new_key(self.secret))),
            "iterations": ITERATIONS,
            "kdf": "pbkdf2-hmac-sha256",
            "seal": "openssl enc",
            **self.more,
        }


@dataclass(frozen=True, slots=True)
class AgeKey:
    """Recipients: as text, and parsed."""

    texts: Sequence[str]
    parsed: Sequence[object]

    @property
    def facts(self) -> dict[str, Any]:
        """What a manifest says of it."""
        return {"recipients": list(self.texts), "seal": "age"}


def refuse_taken(folder: str, name: str, *, force: bool, key_file: str | None) -> None:
    """AlreadyExists when a name of the artefact or its key is taken, unless `force`."""
    wanted = [os.path.join(folder, name + side) for side in ("", *SIDES, KMS)]
    if key_file is not None:
        wanted.append(key_file)
    for path in wanted:
        if not force and os.path.lexists(path):
            raise AlreadyExists(
                f"{path} exists.", do="Take it away, or give --force to replace artefact and key."
            )


def make(
    folder: str,
    name: str,
    shape: Shape,
    *,
    mtime: int,
    key: OpensslKey | AgeKey | None,
    fill: Callable[[Out], object],
    describe: Callable[[Counted, Counted, Mapping[str, Any]], Manifest],
    sign: Callable[[bytes], bytes],
    threads: int | None = None,
    force: bool = False,
) -> Made:
    """Write `name` and what stands beside it into `folder`.

    `fill(out)` writes the content. `describe(plain, file, key)` makes the manifest, `sign` signs it.
    """
    opened = key if isinstance(key, OpensslKey) else None
    key_file = None if opened is None else opened.path
    refuse_taken(folder, name, force=force, key_file=key_file)
    path = os.path.join(folder, name)
    above = [folder, *([os.path.dirname(key_file) or "."] if key_file else [])]
    with _translated(path):
        for each in above:
            os.makedirs(each, mode=0o700, exist_ok=True)
    with _translated(path), contextlib.ExitStack() as parts:
        half = parts.enter_context(_part(path))
        file = Counting(half.write)
        plain = _through(shape, file, mtime=mtime, key=key, fill=fill, threads=threads)
        manifest = describe(plain, file.counted, {} if key is None else key.facts)
        data = manifest.encode()
        sides = {
            SHA256: manifests.checksum_line(name, file.counted),
            MANIFEST: data,
            SIGNATURE: sign(data),
        }
        if opened is not None and opened.wrapped is not None:
            sides[KMS] = opened.wrapped
        halves = [half]
        for side, text in sides.items():
            halves.append(parts.enter_context(_part(path + side)))
            halves[-1].write(text)
        if key_file is not None and opened is not None:
            halves.append(parts.enter_context(_part(key_file)))
            halves[-1].write(new_key(opened.secret))
        for one in halves:
            one.sync()
        _settle(halves)
        if KMS not in sides:  # that of the artefact that was replaced
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path + KMS)
        for each in set(above):
            _sync_folder(each)
    return Made(path, manifest, [path + side for side in ("", *sides)])


def _settle(halves: Sequence[_Part]) -> None:
    """Give all their names, the artefact last. If one cannot have it, what stood there stays: an
    older artefact must not lose its key or its manifest to one that never came to be."""
    begun: list[tuple[_Part, str | None]] = []
    try:
        for one in reversed(halves):
            begun.append((one, one.keep_old()))
            one.settle()
    except OSError:
        for one, old in reversed(begun):
            one.put_back(old)
        raise
    finally:
        for _, old in begun:
            if old is not None:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(old)


def _through(
    shape: Shape,
    file: Counting,
    *,
    mtime: int,
    key: OpensslKey | AgeKey | None,
    fill: Callable[[Out], object],
    threads: int | None,
) -> Counted:
    """Fill through the layers of a shape; return what the content counted."""
    layers: list[OpensslWriter | AgeWriter | GzipWriter] = []
    out: Out = file.write
    try:
        if isinstance(key, OpensslKey):
            layers.append(OpensslWriter(out, passphrase(new_key(key.secret)), key.salt))
            out = layers[-1].write
        elif isinstance(key, AgeKey):
            layers.append(AgeWriter(out, key.parsed))
            out = layers[-1].write
        if shape.gzip:
            layers.append(GzipWriter(out, mtime=mtime, threads=threads))
            out = layers[-1].write
        plain = Counting(out)
        fill(plain.write)
        for layer in reversed(layers):
            layer.finish()
    finally:
        for layer in reversed(layers):
            layer.close()
    return plain.counted


class _Part:
    """A file that does not have its name yet."""

    def __init__(self, path: str) -> None:
        folder, name = os.path.split(path)
        self.final = path
        self.path = os.path.join(folder, f".{name}.{secrets.token_hex(6)}.part")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._fd = os.open(self.path, flags, 0o600)
        self._settled = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]

    def sync(self) -> None:
        os.fsync(self._fd)

    def settle(self) -> None:
        os.replace(self.path, self.final)
        self._settled = True

    def keep_old(self) -> str | None:
        """Give what stands under the name a second one, and return it; None where nothing is."""
        old = f"{self.path}.old"
        if os.path.isdir(self.final):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), self.final)
        try:
            os.link(self.final, old, follow_symlinks=False)
        except FileNotFoundError:
            return None
        except OSError:  # a file system without second names
            os.rename(self.final, old)
        return old

    def put_back(self, old: str | None) -> None:
        """What stood there before stands there again."""
        if old is not None:
            os.replace(old, self.final)
        elif self._settled:
            os.unlink(self.final)

    def close(self) -> None:
        os.close(self._fd)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)


@contextmanager
def _part(path: str) -> Iterator[_Part]:
    part = _Part(path)
    try:
        yield part
    finally:
        part.close()


def write_public_key(folder: str, public: bytes) -> str:
    """Write the writer's public key as PEM into a folder, where it is not there; return its path."""
    name = f"strongroom-{hashlib.sha256(public).hexdigest()[:16]}.pub.pem"
    path = os.path.join(folder, name)
    pem = manifests.public_pem(public)
    with _translated(path):
        try:
            with open(path, "rb") as file:
                if file.read() == pem:
                    return path
        except FileNotFoundError:
            pass
        with _part(path) as part:
            part.write(pem)
            part.sync()
            part.settle()
    return path


def _sync_folder(folder: str) -> None:
    fd = os.open(folder or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def _translated(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as fault:
        kind = StorageFull if fault.errno in (errno.ENOSPC, errno.EDQUOT) else StrongroomError
        raise kind(
            f"{path} cannot be written: {fault.strerror or fault}.",
            means="The backup is untouched; no part of the artefact was left under its name.",
            do="Name another folder with `-o`, and run it again.",
        ) from None


__all__ = ["AgeKey", "Made", "OpensslKey", "make", "write_public_key"]
