"""Preconditions: facts in, a verdict with its cause and what to do out."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from strongroom.rules import preconditions as rules
from strongroom.rules.preconditions import (
    Connection,
    Holder,
    JobState,
    Server,
    SlotFacts,
    Unscheduled,
)

NOW = datetime(2026, 11, 26, 9, tzinfo=UTC)
GIB = 1 << 30


@pytest.mark.parametrize(
    ("free", "total", "verdict"),
    [
        (None, None, "ok"),
        (100 * GIB, None, "ok"),
        (100 * GIB, 200 * GIB, "ok"),
        (100 * GIB, 501 * GIB, "warning"),  # less than a fifth
        (4 * GIB, None, "warning"),
        (100 << 20, 1000 * GIB, "failed"),
    ],
)
def test_room(free: int | None, total: int | None, verdict: str) -> None:
    assert rules.room("disk", free, total).verdict == verdict


@pytest.mark.parametrize(
    ("apart", "doubt", "verdict", "word"),
    [
        (None, 0, "ok", "tells no time"),
        (59.0, 0, "ok", "agree"),
        (-61.0, 0, "warning", "ahead of"),
        (61.0, 0, "warning", "behind"),
        (61.0, 5.0, "ok", "agree"),  # as much may be the way there
        (-901.0, 0, "failed", "ahead of"),
    ],
)
def test_clocks(apart: float | None, doubt: float, verdict: str, word: str) -> None:
    found = rules.clock("clock", apart, "the server", doubt=doubt)
    assert (found.verdict, word in found.what) == (verdict, True)


def test_storage() -> None:
    every = {"put_if_absent": True, "read_after_write": True, "list_sorted": True}
    none = dict.fromkeys(every, False)
    assert rules.capabilities(every, every, probed=True).verdict == "ok"
    assert rules.capabilities(every | {"list_sorted": False}, none, probed=True).verdict == "ok"
    lost = rules.capabilities(every | {"put_if_absent": False}, every, probed=True)
    assert lost.verdict == "failed" and "creates a name once" in lost.what
    assert rules.capabilities(none, none, probed=False).verdict == "warning"
    assert rules.versions("Enabled", "governance for 30 days", kind="s3").verdict == "ok"
    assert rules.versions("", "", kind="s3").verdict == "warning"
    assert rules.versions("Suspended", "", kind="s3").verdict == "warning"
    assert rules.versions(None, None, kind="s3", why="no boto3").verdict == "unknown"


@pytest.mark.parametrize(
    ("url", "near", "version", "verdict"),
    [
        ("http://127.0.0.1:9000", True, None, "ok"),
        ("http://store:9000", False, None, "failed"),
        ("https://store", False, "TLSv1.3", "ok"),
        ("https://store", False, "TLSv1.2", "failed"),
        ("https://store", False, None, "unknown"),
    ],
)
def test_the_way_to_a_store(url: str, near: bool, version: str | None, verdict: str) -> None:
    assert rules.endpoint(url, near=near, version=version).verdict == verdict


PASSPHRASE = Holder("passphrase", "passphrase", "reader", NOW - timedelta(days=30))
KIT = Holder("recovery-kit", "recovery-code", "reader", NOW - timedelta(days=20))


@pytest.mark.parametrize(
    ("slots", "verdict"),
    [
        ([PASSPHRASE, KIT], "ok"),
        ([PASSPHRASE], "failed"),
        ([], "failed"),
        ([PASSPHRASE, replace(KIT, role="writer")], "failed"),
        ([PASSPHRASE, replace(KIT, kind="keyfile")], "warning"),
        ([PASSPHRASE, KIT, replace(KIT, damaged=True, kind="", created=None)], "failed"),
    ],
)
def test_holders(slots: list[Holder], verdict: str) -> None:
    found = rules.holders(slots)
    assert found.verdict == verdict and (verdict == "ok") == (not found.do)


def test_the_kit_and_ages_of_keys() -> None:
    slots = [PASSPHRASE, KIT]
    days = timedelta(days=1)
    assert rules.kit([PASSPHRASE], None, now=NOW) is None
    for tried, verdict in (
        (None, "warning"),
        (NOW - 21 * days, "warning"),  # it was another kit then
        (NOW - 19 * days, "ok"),
    ):
        found = rules.kit(slots, tried, now=NOW)
        assert found is not None and found.verdict == verdict
    later = rules.kit(slots, NOW - 19 * days, now=NOW + 400 * days)
    assert later is not None and later.verdict == "warning"
    assert rules.key_ages(slots, now=NOW).verdict == "ok"
    old = rules.key_ages(slots, now=NOW, limit=25 * days)
    assert old.verdict == "warning" and "passphrase" in old.what and "recovery-kit" not in old.what
    assert rules.key_ages([], now=NOW).verdict == "unknown"


def test_schedule_and_channels() -> None:
    due = NOW - timedelta(minutes=30)
    job = JobState("backup.db", "due", due, NOW - timedelta(days=1), "host-a")
    never, lately = Unscheduled("db"), Unscheduled("vault", NOW - timedelta(hours=30))
    assert rules.schedule([], [never], now=NOW).verdict == "warning"
    assert rules.schedule([], [lately], now=NOW).verdict == "ok", "a crontab of one's own"
    monthly = replace(lately, last=NOW - timedelta(days=30), rpo=timedelta(days=31))
    assert rules.schedule([], [lately, monthly], now=NOW).verdict == "ok"
    assert rules.schedule([], [replace(monthly, rpo=None)], now=NOW).verdict == "warning"
    assert rules.schedule([job], [], now=NOW).verdict == "ok"
    late = rules.schedule([replace(job, due=NOW - timedelta(hours=2))], [], now=NOW)
    assert late.verdict == "failed" and "backup.db" in late.what and "host-a" in late.what
    assert rules.schedule([replace(job, state="missed")], [], now=NOW).verdict == "failed"
    running = replace(job, state="running", due=NOW - timedelta(hours=2))
    assert rules.schedule([running], [], now=NOW).verdict == "ok"
    one_without = rules.schedule([job], [never, lately], now=NOW)
    assert one_without.verdict == "warning" and one_without.what.endswith("of it: db")
    assert "no job ever ran" in rules.schedule([replace(job, last=None, host="")], [], now=NOW).what
    assert rules.channels([], [], {}, now=NOW).verdict == "warning"
    assert rules.channels(["mail"], [], {}, now=NOW).verdict == "warning"
    silent = rules.channels(["mail"], [], {"mail": NOW}, now=NOW)
    assert silent.verdict == "ok" and "dead man" in silent.what
    assert "dead man" not in rules.channels(["mail"], ["ping"], {"mail": NOW}, now=NOW).what
    old = rules.channels(["mail"], [], {"mail": NOW - timedelta(days=100)}, now=NOW)
    assert old.verdict == "warning"


def test_log_and_mounting() -> None:
    assert rules.audit(7, [], []).verdict == "ok"
    assert rules.audit(7, ["a: cut"], ["away"]).verdict == "failed"
    assert rules.audit(7, [], ["away"]).verdict == "unknown"
    assert rules.mounting(None).verdict == "ok"
    assert rules.mounting("/dev/fuse: no such file").verdict == "warning"


# -- a server ----------------------------------------------------------------------------------

GOOD = {
    "archive_command": "strongroom-wal push %p",
    "data_checksums": "on",
    "fsync": "on",
    "full_page_writes": "on",
    "max_replication_slots": "10",
    "max_wal_senders": "10",
    "wal_level": "replica",
}
SERVER = Server("16.4", 16, False, GOOD)


def server(**settings: str) -> Server:
    return replace(SERVER, settings=GOOD | settings)


@pytest.mark.parametrize(
    ("settings", "failed", "warned"),
    [
        ({}, set(), set()),
        ({"fsync": "off"}, {"db fsync"}, set()),
        ({"full_page_writes": "off", "data_checksums": "off"}, {"db full_page_writes"}, {"db checksums"}),
        ({"zero_damaged_pages": "on"}, {"db zero_damaged_pages"}, set()),
    ],
)  # fmt: skip
def test_durability(settings: dict[str, str], failed: set[str], warned: set[str]) -> None:
    found = rules.durability("db", server(**settings))
    assert {one.item for one in found if one.verdict == "failed"} == failed
    assert {one.item for one in found if one.verdict == "warning"} == warned
    assert all(one.do for one in found if one.verdict != "ok")
    assert rules.durability("db", Server("16.4", 16, False, {}))[0].verdict == "unknown"


@pytest.mark.parametrize(
    ("settings", "senders", "slots", "method", "receives", "archives", "verdicts"),
    [
        ({}, 0, 0, "local", False, True, ["ok"]),
        ({"wal_level": "minimal", "max_wal_senders": "0"}, 0, 0, "logical", False, False, []),
        ({"wal_level": "minimal"}, 0, 0, "local", False, True, ["failed"]),
        ({"max_wal_senders": "0"}, 0, 0, "stream", False, True, ["failed"]),
        ({"max_wal_senders": "3"}, 3, 0, "stream", False, True, ["warning"]),
        ({"max_wal_senders": "3"}, 2, 0, "stream", True, True, ["warning"]),  # a backup beside a receiver
        ({"max_replication_slots": "0"}, 0, 0, "local", False, True, ["ok"]),  # archiving keeps the log
        ({"max_replication_slots": "0"}, 0, 0, "local", False, False, ["warning"]),
        ({"max_replication_slots": "1"}, 0, 1, "logical", True, False, ["ok"]),  # its own slot
        ({"max_replication_slots": "0"}, 0, 0, "logical", True, False, ["failed"]),
    ],
)  # fmt: skip
def test_replication(
    settings: dict[str, str],
    senders: int,
    slots: int,
    method: rules.Method,
    receives: bool,
    archives: bool,
    verdicts: list[str],
) -> None:
    asked = replace(server(**settings), senders=senders, slots=slots)
    found = rules.replication("db", asked, method, receives=receives, archives=archives)
    assert [one.verdict for one in found] == verdicts


SLOT = SlotFacts("strongroom_db", True, "reserved", 1 << 20, 10 * GIB)


@pytest.mark.parametrize(
    ("changed", "verdict", "word"),
    [
        ({}, "ok", "is read"),
        ({"status": "lost"}, "failed", "is lost"),
        ({"status": "unreserved"}, "failed", "next checkpoint"),
        ({"active": False}, "warning", "not read by anybody"),
        ({"active": False, "trouble": "nobody reads it"}, "warning", "nobody reads it"),
        ({"limit": None}, "warning", "fills the server's disk"),
        ({"timeout": "600"}, "warning", "idle_replication_slot_timeout"),
    ],
)
def test_slots(changed: dict[str, object], verdict: str, word: str) -> None:
    found = rules.slot("db", replace(SLOT, **changed), source="db", wanted=False)  # type: ignore[arg-type]
    assert found is not None and (found.verdict, word in found.what) == (verdict, True)


def test_a_slot_that_is_not_there() -> None:
    assert rules.slot("db", None, source="db", wanted=False) is None
    gone = rules.slot("db", None, source="db", wanted=True)
    assert gone is not None and gone.verdict == "failed" and "--create-slot" in gone.do


FULL = Connection(False, "TLSv1.3", "TLS_AES_256_GCM_SHA384", "verify-full", "TLSv1.3")


@pytest.mark.parametrize(
    ("connection", "verdict", "word"),
    [
        (FULL, "ok", "demanded"),
        (replace(FULL, least="TLSv1.2"), "warning", "nothing demands"),
        (replace(FULL, least="TLSv1.2", server_least="TLSv1.3"), "ok", "demanded"),
        (replace(FULL, version="TLSv1.2"), "failed", "TLS 1.3 is promised"),
        (replace(FULL, mode="require"), "failed", "sslmode is require"),
        (replace(FULL, mode="verify-ca"), "failed", "sslmode is verify-ca"),
        (replace(FULL, version=None), "failed", "not encrypted"),
        (Connection(True, None), "ok", "does not leave"),
        (Connection(True, "TLSv1.2", mode="prefer"), "ok", "does not leave"),
    ],
)
def test_the_way_to_a_server(connection: Connection, verdict: str, word: str) -> None:
    found = rules.transfer("db", connection)
    assert (found.verdict, word in found.what) == (verdict, True)
    assert (verdict == "ok") == (not found.do)


def test_tools_rights_and_what_is_in_a_database() -> None:
    assert rules.tools("db", 16, [(18, 6)], ["16.1 (CVE-1)"]).verdict == "ok"
    assert "CVE-1" in rules.tools("db", 16, [(18, 6)], ["16.1 (CVE-1)"]).what
    old = rules.tools("db", 19, [(18, 6)], [])
    assert old.verdict == "failed" and "too old" in old.what
    assert rules.tools("db", None, [], []).verdict == "failed"
    assert rules.rights("db", [], [], [], source="db").verdict == "ok"
    assert rules.rights("db", ["x"], ["y"], [], source="db").verdict == "failed"
    assert rules.rights("db", [], ["y"], [], source="db").verdict == "warning"
    assert rules.rights("db", [], [], ["other"], source="db").verdict == "unknown"
    assert rules.collations("db", []).verdict == "ok"
    assert rules.collations("db", ["database x (2.31, now 2.36)"]).verdict == "warning"
    assert rules.extensions("db", [], ["pg_trgm 1.6"]).verdict == "ok"
    assert rules.extensions("db", ["postgis"], []).verdict == "warning"
