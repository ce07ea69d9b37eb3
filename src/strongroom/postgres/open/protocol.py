"""What the kernel and a file system in user space say to each other over /dev/fuse. PURE: bytes.

Version 7.31 and later, little-endian, as far as a throw-away data directory needs it. Source: Linux,
include/uapi/linux/fuse.h, which never changes what is there, and appends.
"""

from __future__ import annotations

import struct
from enum import IntEnum

MAJOR, MINOR, LEAST_MINOR = 7, 31, 23
MAX_WRITE = 1024 * 1024
BUFFER = MAX_WRITE + 4096  # the kernel refuses to talk to a shorter one


class Op(IntEnum):
    """What is asked for."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    CREATE = 35
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42
    FALLOCATE = 43
    RENAME2 = 45


# What both sides can do (INIT).
ASYNC_READ = 1 << 0
BIG_WRITES = 1 << 5
WRITEBACK_CACHE = 1 << 16
NO_OPEN_SUPPORT = 1 << 17
PARALLEL_DIROPS = 1 << 18
HANDLE_KILLPRIV = 1 << 19
MAX_PAGES = 1 << 22
CACHE_SYMLINKS = 1 << 23
WANTED = (
    ASYNC_READ
    | BIG_WRITES
    | WRITEBACK_CACHE
    | NO_OPEN_SUPPORT
    | PARALLEL_DIROPS
    | HANDLE_KILLPRIV
    | MAX_PAGES
    | CACHE_SYMLINKS
)

# Which attributes SETATTR sets.
SET_MODE, SET_UID, SET_GID, SET_SIZE = 1 << 0, 1 << 1, 1 << 2, 1 << 3
SET_MTIME, SET_MTIME_NOW = 1 << 5, 1 << 8

IN_HEADER = struct.Struct("<IIQQIIIHH")  # length, op, unique, node, uid, gid, pid, –, –
OUT_HEADER = struct.Struct("<IiQ")  # length, -errno, unique
INIT_IN = struct.Struct("<IIII")  # major, minor, max_readahead, flags
INIT_OUT = struct.Struct("<IIIIHHIIHHI28x")
READ_IN = struct.Struct("<QQI")  # fh, offset, size
WRITE_IN = struct.Struct("<QQII16x")  # fh, offset, size, flags
WRITE_OUT = struct.Struct("<II")
SETATTR_IN = struct.Struct("<I4x8xQ8xQQQIIII4xII4x")
MKNOD_IN = struct.Struct("<IIII")
MKDIR_IN = struct.Struct("<II")
CREATE_IN = struct.Struct("<IIII")
RENAME_IN = struct.Struct("<Q")
RENAME2_IN = struct.Struct("<QII")
RELEASE_IN = struct.Struct("<Q")  # fh
LINK_IN = struct.Struct("<Q")
FORGET_IN = struct.Struct("<Q")
BATCH_FORGET_IN = struct.Struct("<II")
FORGET_ONE = struct.Struct("<QQ")
FALLOCATE_IN = struct.Struct("<QQQI4x")
OPEN_OUT = struct.Struct("<QIi")
STATFS_OUT = struct.Struct("<QQQQQIII28x")
_ATTR = struct.Struct("<QQQQQQIIIIIIIIII")
_ENTRY = struct.Struct("<QQQQII")
_ATTR_OUT = struct.Struct("<QII")
_DIRENT = struct.Struct("<QQII")

FOR_EVER = 1 << 30  # seconds: nobody changes anything but through this mount
_BLOCK = 512


def init_out(max_readahead: int, flags: int) -> bytes:
    """The answer to INIT."""
    background, congestion = 64, 48
    pages = MAX_WRITE // 4096
    return INIT_OUT.pack(
        MAJOR,
        MINOR,
        max_readahead,
        flags,
        background,
        congestion,
        MAX_WRITE,
        1,  # times in nanoseconds
        pages,
        0,
        0,
    )


def attributes(
    node: int, mode: int, uid: int, gid: int, nlink: int, size: int, mtime_ns: int
) -> bytes:
    """What stat tells."""
    seconds, nanoseconds = divmod(mtime_ns, 1_000_000_000)
    return _ATTR.pack(
        node,
        size,
        -(-size // _BLOCK),
        seconds,
        seconds,
        seconds,
        nanoseconds,
        nanoseconds,
        nanoseconds,
        mode,
        nlink,
        uid,
        gid,
        0,
        4096,
        0,
    )


def attr_out(attr: bytes) -> bytes:
    """The answer to GETATTR and SETATTR."""
    return _ATTR_OUT.pack(FOR_EVER, 0, 0) + attr


def entry_out(node: int, attr: bytes) -> bytes:
    """The answer that names a node; the kernel counts one more reference to it."""
    return _ENTRY.pack(node, 0, FOR_EVER, FOR_EVER, 0, 0) + attr


NOTHING_THERE = _ENTRY.pack(0, 0, FOR_EVER, 0, 0, 0) + bytes(_ATTR.size)
"""The answer to LOOKUP that may be remembered: there is no such name."""


def dirent(node: int, at: int, kind: int, name: bytes) -> bytes:
    """One name of a READDIR; `at` is where the next one is asked for, `kind` as in d_type."""
    raw = _DIRENT.pack(node, at, len(name), kind) + name
    return raw + bytes(-len(raw) % 8)
