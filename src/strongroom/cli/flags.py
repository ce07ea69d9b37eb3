"""The flags that every verb takes, before it or after it.

They are enough to read a repository without any configuration file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from cyclopts import Group, Parameter

EVERYWHERE = Group("Everywhere", sort_key=100)


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class Everywhere:
    """Where the repository is, who opens it, how the answer looks."""

    repository: Annotated[str | None, Parameter(alias="-r", group=EVERYWHERE)] = None
    """Address of the repository: a path, s3://bucket/prefix, gs://…, az://…"""
    config: Annotated[str | None, Parameter(alias="-c", group=EVERYWHERE)] = None
    """Configuration file, instead of the one that would be found."""
    passphrase_file: Annotated[str | None, Parameter(group=EVERYWHERE)] = None
    """File with the passphrase, readable by its owner only."""
    key_file: Annotated[str | None, Parameter(group=EVERYWHERE)] = None
    """Key file that opens the repository."""
    recovery_code_file: Annotated[str | None, Parameter(group=EVERYWHERE)] = None
    """File with the recovery code of the kit."""
    cache_dir: Annotated[str | None, Parameter(group=EVERYWHERE)] = None
    """Folder for caches, instead of ~/.cache/strongroom; losing it costs time only."""
    jobs: Annotated[int | None, Parameter(alias="-j", group=EVERYWHERE)] = None
    """How many threads or connections work side by side."""
    json: Annotated[bool, Parameter(group=EVERYWHERE)] = False
    """Answer in JSON."""
    quiet: Annotated[bool, Parameter(alias="-q", group=EVERYWHERE)] = False
    """No progress and no notes, only the result and errors."""
    verbose: Annotated[int, Parameter(alias="-v", count=True, group=EVERYWHERE)] = 0
    """Tell more; twice for the traceback of an error."""
    log_format: Annotated[Literal["text", "json"] | None, Parameter(group=EVERYWHERE)] = None
    """What goes to stderr: lines for people, or a JSON object a line."""


# Flags in front of the verb: with a value, and without.
_WITH_VALUE = frozenset(
    {
        "--repository", "-r", "--config", "-c", "--passphrase-file", "--key-file",
        "--recovery-code-file", "--cache-dir", "--jobs", "-j", "--log-format",
    }
)  # fmt: skip
_WITHOUT_VALUE = frozenset({"--json", "--quiet", "-q", "--verbose", "-v", "-vv", "-vvv"})


def verb_first(argv: list[str]) -> list[str]:
    """Move the flags in front of the verb behind it, where they are parsed."""
    at = 0
    while at < len(argv):
        name, equals, _ = argv[at].partition("=")
        if argv[at] in _WITHOUT_VALUE or (equals and name in _WITH_VALUE):
            at += 1
        elif argv[at] in _WITH_VALUE and at + 1 < len(argv):
            at += 2
        else:
            break
    flags, rest = argv[:at], argv[at:]
    end = rest.index("--") if "--" in rest else len(rest)
    return rest[:end] + flags + rest[end:]


def given(argv: list[str], name: str) -> str | None:
    """The value of a flag in a command line that could not be parsed."""
    words = argv[: argv.index("--")] if "--" in argv else argv
    for at, word in enumerate(words):
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
        if word == name and at + 1 < len(words):
            return words[at + 1]
    return None


def wants(argv: list[str], *names: str) -> bool:
    """Whether one of the flags stands in a command line that could not be parsed."""
    words = argv[: argv.index("--")] if "--" in argv else argv
    return any(name in words for name in names)
