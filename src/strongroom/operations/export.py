"""Export a snapshot as a portable artefact, signed by the repository's writer."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from typing import Any

from strongroom import __version__
from strongroom.artefacts import manifest as manifests
from strongroom.artefacts.making import (
    AgeKey,
    Made,
    OpensslKey,
    make,
    refuse_taken,
    write_public_key,
)
from strongroom.artefacts.manifest import Counted, Manifest
from strongroom.artefacts.names import Shape
from strongroom.artefacts.sealing import wrap_context
from strongroom.artefacts.tar_writing import write_tar
from strongroom.format import keyset as keysets
from strongroom.keys.base import KeyService
from strongroom.progress import Progress
from strongroom.repository.catalogue import Snapshot
from strongroom.repository.ports import Problem, SnapshotReader
from strongroom.repository.repository import Repository

Out = Callable[[bytes | bytearray | memoryview], object]
Writer = Callable[[SnapshotReader, Out], object]


@dataclass(frozen=True, slots=True)
class Exported:
    """An artefact, what it could not hold, and the file with its signer's public key."""

    made: Made
    problems: Sequence[Problem]
    public_key: str
    seconds: float


def new_openssl_key(
    repository: Repository, name: str, path: str | None, service: KeyService | None = None
) -> OpensslKey:
    """A key for the artefact `name`: its file, and itself sealed for the repository's readers.

    So a reader of the repository needs no key file, and losing that file loses nothing. With a
    `service` it makes the key and wraps it; `path` None then writes the key nowhere in plain.
    """
    random, keyset = repository.seams.random, repository.keys.current
    context = wrap_context(name)
    made = None if service is None else service.generate_data_key(context)
    secret, number = random(32) if made is None else made.secret, random(16)
    sealed = keysets.seal_session_key(keyset, number, secret)
    more = {
        "number": number.hex(),
        "repository": repository.identity.id.hex(),
        "epoch": keyset.epoch,
        "sealed": base64.b64encode(sealed).decode(),
    }
    if made is None:
        return OpensslKey(secret, path, random(8), more)
    wrapped = base64.b64encode(made.wrapped).decode()
    more["kms"] = {"context": context, "key": made.by, "wrapped": wrapped}
    return OpensslKey(secret, path, random(8), more, made.wrapped)


def plan(
    folder: str,
    name: str,
    *,
    snapshot: Snapshot,
    key_file: str | None,
    force: bool,
) -> dict[str, Any]:
    """What an export would write; AlreadyExists when it would not."""
    refuse_taken(folder, name, force=force, key_file=key_file)
    return {
        "artefact": f"{folder}/{name}",
        "key_file": key_file,
        "size": snapshot.size,
        "files": snapshot.files,
    }


def export(
    repository: Repository,
    snapshot: Snapshot,
    folder: str,
    name: str,
    shape: Shape,
    *,
    key: OpensslKey | AgeKey | None,
    write: Writer | None,
    tools: Mapping[str, str],
    force: bool,
    threads: int | None,
    progress: Progress,
) -> Exported:
    """Write the artefact. `write` writes a database's content; a tree of files needs none."""
    began = repository.seams.steady()
    reader = repository.open_snapshot(snapshot)
    keyset = repository.keys.current
    problems: list[Problem] = []
    progress.phase("writing the artefact")

    def fill(out: Out) -> None:
        progress.plan(size=snapshot.size, files=snapshot.files)
        if write is None:
            problems.extend(write_tar(reader, out, progress=progress))
            return

        def counted(data: bytes | bytearray | memoryview) -> None:
            out(data)
            progress.advance(size=len(data))

        write(reader, counted)

    def describe(plain: Counted, file: Counted, key: Mapping[str, Any]) -> Manifest:
        return Manifest(
            name=name,
            format=shape.format,
            created=repository.seams.now().astimezone(UTC).isoformat(timespec="seconds"),
            plain=plain,
            file=file,
            source={"kind": snapshot.kind, "name": snapshot.source},
            snapshot={
                "id": snapshot.id,
                "repository": repository.identity.id.hex(),
                "time": snapshot.time.astimezone(UTC).isoformat(),
            },
            key=key,
            tools={"strongroom": __version__, **tools},
            signer=manifests.signer(keyset),
        )

    made = make(
        folder,
        name,
        shape,
        mtime=int(snapshot.time.timestamp()),
        key=key,
        fill=fill,
        describe=describe,
        sign=lambda data: manifests.sign(keyset, data),
        threads=threads,
        force=force,
    )
    public = write_public_key(folder, keyset.signing_public)
    return Exported(made, problems, public, repository.seams.steady() - began)


__all__ = ["Exported", "export", "new_openssl_key", "plan"]
