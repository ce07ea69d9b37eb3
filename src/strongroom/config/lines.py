"""On which line of a TOML text a key is set.

tomllib tells no positions. But each statement of a valid text is a valid text
by itself, so statements are parsed one by one: lines are gathered until they
parse, under the table header that came last.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any


class Lines:
    """The statements of one text, found at the first question."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._found: list[tuple[int, tuple[str, ...], Mapping[str, Any]]] | None = None

    def of(self, key: Sequence[str]) -> int | None:
        """First line, from 1, of the statement that brings `key`; None when none does."""
        if self._found is None:
            self._found = list(_statements(self._text))
        wanted = tuple(key)
        for line, header, body in self._found:
            if header[: len(wanted)] == wanted:
                return line
            if wanted[: len(header)] == header and _has(body, wanted[len(header) :]):
                return line
        return None


def _statements(text: str) -> Iterator[tuple[int, tuple[str, ...], Mapping[str, Any]]]:
    """Yield (first line, table it stands in, what it sets) of each statement."""
    header: tuple[str, ...] = ()
    gathered, first = "", 1
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        gathered, first = gathered + line, first if gathered else number
        try:
            body = tomllib.loads(gathered)
        except tomllib.TOMLDecodeError:
            continue
        if gathered.lstrip().startswith("["):
            header, body = _path_of(body), {}
        if body or gathered.lstrip().startswith("["):
            yield first, header, body
        gathered = ""


def _path_of(body: Mapping[str, Any]) -> tuple[str, ...]:
    """The one path in the parsed header `[a.b]`, {"a": {"b": {}}}."""
    path: list[str] = []
    while isinstance(body, Mapping) and body:
        name, body = next(iter(body.items()))
        path.append(name)
    return tuple(path)


def _has(document: Any, key: Sequence[str]) -> bool:
    for part in key:
        if not isinstance(document, Mapping) or part not in document:
            return False
        document = document[part]
    return bool(key)
