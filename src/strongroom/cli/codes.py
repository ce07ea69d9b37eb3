"""Every error code with its page: from the docstrings of `errors`, and longer text beside it.

`explain CODE` prints it and docs/reference/errors.md is made of it.
"""

from __future__ import annotations

import inspect
import tomllib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import Any

from strongroom import errors
from strongroom.errors import StrongroomError


@dataclass(frozen=True, slots=True)
class Page:
    """What a code means: one sentence, consequences and next step by default, longer text."""

    code: str
    exit: int
    summary: str  # its first sentence ends the line in a list
    means: str
    do: str
    text: str

    def body(self) -> dict[str, Any]:
        """The page as JSON values."""
        return asdict(self)


def error_classes() -> list[type[StrongroomError]]:
    """Every class of the tree in `errors`, a parent before its children."""
    return [kind for kind in _below(StrongroomError) if kind.__module__ == errors.__name__]


def load_pages() -> list[Page]:
    """Every page, by exit status and then as the tree is drawn."""
    texts = tomllib.loads((files("strongroom.cli") / "explain.toml").read_text("utf-8"))
    pages = [
        Page(
            kind.code,
            kind.exit_status,
            " ".join(inspect.cleandoc(kind.__doc__ or "").split()),
            kind.means,
            kind.do,
            texts.get(kind.code, ""),  # a test demands every text; a person wants the rest
        )
        for kind in error_classes()
    ]
    return sorted(pages, key=lambda page: page.exit)


def _below(kind: type[StrongroomError]) -> Iterator[type[StrongroomError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _below(child)
