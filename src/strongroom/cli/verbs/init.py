"""init."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from strongroom import wiring
from strongroom.cli.desk import Desk, ask_new_secret
from strongroom.cli.flags import Everywhere
from strongroom.cli.secret_files import create_secret_file, make_key_file
from strongroom.config.secrets import resolve
from strongroom.errors import AlreadyExists, StrongroomError, UsageError

if TYPE_CHECKING:
    from strongroom.keys.base import KeyHolder
    from strongroom.operations.initialise import Initialised

_DEFAULT = Everywhere()


def init(*, kit: str | None = None, everywhere: Everywhere = _DEFAULT) -> int:
    """Create the repository, its keys and the recovery kit.

    The passphrase, the key file and the KMS key that the configuration or the flags name will open it; a key
    file that does not exist yet is made. The kit is printed: it is the way in when all else is
    lost, so print it on paper and keep it elsewhere.

    Parameters
    ----------
    kit
        Write the kit to this file, readable by you only, instead of printing it.
    """
    from strongroom.operations.initialise import initialise  # noqa: PLC0415

    desk = Desk(everywhere)
    if kit is not None and os.path.lexists(kit):
        raise AlreadyExists(f"{kit} exists.", do="Name another file for the kit.")
    storage = desk.storage
    holders = _holders(desk)
    code, recovery = wiring.new_recovery_code()
    with desk.recorded("init", what="create the repository") as run:
        made = initialise(
            storage,
            holders=holders,
            recovery=(recovery, code),
            seams=wiring.seams(),
            sources=wiring.kit_sources(desk.configuration),
            access=wiring.kit_access(desk.configuration, desk.environ),
        )
        written = _write_kit(desk, kit, made.kit)
        _tell(desk, made, list(holders), None if written else made.kit, kit if written else None)
        run.detail |= {"keys": [*holders, "recovery-kit"], "repository": made.identity.id.hex()}
        desk.recorder.opened(wiring.new_repository(storage, made.identity, made.keys))
    return 0


def _holders(desk: Desk) -> dict[str, KeyHolder]:
    """Who opens the new repository, by label."""
    table = desk.configuration.repository
    found: dict[str, KeyHolder] = {}
    if table.passphrase is not None:
        passphrase = resolve(table.passphrase, desk.environ)
        found["passphrase"] = wiring.passphrase_holder(passphrase)
    if table.key_file is not None:
        if not os.path.lexists(table.key_file):
            make_key_file(table.key_file)
            desk.output.note(f"New key file: {table.key_file}")
        found["key-file"] = wiring.key_file_holder(table.key_file)
    if table.kms_key is not None:
        found["kms"] = wiring.kms_holder(desk.configuration)
    if found:
        return found
    if not desk.may_ask():
        raise UsageError(
            "No key is given for the new repository.",
            do="Set STRONGROOM_PASSPHRASE, or give --passphrase-file or --key-file, or name one "
            "under [repository] in strongroom.toml.",
        )
    return {"passphrase": wiring.passphrase_holder(ask_new_secret())}


def _write_kit(desk: Desk, path: str | None, text: str) -> bool:
    """Write the kit where it was wanted; when that fails it is printed, never lost."""
    if path is None:
        return False
    try:
        create_secret_file(path, text)
    except StrongroomError as fault:
        desk.output.note(f"{fault.what} The kit is printed instead.")
        return False
    return True


def _tell(
    desk: Desk, made: Initialised, labels: list[str], kit: str | None, path: str | None
) -> None:
    identity = made.identity
    url = desk.storage.url
    desk.output.document(
        "init",
        {
            "repository": {"id": identity.id.hex(), "url": url},
            "created": identity.created.isoformat(),
            "keys": [*labels, "recovery-kit"],
            "capabilities": asdict(identity.capabilities),
            "kit": kit,
            "kit_file": path,
        },
    )
    if kit is not None:
        desk.output.line(kit)
    desk.output.note(f"Repository {identity.id.hex()} created at {url}.")
    if path is not None:
        desk.output.note(f"The recovery kit is in {path}: print it and keep it elsewhere.")
    elif sys.stdout.isatty():
        desk.output.note("Print the page above and keep it elsewhere: it is shown only now.")
    for name in made.left:
        desk.output.note(f"{name} is of an init that did not end; it opens nothing: delete it.")
    if not identity.capabilities.put_if_absent:
        desk.output.note("This store cannot create if absent: only one host may prune it.")
