"""A tiny real HTTP server that answers as object stores do when something is wrong.

Rule: for the answers that no real server can be made to give on demand. It speaks HTTP over a
socket, so that everything from the client library's parser upwards is tested as it is.
"""

from __future__ import annotations

import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

GOOD = {"ETag": '"1"', "Last-Modified": "Mon, 23 Nov 2026 16:22:00 GMT"}


@dataclass
class Answers:
    """What is answered, request by request (the last one for ever), and what was asked.

    An answer is a function of the handler; `answer`, `refuse` and `reset` make them. `stored`
    holds the bodies of the puts that were carried out.
    """

    endpoint: str = ""
    script: list[Callable[[Handler], None]] = field(default_factory=list)
    asked: list[tuple[str, str]] = field(default_factory=list)
    stored: dict[str, bytes] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)


class Handler(BaseHTTPRequestHandler):
    """One connection; `body` is what the request carried."""

    protocol_version = "HTTP/1.1"
    answers: Answers
    body: bytes

    def log_message(self, *_: object) -> None:
        """Stay silent."""

    def handle_any(self) -> None:
        """Read the request and give the next answer."""
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        answers = type(self).answers
        with answers.lock:
            answers.asked.append((self.command, self.path))
            step = answers.script[min(len(answers.asked), len(answers.script)) - 1]
        step(self)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        """Send a whole answer."""
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **GOOD, **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)


class Server(ThreadingHTTPServer):
    """Threads that die with the test; a connection that breaks is what is tested, not an error."""

    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore: the client's view is asserted."""


def answer(status: int, body: bytes = b"", **headers: str) -> Callable[[Handler], None]:
    """Answer with `body`."""
    return lambda handler: handler.reply(status, body, **headers)


def refuse(status: int, code: str, message: str = "told", extra: str = "") -> Callable[..., None]:
    """Answer with S3's error document."""
    text = f"<Error><Code>{code}</Code><Message>{message}</Message>{extra}</Error>"
    return answer(status, b'<?xml version="1.0" encoding="UTF-8"?>\n' + text.encode())


def reset(handler: Handler) -> None:
    """Break the connection with a RST instead of an answer."""
    linger = struct.pack("ii", 1, 0)
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    handler.close_connection = True
    raise ConnectionAbortedError


def create(handler: Handler) -> None:
    """Carry out a conditional put as a store should."""
    answers = type(handler).answers
    with answers.lock:
        taken = handler.path in answers.stored
        if not taken or handler.headers.get("If-None-Match") != "*":
            answers.stored[handler.path] = handler.body
            taken = False
    if taken:
        refuse(412, "PreconditionFailed")(handler)
    else:
        handler.reply(200)


def create_and_reset(handler: Handler) -> None:
    """Carry out a put and lose the answer."""
    answers = type(handler).answers
    with answers.lock:
        answers.stored[handler.path] = handler.body
    reset(handler)


def read(handler: Handler) -> None:
    """Answer a get, ranged or not, from what is stored."""
    kept = type(handler).answers.stored.get(handler.path)
    asked = handler.headers.get("Range")
    if kept is None:
        refuse(404, "NoSuchKey")(handler)
    elif asked is None:
        handler.reply(200, kept)
    else:
        first, last = asked.removeprefix("bytes=").split("-")
        end = min(int(last or len(kept)) + 1, len(kept))
        if int(first) >= len(kept):
            refuse(416, "InvalidRange")(handler)
            return
        told = f"bytes {first}-{end - 1}/{len(kept)}"
        handler.reply(206, kept[int(first) : end], Content_Range=told)


@contextmanager
def serving(tls: ssl.SSLContext | None = None) -> Iterator[Answers]:
    """Serve on a free port of the loopback until the block ends."""
    answers = Answers()
    handler = type("Bound", (Handler,), {"answers": answers})
    server = Server(("127.0.0.1", 0), handler)
    scheme = "http"
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
        scheme = "https"
    answers.endpoint = f"{scheme}://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield answers
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
