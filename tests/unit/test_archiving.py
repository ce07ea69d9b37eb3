"""What archives, and why WAL was not archived: facts in, a verdict with its cause and what to do out."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from strongroom.rules import archiving as rules
from strongroom.rules.archiving import Archiving, Attempt, read_archive_command

NOW = datetime(2026, 11, 26, 9, tzinfo=UTC)

PUSH = "strongroom-wal push --config /etc/strongroom/strongroom.toml --source db %p"


@pytest.mark.parametrize(
    ("text", "ours", "simple"),
    [
        (PUSH, True, True),
        ("/opt/a b/x strongroom wal push", False, False),
        ("'/opt/a b/strongroom' wal push \"%p\"", True, True),
        ("STRONGROOM_CONFIG=/a strongroom wal push %p", True, True),
        ("/usr/bin/python3 -m strongroom wal push %p", True, True),
        ("strongroom --config /a wal push %p", True, True),
        ("test -f x && strongroom-wal push %p", True, False),
        (f"{PUSH} || true", True, False),
        (f"{PUSH} 2>/dev/null", True, False),
        (f"{PUSH} | tee log", True, False),
        ("strongroom-wal push $WHERE %p", True, False),
        ("strongroom wal fetch %f %p", False, False),
        ("cp %p /archive/%f", False, False),
        ("strongroom-wal push 'unended", False, False),
        ("", False, False),
    ],
)
def test_commands_are_taken_apart(text: str, ours: bool, simple: bool) -> None:
    found = read_archive_command(text)
    assert (found.ours, found.simple) == (ours, simple)


def test_a_command_on_a_file() -> None:
    found = read_archive_command("A=b 'strong room/strongroom-wal' push --source=db '%p' 100%%p")
    assert found.given == {"A": "b"} and found.source == "db"
    assert found.on("pg_wal/0") == [
        "strong room/strongroom-wal", "push", "--source=db", "pg_wal/0", "100%p",
    ]  # fmt: skip


def archiving(command: str = PUSH, **changed: object) -> Archiving:
    return replace(
        Archiving("db", "on", read_archive_command(command), timeout=60, physical=("db",)),
        **changed,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("facts", "verdict", "word"),
    [
        (archiving(), "ok", "archive_mode is on"),
        (archiving(mode="off"), "warning", "archive_mode is off"),
        (archiving(mode="off", receives=True), "ok", "received"),
        (archiving(library="basic_archive"), "warning", "archive_library"),
        (archiving(""), "failed", "is empty"),
        (archiving("  "), "failed", "is empty"),
        (archiving("/bin/true"), "failed", "archives nothing"),
        (archiving("exit 0"), "failed", "archives nothing"),
        (archiving("cd ."), "failed", "archives nothing"),
        (archiving("cp %p /archive/%f"), "warning", "is not `strongroom wal push`"),
        (archiving(f"{PUSH} || true"), "failed", "hides the status"),
        (archiving(f"{PUSH}; exit 0"), "failed", "hides the status"),
        (archiving(f"{PUSH} &"), "failed", "hides the status"),
        (archiving(f"{PUSH} | logger"), "failed", "hides the status"),
        (archiving(f"mountpoint -q /a && {PUSH}"), "ok", "archive_mode"),
        (archiving(f"{PUSH} >> /var/log/wal"), "ok", "archive_mode"),
        (archiving("strongroom-wal push --source db %f"), "failed", "name alone"),
        (archiving("strongroom-wal push --source db"), "failed", "no file is named"),
        (archiving("strongroom-wal push --source db %%p"), "failed", "has no %p"),
        (archiving(f"{PUSH} --accept-system"), "warning", "--accept-system"),
        (archiving("strongroom-wal push %p"), "ok", "archive_mode"),
        (archiving("strongroom-wal push %p", physical=("db", "other")), "failed", "no --source"),
        (archiving("strongroom-wal push --source other %p"), "failed", "as source other"),
        (archiving("strongroom --config /a wal push --source db %p"), "warning", "in front of"),
        (archiving(timeout=0), "warning", "archive_timeout is 0"),
        (archiving(timeout=0, receives=True), "ok", "archive_mode"),
    ],
)
def test_archive_command(facts: Archiving, verdict: str, word: str) -> None:
    found = rules.archive_command("db", facts)
    assert (found.verdict, word in found.what) == (verdict, True), found
    assert (verdict == "ok") == (not found.do)


FAILING = {
    "failed": 7,
    "last_failed": "000000010000000000000003",
    "last_failed_time": NOW,
    "archived": 2,
    "last_archived": "000000010000000000000002",
    "last_archived_time": NOW - timedelta(minutes=5),
}
REFUSED = Attempt(
    4,
    "The source db is system 1; this server is system 2.",
    "Run this once.",
    "refused",
    "postgres",
)


@pytest.mark.parametrize(
    ("changed", "verdict", "word", "do"),
    [
        ({}, "ok", "nothing was archived yet", ""),
        ({"tried": Attempt(0)}, "ok", "the command works", ""),
        ({"tried": REFUSED}, "failed", "the next segment would not be archived", "Run this once"),
        ({"ready": 40}, "warning", "40 files wait", "wal daemon"),
        ({"standby": True}, "ok", "a standby", ""),
        (FAILING | {"last_archived_time": NOW + timedelta(1)}, "ok", "7 failures before", ""),
        (
            FAILING | {"ready": 3, "tried": REFUSED},
            "failed",
            "The reason: The source db is system 1",
            "once",
        ),
        (
            FAILING | {"tried": Attempt(0, account="postgres")},
            "warning",
            "works now as postgres",
            "log",
        ),
        (
            FAILING | {"tried": Attempt(127, "strongroom-wal: not found", account="postgres")},
            "failed",
            "there is no strongroom-wal on the server's PATH for postgres",
            "whole path",
        ),
        (
            FAILING | {"tried": Attempt(126, "Permission denied", account="postgres")},
            "failed",
            "cannot be started: Permission denied",
            "may start it",
        ),
        (
            FAILING | {"tried": Attempt(1, "", account="postgres")},
            "failed",
            "it said nothing (status 1",
            "Mend",
        ),
        (
            FAILING | {"conflict": "host-a at 2026"},
            "failed",
            "two servers write the same timeline",
            "second server",
        ),
        (
            FAILING | {"system": "2", "systems": ("1",)},
            "failed",
            "the server is system 2",
            "--accept-system",
        ),
        (
            FAILING | {"system": "2", "systems": ("1", "2"), "not_tried": "far away"},
            "failed",
            "cannot be known from here: far away",
            "on the server's host",
        ),
        (FAILING | {"stored": True}, "failed", "is in the repository by now", "Wait a minute"),
    ],
)
def test_why_wal_was_not_archived(
    changed: dict[str, object], verdict: str, word: str, do: str
) -> None:
    found = rules.archiver("db", archiving(**changed))
    assert found is not None
    assert (found.verdict, word in found.what, do in found.do) == (verdict, True, True), found
    assert (verdict == "failed" and bool(changed.get("failed"))) == (
        "WAL was not archived" in found.what and verdict == "failed"
    )


def test_nothing_is_said_of_an_archiver_that_is_not_ours() -> None:
    for facts in (archiving(mode="off"), archiving("cp %p /a"), archiving(library="other")):
        assert rules.archiver("db", facts) is None
