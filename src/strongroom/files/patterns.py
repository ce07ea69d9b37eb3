"""Which names of a tree are taken: include and exclude patterns over raw bytes.

Rules (docs/reference/files.md says them to users):

    `*` any bytes but `/` · `?` one byte but `/` · `[a-z]`, `[!a-z]` one byte of a set
    `**/` any directories, none included · `/**` everything below · `\\x` the byte x itself
    a trailing `/` matches directories only
    exclude: without another `/` a pattern matches the name at any depth; else from the root
    include: always from the root; `**/` in front makes it any depth
    `!` in front of an exclude pattern takes back what earlier ones excluded; the last match wins

What is below an excluded directory is excluded. What is below an included
directory is included. A directory that may lead to an include is taken itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import Enum

from strongroom.errors import ConfigError


class Verdict(Enum):
    """What is done with a directory."""

    SKIP = 0
    WALK = 1  # take it, and ask about everything in it
    WHOLE = 2  # take it; what is in it needs no asking


class _Pattern:
    __slots__ = ("_leading", "directory", "match", "negated", "text")

    def __init__(self, text: bytes, *, anchored: bool) -> None:
        self.text = text
        self.negated = not anchored and text.startswith(b"!")
        body = text[1:] if self.negated else text
        self.directory = body.endswith(b"/")
        body = body.rstrip(b"/")
        parts = [part for part in body.split(b"/") if part]
        if not parts or b"." in parts or b".." in parts:
            raise ConfigError(f"The pattern {text!r} names nothing.")
        if not anchored and b"/" not in body:
            parts.insert(0, b"**")
        self.match = re.compile(_expression(parts, text), re.DOTALL).fullmatch
        leading = [re.compile(front, re.DOTALL) for front in _leading(parts, text)]
        self._leading = [expression.fullmatch for expression in leading]

    def leads(self, directory: bytes) -> bool:
        """Say whether a match may lie below `directory`."""
        return any(match(directory) for match in self._leading)


def _expression(parts: list[bytes], text: bytes) -> bytes:
    """The whole pattern as a regular expression over a path without a leading slash."""
    out = b""
    for place, part in enumerate(parts):
        last = place == len(parts) - 1
        if part == b"**":
            out += b".+" if last else b"(?:[^/]+/)*"
        else:
            out += _component(part, text) + (b"" if last else b"/")
    return out


def _leading(parts: list[bytes], text: bytes) -> list[bytes]:
    """Expressions for the directories above a match; `**` may lead anywhere below itself."""
    found = []
    for size in range(1, len(parts)):
        front = parts[:size]
        found.append(_expression(front, text))
        if front[-1] == b"**":
            break
    return found


def _component(part: bytes, text: bytes) -> bytes:
    out, at = b"", 0
    while at < len(part):
        char = part[at : at + 1]
        at += 1
        if char == b"*":
            out += b"[^/]*"
        elif char == b"?":
            out += b"[^/]"
        elif char == b"[":
            piece, at = _set(part, at, text)
            out += piece
        elif char == b"\\":
            if at == len(part):
                raise ConfigError(f"The pattern {text!r} ends in a lone backslash.")
            out += re.escape(part[at : at + 1])
            at += 1
        else:
            out += re.escape(char)
    return out


def _set(part: bytes, at: int, text: bytes) -> tuple[bytes, int]:
    negated = part[at : at + 1] in (b"!", b"^")
    at += negated
    end = part.find(b"]", at + 1)
    if end < 0:
        raise ConfigError(f"The pattern {text!r} has a [ without its ].")
    body, members, place = part[at:end], b"", 0
    while place < len(body):
        low = body[place : place + 1]
        if body[place + 1 : place + 2] == b"-" and place + 2 < len(body):
            high = body[place + 2 : place + 3]
            if high < low:
                raise ConfigError(f"The pattern {text!r} has a range that runs backwards.")
            members += re.escape(low) + b"-" + re.escape(high)
            place += 3
        else:
            members += re.escape(low)
            place += 1
    return (b"(?!/)[^" if negated else b"(?!/)[") + members + b"]", end + 1


class Patterns:
    """Decide about paths; `unmatched` tells of includes that nothing answered to."""

    def __init__(self, include: Iterable[bytes] = (), exclude: Iterable[bytes] = ()) -> None:
        self._include = [_Pattern(text, anchored=True) for text in include]
        self._exclude = [_Pattern(text, anchored=False) for text in exclude]
        self._unmatched = {pattern.text for pattern in self._include}

    @property
    def root(self) -> Verdict:
        """What is done with the root."""
        return Verdict.WALK if self._include or self._exclude else Verdict.WHOLE

    def unmatched(self) -> list[bytes]:
        """The include patterns that matched nothing so far, in the order of their bytes."""
        return sorted(self._unmatched)

    def directory(self, path: bytes, *, included: bool) -> tuple[Verdict, bool]:
        """Decide about a directory whose parent is `included`; return also whether it is itself."""
        if self._exclude and self._excluded(path, directory=True):
            return Verdict.SKIP, False
        included = included or self._included(path, directory=True)
        if included:
            return (Verdict.WALK if self._exclude else Verdict.WHOLE), True
        if self._leads(path):
            return Verdict.WALK, False
        return Verdict.SKIP, False

    def file(self, path: bytes, *, included: bool) -> bool:
        """Decide about anything that is no directory."""
        if self._exclude and self._excluded(path, directory=False):
            return False
        return included or self._included(path, directory=False)

    def _included(self, path: bytes, *, directory: bool) -> bool:
        if not self._include:
            return True
        found = False
        for pattern in self._include:
            if (directory or not pattern.directory) and pattern.match(path):
                self._unmatched.discard(pattern.text)
                found = True
        if found and directory:  # what is below is not asked any more
            self._unmatched -= {other.text for other in self._include if other.leads(path)}
        return found

    def _leads(self, path: bytes) -> bool:
        return any(pattern.leads(path) for pattern in self._include)

    def _excluded(self, path: bytes, *, directory: bool) -> bool:
        for pattern in reversed(self._exclude):
            if (directory or not pattern.directory) and pattern.match(path):
                return not pattern.negated
        return False
