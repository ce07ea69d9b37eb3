"""Reports of drills, signed, beside the audit log: what a drill's leaf names by its SHA-256.

Rule: a report is put before its leaf, so that a leaf never names one that is not there; one without a
leaf is of a drill that died between the two, and proves nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from strongroom.errors import Damaged
from strongroom.format import audit as names
from strongroom.format import record
from strongroom.format.record import RecordKey
from strongroom.repository.repository import Repository
from strongroom.repository.signing import open_document, sign_document
from strongroom.storage.base import Storage

_DOMAIN = b"strongroom drill report 1"


class Reports:
    """The reports of one repository. Needs no key that reads data."""

    def __init__(self, repository: Repository, *, storage: Storage | None = None) -> None:
        self._storage = storage or repository.storage
        self._keyset = repository.keys.current
        self._random = repository.seams.random
        self._records = [
            RecordKey(keyset.repository, keyset.catalogue_key)
            for _, keyset in sorted(repository.keys.keysets.items(), reverse=True)
        ]

    def put(self, run: str, body: Mapping[str, Any]) -> bytes:
        """Sign a report and put it, durably; return the document, whose SHA-256 the leaf names."""
        signed = {**body, "epoch": self._keyset.epoch, "writer": self._keyset.writer_name}
        document = sign_document(self._keyset, _DOMAIN, signed)
        name = names.report_name(run)
        data = self._records[0].seal(record.AUDIT_REPORT, name, document, nonce=self._random(12))
        self._storage.put(name, data, if_absent=True)
        return document

    def get(self, run: str) -> bytes:
        """The document of a report; ObjectMissing, Damaged."""
        name = names.report_name(run)
        data = self._storage.get(name)
        for key in self._records:
            try:
                return key.open(data, name, record.AUDIT_REPORT)[1]
            except ValueError as fault:
                why = fault
        raise Damaged(f"{name} does not open: {why}.", means=_MEANS, do=_DO)

    def open(self, document: bytes) -> dict[str, Any]:
        """The report that a document holds; Damaged unless a writer of this repository signed it."""
        try:
            return open_document(self._keyset, _DOMAIN, document)
        except (ValueError, KeyError, TypeError) as fault:
            why = f"{type(fault).__name__}: {fault}" if isinstance(fault, KeyError) else str(fault)
            raise Damaged(
                f"It is no report that a writer of this repository signed: {why}.",
                means=_MEANS,
                do=_DO,
            ) from None

    @staticmethod
    def digest(document: bytes) -> str:
        """What a leaf names a report by: SHA-256 in hex."""
        return sha256(document).hexdigest()


_MEANS = "It proves nothing; backups and the audit log are untouched."
_DO = "`strongroom drill list` shows which drills there were; `strongroom drill run` makes another."

__all__ = ["Reports"]
