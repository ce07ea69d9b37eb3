"""A depth-first walk by directory descriptors, in the order of raw full paths.

Never follows a symlink, never recurses, and holds a bounded number of
descriptors however deep the tree is. `a-b` comes before `a/x` because `-`
comes before `/`: what is below a directory stands where its name with a slash
after it would stand among the names.

The walk yields runs of names of one directory; descents lie between runs. The
descriptor of a run is open until the next run is asked for.
"""

from __future__ import annotations

import os
import stat as modes
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from strongroom.files.patterns import Patterns, Verdict
from strongroom.kernel import EXTRA, EXTRA_SIZE, KEY_SIZE, pack_stat, scan_dir

DIRECTORY = modes.S_IFDIR >> 12
OPEN_DIRECTORIES = 64
_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_DIRECTORY_BYTE = bytes([DIRECTORY])

Told = Callable[[bytes, str], None]


def reason(code: int) -> str:
    """Say an errno in words."""
    return os.strerror(code)


@dataclass(slots=True)
class Run:
    """names[start:stop] of one directory, beside their kinds, keys and extras (kernel.scan_dir)."""

    fd: int
    prefix: bytes
    names: list[bytes]
    kinds: bytes
    keys: bytes
    extras: bytes
    start: int
    stop: int


@dataclass(slots=True)
class _Frame:
    """A directory on the way down; `fd` is -1 while the walk is far below it."""

    path: bytes
    identity: tuple[int, int]
    fd: int
    included: bool
    names: list[bytes]
    kinds: bytes
    keys: bytes
    extras: bytes
    descents: list[tuple[int, int, bool, bool]]  # place, number, included, whole
    at: int = 0
    descent: int = 0

    @property
    def prefix(self) -> bytes:
        return self.path + b"/" if self.path else b""


@dataclass(slots=True)
class Walk:
    """One walk below an open directory `root`, which stays open and belongs to the caller.

    `told` is called with a raw path and a reason for every part that cannot be walked. With
    `one_file_system` mount points are taken as empty directories and named in `mounts`.
    """

    root: int
    told: Told
    patterns: Patterns = field(default_factory=Patterns)
    one_file_system: bool = False
    mounts: list[bytes] = field(default_factory=list)
    root_stat: bytes = b""
    _stack: list[_Frame] = field(default_factory=list)
    _above: set[tuple[int, int]] = field(default_factory=set)
    _device: int = 0

    def runs(self) -> Iterator[Run]:
        """Yield the runs; the root itself is not among them, its STAT is `root_stat`."""
        self.root_stat = pack_stat(os.fstat(self.root))
        self._device = EXTRA.unpack_from(self.root_stat, KEY_SIZE)[0]
        whole = self.patterns.root is Verdict.WHOLE
        try:
            self._push(os.dup(self.root), b"", included=whole, whole=whole)
            while self._stack:
                frame = self._stack[-1]
                if frame.descent < len(frame.descents):
                    place, number, included, whole = frame.descents[frame.descent]
                    frame.descent += 1
                    if place > frame.at:
                        yield self._run(frame, place)
                    self._descend(frame, number, included=included, whole=whole)
                else:
                    if len(frame.names) > frame.at:
                        yield self._run(frame, len(frame.names))
                    self._pop()
        finally:
            for frame in self._stack:
                if frame.fd >= 0:
                    os.close(frame.fd)
            self._stack.clear()

    def _run(self, frame: _Frame, stop: int) -> Run:
        start, frame.at = frame.at, stop
        listing = (frame.names, frame.kinds, frame.keys, frame.extras)
        return Run(frame.fd, frame.prefix, *listing, start, stop)

    # -- down ------------------------------------------------------------------------------

    def _descend(self, frame: _Frame, number: int, *, included: bool, whole: bool) -> None:
        name = frame.names[number]
        path = frame.prefix + name
        device = EXTRA.unpack_from(frame.extras, number * EXTRA_SIZE)[0]
        if self.one_file_system and device != self._device:
            self.mounts.append(path)
            return
        try:
            fd = os.open(name, _FLAGS, dir_fd=frame.fd)
        except OSError as fault:
            self.told(path, f"its contents are left out: {fault.strerror}")
            return
        self._push(fd, path, included=included, whole=whole)

    def _push(self, fd: int, path: bytes, *, included: bool, whole: bool) -> None:
        facts = os.fstat(fd)
        identity = (facts.st_dev, facts.st_ino)
        if identity in self._above:
            os.close(fd)
            self.told(path, "its contents are left out: the directory is mounted within itself")
            return
        try:
            names, kinds, keys, extras, failed = scan_dir(fd)
        except OSError as fault:
            os.close(fd)
            self.told(path, f"its contents are left out: {fault.strerror}")
            return
        frame = _Frame(path, identity, fd, included, names, kinds, keys, extras, [])
        for name, code in failed:
            what = reason(code) if name else f"the rest of its contents is left out: {reason(code)}"
            self.told(frame.prefix + name if name else path, what)
        if not whole:
            self._choose(frame)
        elif _DIRECTORY_BYTE in kinds:
            frame.descents = self._whole_descents(names, kinds)
        self._above.add(identity)
        self._stack.append(frame)
        if len(self._stack) > OPEN_DIRECTORIES:
            self._let_go(self._stack[-1 - OPEN_DIRECTORIES])

    @staticmethod
    def _whole_descents(names: list[bytes], kinds: bytes) -> list[tuple[int, int, bool, bool]]:
        found, number = [], kinds.find(_DIRECTORY_BYTE)
        while number >= 0:
            found.append((names[number] + b"/", number))
            number = kinds.find(_DIRECTORY_BYTE, number + 1)
        found.sort()
        return [(bisect_left(names, key), number, True, True) for key, number in found]

    def _choose(self, frame: _Frame) -> None:
        """Keep what the patterns take."""
        prefix = frame.prefix
        kept: list[int] = []
        walked: dict[int, tuple[bool, bool]] = {}
        for number, name in enumerate(frame.names):
            path = prefix + name
            if frame.kinds[number] == DIRECTORY:
                verdict, included = self.patterns.directory(path, included=frame.included)
                if verdict is not Verdict.SKIP:
                    walked[len(kept)] = (included, verdict is Verdict.WHOLE)
                    kept.append(number)
            elif self.patterns.file(path, included=frame.included):
                kept.append(number)
        if len(kept) < len(frame.names):
            frame.keys = _chosen(frame.keys, KEY_SIZE, kept)
            frame.extras = _chosen(frame.extras, EXTRA_SIZE, kept)
            frame.kinds = bytes(frame.kinds[number] for number in kept)
            frame.names = [frame.names[number] for number in kept]
        frame.descents = [
            (place, number, *walked[number])
            for place, number, _, _ in self._whole_descents(frame.names, frame.kinds)
        ]

    # -- up --------------------------------------------------------------------------------

    def _let_go(self, frame: _Frame) -> None:
        if frame.fd >= 0:
            os.close(frame.fd)
            frame.fd = -1

    def _pop(self) -> None:
        child = self._stack.pop()
        self._above.discard(child.identity)
        try:
            if self._stack and self._stack[-1].fd < 0:
                self._reopen(child, self._stack[-1])
        finally:
            os.close(child.fd)

    def _reopen(self, child: _Frame, frame: _Frame) -> None:
        """Open a directory again that was let go: by `..`, or from the root where it was moved."""
        fd = os.open(b"..", _FLAGS, dir_fd=child.fd)
        if _identity(fd) != frame.identity:
            os.close(fd)
            fd = self._from_root(frame)
        if fd >= 0:
            frame.fd = fd
            return
        self.told(frame.path, "what was left of its contents is left out: the directory was moved")
        frame.at, frame.descent = len(frame.names), len(frame.descents)
        frame.fd = os.dup(self.root)  # a place to stand on; nothing of it is read any more

    def _from_root(self, frame: _Frame) -> int:
        try:
            fd = open_below(self.root, frame.path)
        except OSError:  # the caller tells of it
            return -1
        if _identity(fd) == frame.identity:
            return fd
        os.close(fd)
        return -1


def _chosen(column: bytes, width: int, rows: list[int]) -> bytes:
    return b"".join([column[row * width : (row + 1) * width] for row in rows])


def _identity(fd: int) -> tuple[int, int]:
    facts = os.fstat(fd)
    return facts.st_dev, facts.st_ino


def open_below(root: int, path: bytes) -> int:
    """Open the directory `path` below `root`, component by component, through no symlink."""
    fd = os.dup(root)
    for name in path.split(b"/") if path else ():
        try:
            deeper = os.open(name, _FLAGS, dir_fd=fd)
        finally:
            os.close(fd)
        fd = deeper
    return fd
