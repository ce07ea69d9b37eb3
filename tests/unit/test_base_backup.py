"""The tar that a server sends: what it never writes is refused."""

from __future__ import annotations

import pytest

from strongroom.errors import Damaged
from strongroom.postgres.physical.base_backup import parse_member


def header(name: bytes = b"base/1/2", kind: bytes = b"0", size: bytes = b"00000000017 ") -> bytes:
    """A header as PostgreSQL writes it, its sum right."""
    block = bytearray(512)
    block[: len(name)] = name
    block[100:136] = b"0000600 " + b"0000101 " + b"0000102 " + size
    block[136:148] = b"14700000000 "
    block[156:157] = kind
    block[257:265] = b"ustar\x0000"
    block[148:156] = b" " * 8
    block[148:156] = b"%07o " % sum(block)
    return bytes(block)


def test_a_file_is_read() -> None:
    member = parse_member(header())
    assert (member.name, member.kind, member.size) == (b"base/1/2", b"0", 15)
    assert (member.mode, member.uid, member.gid) == (0o600, 0o101, 0o102)
    large = parse_member(header(size=b"\x80" + (9 << 30).to_bytes(11, "big")))
    assert large.size == 9 << 30


@pytest.mark.parametrize(
    "kind", [b"1", b"3", b"4", b"6", b"7", b"x", b"g", b"L", b"K", b"\0", b"S"]
)
def test_an_entry_of_a_kind_that_no_server_sends_is_refused(kind: bytes) -> None:
    with pytest.raises(Damaged, match="unknown kind"):
        parse_member(header(kind=kind))


@pytest.mark.parametrize("name", [b"/etc/passwd", b"../x", b"base/../../x", b"a/..", b""])
def test_a_name_that_leads_out_is_refused(name: bytes) -> None:
    with pytest.raises(Damaged):
        parse_member(header(name))


def test_a_header_that_was_damaged_is_refused() -> None:
    good = header()
    for at in (0, 100, 124, 148, 300):
        wrong = bytearray(good)
        wrong[at] ^= 1
        with pytest.raises(Damaged):
            parse_member(bytes(wrong))
