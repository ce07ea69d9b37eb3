"""Open an artefact that anybody may have written: verify all of it first, then unpack.

    1  signature over the manifest, by somebody trusted      (or --unsigned, said aloud)
    2  size and SHA-256 of the whole file, against manifest and .sha256
    3  the key, against the id in the manifest
    4  unsigned: unpack all of it once into nothing, within limits

Only then is anything written, from the same open file, which is counted again on the way: who
changes it in between is found out at its end.
"""

from __future__ import annotations

import base64
import hashlib
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from strongroom.artefacts import manifest as manifests
from strongroom.artefacts.gzipping import GzipReader
from strongroom.artefacts.manifest import Counted, Manifest, Trust
from strongroom.artefacts.names import KMS, MANIFEST, SHA256, SIGNATURE, Shape, shape_of
from strongroom.artefacts.sealing import AgeReader, OpensslReader, identities, key_id, passphrase
from strongroom.artefacts.tar_reading import Limits, read_tar
from strongroom.errors import (
    Damaged,
    KeyRefused,
    NotFound,
    Refused,
    StrongroomError,
    Unreachable,
    UsageError,
)
from strongroom.progress import Progress

_READ = 1024 * 1024
_AGAIN = "Fetch the artefact again from where it was made."

Read = Callable[[int], bytes]


@dataclass(frozen=True, slots=True)
class Keys:
    """What opens sealed artefacts.

    `key_file` and `identity_file` are texts that a person gave; `usual` is that of the key file
    where it would be, which may be another artefact's. `unwrap` takes the key as a KMS wrapped it,
    the artefact's name and the KMS key that a signed manifest names; `otherwise` the manifest.
    """

    key_file: bytes | None = None
    usual: bytes | None = None
    identity_file: bytes | None = None
    otherwise: Callable[[Manifest], bytes | None] = lambda _: None
    unwrap: Callable[[bytes, str, str | None], bytes] | None = None


class Artefact:
    """An artefact that was verified. Make one with `verify`."""

    def __init__(
        self,
        path: str,
        fd: int,
        shape: Shape,
        *,
        file: Counted,
        manifest: Manifest | None,
        secret: bytes | Sequence[object] | None,
        limit: int,
        notes: Sequence[str],
    ) -> None:
        self.path, self.shape, self.manifest = path, shape, manifest
        self.file, self.notes, self.limit = file, notes, limit
        self._fd, self._secret = fd, secret

    @property
    def name(self) -> str:
        """The file's name."""
        return os.path.basename(self.path)

    @property
    def limits(self) -> Limits:
        """What it may unpack to."""
        return Limits(self.limit)

    def unpack(self) -> Unpacking:
        """Begin to read its content."""
        return Unpacking(self._fd, self.shape, self._secret, self.file, self.manifest, self.limit)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


class Unpacking:
    """The content of an artefact, in order; `finish` when all was taken: it may still refuse."""

    def __init__(
        self,
        fd: int,
        shape: Shape,
        secret: bytes | Sequence[object] | None,
        file: Counted,
        manifest: Manifest | None,
        limit: int,
    ) -> None:
        self._fd, self._at, self._wanted = fd, 0, file
        self._held = memoryview(b"")
        self._hash = hashlib.sha256()
        self._plain, self._size, self._limit = hashlib.sha256(), 0, limit
        self._manifest = manifest
        self._sealed: AgeReader | None = None
        read: Read = self._file
        if shape.seal == "openssl":
            assert isinstance(secret, bytes)
            read = OpensslReader(read, secret).read
        elif shape.seal == "age":
            assert secret is not None and not isinstance(secret, bytes)
            self._sealed = AgeReader(read, secret)
            read = self._sealed.read
        self._read = GzipReader(read).read if shape.gzip else read

    def read(self, size: int) -> bytes:
        """Up to `size` bytes of content, b"" at the end."""
        data = self._read(size)
        self._plain.update(data)
        self._size += len(data)
        if self._size > self._limit:
            raise Refused(
                f"The artefact unpacks to more than {self._limit:,} bytes.",
                means="It may be a bomb.",
                do="If it is not, allow more with --max-size.",
            )
        return data

    def finish(self) -> Counted:
        """Take what is left and compare everything with what it should be; Damaged."""
        while self.read(_READ):
            pass
        while self._file(_READ):
            pass
        if self._hash.hexdigest() != self._wanted.sha256:
            raise Damaged("The file was changed while it was being read.", do=_AGAIN)
        plain = Counted(self._size, self._plain.hexdigest())
        if self._manifest is not None and self._manifest.plain != plain:
            raise Damaged("The content is not what the manifest says.", do=_AGAIN)
        return plain

    def close(self) -> None:
        """Stop, whatever was reached."""
        if self._sealed is not None:
            self._sealed.close()

    def _file(self, size: int) -> bytes:
        if not self._held:
            self._held = memoryview(os.pread(self._fd, _READ, self._at))
            self._at += len(self._held)
            self._hash.update(self._held)
        data, self._held = bytes(self._held[:size]), self._held[size:]
        return data


def verify(
    path: str,
    *,
    trust: Trust,
    keys: Keys,
    unsigned: bool = False,
    max_size: int | None = None,
    progress: Progress,
) -> Artefact:
    """Verify an artefact; Damaged, Refused, KeyRefused, NotFound. Nothing is written."""
    shape = shape_of(os.path.basename(path))
    notes: list[str] = []
    fd = _open(path)
    try:
        manifest = _manifest(path, shape, trust, unsigned, notes)
        checksum = _side(path + SHA256)
        if checksum is None:
            notes.append(f"{os.path.basename(path)}{SHA256} is not there")
        progress.phase("verifying the artefact")
        file = _count(fd, progress)
        if manifest is not None and manifest.file != file:
            raise Damaged(
                f"{path} is not the file that its manifest describes.",
                means="Nothing was written. It was changed, cut, or belongs to another manifest.",
                do=_AGAIN,
            )
        if checksum is not None and checksum != manifests.checksum_line(
            os.path.basename(path), file
        ):
            raise Damaged(
                f"{path}{SHA256} does not agree with the file.",
                means="Nothing was written.",
                do=_AGAIN,
            )
        secret = _secret(path, shape, manifest, keys, notes, signed=not unsigned)
        if max_size is None:
            max_size = manifest.plain.size if manifest else 200 * file.size + (1 << 30)
        artefact = Artefact(
            path,
            fd,
            shape,
            file=file,
            manifest=manifest,
            secret=secret,
            limit=max_size,
            notes=notes,
        )
        if unsigned:
            progress.phase("unpacking it into nothing")
            rehearse(artefact)
        elif shape.seal == "age":
            _opens(artefact)
    except BaseException:
        os.close(fd)
        raise
    return artefact


def rehearse(artefact: Artefact) -> Counted:
    """Unpack all of it and write nothing."""
    content = artefact.unpack()
    try:
        if artefact.shape.content == "tar":
            for _ in read_tar(content.read, artefact.limits):
                pass
        return content.finish()
    finally:
        content.close()


def _opens(artefact: Artefact) -> None:
    content = artefact.unpack()
    try:
        content.read(1)
    finally:
        content.close()


def _open(path: str) -> int:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise NotFound(f"{path} does not exist.", do="Name an artefact.") from None
    except OSError as fault:
        raise Refused(f"{path} cannot be read: {fault.strerror}.") from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise UsageError(f"{path} is no file.")
    return fd


def _side(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            data = file.read(manifests.MAX_SIZE + 1)
    except FileNotFoundError:
        return None
    except OSError as fault:
        raise Refused(f"{path} cannot be read: {fault.strerror}.") from None
    if len(data) > manifests.MAX_SIZE:
        raise Damaged(f"{path} is longer than it can be.", means="Nothing was written.", do=_AGAIN)
    return data


def _manifest(
    path: str, shape: Shape, trust: Trust, unsigned: bool, notes: list[str]
) -> Manifest | None:
    data, signature = _side(path + MANIFEST), _side(path + SIGNATURE)
    if data is None or signature is None:
        if not unsigned:
            missing = MANIFEST if data is None else SIGNATURE
            raise Refused(
                f"{path}{missing} is not there: nobody vouches for the file.",
                means="Nothing was written. Its checksum only says that it arrived whole.",
                do="Fetch it too; or, for a file that you trust for another reason, --unsigned.",
            )
        notes.append("nobody vouches for this file: it has no signed manifest")
        if data is None:
            return None
    manifest = manifests.decode(data)
    if signature is not None and not unsigned:
        trust.verify(data, signature, manifest.signer)
    elif signature is not None:
        notes.append("the manifest's signature was not looked at, as --unsigned says")
    name = os.path.basename(path)
    if manifest.name != name or manifest.format != shape.format:
        raise Damaged(
            f"The manifest is that of {manifest.name!r}, not of {name!r}.",
            means="Nothing was written.",
            do="Give artefact and manifest the name that they were made with.",
        )
    return manifest


def _count(fd: int, progress: Progress) -> Counted:
    digest, at = hashlib.sha256(), 0
    progress.plan(size=os.fstat(fd).st_size)
    while data := os.pread(fd, 4 * _READ, at):
        digest.update(data)
        at += len(data)
        progress.advance(size=len(data))
    return Counted(at, digest.hexdigest())


def _secret(
    path: str,
    shape: Shape,
    manifest: Manifest | None,
    keys: Keys,
    notes: list[str],
    *,
    signed: bool,
) -> bytes | Sequence[object] | None:
    if shape.seal == "age":
        if keys.identity_file is None:
            raise KeyRefused(
                f"{path} is sealed to recipients of age.",
                means="Nothing was written.",
                do="Give the identity of one of them with --identity FILE.",
            )
        return identities(keys.identity_file)
    if shape.seal == "openssl":
        wrapped, by = _wrapped(path, manifest)
        text = keys.key_file
        if text is None and keys.usual is not None and _fits(keys.usual, manifest):
            text = keys.usual
        if text is None:
            text = _asked(path, manifest, keys, wrapped, by if signed else None, notes)
        if text is None:
            also = f", or name the KMS key that wrapped it ({by or 'KMS_KEY_ID'})" * bool(wrapped)
            raise KeyRefused(
                f"{path} is encrypted, and its key is not at hand.",
                means="Nothing was written.",
                do=f"Give its key file with --artefact-key FILE{also}.",
            )
        secret = passphrase(text)
        if not _fits(text, manifest):
            raise KeyRefused(
                "The key file is that of another artefact.",
                means="Nothing was written.",
                do="Give the key file that was made with this one.",
            )
        return secret
    return None


def _fits(text: bytes, manifest: Manifest | None) -> bool:
    return manifest is None or manifest.key.get("id") == key_id(passphrase(text))


def _asked(
    path: str,
    manifest: Manifest | None,
    keys: Keys,
    wrapped: bytes | None,
    by: str | None,
    notes: list[str],
) -> bytes | None:
    """The text of the key from a KMS, else from the repository that made the artefact."""
    fault: StrongroomError | None = None
    if wrapped is not None and keys.unwrap is not None:
        try:
            return keys.unwrap(wrapped, os.path.basename(path), by)
        except (Unreachable, KeyRefused) as no:
            fault = no
    try:
        text = None if manifest is None else keys.otherwise(manifest)
    except StrongroomError as no:
        raise fault or no from None
    if fault is not None:
        if text is None:
            raise fault
        notes.append(f"the repository opened it, not the KMS: {fault.what}")
    return text


def _wrapped(path: str, manifest: Manifest | None) -> tuple[bytes | None, str | None]:
    """The key as a KMS wrapped it, and the KMS key; from the manifest, else from beside."""
    beside = _side(path + KMS)
    if manifest is None:
        return beside, None
    said = manifest.key.get("kms")
    if said is None:
        return None, None
    try:
        wrapped, by = base64.b64decode(said["wrapped"], validate=True), str(said["key"])
    except (TypeError, KeyError, ValueError):
        raise Damaged(f"{path}{MANIFEST} carries no key that a KMS wrapped.", do=_AGAIN) from None
    if beside not in (None, wrapped):
        raise Damaged(
            f"{path}{KMS} does not agree with the manifest.",
            means="Nothing was written.",
            do=_AGAIN,
        )
    return wrapped, by
