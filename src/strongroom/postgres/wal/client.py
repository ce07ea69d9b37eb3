"""What PostgreSQL starts for every segment: it asks the daemon, over a unix socket, and goes.

Rule: nothing is imported here that a bare interpreter has not loaded: a server that writes 16 MB of
log every 50 ms cannot wait half a second for each. Where no daemon answers, or it is another
configuration's, `ask` says so and the caller does the work itself.

    question  "SRW1" ‖ length u32 ‖ field ‖ NUL ‖ field …     with it, the working directory, opened
    answer    "." …                                           every few seconds: still at work
              "=" ‖ status u8 ‖ length u32 ‖ what to say on stderr
"""

from __future__ import annotations

# The module behind `socket`, which takes 12 ms to import and adds nothing that is needed here.
import _socket
import os

MAGIC = b"SRW1"
DIRECT = 255  # a status: do it yourself
PATIENCE = 60.0  # seconds without a sign of life
QUESTION_LIMIT = 64 * 1024
DEFAULT_SOCKET = "/run/strongroom/wal.sock"

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def push_status(status: int) -> int:
    """An exit status as archive_command may have it: above 125 the archiver would end itself."""
    return status if status <= 125 else 1


def fetch_status(status: int) -> int:
    """The exit status of a fetch that failed: up to 125 PostgreSQL would take it for the log's end."""
    return status if status > 125 else 200 + status


def ask(address: str, fields: list[str]) -> tuple[int, bytes] | None:
    """Put a question to the daemon; its status and words, or None: nobody there, or not for us."""
    body = b"\0".join(os.fsencode(field) for field in fields)
    question = MAGIC + len(body).to_bytes(4, "little") + body
    channel = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    folder = -1
    try:
        channel.settimeout(PATIENCE)
        channel.connect(socket_name(address))
        if peer_uid(channel) not in (0, os.geteuid()):
            return None
        folder = os.open(".", _FOLDER)
        right = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, folder.to_bytes(4, "little"))
        sent = channel.sendmsg([question], [right])
        if sent < len(question):  # sending nothing fails where the answer was faster than we are
            channel.sendall(question[sent:])
        return _answer(channel)
    except OSError:
        return None
    finally:
        if folder >= 0:
            os.close(folder)
        channel.close()


def socket_name(address: str) -> bytes:
    """An address as the kernel takes it: `@name` is a name of the kernel's own, without a file."""
    name = os.fsencode(address)
    return b"\0" + name[1:] if name.startswith(b"@") else name


def peer_uid(channel: _socket.socket) -> int:
    """Who is at the other end, as the kernel says: struct ucred is pid, uid, gid."""
    credentials = channel.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)
    return int.from_bytes(credentials[4:8], "little")


def _answer(channel: _socket.socket) -> tuple[int, bytes] | None:
    while (sign := channel.recv(1)) == b".":
        pass
    if sign != b"=" or len(head := _exactly(channel, 5)) != 5:
        return None
    size = int.from_bytes(head[1:], "little")
    said = _exactly(channel, size)
    if head[0] == DIRECT or len(said) != size:
        return None
    return head[0], said


def _exactly(channel: _socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (more := channel.recv(size - len(data))):
        data += more
    return data
