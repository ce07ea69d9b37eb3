"""key list, add, remove and kit: who opens the repository."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Literal, cast

from strongroom import wiring
from strongroom.cli.desk import Desk, ask_new_secret, ask_secret
from strongroom.cli.flags import Everywhere
from strongroom.cli.names import show_name
from strongroom.cli.secret_files import make_key_file
from strongroom.config.secrets import read_private, resolve
from strongroom.errors import KeyRefused, NotFound, UsageError

if TYPE_CHECKING:
    from strongroom.keys.base import KeyHolder
    from strongroom.repository.keyring import Keyring, SlotInfo

_SLOT_SHOWN = 12
_DEFAULT = Everywhere()


def list_keys(*, everywhere: Everywhere = _DEFAULT) -> int:
    """List who opens the repository; needs no key."""
    from strongroom.operations import keys  # noqa: PLC0415

    desk = Desk(everywhere)
    wiring.require_repository(desk.storage)
    slots = keys.list_keys(desk.storage)
    desk.storage.close()
    desk.output.document("keys", {"keys": list(map(_body, slots))})
    head = ("SLOT", "LABEL", "KIND", "ROLE", "CREATED", "EPOCH", "KEY")
    desk.output.table(head, list(map(_row, slots)))
    return 0


def add(
    label: str,
    /,
    *,
    role: Literal["reader", "writer"] = "reader",
    new_passphrase_file: str | None = None,
    new_key_file: str | None = None,
    new_recovery_code: bool = False,
    kms_key: str | None = None,
    everywhere: Everywhere = _DEFAULT,
) -> int:
    """Give one more holder a key; needs a reader's key.

    On a terminal, without a flag that says otherwise, the new passphrase is asked for.

    Parameters
    ----------
    label
        What the key is called, such as a person or a host.
    role
        `reader` opens everything; `writer` backs up and cannot read.
    new_passphrase_file
        File with the new holder's passphrase.
    new_key_file
        The new holder's key file; made if it does not exist.
    new_recovery_code
        Make a new recovery code and print its kit.
    kms_key
        A key of AWS KMS: its id, its ARN or alias/NAME. Whoever may use it opens the repository.
    """
    from strongroom.operations import keys  # noqa: PLC0415

    desk = Desk(everywhere)
    named = (new_passphrase_file is not None, new_key_file is not None, kms_key is not None)
    if sum((*named, new_recovery_code)) > 1:
        raise UsageError("More than one kind of new key is given.", do="Give one of them.")
    with (
        desk.recorded("key", what=f"add key {label} ({role})") as run,
        desk.repository() as repository,
    ):
        code, holder = None, None
        if new_recovery_code:
            code, holder = wiring.new_recovery_code()
        elif kms_key is not None:
            holder = wiring.kms_holder(desk.configuration, kms_key)
        else:
            holder = _new_holder(desk, new_passphrase_file, new_key_file)
        keyring = cast("Keyring", repository.keys)
        slot = keys.add_key(
            repository.storage, keyring, holder, label=label, role=role, seams=wiring.seams()
        )
        run.detail |= {"act": "add", "slot": slot.slot, "kind": slot.kind, "role": slot.role}
        kit = None
        if code is not None:
            kit = wiring.kit_text(
                repository,
                code,
                desk.now,
                configuration=desk.configuration,
                environ=desk.environ,
            )
    desk.output.document("key", {"key": _body(slot), "kit": kit})
    desk.output.line(kit if kit is not None else f"Added: {_sentence(slot)}")
    return 0


def remove(chosen: str, /, *, dry_run: bool = False, everywhere: Everywhere = _DEFAULT) -> int:
    """Take a holder's key away; the last way in is refused.

    Parameters
    ----------
    chosen
        The key's label, or the beginning of its slot.
    dry_run
        Only say which key it would be.
    """
    from strongroom.operations import keys  # noqa: PLC0415

    desk = Desk(everywhere)
    with (
        desk.recorded("key", what=f"remove key {chosen}") as run,
        desk.repository() as repository,
    ):
        run.nothing = dry_run
        if dry_run:
            slot = _find(keys.list_keys(repository.storage), chosen)
        else:
            keyring = cast("Keyring", repository.keys)
            slot = keys.remove_key(repository.storage, keyring, chosen)
        run.detail |= {"act": "remove", "slot": slot.slot, "kind": slot.kind, "role": slot.role}
    desk.output.document("key", {"key": _body(slot), "removed": not dry_run})
    desk.output.line(f"{'Would remove' if dry_run else 'Removed'}: {_sentence(slot)}")
    return 0


def kit(*, test: bool = False, everywhere: Everywhere = _DEFAULT) -> int:
    """Try the printed recovery kit: whether its code opens the repository, and nothing else's help.

    The code is asked for on a terminal, or comes by --recovery-code-file or
    STRONGROOM_RECOVERY_CODE. That it was tried is recorded in the audit log, where `doctor` finds it.

    Parameters
    ----------
    test
        Try it. (A new kit is made by `strongroom key add NAME --new-recovery-code`.)
    """
    desk = Desk(everywhere)
    if not test:
        raise UsageError(
            "What is to be done with the kit?",
            do="Give --test; a new one is made by `strongroom key add NAME --new-recovery-code`.",
        )
    with desk.recorded("key", what="try the recovery kit") as run:
        run.detail |= {"act": "test-kit"}
        code = desk.configuration.repository.recovery_code
        if code is not None:
            typed = resolve(code, desk.environ)
        elif desk.may_ask():
            typed = ask_secret("Recovery code: ")
        else:
            raise KeyRefused(
                "No recovery code is given.",
                do="Run it on a terminal, or give --recovery-code-file.",
            )
        holder = wiring.recovery_code_holder(typed)
        with desk.repository([holder]) as repository:
            keyring = cast("Keyring", repository.keys)
            # Where a copy of the kit was taken away, another may still be good: which one was it?
            name = keyring.slots[max(keyring.slots)].rpartition("/")[2].removesuffix(".json")
            run.detail |= {"slot": name, "role": keyring.role}
    desk.output.document("kit", {"opens": True, "slot": name, "role": keyring.role})
    desk.output.line(f"The recovery code opens the repository, as a {keyring.role}.")
    desk.output.note("Put the page back where it is kept.")
    return 0


def _new_holder(desk: Desk, passphrase_file: str | None, key_file: str | None) -> KeyHolder:
    if passphrase_file is not None:
        secret = read_private(passphrase_file, "The new passphrase")
        secret = secret.removesuffix(b"\n").removesuffix(b"\r")
        if not secret:
            raise UsageError(f"{passphrase_file} is empty.", do="Write the passphrase into it.")
        return wiring.passphrase_holder(secret)
    if key_file is not None:
        if not os.path.lexists(key_file):
            make_key_file(key_file)
            desk.output.note(f"New key file: {key_file}")
        return wiring.key_file_holder(key_file)
    if not desk.may_ask():
        raise UsageError(
            "No new key is given.",
            do="Give --new-passphrase-file, --new-key-file, --kms-key or --new-recovery-code.",
        )
    return wiring.passphrase_holder(ask_new_secret())


def _find(slots: list[SlotInfo], chosen: str) -> SlotInfo:
    found = [slot for slot in slots if slot.label == chosen or slot.slot.startswith(chosen)]
    if len(found) != 1:
        count = len(found) or "No"
        raise NotFound(
            f"{count} key{'s' * (len(found) != 1)} called {chosen!r}.", do="`strongroom key list`"
        )
    return found[0]


def _body(slot: SlotInfo) -> dict[str, Any]:
    return {
        "slot": slot.slot,
        "label": slot.label,
        "kind": slot.kind,
        "role": slot.role,
        "created": slot.created,
        "key": slot.key,
        "epoch": slot.epoch,
        "damaged": slot.damaged,
    }


def _row(slot: SlotInfo) -> tuple[str, ...]:
    if slot.damaged:
        return (slot.slot[:_SLOT_SHOWN], "(damaged)", "", "", "", str(slot.epoch), "")
    shown = (slot.label, slot.kind, slot.role, slot.created)
    key = show_name(slot.key) if slot.key else ""
    return (slot.slot[:_SLOT_SHOWN], *map(show_name, shown), str(slot.epoch), key)


def _sentence(slot: SlotInfo) -> str:
    return f"{show_name(slot.label)} ({slot.kind}, {slot.role}), slot {slot.slot[:_SLOT_SHOWN]}"
