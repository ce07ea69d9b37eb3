"""The kernel's questions answered: /dev/fuse on one side, an overlay and the repository on the other.

One thread reads the questions and answers at once all that needs no fetch; a read that does goes to a
pool and is answered from there. What is read in order is fetched ahead of the reader.

A chunk that cannot be had is EIO to whoever reads it, and told through `on_fault` with its file. So
is a write that found no room: with pages written back by the kernel, nobody else may hear of it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from strongroom.errors import Damaged, StrongroomError, TargetFull
from strongroom.postgres.open import protocol
from strongroom.postgres.open.chunks import Chunks
from strongroom.postgres.open.extents import Extents
from strongroom.postgres.open.overlay import Node, Overlay, Piece, Unloaded
from strongroom.postgres.open.protocol import Op
from strongroom.repository.reader import SnapshotReader

WINDOW = 1 << 20  # bytes of a file that are taken as one when something in them is wanted
_IN_ORDER = 128 * 1024  # read one after another before anything is fetched ahead
_AHEAD = 6 * WINDOW
_AT_WORK = 12
_TOGETHER = 32  # chunks in one fetch ahead
_READ_AHEAD = 1 << 20  # the kernel's own
_FULL = (errno.ENOSPC, errno.EDQUOT)
_IO_FLUSHER = 57
_GONE = (errno.ENODEV, errno.EBADF, errno.ECONNABORTED)
_AGAIN = (errno.EINTR, errno.EAGAIN, errno.ENOENT)

OnFault = Callable[[bytes, StrongroomError], None]


class FuseServer:
    """Serves an overlay until the mount is gone. `device` is an open /dev/fuse that was mounted."""

    def __init__(
        self,
        device: int,
        overlay: Overlay,
        snapshot: SnapshotReader,
        chunks: Chunks,
        *,
        statvfs: Callable[[], os.statvfs_result],
        on_fault: OnFault,
    ) -> None:
        self._device, self._overlay, self._snapshot = device, overlay, snapshot
        self._chunks, self._statvfs, self._on_fault = chunks, statvfs, on_fault
        self._pool = ThreadPoolExecutor(_AT_WORK, thread_name_prefix="open-read")
        self._ahead = ThreadPoolExecutor(
            max(2, os.cpu_count() or 2), thread_name_prefix="open-ahead"
        )
        self._listings: dict[int, list[bytes]] = {}
        self._listing = 0
        self._extents_lock = threading.Lock()
        self._handlers: dict[int, Callable[[int, int, memoryview, int, int], None]] = {
            Op.LOOKUP: self._lookup,
            Op.FORGET: self._forget,
            Op.BATCH_FORGET: self._batch_forget,
            Op.GETATTR: self._getattr,
            Op.SETATTR: self._setattr,
            Op.READLINK: self._readlink,
            Op.SYMLINK: self._symlink,
            Op.MKNOD: self._mknod,
            Op.MKDIR: self._mkdir,
            Op.UNLINK: self._unlink,
            Op.RMDIR: self._rmdir,
            Op.RENAME: self._rename,
            Op.RENAME2: self._rename2,
            Op.LINK: self._link,
            Op.READ: self._read,
            Op.WRITE: self._write,
            Op.STATFS: self._statfs,
            Op.RELEASE: self._nothing,
            Op.INIT: self._init,
            Op.OPENDIR: self._opendir,
            Op.READDIR: self._readdir,
            Op.RELEASEDIR: self._releasedir,
            Op.CREATE: self._create,
            Op.FALLOCATE: self._fallocate,
            Op.INTERRUPT: self._silence,
            Op.DESTROY: self._nothing,
        }
        self._thread = threading.Thread(target=self._serve, name="open-fuse", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def fetch_ahead(self, nodes: Sequence[Node]) -> None:
        """Have the content of small files at hand soon; in the background."""
        self._ahead.submit(self._bring_all, nodes)

    def _bring_all(self, nodes: Sequence[Node]) -> None:
        ids: dict[bytes, None] = {}
        with suppress(StrongroomError):  # whoever reads it is told
            for node in nodes:
                self._load(node)
                if node.extents is not None:
                    ids.update(dict.fromkeys(node.extents.ids(0, node.base_end)))
        rest = list(ids)
        for at in range(0, len(rest), _TOGETHER):
            self._pool.submit(self._chunks.fetch, rest[at : at + _TOGETHER])

    def close(self) -> None:
        """Be gone, once nothing is mounted any more."""
        self._thread.join(timeout=10)
        for pool in (self._ahead, self._pool):
            pool.shutdown(wait=not self._thread.is_alive(), cancel_futures=True)
        os.close(self._device)

    # -- questions and answers -------------------------------------------------------------

    def _serve(self) -> None:
        _never_wait_for_ourselves()
        buffer = bytearray(protocol.BUFFER)
        into, view = [buffer], memoryview(buffer)
        unpack, head = protocol.IN_HEADER.unpack_from, protocol.IN_HEADER.size
        while True:
            try:
                os.readv(self._device, into)
            except OSError as fault:
                if fault.errno in _AGAIN:
                    continue
                return  # not mounted any more
            length, op, unique, node, uid, gid, _, _, _ = unpack(buffer)
            handler = self._handlers.get(op)
            if handler is None:
                self._refuse(unique, errno.ENOSYS)
                continue
            try:
                handler(unique, node, view[head:length], uid, gid)
            except OSError as fault:
                self._failed(unique, op, node, fault)
            except StrongroomError as fault:
                self._on_fault(self._path(node), fault)
                self._refuse(unique, errno.EIO)
            except Exception as fault:
                self._on_fault(self._path(node), _unforeseen(fault))
                self._refuse(unique, errno.EIO)

    def _failed(self, unique: int, op: int, node: int, fault: OSError) -> None:
        if op == Op.WRITE:
            self._on_fault(self._path(node), _unwritten(fault))
        self._refuse(unique, fault.errno or errno.EIO)

    def _answer(self, unique: int, *parts: bytes | memoryview) -> None:
        size = protocol.OUT_HEADER.size + sum(map(len, parts))
        self._send([protocol.OUT_HEADER.pack(size, 0, unique), *parts])

    def _refuse(self, unique: int, number: int) -> None:
        self._send([protocol.OUT_HEADER.pack(protocol.OUT_HEADER.size, -number, unique)])

    def _send(self, parts: list[bytes | memoryview]) -> None:
        try:
            os.writev(self._device, parts)
        except OSError as fault:
            # Nobody waits for it any more: interrupted, or not mounted.
            if fault.errno not in (*_AGAIN, *_GONE):
                raise

    def _init(self, unique: int, node: int, body: memoryview, uid: int, gid: int) -> None:
        _, minor, ahead, flags = protocol.INIT_IN.unpack_from(body)
        if minor < protocol.LEAST_MINOR:
            self._refuse(unique, errno.EPROTO)
            return
        self._answer(unique, protocol.init_out(max(ahead, _READ_AHEAD), flags & protocol.WANTED))

    def _nothing(self, unique: int, node: int, body: memoryview, uid: int, gid: int) -> None:
        self._answer(unique)

    def _silence(self, unique: int, node: int, body: memoryview, uid: int, gid: int) -> None:
        pass

    # -- names -----------------------------------------------------------------------------

    def _attributes(self, node: Node) -> bytes:
        return protocol.attributes(
            node.id,
            node.mode,
            node.uid,
            node.gid,
            max(node.names, 0) if node.children is None else 2,
            node.size,
            node.mtime_ns,
        )

    def _entry(self, node: Node) -> bytes:
        node.known += 1
        return protocol.entry_out(node.id, self._attributes(node))

    def _lookup(self, unique: int, number: int, body: memoryview, uid: int, gid: int) -> None:
        node = self._overlay.child(self._overlay.node(number), _name(body))
        self._answer(unique, protocol.NOTHING_THERE if node is None else self._entry(node))

    def _forget(self, unique: int, number: int, body: memoryview, uid: int, gid: int) -> None:
        self._overlay.forget(number, protocol.FORGET_IN.unpack_from(body)[0])

    def _batch_forget(self, unique: int, number: int, body: memoryview, uid: int, gid: int) -> None:
        (count, _), at = protocol.BATCH_FORGET_IN.unpack_from(body), protocol.BATCH_FORGET_IN.size
        for _ in range(count):
            self._overlay.forget(*protocol.FORGET_ONE.unpack_from(body, at))
            at += protocol.FORGET_ONE.size

    def _getattr(self, unique: int, number: int, body: memoryview, uid: int, gid: int) -> None:
        self._answer(unique, protocol.attr_out(self._attributes(self._overlay.node(number))))

    def _setattr(self, unique: int, number: int, body: memoryview, uid: int, gid: int) -> None:
        fields = protocol.SETATTR_IN.unpack_from(body)
        valid, size, _, mtime, _, _, mtime_ns, _, mode, owner, group = fields
        node = self._overlay.node(number)
        if valid & protocol.SET_SIZE:
            self._overlay.truncate(node, size)
        if valid & protocol.SET_MODE:
            node.mode = stat.S_IFMT(node.mode) | (mode & 0o7777)
        if valid & protocol.SET_UID:
            node.uid = owner
        if valid & protocol.SET_GID:
            node.gid = group
        if valid & protocol.SET_MTIME:
            now = valid & protocol.SET_MTIME_NOW
            node.mtime_ns = time.time_ns() if now else mtime * 1_000_000_000 + mtime_ns
        self._answer(unique, protocol.attr_out(self._attributes(node)))

    def _readlink(self, unique: int, number: int, body: memoryview, uid: int, gid: int) -> None:
        self._answer(unique, self._overlay.node(number).target)

    def _symlink(self, unique: int, number: int, body: memoryview, uid: int, gid: int) -> None:
        name, target = bytes(body).split(b"\0")[:2]
        folder = self._overlay.node(number)
        self._answer(unique, self._entry(self._overlay.symlink(folder, name, target, uid, gid)))

    def _mknod(self, unique: int, number: int, body: memoryview, uid: int, gid: int) -> None:
        mode = protocol.MKNOD_IN.unpack_from(body)[0]
        if not stat.S_ISREG(mode):
            raise OSError(errno.EPERM, "files and directories only")
        name, folder = _name(body[protocol.MKNOD_IN.size :]), self._overlay.node(number)
        self._answer(unique, self._entry(self._overlay.create(folder, name, mode, uid, gid)))

    def _mkdir(self, unique: int, number: int, body: memoryview, uid: int, gid: int) -> None:
        mode = protocol.MKDIR_IN.unpack_from(body)[0]
        name, folder = _name(body[protocol.MKDIR_IN.size :]), self._overlay.node(number)
        self._answer(unique, self._entry(self._overlay.mkdir(folder, name, mode, uid, gid)))

    def _create(self, unique: int, number: int, body: memoryview, uid: int, gid: int) -> None:
        mode = protocol.CREATE_IN.unpack_from(body)[1]
        name, folder = _name(body[protocol.CREATE_IN.size :]), self._overlay.node(number)
        entry = self._entry(self._overlay.create(folder, name, mode, uid, gid))
        self._answer(unique, entry, protocol.OPEN_OUT.pack(0, 0, 0))

    def _unlink(self, unique: int, number: int, body: memoryview, uid: int, gid: int) -> None:
        self._overlay.unlink(self._overlay.node(number), _name(body))
        self._answer(unique)

    def _rmdir(self, unique: int, number: int, body: memoryview, uid: int, gid: int) -> None:
        self._overlay.rmdir(self._overlay.node(number), _name(body))
        self._answer(unique)

    def _rename(self, unique: int, number: int, body: memoryview, uid: int, gid: int) -> None:
        self._move(unique, number, protocol.RENAME_IN.unpack_from(body)[0], body[8:], 0)

    def _rename2(self, unique: int, number: int, body: memoryview, uid: int, gid: int) -> None:
        new, flags, _ = protocol.RENAME2_IN.unpack_from(body)
        self._move(unique, number, new, body[protocol.RENAME2_IN.size :], flags)

    def _move(self, unique: int, old: int, new: int, names: memoryview, flags: int) -> None:
        name, to = bytes(names).split(b"\0")[:2]
        self._overlay.rename(self._overlay.node(old), name, self._overlay.node(new), to, flags)
        self._answer(unique)

    def _link(self, unique: int, number: int, body: memoryview, uid: int, gid: int) -> None:
        node = self._overlay.node(protocol.LINK_IN.unpack_from(body)[0])
        name = _name(body[protocol.LINK_IN.size :])
        self._answer(
            unique, self._entry(self._overlay.link(node, self._overlay.node(number), name))
        )

    def _opendir(self, unique: int, number: int, body: memoryview, uid: int, gid: int) -> None:
        """Names as they are now: what is removed while they are read shifts nothing."""
        folder = self._overlay.node(number)
        self._listing += 1
        self._listings[self._listing] = [b".", b"..", *(folder.children or ())]
        self._answer(unique, protocol.OPEN_OUT.pack(self._listing, 0, 0))

    def _releasedir(self, unique: int, number: int, body: memoryview, uid: int, gid: int) -> None:
        self._listings.pop(protocol.RELEASE_IN.unpack_from(body)[0], None)
        self._answer(unique)

    def _readdir(self, unique: int, number: int, body: memoryview, uid: int, gid: int) -> None:
        handle, offset, size = protocol.READ_IN.unpack_from(body)
        folder, names = self._overlay.node(number), self._listings.get(handle, [])
        parts: list[bytes] = []
        for at in range(offset, len(names)):
            name = names[at]
            node = folder if at < 2 else (folder.children or {}).get(name)
            if node is None:  # removed since
                continue
            raw = protocol.dirent(node.id, at + 1, stat.S_IFMT(node.mode) >> 12, name)
            size -= len(raw)
            if size < 0:
                break
            parts.append(raw)
        self._answer(unique, b"".join(parts))

    def _statfs(self, unique: int, number: int, body: memoryview, uid: int, gid: int) -> None:
        room = self._statvfs()
        self._answer(
            unique,
            protocol.STATFS_OUT.pack(
                room.f_blocks,
                room.f_bfree,
                room.f_bavail,
                room.f_files,
                room.f_ffree,
                room.f_bsize,
                255,
                room.f_frsize,
            ),
        )

    # -- content ---------------------------------------------------------------------------

    def _read(self, unique: int, number: int, body: memoryview, uid: int, gid: int) -> None:
        _, offset, size = protocol.READ_IN.unpack_from(body)
        node = self._overlay.node(number)
        try:
            pieces = self._overlay.plan(node, offset, size)
        except Unloaded:
            self._pool.submit(self._read_slowly, unique, node, offset, size)
            return
        parts: list[bytes | memoryview] = []
        get = self._chunks.get
        for piece in pieces:
            if piece.id is None:
                parts.append(self._overlay.scratch(node, piece))
                continue
            chunk = get(piece.id)
            if chunk is None:
                self._pool.submit(self._read_slowly, unique, node, offset, size)
                return
            parts.append(_cut(chunk, piece))
        self._answer(unique, *parts)
        if node.entry is not None:
            self._look_ahead(node, offset, size)

    def _read_slowly(self, unique: int, node: Node, offset: int, size: int) -> None:
        try:
            self._answer(unique, *self.content(node, offset, size))
            self._look_ahead(node, offset, size)
        except OSError as fault:
            self._refuse(unique, fault.errno or errno.EIO)
        except StrongroomError as fault:
            self._on_fault(self._path(node.id), fault)
            self._refuse(unique, errno.EIO)
        except Exception as fault:
            self._on_fault(self._path(node.id), _unforeseen(fault))
            self._refuse(unique, errno.EIO)

    def content(self, node: Node, offset: int, size: int) -> list[bytes | memoryview]:
        """Bytes of a file, fetched where they are not at hand; StrongroomError when they cannot be."""
        try:
            pieces = self._overlay.plan(node, offset, size)
        except Unloaded:
            self._load(node)
            pieces = self._overlay.plan(node, offset, size)
        ids = [piece.id for piece in pieces if piece.id is not None]
        found = self._chunks.fetch(ids, self._window(node, offset, size)) if ids else {}
        parts: list[bytes | memoryview] = []
        for piece in pieces:
            if piece.id is None:
                parts.append(self._overlay.scratch(node, piece))
                continue
            chunk = found[piece.id]
            if isinstance(chunk, StrongroomError):
                raise chunk
            parts.append(_cut(chunk, piece))
        return parts

    def _window(self, node: Node, offset: int, size: int) -> list[bytes]:
        extents = node.extents
        if extents is None:
            return []
        begin, end = offset & -WINDOW, (offset + size + WINDOW - 1) & -WINDOW
        return extents.ids(begin, min(end, node.base_end))

    def _load(self, node: Node) -> None:
        """Have the extents of a node's entry."""
        entry = node.entry
        if entry is None or node.extents is not None:
            return
        try:
            node.extents = Extents(row for part in self._snapshot.parts(entry) for row in part)
        except ValueError as fault:
            raise Damaged(f"The list of its chunks does not decode: {fault}.") from None

    def _look_ahead(self, node: Node, offset: int, size: int) -> None:
        """What is read in order is fetched before it is asked for, more of it the longer it goes on."""
        end, beyond = offset + size, offset - node.next
        if 0 <= beyond <= WINDOW:
            node.run += size
        elif -_AHEAD <= beyond < 0:
            return  # the kernel's own reads overtake one another
        else:
            node.run, node.ahead = size, 0
        node.next = end
        if node.run < _IN_ORDER:
            return
        begin = max(node.ahead, (end + WINDOW - 1) & -WINDOW)
        goal = min(end + min(_AHEAD, 2 * node.run), node.base_end)
        while begin < goal:
            self._ahead.submit(self._bring, node, begin, begin + WINDOW)
            begin += WINDOW
        node.ahead = begin

    def _bring(self, node: Node, begin: int, end: int) -> None:
        try:
            self._load(node)
            if node.extents is not None:
                get = self._chunks.get
                end = min(end, node.base_end)
                ids = [one for one in node.extents.ids(begin, end) if get(one) is None]
                if ids:
                    self._chunks.fetch(ids)
        except StrongroomError:
            pass  # whoever reads it is told

    def _write(self, unique: int, number: int, body: memoryview, uid: int, gid: int) -> None:
        _, offset, size, _ = protocol.WRITE_IN.unpack_from(body)
        node = self._overlay.node(number)
        for begin, end in self._overlay.lacking(node, offset, size):
            data = b"".join(map(bytes, self.content(node, begin, end - begin)))
            self._overlay.fill(node, begin, data)
        at = protocol.WRITE_IN.size
        self._overlay.write(node, offset, body[at : at + size])
        self._answer(unique, protocol.WRITE_OUT.pack(size, 0))

    def _fallocate(self, unique: int, number: int, body: memoryview, uid: int, gid: int) -> None:
        _, offset, length, mode = protocol.FALLOCATE_IN.unpack_from(body)
        self._overlay.allocate(self._overlay.node(number), offset, length, mode)
        self._answer(unique)

    def _path(self, number: int) -> bytes:
        node = self._overlay.nodes.get(number)
        if node is None:
            return b""
        return node.entry.path if node.entry is not None else b"(made after it was opened)"


def _never_wait_for_ourselves() -> None:
    """Tell the kernel that this thread writes out pages of others: it must not be made to wait for
    memory that only it can free (PR_SET_IO_FLUSHER). Where that is not allowed, it goes without."""
    ctypes.CDLL(None).prctl(_IO_FLUSHER, 1, 0, 0, 0)


def _cut(chunk: bytes, piece: Piece) -> memoryview:
    part = memoryview(chunk)[piece.place : piece.place + piece.length]
    if len(part) != piece.length:
        raise Damaged("An extent reaches past the end of its chunk.")
    return part


def _name(body: memoryview) -> bytes:
    return bytes(body).split(b"\0", 1)[0]


def _unwritten(fault: OSError) -> StrongroomError:
    if fault.errno in _FULL:
        return TargetFull(
            "The disk of the scratch directory has no room left for what the opened server writes.",
            means="The server was ended, so that nobody reads what was not kept. The backup is untouched.",
            do="Open it again with --scratch on a disk with more room.",
        )
    return StrongroomError(f"Scratch cannot be written: {fault.strerror}.")


def _unforeseen(fault: Exception) -> StrongroomError:
    return StrongroomError(f"An error that nobody foresaw: {type(fault).__name__}: {fault}")


__all__ = ["FuseServer"]
