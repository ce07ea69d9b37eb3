"""Key slots as they were first written, with the secrets that open them: they open for ever.

Everything drawn is drawn from a fixed stream, so the files are also what
today's code writes. `python tests/golden/keys/test_golden_keys.py` writes them
anew; that they changed is then a change of format, and needs a new version.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from blake3 import blake3

from strongroom.format import keyset as keysets
from strongroom.keys.base import KeyHolder
from strongroom.keys.keyfile import KeyFileHolder, generate_keyfile, parse_keyfile
from strongroom.keys.passphrase import Cost, PassphraseHolder
from strongroom.keys.recovery_code import (
    RecoveryCodeHolder,
    generate_recovery_code,
    parse_recovery_code,
)
from strongroom.repository.keyring import add_slot, list_slots, open_keyring
from strongroom.storage.memory import MemoryStorage

HERE = Path(__file__).parent
REPOSITORY = bytes.fromhex("000102030405060708090a0b0c0d0e0f")
SESSION = bytes.fromhex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff")
SESSION_KEY = bytes.fromhex("a5" * 32)
NOW = datetime(2026, 7, 1, 10, 0, tzinfo=UTC)
COST = Cost(passes=1, memory=64, lanes=2)


def fixed_stream() -> Callable[[int], bytes]:
    stream, at = blake3(b"golden keys 1"), 0

    def random(size: int) -> bytes:
        nonlocal at
        at += size
        return stream.digest(size, seek=at - size)

    return random


def written() -> tuple[dict[str, bytes], dict[str, str]]:
    """Return the slot objects by name, and the secrets and keys beside them."""
    random = fixed_stream()
    reader = keysets.generate(REPOSITORY, 1, "origin", random=random)
    writer = keysets.for_writer(reader, "host-a", random=random)
    secrets = {
        "repository": REPOSITORY.hex(),
        "passphrase": "correct horse bättery",
        "writer_passphrase": "staple",
        "keyfile": generate_keyfile(random),
        "recovery_code": generate_recovery_code(random),
        "reader": reader.encode().decode(),
        "writer": writer.encode().decode(),
    }
    slots: list[tuple[keysets.Keyset, KeyHolder, str]] = [
        (reader, holder("passphrase", secrets, random), "passphrase"),
        (reader, holder("keyfile", secrets, random), "key file, étagère 3"),
        (reader, holder("recovery_code", secrets, random), "recovery kit"),
        (writer, holder("writer_passphrase", secrets, random), "host-a"),
    ]
    storage = MemoryStorage()
    for keyset, opener, label in slots:
        add_slot(storage, keyset, opener, label, NOW)
    return storage.objects, secrets


def holder(which: str, secrets: dict[str, str], random: Callable[[int], bytes]) -> KeyHolder:
    if which == "keyfile":
        return KeyFileHolder(parse_keyfile(secrets["keyfile"].encode()), random=random)
    if which == "recovery_code":
        return RecoveryCodeHolder(parse_recovery_code(secrets["recovery_code"]), random=random)
    return PassphraseHolder(secrets[which].encode(), random=random, cost=COST)


def committed() -> tuple[dict[str, bytes], dict[str, str]]:
    objects = {
        path.relative_to(HERE).as_posix(): path.read_bytes()
        for path in sorted(HERE.glob("keys/*/*.json"))
    }
    return objects, json.loads((HERE / "secrets.json").read_text("utf-8"))


def test_today_writes_the_same_bytes() -> None:
    objects, secrets = written()
    kept_objects, kept_secrets = committed()
    assert secrets == {k: v for k, v in kept_secrets.items() if k != "sealed_session_key"}
    assert objects == kept_objects


@pytest.mark.parametrize(
    ("which", "role"),
    [
        ("passphrase", "reader"),
        ("keyfile", "reader"),
        ("recovery_code", "reader"),
        ("writer_passphrase", "writer"),
    ],
)
def test_every_golden_slot_opens(which: str, role: str) -> None:
    objects, secrets = committed()
    keyring = open_keyring(MemoryStorage(objects), [holder(which, secrets, bytes)], REPOSITORY)
    assert keyring.damaged == ()
    assert keyring.current.encode().decode() == secrets[role]


def test_the_golden_session_key_opens() -> None:
    """HPKE draws its own randomness, so this was sealed once and is not written anew."""
    secrets = committed()[1]
    reader = keysets.decode(secrets["reader"].encode())
    sealed = bytes.fromhex(secrets["sealed_session_key"])
    assert keysets.open_session_key(reader, SESSION, sealed) == SESSION_KEY


def test_any_flipped_bit_or_cut_of_a_golden_slot_is_seen_without_its_secret() -> None:
    objects, _ = committed()
    name = min(objects, key=lambda name: len(objects[name]))
    data = objects[name]
    versions = [
        data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :] for at in range(len(data))
    ]
    versions += [data[:at] for at in range(len(data))]
    for version in versions:
        (info,) = list_slots(MemoryStorage({name: version}))
        assert (info.name, info.damaged) == (name, True)


def main() -> None:
    """Write the golden files anew."""
    for old in HERE.glob("keys/*/*.json"):
        old.unlink()
    objects, secrets = written()
    for name, data in objects.items():
        (HERE / name).parent.mkdir(parents=True, exist_ok=True)
        (HERE / name).write_bytes(data)
    reader = keysets.decode(secrets["reader"].encode())
    secrets["sealed_session_key"] = keysets.seal_session_key(reader, SESSION, SESSION_KEY).hex()
    text = json.dumps(secrets, indent=1, ensure_ascii=False) + "\n"
    (HERE / "secrets.json").write_text(text, "utf-8")


if __name__ == "__main__":
    main()
