"""Names from outside on their way to a terminal or into JSON.

A path is any bytes. On a terminal it must not move the cursor, hide a part of
itself or pretend to be two lines; in JSON it must come back byte for byte.
"""

from __future__ import annotations

import base64
from typing import Any


def show_name(name: bytes | str) -> str:
    """The name with everything that is not plainly printable as a backslash escape.

    A backslash is doubled, so that two names never look alike.
    """
    text = name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else name
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(map(_show, text))


def show_text(text: str) -> str:
    """A sentence that may quote foreign text, on one line and without control characters."""
    words = " ".join(text.split())
    return words if words.isprintable() else "".join(map(_show_unprintable, words))


def path_fields(path: bytes) -> dict[str, Any]:
    """`path` for JSON: the text, and `path_b64` beside an escaped text when it is not UTF-8."""
    try:
        return {"path": path.decode("utf-8")}
    except UnicodeDecodeError:
        return {
            "path": path.decode("utf-8", "backslashreplace"),
            "path_b64": base64.b64encode(path).decode(),
        }


def _show(letter: str) -> str:
    return "\\\\" if letter == "\\" else _show_unprintable(letter)


def _show_unprintable(letter: str) -> str:
    if letter.isprintable():
        return letter
    code = ord(letter)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is no UTF-8, as surrogateescape keeps it
        return f"\\x{code - 0xDC00:02x}"
    plain = {0x07: "\\a", 0x09: "\\t", 0x0A: "\\n", 0x0D: "\\r", 0x1B: "\\e"}
    if code in plain:
        return plain[code]
    return (
        f"\\x{code:02x}"
        if code < 0x100
        else f"\\u{code:04x}"
        if code < 0x10000
        else f"\\U{code:08x}"
    )
