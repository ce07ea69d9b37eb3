"""Which client program may do what. PURE: versions are given, nothing is run."""

from __future__ import annotations

import pytest

from strongroom.errors import Refused
from strongroom.postgres.clients import Clients, faults, vulnerabilities
from strongroom.postgres.embedded import Installation, installations


def clients(*versions: str) -> Clients:
    return Clients(
        tuple(
            Installation((int(a), int(b)), f"/pg/{a}.{b}")
            for a, b in (version.split(".") for version in versions)
        )
    )


def test_the_same_major_first_then_the_next_newer_never_older() -> None:
    have = clients("15.20", "17.11", "18.6")
    assert have.choose("dump", server=15).version == (15, 20)
    assert have.choose("dump", server=16).version == (17, 11)
    assert have.choose("dump", server=18).program == "/pg/18.6/pg_dump"
    with pytest.raises(Refused, match=r"version 19 or newer.*15\.20, 17\.11, 18\.6"):
        have.choose("dump", server=19)


def test_the_newest_of_two_minors_is_taken() -> None:
    assert clients("18.6", "18.7").choose("restore", server=18).version == (18, 7)


def test_pg_restore_is_not_older_than_the_pg_dump_that_wrote() -> None:
    have = clients("15.20", "18.6")
    assert have.choose("restore", server=15, archive=15).version == (15, 20)
    assert have.choose("restore", server=15, archive=18).version == (18, 6)


def test_a_vulnerable_version_is_named_and_not_used_for_what_it_touches() -> None:
    have = clients("16.14", "18.6")
    assert have.choose("dump", server=16).version == (18, 6)
    assert have.choose("restore", server=16).version == (16, 14)
    assert have.passed_over("dump", server=16) == ["pg_dump 16.14: CVE-2026-19385"]
    with pytest.raises(Refused, match=r"pg_dump 18\.4: CVE-2026-19385"):
        clients("18.4").choose("dump", server=16)


@pytest.mark.parametrize(
    ("version", "operation", "touched"),
    [
        ((17, 5), "restore", {"CVE-2025-8715", "CVE-2025-12818"}),
        ((17, 6), "restore", {"CVE-2025-12818"}),
        ((17, 10), "plain", {"CVE-2026-18408", "CVE-2026-6464"}),
        ((17, 10), "restore", set()),
        ((17, 10), "dump", {"CVE-2026-19385"}),
        ((18, 3), "physical", {"CVE-2026-6475"}),
        ((15, 18), "physical", set()),
        ((18, 6), "dump", set()),
        ((19, 0), "dump", set()),
        ((12, 22), "dump", {"CVE-2025-1094", "CVE-2025-12818", "CVE-2026-6477", "CVE-2026-19385"}),
    ],
)
def test_the_table(version: tuple[int, int], operation: str, touched: set[str]) -> None:
    assert {fault.id for fault in faults(version, operation)} == touched  # type: ignore[arg-type]


def test_every_row_says_why() -> None:
    for fault in vulnerabilities():
        assert fault.why
        assert fault.operations
        assert fault.id.startswith("CVE-")


def test_what_this_machine_has_is_found_once() -> None:
    found = installations("pg_dump")
    assert len({item.bindir for item in found}) == len(found)
    assert found == sorted(found)
