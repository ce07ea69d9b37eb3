"""The one contract that every key holder keeps; then what each kind promises besides."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
from argon2.low_level import Type, hash_secret_raw
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from hypothesis import given
from hypothesis import strategies as st

from servers import kms_holder
from strongroom.errors import KeyRefused
from strongroom.keys import kit, passphrase
from strongroom.keys.base import KeyHolder, Stanza
from strongroom.keys.keyfile import KeyFileHolder, generate_keyfile, parse_keyfile
from strongroom.keys.passphrase import Cost, PassphraseHolder
from strongroom.keys.recovery_code import (
    RecoveryCodeHolder,
    generate_recovery_code,
    parse_recovery_code,
)

MATERIAL = b"material " * 20
CONTEXT = b"repository, epoch, role, label"
CHEAP = Cost(passes=1, memory=16, lanes=2)

# Each makes the holder of one of two secrets.
HOLDERS: dict[str, Callable[[int], KeyHolder]] = {
    "passphrase": lambda n: PassphraseHolder(b"correct horse %d" % n, cost=CHEAP),
    "keyfile": lambda n: KeyFileHolder(bytes([n]) * 32),
    "recovery-code": lambda n: RecoveryCodeHolder(bytes([n]) * 20),
    "aws-kms": lambda n: kms_holder(n),
}


@pytest.fixture(params=HOLDERS)
def make(request: pytest.FixtureRequest) -> Callable[[int], KeyHolder]:
    return HOLDERS[request.param]


def test_what_was_wrapped_comes_back_to_whoever_has_the_secret(
    make: Callable[[int], KeyHolder],
) -> None:
    stanza = make(1).wrap(MATERIAL, context=CONTEXT)
    assert stanza.kind == make(1).kind
    assert make(1).unwrap(stanza, context=CONTEXT) == MATERIAL


@pytest.mark.parametrize("material", [b"", b"\0", bytes(5000)])
def test_any_size_of_material_comes_back(make: Callable[[int], KeyHolder], material: bytes) -> None:
    holder = make(1)
    assert holder.unwrap(holder.wrap(material, context=b""), context=b"") == material


def test_another_secret_is_refused(make: Callable[[int], KeyHolder]) -> None:
    stanza = make(1).wrap(MATERIAL, context=CONTEXT)
    with pytest.raises(KeyRefused, match="does not open"):
        make(2).unwrap(stanza, context=CONTEXT)


@pytest.mark.parametrize("context", [b"", CONTEXT[:-1], CONTEXT + b" ", CONTEXT.upper()])
def test_another_context_is_refused(make: Callable[[int], KeyHolder], context: bytes) -> None:
    stanza = make(1).wrap(MATERIAL, context=CONTEXT)
    with pytest.raises(KeyRefused):
        make(1).unwrap(stanza, context=context)


def test_a_flipped_bit_in_any_byte_of_the_body_is_refused(
    make: Callable[[int], KeyHolder],
) -> None:
    holder = make(1)
    stanza = holder.wrap(MATERIAL, context=CONTEXT)
    for at in range(len(stanza.body)):
        body = bytearray(stanza.body)
        body[at] ^= 1 << at % 8
        with pytest.raises(KeyRefused):
            holder.unwrap(replace(stanza, body=bytes(body)), context=CONTEXT)


def test_a_body_cut_at_any_length_is_refused(make: Callable[[int], KeyHolder]) -> None:
    holder = make(1)
    stanza = holder.wrap(MATERIAL, context=CONTEXT)
    for length in range(len(stanza.body)):
        with pytest.raises(KeyRefused):
            holder.unwrap(replace(stanza, body=stanza.body[:length]), context=CONTEXT)


def changed_parameters(stanza: Stanza) -> list[Mapping[str, str | int]]:
    """Every parameter with each character or low bit flipped, left out, of another type, added."""
    plain = dict(stanza.parameters)
    found: list[Mapping[str, str | int]] = [plain | {"extra": 1}]
    for name, value in plain.items():
        found.append({other: v for other, v in plain.items() if other != name})
        found.append(plain | {name: "" if isinstance(value, int) else 7})
        if isinstance(value, int):
            found += [plain | {name: value ^ 1}, plain | {name: value + 8}, plain | {name: -value}]
            found.append(plain | {name: str(value)})
            continue
        for at in range(len(value)):
            flipped = chr(ord(value[at]) ^ 1)
            found.append(plain | {name: value[:at] + flipped + value[at + 1 :]})
        found += [plain | {name: value + "\n"}, plain | {name: value[:-4]}]
        found += [plain | {name: "\ud800"}, plain | {name: "é" * len(value)}]
    return found


def test_every_changed_parameter_is_refused(make: Callable[[int], KeyHolder]) -> None:
    holder = make(1)
    stanza = holder.wrap(MATERIAL, context=CONTEXT)
    for parameters in changed_parameters(stanza):
        with pytest.raises(KeyRefused):
            holder.unwrap(replace(stanza, parameters=parameters), context=CONTEXT)


def test_a_stanza_of_another_kind_is_refused(make: Callable[[int], KeyHolder]) -> None:
    holder = make(1)
    stanza = holder.wrap(MATERIAL, context=CONTEXT)
    for kind in ["", "unknown", *(set(HOLDERS) - {holder.kind})]:
        with pytest.raises(KeyRefused):
            holder.unwrap(replace(stanza, kind=kind), context=CONTEXT)
    for other in HOLDERS.values():
        if other(1).kind != holder.kind:
            with pytest.raises(KeyRefused):
                other(1).unwrap(stanza, context=CONTEXT)


def test_no_two_wraps_are_alike(make: Callable[[int], KeyHolder]) -> None:
    first, second = (make(1).wrap(MATERIAL, context=CONTEXT) for _ in range(2))
    assert first.parameters["salt"] != second.parameters["salt"]
    assert first.body[:12] != second.body[:12]
    assert first.body[12:] != second.body[12:]


def test_the_material_is_not_in_the_stanza(make: Callable[[int], KeyHolder]) -> None:
    stanza = make(1).wrap(MATERIAL, context=CONTEXT)
    assert MATERIAL[:16] not in stanza.body


def test_no_secret_shows_in_a_repr(make: Callable[[int], KeyHolder]) -> None:
    shown = repr(make(65)) + str(make(65))
    for secret in ("horse", "AAAA", "4141", "\\x41"):
        assert secret not in shown


# --- passphrase -------------------------------------------------------------------------------


def test_an_empty_passphrase_is_refused() -> None:
    with pytest.raises(KeyRefused, match="empty"):
        PassphraseHolder(b"")


@pytest.mark.parametrize("other", [b"pass ", b"pass\n", b"Pass", b"pass\0", b"pas"])
def test_a_passphrase_is_taken_exactly_as_given(other: bytes) -> None:
    stanza = PassphraseHolder(b"pass", cost=CHEAP).wrap(MATERIAL, context=CONTEXT)
    with pytest.raises(KeyRefused):
        PassphraseHolder(other, cost=CHEAP).unwrap(stanza, context=CONTEXT)


def test_the_cost_comes_from_the_slot_not_from_the_holder() -> None:
    stanza = PassphraseHolder(b"pass", cost=CHEAP).wrap(MATERIAL, context=CONTEXT)
    holder = PassphraseHolder(b"pass", cost=Cost(passes=2, memory=32, lanes=1))
    assert holder.unwrap(stanza, context=CONTEXT) == MATERIAL


def test_the_default_cost_is_that_of_rfc_9106() -> None:
    stanza = PassphraseHolder(b"pass").wrap(MATERIAL, context=CONTEXT)
    assert {name: stanza.parameters[name] for name in "tmp"} == {"t": 3, "m": 65536, "p": 4}
    assert PassphraseHolder(b"pass").unwrap(stanza, context=CONTEXT) == MATERIAL


@pytest.mark.parametrize(
    "hostile",
    [
        {"m": 2**21},
        {"m": 2**32 - 1},
        {"m": 2**70},
        {"t": 11, "m": 64},
        {"t": 2**32 - 1, "m": 64},
        {"p": 17, "m": 1024},
        {"p": 2**24 - 1, "m": 2**30},
        {"t": 3, "m": 2**20},
        {"t": 10, "m": 2**18},
        {"t": 0},
        {"m": 0},
        {"p": 0},
        {"m": 7},
        {"t": -1},
        {"t": True},
    ],
)
def test_hostile_work_factors_are_refused_before_they_are_paid(hostile: dict[str, int]) -> None:
    holder = PassphraseHolder(b"pass", cost=CHEAP)
    stanza = holder.wrap(MATERIAL, context=CONTEXT)
    asked = replace(stanza, parameters=dict(stanza.parameters) | hostile)
    began = time.perf_counter()
    with pytest.raises(KeyRefused, match="unreasonable work factor") as refused:
        holder.unwrap(asked, context=CONTEXT)
    assert time.perf_counter() - began < 0.2
    assert "strongroom key" in refused.value.do


def test_memory_that_is_not_there_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bytes:
        raise passphrase.HashingError("Memory allocation error")

    holder = PassphraseHolder(b"pass", cost=CHEAP)
    stanza = holder.wrap(MATERIAL, context=CONTEXT)
    monkeypatch.setattr(passphrase, "hash_secret_raw", fail)
    with pytest.raises(KeyRefused, match="Memory allocation") as refused:
        holder.unwrap(stanza, context=CONTEXT)
    assert "MiB" in refused.value.do


def test_another_argon2id_derives_the_same_key() -> None:
    """`recover.py` has no argon2-cffi: it derives with the one in `cryptography`."""
    ours = hash_secret_raw(b"pass", b"s" * 32, 2, 64, 4, 32, Type.ID)
    theirs = Argon2id(salt=b"s" * 32, length=32, iterations=2, lanes=4, memory_cost=64)
    assert theirs.derive(b"pass") == ours


# --- key file ---------------------------------------------------------------------------------


def test_a_key_file_comes_back() -> None:
    text = generate_keyfile(lambda size: bytes(range(size)))
    assert text.startswith("# ") and text.endswith("\n")
    assert parse_keyfile(text.encode()) == bytes(range(32))


def test_two_key_files_differ() -> None:
    assert generate_keyfile() != generate_keyfile()


def test_blank_lines_comments_and_line_ends_do_not_matter() -> None:
    line = generate_keyfile(bytes).splitlines()[1].encode()
    assert parse_keyfile(b"\r\n# mine\r\n\r\n  " + line + b"  \r\n# end") == bytes(32)


def test_a_key_file_with_any_changed_letter_is_refused() -> None:
    line = generate_keyfile(lambda size: bytes(range(size))).splitlines()[1].encode()
    for at in range(len(line)):
        changed = bytearray(line)
        changed[at] ^= 1
        with pytest.raises(KeyRefused, match="not a Strongroom key file"):
            parse_keyfile(bytes(changed))
        with pytest.raises(KeyRefused, match="not a Strongroom key file"):
            parse_keyfile(line[:at])


@pytest.mark.parametrize(
    "data", [b"", b"# only\n", b"STRONGROOM-KEY-1", b"STRONGROOM-KEY-1 ", b"\0" * 100, b"x" * 9999]
)
def test_what_is_no_key_file_is_refused(data: bytes) -> None:
    with pytest.raises(KeyRefused, match="not a Strongroom key file"):
        parse_keyfile(data)


def test_a_file_with_two_keys_is_refused() -> None:
    with pytest.raises(KeyRefused, match="exactly one line"):
        parse_keyfile((generate_keyfile() + generate_keyfile()).encode())


def test_a_refused_key_file_is_not_repeated_in_the_error() -> None:
    line = generate_keyfile(lambda size: b"\x07" * size).splitlines()[1][:-2] + "AA"
    with pytest.raises(KeyRefused) as refused:
        parse_keyfile(line.encode())
    assert base64.b64encode(b"\x07" * 6).decode() not in str(refused.value)


def test_a_keyfile_secret_has_32_bytes() -> None:
    with pytest.raises(ValueError):
        KeyFileHolder(b"short")


# --- recovery code ----------------------------------------------------------------------------

LETTERS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
CODE = generate_recovery_code(lambda size: bytes(range(1, size + 1)))


@given(st.binary(min_size=20, max_size=20))
def test_any_recovery_code_comes_back(secret: bytes) -> None:
    code = generate_recovery_code(lambda _: secret)
    assert parse_recovery_code(code) == secret
    assert set(code) <= set(LETTERS) | {"-"}
    assert [len(group) for group in code.split("-")] == [5] * 8


def test_the_code_is_drawn_from_160_bits() -> None:
    asked: list[int] = []
    generate_recovery_code(lambda size: asked.append(size) or bytes(size))  # type: ignore[func-returns-value]
    assert asked == [20]
    assert generate_recovery_code() != generate_recovery_code()


def test_case_separators_and_look_alikes_do_not_matter() -> None:
    secret = parse_recovery_code(CODE)
    loose = CODE.lower().replace("-", "  ").replace("0", "o").replace("1", "l")
    assert parse_recovery_code(f"\n {loose}\t\n") == secret
    assert parse_recovery_code(CODE.replace("-", "–").replace("1", "i")) == secret
    assert parse_recovery_code(CODE.replace("-", "")) == secret


def test_every_wrong_letter_names_its_group() -> None:
    for at, letter in enumerate(CODE):
        if letter == "-":
            continue
        for wrong in set(LETTERS + "U") - {letter}:
            with pytest.raises(KeyRefused, match=f"mistyped: read again group {at // 6 + 1}\\."):
                parse_recovery_code(CODE[:at] + wrong + CODE[at + 1 :])


def test_every_swap_of_two_letters_of_a_group_is_found() -> None:
    code = generate_recovery_code(lambda size: bytes(range(97, 97 + size)))
    for group in range(8):
        for i in range(group * 6, group * 6 + 5):
            for j in range(i + 1, group * 6 + 5):
                letters = list(code)
                letters[i], letters[j] = letters[j], letters[i]
                if letters[i] != letters[j]:
                    with pytest.raises(KeyRefused, match=f"group {group + 1}"):
                        parse_recovery_code("".join(letters))


def test_every_swap_of_two_groups_is_found() -> None:
    for i in range(8):
        for j in range(i + 1, 8):
            groups = CODE.split("-")
            groups[i], groups[j] = groups[j], groups[i]
            with pytest.raises(KeyRefused, match=f"{i + 1}, {j + 1}"):
                parse_recovery_code("-".join(groups))


@pytest.mark.parametrize("text", ["", "-", CODE[:-1], CODE + "0", CODE[6:], "ß" * 40, "\0" * 40])
def test_a_code_of_another_length_is_refused(text: str) -> None:
    with pytest.raises(KeyRefused, match="mistyped"):
        parse_recovery_code(text)


def test_a_mistyped_code_is_not_repeated_in_the_error() -> None:
    with pytest.raises(KeyRefused) as refused:
        parse_recovery_code(CODE[:-1] + ("0" if CODE[-1] != "0" else "1"))
    assert not any(group in str(refused.value) for group in CODE.split("-"))


def test_a_recovery_secret_has_20_bytes() -> None:
    with pytest.raises(ValueError):
        RecoveryCodeHolder(b"short")


# --- recovery kit -----------------------------------------------------------------------------


def printed(**changed: object) -> str:
    parts: dict[str, object] = {
        "repository_id": "ab" * 16,
        "url": "/srv/back ups",
        "created": "2026-07-01T10:00:00Z",
        "recovery_code": CODE,
        "version": "0.1.0",
        "sources": {"stakazo-db": "postgresql:///restored", "memory-vault": "./restored vault"},
    } | changed
    return kit.recovery_kit(**parts)  # type: ignore[arg-type]


def test_the_kit_says_what_where_which_key_and_how() -> None:
    page = printed()
    for part in (
        "ab" * 16,
        "2026-07-01T10:00:00Z",
        "pip install 'strongroom>=0.1.0'",
        f"export STRONGROOM_RECOVERY_CODE={CODE}\n",
        "strongroom --repository '/srv/back ups' list\n",
        "--repository '/srv/back ups' restore stakazo-db --to postgresql:///restored\n",
        "--repository '/srv/back ups' restore memory-vault --to './restored vault'\n",
        "python3 recover.py --repository '/srv/back ups' --code-file code.txt list\n",
        "--code-file code.txt restore SNAPSHOT DEST\n",
    ):
        assert part in page


def test_the_printed_code_opens_what_was_wrapped_for_it() -> None:
    stanza = RecoveryCodeHolder(parse_recovery_code(CODE)).wrap(MATERIAL, context=CONTEXT)
    section = printed().split("RECOVERY CODE\n")[1]
    two_lines = "\n".join(section.strip().splitlines()[:2])
    holder = RecoveryCodeHolder(parse_recovery_code(two_lines))
    assert holder.unwrap(stanza, context=CONTEXT) == MATERIAL


def test_a_kit_before_any_source_shows_the_form_of_a_restore() -> None:
    assert "restore SOURCE --to DIR" in printed(sources=None)


def test_the_kit_fits_a_page_of_ordinary_width() -> None:
    page = printed(url="/var/lib/strongroom")
    assert len(page.splitlines()) <= 80
    assert max(map(len, page.splitlines())) <= 100
