"""What pg_restore's complaints mean: harmless, a problem to report, or the end.

PURE. Rule of this file: pg_restore goes on after an error and ends with status 1 whatever it was.
Each complaint is judged by the command that failed. Ownership, privileges and comments that cannot
be set leave the data whole: they are problems, named one by one. Whatever is unknown is a failure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# A pg_restore newer than the server sets parameters that the server does not know yet.
_HARMLESS = re.compile(r'unrecognized configuration parameter "(transaction_timeout|\w+_timeout)"')
_ABOUT_RIGHTS = re.compile(
    r"""\s*(?:--[^\n]*\n|\s)*(?:
        ALTER\s.*\sOWNER\ TO\s | GRANT\s | REVOKE\s | COMMENT\ ON\s | SECURITY\ LABEL\s
      | ALTER\ DEFAULT\ PRIVILEGES\s | SET\ default_tablespace\b | SET\ SESSION\ AUTHORIZATION\s
      | SET\ default_table_access_method\b
    )""",
    re.VERBOSE | re.DOTALL | re.IGNORECASE,
)
_ABOUT_ROLES = re.compile(
    r'role "(?:[^"]|"")*" does not exist|must be owner of extension'
    r"|permission denied to create (?:event trigger|publication|subscription)"
    r"|must be superuser to create (?:event trigger|a? ?\w* ?publication|subscription)"
)
_COMPLAINT = re.compile(
    r"^pg_restore: (?:error|\[archiver \(db\)\]|\[archiver\]):? ?(.*?)(?=^pg_restore: |\Z)",
    re.MULTILINE | re.DOTALL,
)
_QUERY = re.compile(r"could not execute query: (.*?)(?:\nCommand was: (.*))?\Z", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Complaint:
    """One error of pg_restore: what the server said, and the command; "" if it was no command."""

    message: str
    command: str

    @property
    def harmless(self) -> bool:
        """True for what has no consequence at all."""
        return bool(_HARMLESS.search(self.message)) and self.command.startswith("SET ")

    @property
    def about_rights(self) -> bool:
        """True when owners, privileges, labels or comments are all that is missing."""
        if not self.command:
            return False
        return bool(_ABOUT_RIGHTS.match(self.command) or _ABOUT_ROLES.search(self.message))

    def __str__(self) -> str:
        command = " ".join(self.command.split())
        if len(command) > 160:
            command = command[:157] + "…"
        return f"{self.message} ({command})" if command else self.message


def is_noise(said: str) -> bool:
    """Whether a line of pg_restore has no consequence, so that it is not shown beside a cause."""
    return bool(_HARMLESS.search(said)) and "Command was: SET " in said


def complaints(said: str) -> list[Complaint]:
    """Take apart what pg_restore wrote on stderr, harmless complaints included."""
    found = []
    for match in _COMPLAINT.finditer(said):
        text = match[1].strip()
        query = _QUERY.match(text)
        if query:
            message = " ".join(query[1].split())
            found.append(Complaint(message.removeprefix("ERROR: "), (query[2] or "?").strip()))
        else:
            found.append(Complaint(" ".join(text.split()), ""))
    return found
