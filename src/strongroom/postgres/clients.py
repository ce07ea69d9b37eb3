"""Which pg_dump, pg_restore and pg_dumpall to use: never older than the server, never unsafe.

Rule of this file: the same major version first, then the next newer; a version with a published
vulnerability is named with its CVE and not used for the operations that the vulnerability touches
(`vulnerabilities.toml` beside this file says which and why). No plain dump is ever given to psql.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from os.path import join
from typing import Literal

from strongroom.errors import Refused
from strongroom.postgres.embedded import Installation, installations

Operation = Literal["dump", "globals", "restore", "physical", "plain"]
_PROGRAM: dict[Operation, str] = {
    "dump": "pg_dump",
    "globals": "pg_dumpall",
    "restore": "pg_restore",
    "physical": "pg_basebackup",
    "plain": "psql",
}


@dataclass(frozen=True, slots=True)
class Vulnerability:
    """A published fault of client programs. `fixed` holds (major, minor), one for each branch."""

    id: str
    title: str
    fixed: tuple[tuple[int, int], ...]
    operations: tuple[str, ...]
    why: str

    def affects(self, version: tuple[int, int]) -> bool:
        """Say whether a program of this version has the fault."""
        branches = dict(self.fixed)
        major, minor = version
        if major in branches:
            return minor < branches[major]
        return major < max(branches)


@dataclass(frozen=True, slots=True)
class Client:
    """One client program that may be used."""

    program: str
    version: tuple[int, int]

    @property
    def text(self) -> str:
        """The version as people write it."""
        return f"{self.version[0]}.{self.version[1]}"


def _branch(text: str) -> tuple[int, int]:
    major, minor = text.split(".")
    return int(major), int(minor)


@cache
def vulnerabilities() -> tuple[Vulnerability, ...]:
    """Return the table of published vulnerabilities."""
    text = files("strongroom.postgres").joinpath("vulnerabilities.toml").read_text("utf-8")
    return tuple(
        Vulnerability(
            row["id"],
            row["title"],
            tuple(_branch(version) for version in row["fixed"]),
            tuple(row["operations"]),
            row["why"],
        )
        for row in tomllib.loads(text)["vulnerability"]
    )


def faults(version: tuple[int, int], operation: Operation) -> list[Vulnerability]:
    """Return the published vulnerabilities of a version that touch an operation."""
    return [
        fault
        for fault in vulnerabilities()
        if operation in fault.operations and fault.affects(version)
    ]


@dataclass(frozen=True, slots=True)
class Clients:
    """The client programs of this machine, or of one configured directory."""

    installed: tuple[Installation, ...]

    @classmethod
    def found(cls, bindir: str | None = None) -> Clients:
        """Look for client programs: in `bindir` only, or wherever PostgreSQL is usually put."""
        every = installations("pg_dump")
        if bindir is not None:
            every = [item for item in every if item.bindir == bindir] or _only(bindir)
        return cls(tuple(every))

    def choose(self, operation: Operation, *, server: int, archive: int = 0) -> Client:
        """Return the program for an operation on a server of major version `server`.

        `archive` is the major version of the pg_dump that wrote what is to be restored: an older
        pg_restore cannot read it. Raises Refused, naming every candidate and why not.
        """
        least = max(server, archive)
        for item in self._candidates(least):
            if not faults(item.version, operation):
                return Client(join(item.bindir, _PROGRAM[operation]), item.version)
        raise self._refusal(operation, least)

    def passed_over(self, operation: Operation, *, server: int) -> list[str]:
        """Name the versions that come before the chosen one, with the CVEs that rule them out."""
        named = []
        for item in self._candidates(server):
            found = faults(item.version, operation)
            if not found:
                break
            version = f"{_PROGRAM[operation]} {item.version[0]}.{item.version[1]}"
            named.append(f"{version}: " + ", ".join(fault.id for fault in found))
        return named

    def _candidates(self, least: int) -> list[Installation]:
        """Same major first, then the next newer; of one major the newest minor first."""
        fitting = [item for item in self.installed if item.version[0] >= least]
        return sorted(fitting, key=lambda item: (item.version[0], -item.version[1]))

    def _refusal(self, operation: Operation, least: int) -> Refused:
        program = _PROGRAM[operation]
        if not self._candidates(least):
            have = ", ".join(f"{a}.{b}" for a, b in sorted({i.version for i in self.installed}))
            what = (
                f"No {program} of version {least} or newer is installed (found: {have or 'none'})."
            )
        else:
            reasons = "; ".join(self.passed_over(operation, server=least))
            what = f"Every {program} that fits has a published vulnerability: {reasons}."
        return Refused(
            what,
            do=f"Install the newest postgresql-client-{least} (or newer) of your distribution, "
            'or `pip install "strongroom[demo]"`, then run the same command again.',
        )


def _only(bindir: str) -> list[Installation]:
    from strongroom.postgres.embedded import program_version  # noqa: PLC0415

    version = program_version(join(bindir, "pg_dump"))
    if version is None:
        raise Refused(f"There is no pg_dump in {bindir}.")
    return [Installation(version, bindir)]
