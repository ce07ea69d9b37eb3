"""The vault's files: list, read, write, delete, measure; below one root and nowhere else.

A name is `folder/…/file` with one of the five folders first. Names are bytes on disk; here they
are text, with `os.fsdecode`'s escapes for what is not UTF-8. Every step of a path is opened from
the step before without following links, so that neither `..` nor a link that somebody put into
the vault leads out of it. A file is there whole or not at all: it is written beside its place,
synced and renamed.

The root is $STAKAZO_VAULT, else $VAULT_ROOT, else /tmp/stakazo_memory_vault; it is looked up at
every use.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import stat as modes
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

FOLDERS = ("ml_features", "audits", "campaign_history", "clips_metadata", "orchestrator_runs")
DEFAULT_ROOT = "/tmp/stakazo_memory_vault"
_UNFINISHED = b".writing-"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_BLOCK = 1024 * 1024


class VaultError(Exception):
    """The vault cannot do what was asked; the message says why."""


class BadName(VaultError):
    """The name is none of a file in the vault."""


class NotThere(VaultError):
    """There is no such file."""


@dataclass(frozen=True, slots=True)
class Stat:
    """What is known of a file without reading it: bytes, moment of the last change."""

    size: int
    modified: datetime


@dataclass(frozen=True, slots=True)
class Count:
    """How many files, and how many bytes they have together."""

    files: int
    size: int


class Storage:
    """A vault. `root` overrides the environment."""

    def __init__(self, root: str | None = None) -> None:
        self._root = root

    @property
    def root(self) -> str:
        """The vault's folder; VaultError when it is not one of this machine."""
        root = self._root or os.environ.get("STAKAZO_VAULT") or os.environ.get("VAULT_ROOT")
        root = root or DEFAULT_ROOT
        if not root.startswith(("/", ".")) and ":" in root:
            raise VaultError(
                f"{root} is not on this machine: restore or mount it, and set STAKAZO_VAULT"
            )
        return os.path.abspath(root)

    def create(self) -> None:
        """Make the root and the five folders where they are missing."""
        for folder in FOLDERS:
            os.makedirs(os.path.join(self.root, folder), exist_ok=True)

    def list_files(self, folder: str | None = None, prefix: str = "") -> list[str]:
        """The names in a folder (in all five without one) that begin with `folder/prefix`."""
        return sorted(
            name
            for one in ([folder] if folder is not None else FOLDERS)
            for name in self.walk(one)
            if name.startswith(f"{one}/{prefix}")
        )

    def walk(self, folder: str | None = None) -> Iterator[str]:
        """Every name of a regular file, in no order; links and files being written are left out."""
        for one in [_folder(folder)] if folder is not None else FOLDERS:
            try:
                top = self._open_directory([os.fsencode(one)])
            except NotThere:
                continue
            try:
                yield from map(os.fsdecode, _walk(top, os.fsencode(one)))
            finally:
                os.close(top)

    def read(self, name: str) -> bytes:
        """The whole of a file."""
        with open(self._open(name), "rb") as file:
            return file.read()

    def write(self, name: str, content: bytes) -> None:
        """Write a file whole: whoever reads it finds the old content or the new one."""
        *steps, last = _steps(name)
        parent = self._open_directory(steps, make=True)
        beside = _UNFINISHED + secrets.token_hex(8).encode()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            if modes.S_ISDIR(_mode(last, parent)):
                raise BadName(f"{name!r} is a folder")
            try:
                with open(os.open(beside, flags, 0o640, dir_fd=parent), "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                os.rename(beside, last, src_dir_fd=parent, dst_dir_fd=parent)
            except BaseException:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(beside, dir_fd=parent)
                raise
            os.fsync(parent)
        finally:
            os.close(parent)

    def exists(self, name: str) -> bool:
        """Whether there is a regular file of this name."""
        try:
            self.stat(name)
        except NotThere:
            return False
        return True

    def stat(self, name: str) -> Stat:
        """Size and moment of the last change."""
        descriptor = self._open(name)
        try:
            return _stat(descriptor)
        finally:
            os.close(descriptor)

    def delete(self, name: str) -> None:
        """Remove a file; NotThere when there is none."""
        *steps, last = _steps(name)
        parent = self._open_directory(steps)
        try:
            if not modes.S_ISREG(_mode(last, parent)):
                raise NotThere(f"{name!r} is not there")
            os.unlink(last, dir_fd=parent)
            os.fsync(parent)
        finally:
            os.close(parent)

    def checksum(self, name: str) -> str:
        """SHA-256 of the content, in hexadecimal."""
        return self.measure(name)[1].hex()

    def measure(self, name: str) -> tuple[Stat, bytes]:
        """Size, moment and SHA-256 of one and the same file; memory does not grow with it."""
        with open(self._open(name), "rb", buffering=0) as file:
            digest, size = hashlib.sha256(), 0
            while block := file.read(_BLOCK):
                digest.update(block)
                size += len(block)
            return Stat(size, _stat(file.fileno()).modified), digest.digest()

    def counts(self) -> dict[str, Count]:
        """Files and bytes of each of the five folders."""
        return {folder: self._count(folder) for folder in FOLDERS}

    def _count(self, folder: str) -> Count:
        files = size = 0
        for name in self.walk(folder):
            with contextlib.suppress(NotThere):  # gone since it was listed
                size += self.stat(name).size
                files += 1
        return Count(files, size)

    def _open(self, name: str) -> int:
        """Open a regular file for reading."""
        *steps, last = _steps(name)
        parent = self._open_directory(steps)
        # Without O_NONBLOCK a pipe that somebody put there would hold us for ever.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            descriptor = os.open(last, flags, dir_fd=parent)
        except OSError as fault:
            raise _translated(fault, name) from None
        finally:
            os.close(parent)
        if not modes.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise NotThere(f"{name!r} is not a file")
        return descriptor

    def _open_directory(self, steps: list[bytes], *, make: bool = False) -> int:
        """Open a folder step by step; no step may be a link."""
        at = self.root
        try:
            here = os.open(at, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as fault:
            raise VaultError(f"the vault {at} cannot be opened: {fault.strerror}") from None
        for step in steps:
            try:
                if make:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(step, 0o750, dir_fd=here)
                inside = os.open(step, _DIRECTORY, dir_fd=here)
            except OSError as fault:
                raise _translated(fault, os.fsdecode(b"/".join(steps))) from None
            finally:
                os.close(here)
            here = inside
        return here


def _steps(name: str) -> list[bytes]:
    """The parts of a name; BadName for what could lead anywhere else."""
    raw = os.fsencode(name)
    steps = raw.split(b"/")
    if b"\0" in raw or not all(steps) or b"." in steps or b".." in steps:
        raise BadName(f"{name!r} is no name in the vault")
    if any(len(step) > 255 or step.startswith(_UNFINISHED) for step in steps):
        raise BadName(f"{name!r} has a part that is too long or kept for files being written")
    _folder(os.fsdecode(steps[0]))
    if len(steps) < 2:
        raise BadName(f"{name!r} names a folder, not a file in it")
    return steps


def _folder(folder: str) -> str:
    if folder not in FOLDERS:
        raise BadName(f"{folder!r} is none of the vault's folders: {', '.join(FOLDERS)}")
    return folder


def _mode(name: bytes, parent: int) -> int:
    try:
        return os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return 0


def _stat(descriptor: int) -> Stat:
    facts = os.fstat(descriptor)
    # Whole microseconds, as PostgreSQL keeps them; a float would round some of them up.
    seconds, rest = divmod(facts.st_mtime_ns // 1000, 1_000_000)
    return Stat(facts.st_size, datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest))


def _walk(top: int, path: bytes) -> Iterator[bytes]:
    folders: list[bytes] = []
    with os.scandir(top) as entries:
        for entry in entries:
            name = os.fsencode(entry.name)
            if entry.is_dir(follow_symlinks=False):
                folders.append(name)
            elif entry.is_file(follow_symlinks=False) and not name.startswith(_UNFINISHED):
                yield path + b"/" + name
    for name in folders:
        try:
            inside = os.open(name, _DIRECTORY, dir_fd=top)
        except (FileNotFoundError, NotADirectoryError):  # gone since it was listed
            continue
        try:
            yield from _walk(inside, path + b"/" + name)
        finally:
            os.close(inside)


def _translated(fault: OSError, name: str) -> VaultError:
    if fault.errno in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.ENXIO):
        return NotThere(f"{name!r} is not there")
    return VaultError(f"{name!r}: {fault.strerror}")


storage = Storage()
