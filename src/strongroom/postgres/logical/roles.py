"""Roles out of the text of `pg_dumpall --globals-only`: which statements to run on a target.

PURE but for `apply_roles`. Rule of this file: the text is read as SQL by us and sent statement by
statement through libpq; psql, whose meta-commands made plain dumps dangerous (CVE-2025-8714,
CVE-2026-18408), has no part in it. A role that exists on the target is never changed: its password
and rights are the target's. Tablespaces are directories of a machine and are never created.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import psycopg

_NAME = r'"((?:[^"]|"")+)"'
_CREATE = re.compile(rf"CREATE ROLE {_NAME}$")
_ABOUT = re.compile(
    rf"(?:ALTER ROLE|COMMENT ON ROLE|SECURITY LABEL FOR \S+ ON ROLE) {_NAME}(?:\s|$)"
)
_MEMBER = re.compile(rf"GRANT {_NAME} TO {_NAME}(?:\s|$)")
_PARAMETER = re.compile(rf"GRANT .* ON PARAMETER .* TO {_NAME}(?: WITH GRANT OPTION)?$")
_TABLESPACE = re.compile(rf"CREATE TABLESPACE {_NAME} ")
_GRANTED_BY = re.compile(rf" GRANTED BY {_NAME}$")
_TOKEN = re.compile(
    r"""(?P<comment>--[^\n]*)|(?P<meta>(?:(?<=\n)|^)\\[^\n]*)
    |(?P<escaped>\b[eE]'(?:[^'\\]|\\.|'')*')|(?P<string>'(?:[^']|'')*')
    |(?P<name>"(?:[^"]|"")*")|(?P<end>;)|(?P<other>[^;'"\\-]+?(?=\b[eE]'|[;'"\\-]|\n|$)|.)""",
    re.VERBOSE | re.DOTALL,
)


def statements(text: str) -> Iterator[str]:
    """Split SQL as pg_dumpall writes it; comments and backslash lines are dropped."""
    parts: list[str] = []
    for token in _TOKEN.finditer(text):
        if token.lastgroup == "end":
            if statement := "".join(parts).strip():
                yield statement
            parts = []
        elif token.lastgroup not in ("comment", "meta"):
            parts.append(token[0])


@dataclass(frozen=True, slots=True)
class RolePlan:
    """What to run for the roles that are missing. `statements` may hold password verifiers."""

    statements: tuple[str, ...]
    created: tuple[str, ...]
    existing: tuple[str, ...]
    tablespaces: tuple[str, ...]

    def __repr__(self) -> str:
        return f"<RolePlan create {self.created!r}, keep {self.existing!r}>"


def plan_roles(text: str, present: Sequence[str]) -> RolePlan:
    """Choose the statements that make the roles of `text` that are not `present`."""
    here = set(present)
    chosen: list[str] = []
    created: list[str] = []
    existing: list[str] = []
    tablespaces: list[str] = []
    for statement in statements(text):
        if match := _CREATE.match(statement):
            name = _plain(match[1])
            (existing if name in here else created).append(name)
            if name not in here:
                chosen.append(statement)
        elif match := _TABLESPACE.match(statement):
            tablespaces.append(_plain(match[1]))
        elif _concerned(statement) & set(created):
            chosen.append(statement)
    return RolePlan(tuple(chosen), tuple(created), tuple(existing), tuple(tablespaces))


def _concerned(statement: str) -> set[str]:
    for shape in (_ABOUT, _MEMBER, _PARAMETER):
        if match := shape.match(statement):
            return {_plain(name) for name in match.groups()}
    return set()


def _plain(quoted: str) -> str:
    return quoted.replace('""', '"')


def apply_roles(connection: psycopg.Connection[Any], plan: RolePlan) -> list[str]:
    """Run the plan; return what failed, in words that hold no password."""
    import psycopg  # noqa: PLC0415

    failed = []
    for statement in plan.statements:
        attempts = [statement]
        if (bare := _GRANTED_BY.sub("", statement)) != statement:
            attempts.append(bare)  # the grantor may not exist here, or may not be spoken for
        fault: psycopg.Error | None = None
        for attempt in attempts:
            try:
                connection.execute(attempt.encode())
            except psycopg.Error as error:
                fault = error
            else:
                fault = None
                break
        if fault is not None:
            words = " ".join(statement.split()[:3])
            failed.append(f"{words} …: {fault.diag.message_primary or fault.sqlstate}")
    return failed
