"""A depth-first walk by directory descriptors, in the order of raw full paths.

Never follows a symlink, never recurses, and holds a bounded number of
descriptors however deep the tree is. `a-b` comes before `a/x` because `-`
comes before `/`: what is below a directory stands where its name with a slash
after it would stand among the names.

The walk yields runs of names of one directory; descents lie between runs. The
descriptor of a run is open until the next run is asked for. While a run is dealt
with, a second thread opens and lists the directories that come next.
"""

from __future__ import annotations

import os
import stat as modes
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from strongroom.files.patterns import Patterns, Verdict
from strongroom.kernel import EXTRA, EXTRA_SIZE, KEY, KEY_SIZE, Listing, pack_stat, scan_dir

DIRECTORY = modes.S_IFDIR >> 12
OPEN_DIRECTORIES = 64
AHEAD = 3  # directories of one parent that are listed ahead
ALL_AHEAD = 12  # of all parents; each holds a descriptor and a listing
_LARGE = 1 << 20  # a directory of so many bytes is not listed before its time: memory is bounded
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
class _Opened:
    """A directory that was opened and listed, or why it could not be."""

    fd: int = -1
    identity: tuple[int, int] = (0, 0)
    listing: Listing = field(default_factory=lambda: ([], b"", b"", b"", []))
    fault: OSError | None = None


def _list(fd: int) -> _Opened:
    try:
        return _Opened(fd, _identity(fd), scan_dir(fd))
    except OSError as fault:
        os.close(fd)
        return _Opened(fault=fault)


def _open(parent: int, name: bytes) -> _Opened:
    try:
        fd = os.open(name, _FLAGS, dir_fd=parent)
    except OSError as fault:
        return _Opened(fault=fault)
    return _list(fd)


def _open_ahead(parent: int, name: bytes) -> _Opened:
    """Open and list in the second thread; `parent` is a descriptor of its own."""
    try:
        return _open(parent, name)
    finally:
        os.close(parent)


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
    # Of the next descents, what is listed ahead; None is opened when its turn comes.
    ahead: deque[Future[_Opened] | None] = field(default_factory=deque)

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
    _pool: ThreadPoolExecutor | None = None
    _ahead: int = 0

    def runs(self) -> Iterator[Run]:
        """Yield the runs; the root itself is not among them, its STAT is `root_stat`."""
        self.root_stat = pack_stat(os.fstat(self.root))
        self._device = EXTRA.unpack_from(self.root_stat, KEY_SIZE)[0]
        whole = self.patterns.root is Verdict.WHOLE
        try:
            self._push(_list(os.dup(self.root)), b"", included=whole, whole=whole)
            while self._stack:
                frame = self._stack[-1]
                if frame.descent < len(frame.descents):
                    place, number, included, whole = frame.descents[frame.descent]
                    self._look_ahead(frame)
                    frame.descent += 1
                    if place > frame.at:
                        yield self._run(frame, place)
                    self._descend(frame, number, included=included, whole=whole)
                else:
                    if len(frame.names) > frame.at:
                        yield self._run(frame, len(frame.names))
                    self._pop()
        finally:
            self._end()

    def _end(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True)
        for frame in self._stack:
            self._forget(frame)
            if frame.fd >= 0:
                os.close(frame.fd)
        self._stack.clear()

    def _run(self, frame: _Frame, stop: int) -> Run:
        start, frame.at = frame.at, stop
        listing = (frame.names, frame.kinds, frame.keys, frame.extras)
        return Run(frame.fd, frame.prefix, *listing, start, stop)

    # -- down ------------------------------------------------------------------------------

    def _look_ahead(self, frame: _Frame) -> None:
        """Have the directories listed that follow in this one, the next of them included."""
        last = min(len(frame.descents), frame.descent + AHEAD)
        for _, number, _, _ in frame.descents[frame.descent + len(frame.ahead) : last]:
            fields = KEY.unpack_from(frame.keys, number * KEY_SIZE)
            left_out = fields[6] >= _LARGE or self._is_elsewhere(frame, number)
            if left_out or self._ahead >= ALL_AHEAD or len(frame.descents) == 1:
                frame.ahead.append(None)
                continue
            if self._pool is None:
                self._pool = ThreadPoolExecutor(1, thread_name_prefix="walk")
            self._ahead += 1
            parent, name = os.dup(frame.fd), frame.names[number]
            frame.ahead.append(self._pool.submit(_open_ahead, parent, name))

    def _is_elsewhere(self, frame: _Frame, number: int) -> bool:
        device = EXTRA.unpack_from(frame.extras, number * EXTRA_SIZE)[0]
        return self.one_file_system and bool(device != self._device)

    def _descend(self, frame: _Frame, number: int, *, included: bool, whole: bool) -> None:
        name = frame.names[number]
        path = frame.prefix + name
        opening = frame.ahead.popleft()
        if self._is_elsewhere(frame, number):
            self.mounts.append(path)
            return
        if opening is None:
            opened = _open(frame.fd, name)
        else:
            opened = opening.result()
            self._ahead -= 1
        self._push(opened, path, included=included, whole=whole)

    def _push(self, opened: _Opened, path: bytes, *, included: bool, whole: bool) -> None:
        if opened.fault is not None:
            self.told(path, f"its contents are left out: {opened.fault.strerror}")
            return
        if opened.identity in self._above:
            os.close(opened.fd)
            self.told(path, "its contents are left out: the directory is mounted within itself")
            return
        names, kinds, keys, extras, failed = opened.listing
        frame = _Frame(path, opened.identity, opened.fd, included, names, kinds, keys, extras, [])
        for name, code in failed:
            what = reason(code) if name else f"the rest of its contents is left out: {reason(code)}"
            self.told(frame.prefix + name if name else path, what)
        if not whole:
            self._choose(frame)
        elif _DIRECTORY_BYTE in kinds:
            frame.descents = self._whole_descents(names, kinds)
        self._above.add(opened.identity)
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
        self._forget(frame)
        self.told(frame.path, "what was left of its contents is left out: the directory was moved")
        frame.at, frame.descent = len(frame.names), len(frame.descents)
        frame.fd = os.dup(self.root)  # a place to stand on; nothing of it is read any more

    def _forget(self, frame: _Frame) -> None:
        for opening in frame.ahead:
            if opening is not None:
                self._ahead -= 1
                if (fd := opening.result().fd) >= 0:
                    os.close(fd)
        frame.ahead.clear()

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
