"""How a drill is carried out: every step ends in the report, none that was not reached is green."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from strongroom.errors import Damaged, Interrupted, Refused, StorageUnreachable, StrongroomError
from strongroom.operations.drill_database import installation_for
from strongroom.operations.drill_room import PREFIX, drill_room, require_room, sweep_left
from strongroom.operations.drill_vault import open_file
from strongroom.operations.drilling import Course, Said, Stage, carry_out, fresh, promised
from strongroom.postgres.embedded import find_server
from strongroom.progress import Silent
from strongroom.rules.drill import Step
from strongroom.rules.durations import Duration

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)


class Fake:
    """Stages that are given; remembers whether it was closed."""

    def __init__(self, *stages: Stage) -> None:
        self._stages, self.closed = stages, False

    def begin(self, room: str) -> None:
        pass

    def close(self) -> None:
        self.closed = True

    def stages(self) -> Sequence[Stage]:
        return self._stages


def says(*words: str | Said | BaseException) -> Callable[[], str | Said]:
    left = list(words)

    def act() -> str | Said:
        word = left.pop(0)
        if isinstance(word, BaseException):
            raise word
        return word

    return act


def drilled(*stages: Stage, rto: Duration | None = None) -> tuple[list[tuple[str, str]], Any]:
    ticks = iter(range(1000))
    told: list[Step] = []
    fake = Fake(*stages)
    done = carry_out(
        cast(Course, fake), "/nowhere", rto=rto, steady=lambda: float(next(ticks)),
        progress=Silent(), tell=told.append,
    )  # fmt: skip
    assert told == done.steps
    assert fake.closed
    return [(step.name, step.verdict) for step in done.steps], done


@pytest.mark.parametrize(
    ("fault", "verdict"),
    [
        (Damaged("x"), "red"),
        (StrongroomError("x"), "red"),
        (ValueError("x"), "red"),
        (Said("red", "x"), "red"),
        (StorageUnreachable("x"), "skipped"),
        (Refused("x"), "skipped"),
    ],
)
def test_after_a_restore_that_failed_nothing_is_green(fault: Any, verdict: str) -> None:
    steps, done = drilled(
        Stage("restore", says(fault), essential=True, awaited=True),
        Stage("rows", says("fine")),
        Stage("sql", None, "none"),
        rto=Duration(seconds=60),
    )
    assert steps == [
        ("restore", verdict), ("rows", "skipped"), ("sql", "skipped"), ("promise", "skipped"),
    ]  # fmt: skip
    assert done.verdict == ("red" if verdict == "red" else "incomplete")
    assert done.restore_ms is None
    assert "not reached" in done.steps[1].what


def test_the_time_of_the_restore_is_what_is_waited_for() -> None:
    steps, done = drilled(
        Stage("restore", says("a"), essential=True, awaited=True),
        Stage("rows", says(Said("red", "wrong"))),
        Stage("migrate", says("b"), awaited=True),
        rto=Duration(seconds=1),
    )
    assert done.restore_ms == 2000  # each look at the clock is a second
    assert steps[-1] == ("promise", "red")
    assert done.verdict == "red"
    assert done.total_ms > done.restore_ms


def test_a_signal_ends_it_and_everything_is_stopped() -> None:
    fake = Fake(Stage("restore", says(Interrupted("Stopped."))))
    with pytest.raises(Interrupted):
        carry_out(
            cast(Course, fake), "/", rto=None, steady=lambda: 0.0, progress=Silent(),
            tell=lambda step: None,
        )  # fmt: skip
    assert fake.closed


@pytest.mark.parametrize(
    ("ms", "rto", "verdict"),
    [
        (59_999, "60", "green"),
        (60_000, "60", "green"),
        (60_001, "60", "red"),
        (None, "60", "skipped"),
        (1, None, "skipped"),
    ],
)
def test_the_promise(ms: int | None, rto: str | None, verdict: str) -> None:
    step = promised(ms, None if rto is None else Duration(seconds=int(rto)))
    assert step.verdict == verdict
    assert step.demanded == (rto is not None)


def test_freshness_is_relative_to_the_moment_restored() -> None:
    day = Duration(seconds=86400)
    assert fresh(NOW - timedelta(days=1), NOW, day) == (
        "the newest is of 2026-11-24T12:00:00Z, 1 d 0 h before the moment restored; 1d is right"
    )
    old = fresh(NOW - timedelta(days=1, seconds=1), NOW, day)
    assert isinstance(old, Said) and old.verdict == "red"
    assert "after the moment" in str(fresh(NOW + timedelta(seconds=3), NOW, day))
    none = fresh(None, NOW, None)
    assert isinstance(none, Said) and none.verdict == "red"


def test_a_room_is_gone_at_the_end_and_a_living_one_is_let_be(tmp_path: Path) -> None:
    with drill_room(str(tmp_path)) as room:
        (Path(room) / "data").mkdir()
        assert sweep_left(str(tmp_path)) == []
    assert os.listdir(tmp_path) == []


def test_what_dead_drills_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    dead, fresh_one, other, link = (tmp_path / name for name in (
        f"{PREFIX}dead", f"{PREFIX}fresh", "other", f"{PREFIX}link",
    ))  # fmt: skip
    for path in (dead, fresh_one, other):
        path.mkdir()
    link.symlink_to(other)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (dead / "owner").write_text(f'{{"pid": {ended.pid}, "started": "1", "boot": "x"}}')
    assert sweep_left(str(tmp_path)) == [str(dead)]
    # Another process has that number now, or the machine was started again.
    dead.mkdir()
    (dead / "owner").write_text(f'{{"pid": {os.getpid()}, "started": "1", "boot": "x"}}')
    assert sweep_left(str(tmp_path)) == [str(dead)]
    assert sorted(os.listdir(tmp_path)) == sorted([fresh_one.name, "other", link.name])
    os.utime(fresh_one, (1, 1))
    assert sweep_left(str(tmp_path)) == [str(fresh_one)]


def test_without_room_nothing_is_begun(tmp_path: Path) -> None:
    assert require_room(str(tmp_path), 1) > 1
    with pytest.raises(Refused, match="the drill restores up to"):
        require_room(str(tmp_path), 1 << 60)
    with pytest.raises(Refused, match="cannot be made in /nowhere"):
        require_room("/nowhere/at/all", 1)
    with pytest.raises(Refused, match="cannot make its directory"), drill_room("/nowhere/at/all"):
        pass


def test_a_dump_goes_into_a_newer_major_if_need_be_and_never_into_an_older_one() -> None:
    try:
        newest = find_server()
    except StrongroomError as missing:
        pytest.skip(f"no server can be had: {missing.what}")
    assert installation_for(newest.version[0]) == (True, find_server(newest.version[0]))
    assert installation_for(9) == (False, newest)
    assert installation_for(99) == (False, None)


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("a.json", b'{"a": 1}', b'{"a": 1'),
        ("a.jsonl", b'{"a": 1}\n\n{"b": 2}\n', b'{"a": 1}\nx\n'),
        ("a.csv", "ä;1\n".encode(), b"\xff\xfe"),
        ("a.parquet", b"PAR1....PAR1", b"PAR1...."),
        ("A.PNG", b"\x89PNG\r\n\x1a\n....", b"GIF89a"),
        ("a.gz", gzip.compress(b"a"), b"\x1f\x8b\x08\0\0"),
        ("a.zip", b"PK\x05\x06" + bytes(18), b"PK\x05\x06"),
        ("a.tar", bytes(10240), b"x" * 600),
        ("a.sqlite", b"", b"SQLite format 3\0" + b"x" * 200),
        ("a.bin", b"\xff", None),
    ],
)
def test_files_are_opened_as_what_their_names_say(
    tmp_path: Path, name: str, good: bytes, bad: bytes | None
) -> None:
    path = tmp_path / name
    path.write_bytes(good)
    assert open_file(os.fsencode(path)) == ""
    if bad is not None:
        path.write_bytes(bad)
        assert open_file(os.fsencode(path)) != ""
