"""Artefacts of a small repository in memory, and what opens them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

import rooms
from strongroom.artefacts.making import AgeKey, OpensslKey
from strongroom.artefacts.manifest import Trust
from strongroom.artefacts.names import Shape
from strongroom.artefacts.opening import Artefact, Keys, verify
from strongroom.format.tree import Entry, Kind
from strongroom.operations import import_artefact as importing
from strongroom.operations.export import Exported, export, new_openssl_key
from strongroom.progress import Silent
from strongroom.repository.catalogue import Snapshot
from strongroom.repository.repository import Repository
from strongroom.storage.memory import MemoryStorage

SQL = Shape("sql", True, "")
TAR = Shape("tar", True, "")
ENC = Shape("tar", True, "openssl")
AGE = Shape("tar", True, "age")

FILES: dict[bytes, rooms.Content | Entry] = {
    b"": Entry(b"", Kind.DIRECTORY, 0o755, mtime_ns=1),
    b"audits": Entry(b"audits", Kind.DIRECTORY, 0o755, mtime_ns=1_500_000_000_000_000_007),
    b"audits/1.json": b'{"number": 1}' * 50,
    b"audits/vector.bin": rooms.noise("vector", 150_000),
    b"empty": b"",
    b"link": Entry(b"link", Kind.SYMLINK, 0o777, target=b"audits/1.json"),
    b"odd\xff\nname": b"raw bytes",
    b"p" * 120 + b"/" + b"q" * 160: b"a name that ustar does not hold",
    b"z-hard": Entry(b"z-hard", Kind.HARDLINK, target=b"audits/1.json"),
}
FILES[b"p" * 120] = Entry(b"p" * 120, Kind.DIRECTORY, 0o700)
FILES[b"sparse"] = rooms.Sparse(300_000, ((100_000, b"middle"),))


@dataclass
class Desk:
    """A repository with one snapshot of FILES."""

    repository: Repository
    snapshot: Snapshot
    folder: Path

    def export(
        self,
        name: str = "vault_202611.tar.gz.enc",
        shape: Shape = ENC,
        *,
        key: OpensslKey | AgeKey | None = None,
        force: bool = False,
        fill: Callable[..., object] | None = None,
    ) -> Exported:
        if shape.seal == "openssl" and key is None:
            key = new_openssl_key(self.repository, name, str(self.folder / "keys" / f"{name}.key"))
        return export(
            self.repository,
            self.snapshot,
            str(self.folder / "out"),
            name,
            shape,
            key=key,
            write=fill,
            tools={},
            force=force,
            threads=2,
            progress=Silent(),
        )

    @property
    def trust(self) -> Trust:
        identity = self.repository.identity
        return Trust((), {identity.id: identity.admin_public})

    def open(self, path: str | Path, *, keys: Keys | None = None, **how: object) -> Artefact:
        keys = keys or Keys(otherwise=partial(importing.sealed_key, self.repository))
        given = {"trust": self.trust, "unsigned": False, "progress": Silent(), **how}
        return verify(str(path), keys=keys, **given)  # type: ignore[arg-type]


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    repository = rooms.new_room(MemoryStorage(), "artefacts")
    snapshot = rooms.take(repository, "vault", FILES).snapshot
    return Desk(repository, snapshot, tmp_path)
