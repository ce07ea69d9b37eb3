"""A throw-away server on a backup that stays where it is: its files are fetched as they are read.

Rule: a chunk that cannot be had is an error to PostgreSQL and a sentence to a person, never zeros; a
write that cannot be kept ends the server, because the kernel has told PostgreSQL that it was done.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from strongroom.errors import Refused, StrongroomError, TargetFull
from strongroom.postgres.open.chunks import Chunks
from strongroom.postgres.open.overlay import Overlay
from strongroom.postgres.open.planting import DATA, asked_first, plant
from strongroom.postgres.open.scratch import ScratchFiles
from strongroom.postgres.open.serving import FuseServer
from strongroom.postgres.physical.facts import PhysicalFacts
from strongroom.postgres.sandbox import Fetch, Sandbox
from strongroom.repository.reader import SnapshotReader

CACHE = 256 * 1024 * 1024
_DEVICE = "/dev/fuse"
_PREFIX = "strongroom-open-"
_LOCK = "lock"
_FIRST = 64 * 1024 * 1024  # bytes of catalogues that are fetched at the start
_LEAST_ROOM = 256 * 1024 * 1024
_MOUNT_SECONDS = 60.0

OnFault = Callable[[bytes, StrongroomError], None]


class NoFuse(Refused):
    """This machine or account cannot mount a file system of its own; `reason` says why, in words."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"A file system cannot be mounted here: {reason}.")
        self.reason = reason


class OpenedServer(Sandbox):
    """One server on one snapshot; `recover` as of a Sandbox.

    `made` are places outside where recovery makes tablespaces: the server gets private ones there.
    `cache` bounds the decoded chunks that are kept, in bytes; written blocks go below `scratch`
    ($TMPDIR without it). NoFuse from `recover` when nothing can be mounted; then nothing was started.
    """

    _prefix = _PREFIX

    def __init__(
        self,
        major: int,
        fetch: Fetch,
        snapshot: SnapshotReader,
        facts: PhysicalFacts,
        *,
        made: Sequence[bytes] = (),
        cache: int = CACHE,
        scratch: str | None = None,
        on_fault: OnFault | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(major, fetch, parent=scratch, settings=settings)
        self._snapshot, self._cache = snapshot, cache
        self._tell = on_fault
        self.damage: StrongroomError | None = None
        self._fuse: FuseServer | None = None
        self._sockets: tuple[socket.socket, socket.socket] | None = None
        self._faults_lock = threading.Lock()
        self._told: set[tuple[bytes, str]] = set()
        require_device()
        sweep(scratch)
        self._lock = _lock(self.directory)
        try:
            self._prepare(snapshot, facts, cache)
            self._prepare_places(made)
        except BaseException:
            self.close()
            raise

    def _prepare(self, snapshot: SnapshotReader, facts: PhysicalFacts, cache: int) -> None:
        """Lay out the directory, and the tree that will be served."""
        room = shutil.disk_usage(self.directory)
        if room.free < _LEAST_ROOM:
            raise TargetFull(
                f"{os.path.dirname(self.directory)} has room for {room.free:,} bytes only.",
                means="Nothing was started; what an opened server writes would go there.",
                do="Make room, or name another directory with --scratch.",
            )
        for name in ("mount", "wal"):
            self._make(os.path.join(self.directory, name))
        self._make(self._wal("archive_status"))
        os.mkdir(os.path.join(self.directory, "blocks"), 0o700)
        self._scratch = ScratchFiles(os.path.join(self.directory, "blocks"))
        self._overlay = Overlay(self._scratch, owner=self.owner, now=time.time_ns)
        self.chunks = Chunks(snapshot, cache)
        self._data = plant(
            self._overlay,
            snapshot,
            facts,
            mount=os.fsencode(os.path.join(self.directory, "mount")),
            wal=os.fsencode(self._wal("")),
            keep=lambda path, content: self.give(self._wal(os.fsdecode(path)), content),
        )

    def _prepare_places(self, made: Sequence[bytes]) -> None:
        """Directories that the guard mounts where the log makes tablespaces, for the server alone:
        PostgreSQL would write into what it finds there, and that is the original's."""
        for number, location in enumerate(sorted(set(made), key=len)):
            place = os.path.join(self.directory, "places", str(number))
            os.makedirs(os.path.dirname(place), mode=0o755, exist_ok=True)
            self._make(place)
            with open(place + ".at", "xb") as file:
                file.write(location)

    @property
    def data_directory(self) -> str:
        """As the server sees it; nobody else does."""
        return os.path.join(self.directory, "mount", os.fsdecode(DATA))

    @property
    def scratch_used(self) -> int:
        """Bytes that written blocks take on the disk, the log not among them."""
        return self._scratch.used()

    def close(self) -> None:
        """Stop the server; nothing of it is left."""
        super().close()
        if self._fuse is not None:
            self._fuse.close()
            self._fuse = None
        if "_scratch" in self.__dict__:
            self._scratch.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    # -- what a Sandbox does with files ----------------------------------------------------

    def _wal(self, path: str) -> str:
        return os.path.join(self.directory, "wal", path).rstrip("/")

    def _read(self, name: str, size: int) -> bytes:
        node = self._overlay.find(DATA + b"/" + os.fsencode(name))
        if node is None:
            raise FileNotFoundError(name)
        fuse = self._fuse or self._reader(-1)
        return b"".join(map(bytes, fuse.content(node, 0, size)))

    def _own(self, name: str, content: bytes) -> None:
        self._overlay.put(self._data, os.fsencode(name), content)

    def deliver(self, path: str, data: bytes) -> None:
        """Put a file of the log where the server asked for it."""
        target = self._wal(path.removeprefix("pg_wal/"))
        with contextlib.suppress(FileNotFoundError):
            os.unlink(target)
        self.give(target, data)

    # -- mounting --------------------------------------------------------------------------

    def _mount_for_server(self) -> tuple[str, tuple[int, ...]]:
        self._sockets = ours, theirs = socket.socketpair()
        ours.settimeout(_MOUNT_SECONDS)
        return f"{theirs.fileno()}:{self.directory}", (theirs.fileno(), self._lock)

    def _launch(self) -> subprocess.Popen[bytes]:
        guard = super()._launch()
        self._guard = guard
        assert self._sockets is not None
        ours, theirs = self._sockets
        theirs.close()
        with ours:
            try:
                said, devices, _, _ = socket.recv_fds(ours, 1024, 1)
            except TimeoutError:
                raise NoFuse("the kernel did not answer") from None
        if not devices:
            number, _, what = said.decode("utf-8", "replace").partition(" ")
            reason = os.strerror(int(number)) if number.isdigit() else self._log_tail()
            raise NoFuse(f"{what or 'mount'}: {reason}")
        self._fuse = self._reader(devices[0])
        self._fuse.start()
        self._fuse.fetch_ahead(asked_first(self._overlay, min(_FIRST, self._cache // 2)))
        return guard

    def _reader(self, device: int) -> FuseServer:
        folder = self._scratch.folder
        return FuseServer(
            device,
            self._overlay,
            self._snapshot,
            self.chunks,
            statvfs=lambda: os.statvfs(folder),
            on_fault=self._on_fault,
        )

    # -- faults ----------------------------------------------------------------------------

    def _on_fault(self, path: bytes, fault: StrongroomError) -> None:
        with self._faults_lock:
            if (path, fault.what) in self._told:
                return
            self._told.add((path, fault.what))
            if self.damage is None:
                self.damage = fault
        if self._tell is not None:
            self._tell(path, fault)
        if isinstance(fault, TargetFull):
            self._crash()

    def _crash(self) -> None:
        guard = self._guard
        if guard is not None and guard.stdin is not None:
            with contextlib.suppress(OSError, ValueError):
                guard.stdin.write(b"q")
                guard.stdin.flush()

    def _fault(self) -> StrongroomError:
        return self.damage or super()._fault()


def sweep(parent: str | None) -> None:
    """Remove what runs left behind that were killed together with their guard."""
    folder = parent or tempfile.gettempdir()
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            path = os.path.join(folder, name)
            if name.startswith(_PREFIX) and os.lstat(path).st_uid in {os.geteuid(), _owner_uid()}:
                with contextlib.suppress(OSError):
                    fd = os.open(os.path.join(path, _LOCK), flags)
                    try:
                        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        shutil.rmtree(path, ignore_errors=True)
                    finally:
                        os.close(fd)


def _owner_uid() -> int:
    from strongroom.postgres.embedded import service_account  # noqa: PLC0415

    return service_account().uid


def _lock(folder: str) -> int:
    """Say that a folder is in use, until this process and the guard are gone."""
    name = os.path.join(folder, _LOCK)
    fd = os.open(name + ".new", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    os.rename(name + ".new", name)  # whoever finds it finds it held
    return fd


def require_device() -> None:
    """NoFuse where it is plain that nothing can be mounted."""
    try:
        os.close(os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as fault:
        raise NoFuse(f"{_DEVICE}: {fault.strerror}") from None


__all__ = ["CACHE", "NoFuse", "OpenedServer", "require_device"]
